"""Small files that travel with the observation of their names: when, and how they are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from replication.secondary.filters import Filters
from tasks.deletes import rule_of_deletes

if TYPE_CHECKING:
    from replication.findings import Findings
    from tasks.unit import Unit


class Carrying(TypedDict):
    """What an Observer is told of it."""

    carry: bool
    thin: bool
    compress: bool
    filters: Filters
    deletes: dict[str, Any] | None


def carrying(work: Unit) -> Carrying:
    """Where the session leaves the choice of engine to us, or wants `stream`: these are its frames."""
    connection = work.ctx.secondary(work.epoch)
    carry = work.ctx.session.sync_method in ("auto", "stream")
    return {
        "carry": carry, "thin": connection.thin, "compress": connection.compress, "filters": work.ctx.filters,
        "deletes": rule_of_deletes(work.ctx.session, work.since_ns),
    }  # fmt: skip


def counts(findings: Findings, *, found: bool = True) -> dict[str, int]:
    """For the counters that people see. ``found``: what is still to be sent is counted here too."""
    needs = findings.needs if found else []
    return {
        "files_found": findings.files + len(needs),
        "bytes_found": findings.bytes + sum(item.size for item in needs),
        "files": findings.files,
        "bytes": findings.bytes,
        "bytes_sent": findings.bytes,
        "created": findings.counts.get("created", 0) + findings.counts.get("linked", 0),
        "renamed": findings.counts.get("renamed", 0),
        "deleted": findings.counts.get("removed", 0) + findings.counts.get("limbo", 0),
        "errors": len(findings.failures),
    }
