"""Runs: pretraining, fine-tuning, and what watches over them."""
