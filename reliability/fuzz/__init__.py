"""Damaged files: artefacts of every kind are damaged at random, loaded and used."""
