"""Matrices of vectors, with the ids of their rows, from the files in which people keep them."""
