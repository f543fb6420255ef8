"""Killed processes: writers are killed at random moments, and the files on the disk are checked."""
