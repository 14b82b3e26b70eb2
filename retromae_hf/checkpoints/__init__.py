"""What a folder or a name on the Hub holds, opened; and what is written in a layout of somebody else's."""
