"""Files of interactions -> rows of integers, split into a training, a validation and a test part."""
