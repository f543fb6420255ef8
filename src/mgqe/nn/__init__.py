"""What trains: the layers, what they are made of, their optimiser, and how they are frozen."""
