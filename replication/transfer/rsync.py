"""Content by rsync over ssh: for large files which are there already in another version.

rsync is told nothing but gfids (see staged.py), to compare content whatever the modification times
say (--ignore-times), and to take the present version as the basis of its delta: beside the new file
(--copy-dest), or the file itself where it has several links or is too large to keep twice (--inplace).
Exit status 0 is not enough to believe: every file asked for must have been listed, and the
statistics must agree. What an interrupted rsync had is in .seamark/staging/partial; the secondary puts it
together with the present version, and that is the basis of the next try (see secondary/inplace.py).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from typing import TYPE_CHECKING, NamedTuple

from replication.remote.command import ssh_command
from replication.remote.endpoint import SshOptions
from replication.remote.errors import LinkLost, NoRsync, Unreachable
from replication.remote.link import last_lines
from replication.transfer.processes import ended, english, lines_of, mortal
from replication.transfer.staged import Failure, Opened, Sources, StagedSender, Staging, failure_from, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import IO

    from replication.remote.client import SecondaryClient
    from replication.remote.target import Target
    from replication.transfer.item import FileItem, ItemResult
    from replication.volume.directory import DirectoryVolume

_GFID = re.compile(r"\b[0-9a-f]{32}\b")
_LISTED = re.compile(r"^[<>]f\S{9} (\d+) (\d+) ([0-9a-f]{32})$")
_PROGRESS = re.compile(r"^\s*([\d,]+)\s+\d+%")
_TRANSFERRED = re.compile(r"^Number of regular files transferred: ([\d,]+)$")
_SENT = re.compile(r"^Total bytes sent: ([\d,]+)$")
_THERE = re.compile(r"\(code (\d+)\) at .*\[[Rr]eceiver")
# Files were left out, and standard error says which; anything else but 0 means that rsync broke off.
_PARTIAL = {23, 24}
_FLAT = ("--no-relative", "--no-dirs", "--no-implied-dirs")
_CONNECTION = {10, 12, 30, 35, 255}


def sync_by_rsync(
    items: list[FileItem],
    volume: DirectoryVolume,
    client: SecondaryClient,
    target: Target,
    ssh: SshOptions | None = None,
    *,
    compress: bool = False,
    bwlimit: int | None = None,
    alive: Callable[[], object] = lambda: None,
    progress: Callable[[int, int], None] = lambda _files, _bytes: None,
) -> list[ItemResult]:
    """Send one unit by rsync; see RsyncSender."""
    sender = RsyncSender(
        volume, client, target, ssh, compress=compress, bwlimit=bwlimit, alive=alive, progress=progress
    )
    return sender.send(items)


class Run(NamedTuple):
    """One start of rsync."""

    gfids: list[bytes]
    arguments: list[str | bytes]


class Outcome(NamedTuple):
    """What one run of rsync said."""

    status: int
    listed: dict[bytes, int]  # gfid: bytes sent for it
    transferred: int
    bytes_sent: int
    errors: str


class RsyncSender(StagedSender):
    """Sends units by rsync. ``bwlimit`` is in KiB/s; ``compress`` is for thin links.

    ``bytes_on_wire`` counts what rsync says it sent.
    """

    def __init__(
        self,
        volume: DirectoryVolume,
        client: SecondaryClient,
        target: Target,
        ssh: SshOptions | None = None,
        *,
        compress: bool = False,
        bwlimit: int | None = None,
        alive: Callable[[], object] = lambda: None,
        progress: Callable[[int, int], None] = lambda _files, _bytes: None,
    ) -> None:
        self._ssh = ssh or SshOptions()
        super().__init__(volume, client, target, alive=alive, progress=progress, gated=self._ssh.gated)
        self._compress = compress
        self._bwlimit = bwlimit
        self.bytes_on_wire = 0

    def _move(self, staging: Staging, sources: Sources, files: list[Opened]) -> dict[bytes, Failure]:
        failures: dict[bytes, Failure] = {}
        for run in plan(staging, files):
            outcome = self._run(staging, sources, run)
            failures |= judge(outcome, run.gfids, self._where())
        return failures

    def _run(self, staging: Staging, sources: Sources, run: Run) -> Outcome:
        command: list[str | bytes] = [
            "rsync", "--copy-links", "--ignore-times", "--no-whole-file", "--from0",
            "--out-format=%i %l %b %n", "--info=progress2", "--stats", "--no-human-readable",
            f"--timeout={max(1, round(self._ssh.answer_timeout_s))}", *run.arguments,
        ]  # fmt: skip
        if self._compress:
            command.append("--compress")
        if self._bwlimit:
            command.append(f"--bwlimit={self._bwlimit}")
        destination = staging.new + b"/"
        if self._target.is_remote:
            # Arguments travel in the protocol: no remote shell reads the path. A gate wants to read them, and
            # shell characters are in none of those that it takes; nor does it let --files-from mean --relative.
            protection = ["--no-protect-args", *_FLAT] if self._ssh.gated else ["--protect-args"]
            command += [*protection, "-e", shell_of(ssh_command(self._target, self._ssh))]
            destination = remote_prefix(self._target) + destination
        with tempfile.TemporaryFile() as errors, tempfile.NamedTemporaryFile(prefix="seamark-") as names:
            names.write(b"".join(name_of(gfid) + b"\0" for gfid in run.gfids))
            names.flush()
            command += [f"--files-from={names.name}", "--", sources.directory + b"/", destination]
            outcome = self._talk(command, sources.fds, errors)
        self.bytes_on_wire += outcome.bytes_sent
        self._sent |= outcome.listed
        return outcome

    def _talk(self, command: list[str | bytes], fds: tuple[int, ...], errors: IO[bytes]) -> Outcome:
        """Run rsync to its end, reporting progress. Standard error goes to a file, not a pipe: an ssh
        that stays on as the shared connection may keep it open.
        """
        try:
            process = subprocess.Popen(
                mortal(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=english(),
                pass_fds=fds,
            )
        except FileNotFoundError:
            raise NoRsync("rsync is not installed here; install it, or use --sync-method stream") from None
        listed: dict[bytes, int] = {}
        counted = total = transferred = sent = 0
        with ended(process):
            assert process.stdout is not None
            for line in lines_of(process.stdout, self._alive):
                if match := _PROGRESS.match(line):
                    now = _number(match[1])
                    self._progress(0, max(0, now - counted))
                    counted = max(counted, now)
                elif match := _LISTED.match(line):
                    listed[bytes.fromhex(match[3])] = int(match[2])
                    total += int(match[1])
                    self._progress(1, 0)
                elif match := _TRANSFERRED.match(line):
                    transferred = _number(match[1])
                elif match := _SENT.match(line):
                    sent = _number(match[1])
            status = process.wait()
        self._progress(0, max(0, total - counted))
        errors.seek(0)
        return Outcome(status, listed, transferred, sent, errors.read().decode("utf-8", "replace"))

    def _where(self) -> str:
        return self._target.host or "this host"


def plan(staging: Staging, files: list[Opened]) -> list[Run]:
    """Which files go together. Most units need one run."""
    in_place = [file for file in files if file.item.gfid in staging.in_place]
    aside = [file for file in files if file.item.gfid not in staging.in_place]
    # Beside the units, whose directories are made anew at every try: the secondary makes a basis of it.
    partial = os.path.join(os.path.dirname(os.path.dirname(staging.new)), b"partial")
    private: list[str | bytes] = [
        "--perms", "--chmod=F600", b"--copy-dest=" + staging.basis, b"--partial-dir=" + partial,
    ]  # fmt: skip
    runs: list[tuple[list[Opened], list[str | bytes]]] = [(in_place, ["--inplace"]), (aside, private)]
    return [
        Run([file.item.gfid for file in group], [*arguments, *_holes(group)])
        for group, arguments in runs
        if group
    ]


def _holes(files: list[Opened]) -> list[str | bytes]:
    """Only where there are holes: looking for zeros, rsync writes a kilobyte at a time."""
    return ["--sparse"] if any(file.sparse for file in files) else []


def judge(outcome: Outcome, asked: list[bytes], host: str) -> dict[bytes, Failure]:
    """Which of the files asked for did not arrive, and why.

    Raises NoRsync, Unreachable, LinkLost when it was none of the files' fault.
    """
    status = _first_status(outcome)
    said = last_lines(outcome.errors, 1000)
    if status == 127 or (status in _CONNECTION and _no_rsync(outcome.errors)):
        raise NoRsync(f"there is no rsync on {host}: {said}; install it there, or use --sync-method stream")
    # Often rsync sees the end of the stream before ssh's exit status.
    if status == 255 or (status == 12 and "(0 bytes received so far)" in outcome.errors):
        raise Unreachable(f"rsync cannot reach {host}: {said}")
    failures = named_failures(outcome.errors.splitlines())
    if status in _CONNECTION and not failures:
        raise LinkLost(f"rsync lost its connection to {host} (exit status {status}): {said}")
    if status not in {0, *_PARTIAL}:
        general = failure_from(said)
        return {gfid: failures.get(gfid, general) for gfid in asked}
    missing = Failure("io", f"rsync did not send it (exit status {status}){': ' + said if said else ''}")
    failures |= {gfid: missing for gfid in asked if gfid not in outcome.listed and gfid not in failures}
    arrived = [gfid for gfid in asked if gfid not in failures]
    if outcome.transferred < len(arrived) or (status == 23 and not failures):
        doubt = Failure("io", f"rsync transferred {outcome.transferred} of {len(arrived)} files: {said}")
        failures |= dict.fromkeys(arrived, doubt)
    return failures


def _first_status(outcome: Outcome) -> int:
    """The far side's exit status where it says one: ours is often just 12, since it has gone."""
    there = _THERE.search(outcome.errors)
    return int(there[1]) if there and outcome.status == 12 else outcome.status


def named_failures(lines: Iterable[str]) -> dict[bytes, Failure]:
    """Errors that name a file of ours, by gfid; the first that is said of each."""
    failures: dict[bytes, Failure] = {}
    for line in lines:
        found = _GFID.findall(line)
        if not found or line.startswith("WARNING: "):
            continue
        gfid = bytes.fromhex(found[-1])
        failures.setdefault(gfid, _failure(line))
    return failures


def _failure(line: str) -> Failure:
    gone = "has vanished" in line or "has no referent" in line
    if gone or ("[sender]" in line and line.rstrip().endswith("(2)")):
        return Failure("vanished", line)
    if "failed verification" in line:
        return Failure("changed", line)
    return failure_from(line)


def shell_of(command: list[str]) -> str:
    """A command as rsync's -e reads it: split at spaces, quotes doubled inside quotes."""
    return " ".join("'" + word.replace("'", "''") + "'" for word in command)


def remote_prefix(target: Target) -> bytes:
    """``user@host:`` with an IPv6 address in brackets, as rsync wants it."""
    assert target.host is not None
    host = f"[{target.host}]" if ":" in target.host else target.host
    return os.fsencode(f"{target.user}@{host}:" if target.user else f"{host}:")


def _no_rsync(errors: str) -> bool:
    return bool(
        re.search(r"rsync: (?:command )?not found|command not found: rsync|Unknown command.*rsync", errors)
    )


def _number(text: str) -> int:
    return int(text.replace(",", ""))
