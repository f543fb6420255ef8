"""Frozen tables: look-up, top-K, growth, and files to and from them."""
