"""The two ways to choose codes, VQ and SX, as modules, and their gradients."""
