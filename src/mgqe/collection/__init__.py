"""A table with the ids of its rows: one folder, asked and answered in the user's own ids."""

from mgqe.collection.collection import Collection, Hits

__all__ = ["Collection", "Hits"]
