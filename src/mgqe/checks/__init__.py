"""What users pass in, checked and made plain: numbers, ids, and tensors that outlive inference mode."""
