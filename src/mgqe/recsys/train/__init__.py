"""One run from a data set to files: its configuration, its loop, its checkpoints."""
