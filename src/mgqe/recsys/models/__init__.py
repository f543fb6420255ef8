"""Recommender models in plain PyTorch over any embedding."""
