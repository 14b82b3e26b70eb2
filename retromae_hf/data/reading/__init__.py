"""Texts as they lie on disk, on the Hub or in a package: which files, which rows, which columns."""
