"""Tests with damaged files and killed processes; docs/reliability.md reports the results."""
