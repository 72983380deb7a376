"""Seeding the old primary with what is agreed on, and the plan: what it wrote that never came here, and which of it conflicts.

The far side's part is secondary/seeding.py.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import msgspec

from replication.errors import SeamarkError
from replication.failback.agreement import Agreement, Changed
from replication.remote.answers import SecondaryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replication.failback.promoted import PromotedRoot
    from replication.remote.client import SecondaryClient

SHOWN = 1_000  # findings that a plan holds; all of them stand in its file


class Version(msgspec.Struct, frozen=True):
    """One side's state of an object. ``mtime``: seconds since the epoch; ``type`` as find(1) -type has it."""

    type: str
    size: int
    mtime: float


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
    known: int = 0  # objects that were replicated from there
    agreed: int = 0  # of which, in that very state still
    counts: dict[str, int] = {}
    conflicts: int = 0
    displaced: int = 0
    findings: list[Finding] = []  # the first of them


_TYPES = {
    stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFSOCK: "s", stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
}  # fmt: skip


def _version(mode: int, size: int, mtime_ns: int) -> Version:
    return Version(_TYPES.get(stat.S_IFMT(mode), "?"), size, mtime_ns / 1e9)


class Seeding:
    """One failback, by one connection to the old primary."""

    def __init__(
        self, client: SecondaryClient, agreement: Agreement, *, session: str, volume: str, of: dict[str, Any]
    ) -> None:
        self._client = client
        self._agreement = agreement
        self._of = of
        root: PromotedRoot = agreement.root
        self._call("seed_begin", session=session, volume=volume, term=root.term, filters=root.filters)
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
        plan = Plan(back=self._agreement.changed(), known=answer["known"], agreed=answer["agreed"])
        for finding in self._findings():
            keep(finding)
            plan.counts[finding.what] = plan.counts.get(finding.what, 0) + 1
            plan.conflicts += finding.conflict
            if len(plan.findings) < SHOWN:
                plan.findings.append(finding)
        return plan

    def _findings(self) -> Iterator[Finding]:
        after: int | None = 0
        while after is not None:
            answer = self._call("seed_findings", after=after)
            for found in answer["findings"]:
                yield self._finding(*found)
            after = answer["next"]

    def _finding(
        self,
        path: str,
        what: str,
        inode: int | None,
        mode: int | None,
        size: int,
        mtime: int,
        before: str | None,
    ) -> Finding:
        there = None if mode is None else _version(mode, size, mtime)
        here, changed = self._here(path)
        if what != "new" and inode is not None:
            state, size_here, mtime_here = self._agreement.state_of(inode)
            changed = state != "same"
            if state == "removed":
                here = None
            elif here is None:  # it has another name by now
                here = Version("?", size_here, mtime_here / 1e9)
        return Finding(path=path, what=what, conflict=changed, there=there, here=here, before=before)

    def _here(self, path: str) -> tuple[Version | None, bool]:
        """What stands at a path here, and whether it is of here alone, or was changed since."""
        try:
            found = os.lstat(os.path.join(self._agreement.root.path, path))
        except OSError:
            return None, False
        alone = not self._agreement.was_replicated(found.st_ino)
        changed = found.st_ctime_ns >= self._agreement.root.done_ns and not stat.S_ISDIR(found.st_mode)
        return _version(found.st_mode, found.st_size, found.st_mtime_ns), alone or changed

    def commit(self, keep: Callable[[Finding], object] = lambda _: None) -> Plan:
        """Compare once more, displace there what never came here, and make it a secondary of ours. What is done."""
        plan = self.plan(keep)
        plan.displaced = self._call("seed_commit", of=self._of)["displaced"]
        return plan


def refusal(target: str, error: SecondaryError) -> SeamarkError:
    """What the old primary refused, as a person is told."""
    return SeamarkError(f"{target}: {error}", error.exit_code)
