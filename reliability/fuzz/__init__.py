"""Damaged files: every kind of artefact is changed at random, loaded, and used."""
