"""The method, and nothing else. A saved checkpoint takes these files along, so they import one another alone."""
