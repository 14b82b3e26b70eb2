"""What fine-tuning learns from: rows of other people's files, pairs made of text, and negatives."""

PAIRS = ("first-sentence", "title", "crop")
"""Kinds of pairs that text without queries yields, see `text_pairs`."""
