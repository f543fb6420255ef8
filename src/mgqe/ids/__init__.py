"""Logs larger than memory: their ids are counted, and numbered by frequency in an id map."""

from mgqe.ids.idmap import IdMap

__all__ = ["IdMap"]
