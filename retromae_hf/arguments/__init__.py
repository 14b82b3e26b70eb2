"""What a user may say to the commands: light to import, for their help."""
