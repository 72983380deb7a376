"""Each step of replication as a Celery task. Thin: unpack, call replication/, report."""
