"""Checks and conversions of what users pass: numbers, ids, and tensors made in inference mode."""
