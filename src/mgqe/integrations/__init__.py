"""Doors for other packages' habits, each of which imports its package when it is itself imported."""
