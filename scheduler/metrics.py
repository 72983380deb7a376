"""Metrics of all sessions of a node, for Prometheus: made anew from the reports at each scrape.

Names and meanings are stable; deploy/ has alert rules and a dashboard that use them.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler.reports import REPORT_S, SessionReport, Status, session_reports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

log = logging.getLogger("seamark.metrics")
_LABELS = ("session", "secondary")


def _flag(value: bool | None) -> float | None:
    return None if value is None else float(value)


def _up(report: SessionReport) -> float:
    return float(report.healthy is not None and report.age_s is not None and report.age_s <= REPORT_S)


# Name, help, and the value of a report; None: there is no such sample.
GAUGES: tuple[tuple[str, str, Callable[[SessionReport], float | None]], ...] = (
    ("seamark_up", "1 while the process of the session runs and reports.", _up),
    ("seamark_healthy", "1 healthy, 0 not; absent when it is not meant to run.", lambda r: _flag(r.healthy)),
    ("seamark_lag_seconds", "Age of the oldest change that may not be on the secondary.", lambda r: r.lag_s),
    ("seamark_rpo_seconds", "What the lag may be at most; absent without a target.", lambda r: r.rpo_s),
    ("seamark_backlog_entry", "Names that are still to be looked at.", lambda r: r.backlog.entries),
    (
        "seamark_backlog_data",
        "Files whose content is still to be sent or compared.",
        lambda r: r.backlog.files,
    ),
    (
        "seamark_backlog_metadata",
        "Names whose metadata is still to be looked at.",
        lambda r: r.backlog.entries,
    ),
    (
        "seamark_backlog_bytes",
        "Size of the files that are still to be sent or compared.",
        lambda r: r.backlog.bytes,
    ),
    ("seamark_eta_seconds", "Until the known work is done.", lambda r: r.eta_s),
    ("seamark_failures", "Items on the failure list; they hold the mark.", lambda r: r.failures),
    (
        "seamark_last_successful_timestamp_seconds",
        "The mark: all that changed until then is on the secondary.",
        lambda r: r.last_synced,
    ),
    ("seamark_report_age_seconds", "Age of what is known of the session.", lambda r: r.age_s),
    (
        "seamark_checkpoint_timestamp_seconds",
        "The point that the last checkpoint asked about.",
        lambda r: r.checkpoint.time if r.checkpoint else None,
    ),
    (
        "seamark_checkpoint_completed",
        "1 once the last checkpoint is reached.",
        lambda r: _flag(r.checkpoint.completed) if r.checkpoint else None,
    ),
    (
        "seamark_checkpoint_completion_timestamp_seconds",
        "When the last checkpoint was reached.",
        lambda r: r.checkpoint.completion_time if r.checkpoint else None,
    ),
    (
        "seamark_snapshot_mark_timestamp_seconds",
        "What the last snapshot of the secondary stands for: all that changed until then is in it.",
        lambda r: r.snapshot.mark if r.snapshot and r.snapshot.name else None,
    ),
    (
        "seamark_drill_timestamp_seconds",
        "When the last drill was held.",
        lambda r: r.drill["started"] if r.drill else None,
    ),
    (
        "seamark_drill_passed",
        "1 if the last drill passed.",
        lambda r: _flag(r.drill["passed"]) if r.drill else None,
    ),
    (
        "seamark_verify_differences",
        "Names of the secondary that comparisons found to differ, and that were not repaired.",
        lambda r: r.proof.differences if r.proof and r.proof.proven else None,
    ),
    (
        "seamark_verify_oldest_proof_timestamp_seconds",
        "When the slice was compared by content whose proof is the oldest; absent while one never was.",
        lambda r: r.proof.oldest if r.proof else None,
    ),
    (
        "seamark_verify_slices",
        "Into how many slices the tree falls; one is compared each time.",
        lambda r: r.proof.slices if r.proof else None,
    ),
    (
        "seamark_verify_slices_proven",
        "Slices that were ever compared by content.",
        lambda r: r.proof.proven if r.proof else None,
    ),
)
# Name (without _total), help, and which counter of the session.
COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("seamark_bytes", "Size of the files whose content arrived, or was right already.", "bytes"),
    ("seamark_bytes_sent", "Bytes of content that had to travel.", "bytes_sent"),
    ("seamark_files", "Files whose content arrived, or was right already.", "files"),
    ("seamark_files_created", "Names made: directories, links, devices, empty files.", "created"),
    ("seamark_files_renamed", "Names that were renamed.", "renamed"),
    ("seamark_files_deleted", "Names that were removed.", "deleted"),
    ("seamark_names_scanned", "Names looked at on the primary.", "scanned"),
    ("seamark_errors", "Failed tries, of whatever.", "errors"),
)
STATUS = ("seamark_status", "1 for the status that the session has.")


class Sessions(Collector):
    """The metrics of all sessions of a state directory."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir

    def collect(self) -> Iterator[Metric]:
        reports = session_reports(self._state_dir)
        for name, about, value in GAUGES:
            gauge = GaugeMetricFamily(name, about, labels=_LABELS)
            for report in reports:
                found = value(report)
                if found is not None:
                    gauge.add_metric(_labels(report), float(found))
            yield gauge
        for name, about, key in COUNTERS:
            counter = CounterMetricFamily(name, about, labels=_LABELS)
            for report in reports:
                counter.add_metric(_labels(report), float(report.counters.get(key, 0)))
            yield counter
        status = GaugeMetricFamily(*STATUS, labels=(*_LABELS, "status"))
        for report in reports:
            for word in Status:
                status.add_metric([*_labels(report), word.value], float(report.status is word))
        yield status


def _labels(report: SessionReport) -> list[str]:
    # A label is UTF-8; a path may be anything.
    return [report.name, report.secondary.encode(errors="backslashreplace").decode()]


def serve(state_dir: str, address: tuple[str, int], stop: threading.Event) -> int:
    """Answer scrapes on this address and port until ``stop``. Returns an exit code."""
    host, port = address
    registry = CollectorRegistry()
    registry.register(Sessions(state_dir))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        log.error("metrics cannot be served on %s:%d: %s", host, port, error.strerror)
        return 1
    stop.wait()
    server.shutdown()
    server.server_close()
    thread.join()
    return 0
