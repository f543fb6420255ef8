"""Killed processes: every writer is killed at random moments, many times, and what is on the disk is looked at."""
