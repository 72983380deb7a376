"""Turning replication round after a promotion: what both sides agree on, and what either has changed since."""
