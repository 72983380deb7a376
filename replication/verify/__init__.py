"""Comparing what the primary and the secondary really hold: rows, units of a walk, second looks, the selection."""
