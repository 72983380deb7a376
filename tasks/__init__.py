"""Each step of replication as a Celery task: unpack, call replication/, report."""
