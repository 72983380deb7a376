"""How a change is replicated. Knows nothing of Celery, Redis or the command line."""
