"""How bytes of codes and codebooks are laid out, and where the subspaces of rows lie in them."""
