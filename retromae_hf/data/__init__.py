"""Text into passages into batches."""
