"""Logs as people have them, text and Parquet: their columns read lazily, every fault with its file and line."""
