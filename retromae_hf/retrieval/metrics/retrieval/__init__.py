"""A folder that `evaluate.load` takes: its script has the folder's name."""
