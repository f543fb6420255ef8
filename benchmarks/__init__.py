"""Scripts that measure: speed, quality, and the pages that quote them. README.md lists them."""
