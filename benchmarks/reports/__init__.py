"""Results -> tables and pictures in docs."""
