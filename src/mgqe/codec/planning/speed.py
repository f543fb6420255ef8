"""What a look-up of a mixed table with column scales is expected to take: to compare shapes with each other."""

from __future__ import annotations

from mgqe.codec.capacity import Capacity

# Nanoseconds per row on a server core with AVX-512 VBMI and VNNI, from a line through measured shapes.
ROW, LEVELS, COPY, COORDINATE = 8.0, 0.08, 0.85, 0.31
COPIED = 8  # coordinates that are copied at once


def lookup_cost(capacity: Capacity, turned: bool = True) -> float:
    """Nanoseconds per row, about: to unpack and gather the codes, and to multiply coordinates that are turned."""
    multiplied = ROW + COORDINATE * capacity.num_coordinates * turned
    if capacity.has_levels:
        return multiplied + LEVELS * len(capacity.widths)
    return multiplied + COPY * sum(-(-width // COPIED) for width in capacity.widths)
