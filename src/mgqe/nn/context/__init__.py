"""What surrounds a training pass: torch.compile, autocast, DistributedDataParallel, the optimiser."""
