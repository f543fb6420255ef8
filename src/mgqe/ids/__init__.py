"""Ids of any type <-> rows in the order of frequency, counted from logs that do not fit memory."""

from mgqe.ids.idmap import IdMap

__all__ = ["IdMap"]
