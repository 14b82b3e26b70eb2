"""The method measured against other objectives."""
