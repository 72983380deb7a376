"""Seeding the old primary with what is agreed on, and the plan: what it wrote that never came here, and which of it conflicts.

The far side's part is secondary/seeding.py.
"""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import msgspec

from replication.errors import SeamarkError
from replication.failback.agreement import Changed
from replication.failback.recorded import Changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replication.failback.agreement import Agreement
    from replication.failback.promoted import PromotedRoot
    from replication.remote.client import SecondaryClient

_DURABLE_NS = 60 * 10**9  # what was written so long before a crash is on the disk
_PROVED_AT_ONCE = 100  # with their attributes, which may be large
SHOWN = 1_000  # findings that a plan holds; all of them stand in its file


class Version(msgspec.Struct, frozen=True):
    """One side's state of an object. ``mtime``: seconds since the epoch; ``type`` as find(1) -type has it; ``owner``: uid:gid;
    ``attributes``: extended ones, ACLs among them, in base64, of what is not displaced, but gets those of the other side.
    """

    type: str
    size: int
    mtime: float
    mode: str = ""
    owner: str = ""
    attributes: dict[str, str] | None = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the old primary has otherwise than it was replicated.

    ``what``: new, changed, replaced, removed, renamed, linked, attributes. ``conflict``: it changed here as well since the
    mark. ``there``: on the old primary; ``here``: on the present one. None: it is not there.
    """

    path: str
    what: str
    conflict: bool
    there: Version | None = None
    here: Version | None = None
    before: str | None = None  # of what was renamed


class Plan(msgspec.Struct, kw_only=True):
    """What a failback does: what goes back, and what it finds that never came here."""

    back: Changed
    recorded: Changes | None = None  # on this side since its promotion
    known: int = 0  # objects that were replicated from there
    agreed: int = 0  # of which, in that very state still
    counts: dict[str, int] = {}
    conflicts: int = 0
    displaced: int = 0
    stuck: list[list[str]] = []  # what could not be displaced, and why: it stays where it is, and is nobody's
    findings: list[Finding] = []  # the first of them


_TYPES = {
    stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFSOCK: "s", stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
}  # fmt: skip


def _version(mode: int, uid: int, gid: int, size: int, mtime_ns: int) -> Version:
    kind = _TYPES.get(stat.S_IFMT(mode), "?")
    return Version(kind, size, mtime_ns / 1e9, f"{stat.S_IMODE(mode):04o}", f"{uid}:{gid}")


class Seeding:
    """One failback, by one connection to the old primary."""

    def __init__(
        self, client: SecondaryClient, root: PromotedRoot, *, session: str, volume: str, of: dict[str, Any]
    ) -> None:
        """Raises SecondaryError when that directory is not to become our secondary."""
        self._client = client
        self._of = of
        doubt_ns = max(0, root.mark_ns - _DURABLE_NS)
        self._call(
            "seed_begin",
            session=session,
            volume=volume,
            term=root.term,
            filters=root.filters,
            doubt_ns=doubt_ns,
        )

    def know(self, agreement: Agreement) -> None:
        """Tell it what is known of it."""
        self._agreement = agreement
        for rows, names in agreement.portions():
            self._call("seed_rows", rows=rows, names=names)

    def _call(self, op: str, **said: Any) -> dict[str, Any]:
        return self._client.call(op, **said).header

    def plan(self, keep: Callable[[Finding], object] = lambda _: None) -> Plan:
        """Compare the old primary with what is known of it. ``keep`` is called with each finding.

        Raises SeamarkError where nothing of what is known is there: it is another directory.
        """
        answer = self._call("seed_compare", anew=True)
        while not answer["done"]:
            answer = self._call("seed_compare")
        if answer["known"] and not answer["agreed"]:
            raise SeamarkError(
                f"nothing of the {answer['known']} objects that came from the old primary is there: it is another "
                "directory, or is not mounted, or was restored from a backup; to fill it anew: seamark create"
            )
        self._prove()
        agreement = self._agreement
        plan = Plan(
            back=agreement.changed(),
            recorded=agreement.recorded,
            known=answer["known"],
            agreed=answer["agreed"],
        )
        for finding in self._findings():
            keep(finding)
            plan.counts[finding.what] = plan.counts.get(finding.what, 0) + 1
            plan.conflicts += finding.conflict
            if len(plan.findings) < SHOWN:
                plan.findings.append(finding)
        return plan

    def _prove(self) -> None:
        """What has another ctime, and else looks as it did: by its content."""
        after: int | None = 0
        while after is not None:
            answer = self._call("seed_unproven", after=after)
            for at in range(0, len(answer["items"]), _PROVED_AT_ONCE):
                items = [
                    [n, self._agreement.digest_of(inode), self._agreement.attributes_of(inode)]
                    for n, inode in answer["items"][at : at + _PROVED_AT_ONCE]
                ]
                while items:
                    del items[: self._call("seed_prove", items=items, trusted=os.geteuid() == 0)["done"]]
            after = answer["next"]

    def _findings(self) -> Iterator[Finding]:
        after: int | None = 0
        while after is not None:
            answer = self._call("seed_findings", after=after)
            for found in answer["findings"]:
                yield self._finding(*found)
            after = answer["next"]

    def _finding(
        self, path: str, what: str, inode: int | None, mode: int | None, uid: int, gid: int, size: int, mtime: int,
        before: str | None, attributes: dict[str, str] | None,
    ) -> Finding:  # fmt: skip
        there = None if mode is None else _version(mode, uid, gid, size, mtime)
        here, changed = self._here(path)
        if what != "new" and inode is not None:
            state, size_here, mtime_here = self._agreement.state_of(inode)
            changed = state != "same"
            if state == "removed":
                here = None
            elif here is None:  # it has another name by now
                here = Version("?", size_here, mtime_here / 1e9)
            if attributes is not None and there is not None:
                there = msgspec.structs.replace(there, attributes=attributes)
                if here is not None:
                    here = msgspec.structs.replace(here, attributes=self._agreement.attributes_of(inode))
        return Finding(path=path, what=what, conflict=changed, there=there, here=here, before=before)

    def _here(self, path: str) -> tuple[Version | None, bool]:
        """What stands at a path here, and whether it is of here alone, or was changed since."""
        try:
            found = os.lstat(os.path.join(self._agreement.root.path, path))
        except OSError:
            return None, False
        alone = not self._agreement.was_replicated(found.st_ino)
        changed = not stat.S_ISDIR(found.st_mode) and (
            found.st_ctime_ns > self._agreement.root.done_ns or self._agreement.was_recorded(found.st_ino)
        )
        here = _version(found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns)
        return here, alone or changed

    def commit(self, keep: Callable[[Finding], object] = lambda _: None) -> Plan:
        """Compare once more, displace there what never came here, and make it a secondary of ours. What is done."""
        plan = self.plan(keep)
        answer = self._call("seed_commit", of=self._of)
        while not answer["done"]:
            answer = self._call("seed_commit", of=self._of)
        plan.displaced, plan.stuck = answer["displaced"], answer["errors"]
        return plan


def as_line(finding: Finding, **more: Any) -> str:
    """A finding as a line of JSON, whatever bytes its name has."""
    return json.dumps({"message_type": "finding", **more, **msgspec.to_builtins(finding)})
