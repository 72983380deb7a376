"""Which step of replication, when, and by whom."""
