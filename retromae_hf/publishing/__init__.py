"""What is handed over, and what is said of it: exports, records and cards."""
