"""Logs of clicks, one row per advertisement that was shown: read, encoded into Parquet, and streamed from there."""
