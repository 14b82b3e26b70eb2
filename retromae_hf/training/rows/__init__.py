"""What fine-tuning learns from: rows of other people's files and negatives."""
