"""Rows <-> codes, without a table or a module: tiers, capacities, packing, the papers' equations, sizes."""
