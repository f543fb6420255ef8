"""Pictures of tables, for notebooks and files: bits, use of codes, errors by frequency, size against quality."""
