"""Damaged files and killed processes: what docs/reliability.md reports, as commands."""
