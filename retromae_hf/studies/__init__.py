"""The method itself, measured: against other objectives, and in seconds and bytes."""
