"""``python -m mgqe.cli``."""

from mgqe.cli import main

main()
