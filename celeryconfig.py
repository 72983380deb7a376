"""Celery's settings, each with its reason. Loaded by every worker, beat and Flower of the fleet."""

from __future__ import annotations

from replication.server_settings import ServerSettings
from tasks import servers

# Where the queues are, and the results. `seamark run` and `monitor` say it to their own workers; others are told by
# the environment: docs/operations.md, "Brokers".
SERVERS = servers.chosen or servers.resolve(
    servers.from_environment(ServerSettings(broker="redis://127.0.0.1:6379/0"))
)
_servers = SERVERS.celery_settings()
broker_url = _servers["broker_url"]
broker_use_ssl = _servers["broker_use_ssl"]
broker_transport_options = _servers["broker_transport_options"]
task_default_queue_type = _servers["task_default_queue_type"]
task_create_missing_queue_type = _servers["task_create_missing_queue_type"]
result_backend = _servers["result_backend"]
redis_backend_use_ssl = _servers["redis_backend_use_ssl"]
result_backend_transport_options = _servers["result_backend_transport_options"]

imports = (
    "tasks.entry",
    "tasks.metadata",
    "tasks.data",
    "tasks.mark",
    "tasks.crawl",
    "tasks.verify",
    "scheduler.jobs",
)

# JSON only, signed where there is a key (tasks/signing.py): it never runs code when it is loaded.
task_serializer = _servers["task_serializer"]
result_serializer = _servers["result_serializer"]
event_serializer = _servers["event_serializer"]
accept_content = _servers["accept_content"]
result_accept_content = _servers["result_accept_content"]
# What is no message of ours is refused with one line.
worker_consumer = "tasks.consumer:CheckingConsumer"

# A task is acknowledged when it is done, and handed out again when the process doing it died. Every
# task is written to be run twice.
task_acks_late = True
task_reject_on_worker_lost = True
# A task that raised is acknowledged: the sweeper, which looks at the ledger, decides about another try.
task_acks_on_failure_or_timeout = True
# One task at a time for each process: a long transfer must not sit on others that could run elsewhere.
worker_prefetch_multiplier = 1
# Deduplication by task id keeps a redelivered chord member from being counted, and the chord sticks.
worker_deduplicate_successful_tasks = False
# On a lost broker connection tasks go on; cancelling them would fail the chord on a 2 s restart of Redis.
worker_cancel_long_running_tasks_on_connection_loss = False
# On SIGTERM or Ctrl-C: this long for the running tasks to finish, then they are given back.
worker_soft_shutdown_timeout = 10.0

broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # it may be away for any time

# Results carry nothing that matters; they exist for chords and for people, and expire.
result_expires = 3600
result_chord_expires = 86400  # longer than the slowest member of a chord

task_default_queue = "control"
task_create_missing_queues = True
task_track_started = True  # Flower shows what runs, not only what ended
worker_send_task_events = True
task_send_sent_event = True
# What beat asks again and again shows in Flower only as noise, which would crowd out the work that there is.
task_annotations = {
    f"scheduler.jobs.{job}": {"send_events": False}
    for job in (
        "crawl_tick",
        "sweep",
        "retry_failures",
        "resync",
        "check_checkpoints",
        "take_snapshot",
        "hold_drill",
        "answer",
        "ask_secondary",
    )
}
worker_hijack_root_logger = False
worker_proc_alive_timeout = 30
worker_max_tasks_per_child = 5000  # a slow leak in a library cannot grow for years
enable_utc = True
timezone = "UTC"
