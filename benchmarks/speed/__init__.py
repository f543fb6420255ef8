"""How long things take, against a peer in the same run."""
