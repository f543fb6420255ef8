"""Files that are there whole or not at all: atomic writing, locks, checksums, the container of every artefact."""
