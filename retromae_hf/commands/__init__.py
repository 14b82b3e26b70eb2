"""The commands, a file each."""

import os

# Progress bars, those of the libraries too, appear for work that takes longer than this. tqdm reads it when imported.
os.environ.setdefault("TQDM_DELAY", "2")
