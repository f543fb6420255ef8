"""Logs in text and Parquet files: columns are read lazily, and every error names the file and the line."""
