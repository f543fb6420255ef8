"""How well models and tables do, on data sets."""
