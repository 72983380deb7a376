"""Comparisons of the two ends: what is to be compared, what came of it, who does it, and the proof that is kept."""
