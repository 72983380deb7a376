"""Flower behind a password, with the sessions in it: one window for tasks, workers, queues and replication."""
