"""Files: whole writing, locks, checksums, and the container of every file that this package writes."""
