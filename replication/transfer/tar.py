"""Content as one GNU tar stream over ssh: the wire is what any tar speaks.

tar here reads a directory of links named by gfid (see staged.py), tar there unpacks into the staging
directory. Both exit statuses count, both say by name what went wrong, and only what the far side has
listed and nobody complained about is committed. Holes are found by tar (--sparse) and not sent.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from functools import cache
from typing import IO, TYPE_CHECKING

from replication.remote.command import ssh_command
from replication.remote.endpoint import SshOptions
from replication.remote.errors import LinkLost, NoTar, Unreachable
from replication.remote.link import last_lines
from replication.transfer.processes import ended, english, lines_of, mortal
from replication.transfer.staged import (
    Failure,
    Opened,
    Sources,
    StagedSender,
    Staging,
    failure_from,
    name_of,
    quoted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from replication.remote.client import SecondaryClient
    from replication.remote.target import Target
    from replication.transfer.item import FileItem, ItemResult
    from replication.volume.directory import DirectoryVolume

_NAMED = re.compile(r"^tar: (?:\./)?([0-9a-f]{32}): (.*)$")
_LISTED = re.compile(r"^[0-9a-f]{32}$")
_NO_TAR_STATUS = 127
_PACED_BYTES = 64 << 10
# In order of preference; -1 because the link, not the processor, should be busy.
_COMPRESSORS = {"zstd": "zstd -1", "gzip": "gzip -1"}


def sync_by_tar(
    items: list[FileItem],
    volume: DirectoryVolume,
    client: SecondaryClient,
    target: Target,
    ssh: SshOptions | None = None,
    *,
    compress: bool = False,
    pace: Callable[[int], bool] = lambda _bytes: False,
    alive: Callable[[], object] = lambda: None,
    progress: Callable[[int, int], None] = lambda _files, _bytes: None,
) -> list[ItemResult]:
    """Send one unit as a tar stream; see TarSender."""
    sender = TarSender(
        volume, client, target, ssh, compress=compress, pace=pace, alive=alive, progress=progress
    )
    return sender.send(items)


class TarSender(StagedSender):
    """Sends units by tar. ``compress``: with zstd or gzip, whichever both sides have; ``pace``: see Outbox."""

    def __init__(
        self,
        volume: DirectoryVolume,
        client: SecondaryClient,
        target: Target,
        ssh: SshOptions | None = None,
        *,
        compress: bool = False,
        pace: Callable[[int], bool] = lambda _bytes: False,
        alive: Callable[[], object] = lambda: None,
        progress: Callable[[int, int], None] = lambda _files, _bytes: None,
    ) -> None:
        self._ssh = ssh or SshOptions()
        super().__init__(volume, client, target, alive=alive, progress=progress, gated=self._ssh.gated)
        self._compress = compress
        self._pace = pace

    def _move(self, staging: Staging, sources: Sources, files: list[Opened]) -> dict[bytes, Failure]:
        shell = self._shell()
        probe = "seamark-has" if self._ssh.gated else "command -v"
        compressor = (
            _COMPRESSORS.get(common_compressor(tuple(shell), probe) or "") if self._compress else None
        )
        pack: list[str | bytes] = [
            "tar", "--create", "--file=-", "--format=gnu", "--dereference", "--sparse", "--no-recursion",
            "--owner=0", "--group=0", "--mode=0600", "--null", "--verbatim-files-from",
        ]  # fmt: skip
        if not self._volume.tells_holes:
            pack.append("--hole-detection=raw")
        # --overwrite: a file that is staged in place is written through, with all its links.
        unpack = ["tar", "--extract", "--file=-", "--verbose", "--overwrite", "--no-same-owner", "--touch"]
        if compressor:
            pack.append(f"--use-compress-program={compressor}")
            unpack.append(f"--use-compress-program={compressor.split()[0]}")
        sizes = {file.item.gfid: file.item.size for file in files}
        with (
            tempfile.NamedTemporaryFile(prefix="seamark-") as names,
            tempfile.TemporaryFile() as here,
            tempfile.TemporaryFile() as there,
        ):
            names.write(b"".join(name_of(gfid) + b"\0" for gfid in sizes))
            names.flush()
            pack += [b"--directory=" + sources.directory, f"--files-from={names.name}"]
            unpack_there = self._command(shell, unpack, staging.new, compressor)
            arrived, statuses = self._pipe(pack, sources.fds, unpack_there, sizes, here, there)
            errors = tuple(_text(file) for file in (here, there))
        return judge(list(sizes), arrived, statuses, errors, self._target.host or "this host")

    def _pump(self, source: IO[bytes], sink: IO[bytes] | None) -> None:
        assert sink is not None
        threading.Thread(
            target=_pass_on, args=(source, sink, self._pace), name="tar-pace", daemon=True
        ).start()

    def _shell(self) -> list[str]:
        return (
            [*ssh_command(self._target, self._ssh), "--", self._target.login]
            if self._target.is_remote
            else []
        )

    def _command(
        self, shell: list[str], unpack: list[str], directory: bytes, compressor: str | None
    ) -> list[str | bytes]:
        if not shell:
            return [*unpack, b"--directory=" + directory]
        if self._ssh.gated:
            packed = compressor.split()[0] if compressor else "none"
            return [*shell, b"seamark-untar " + packed.encode() + b" " + directory]
        return [
            *shell,
            b"LC_ALL=C exec " + shlex.join(unpack).encode() + b" --directory=" + quoted(directory),
        ]

    def _pipe(
        self,
        pack: list[str | bytes],
        fds: tuple[int, ...],
        unpack: list[str | bytes],
        sizes: dict[bytes, int],
        here: IO[bytes],
        there: IO[bytes],
    ) -> tuple[set[bytes], tuple[int, int]]:
        """Run both ends; which files the far side listed, and the exit statuses of here and there."""
        arrived: set[bytes] = set()
        try:
            sender = subprocess.Popen(
                mortal(pack), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=here, env=english(),
                pass_fds=fds,
            )  # fmt: skip
        except FileNotFoundError:
            raise NoTar("GNU tar is not installed here; install it, or use --sync-method stream") from None
        with ended(sender):
            limited = self._pace(0)
            receiver = subprocess.Popen(
                unpack, stdin=subprocess.PIPE if limited else sender.stdout, stdout=subprocess.PIPE, stderr=there,
                env=english(),
            )  # fmt: skip
            assert sender.stdout is not None
            if limited:
                self._pump(sender.stdout, receiver.stdin)
            else:
                sender.stdout.close()  # or tar would not notice when the far side is gone
            with ended(receiver):
                assert receiver.stdout is not None
                for line in lines_of(receiver.stdout, self._alive):
                    if _LISTED.match(line):
                        gfid = bytes.fromhex(line)
                        arrived.add(gfid)
                        self._sent[gfid] = sizes.get(gfid, 0)
                        self._progress(1, sizes.get(gfid, 0))
                there_status = receiver.wait()
            return arrived, (sender.wait(), there_status)


def _pass_on(source: IO[bytes], sink: IO[bytes], pace: Callable[[int], bool]) -> None:
    with source, contextlib.suppress(BrokenPipeError), sink:
        while part := os.read(source.fileno(), _PACED_BYTES):
            pace(len(part))
            sink.write(part)
            sink.flush()


def judge(
    asked: list[bytes], arrived: set[bytes], statuses: tuple[int, int], errors: tuple[str, ...], host: str
) -> dict[bytes, Failure]:
    """Which of the files asked for did not arrive, and why.

    Raises NoTar, Unreachable, LinkLost when it was none of the files' fault.
    """
    here, there = statuses
    said = last_lines("\n".join(errors), 1000)
    if there == _NO_TAR_STATUS:
        raise NoTar(f"there is no tar on {host}: {said}; install GNU tar there, or use --sync-method stream")
    if there == 255:
        raise Unreachable(f"tar cannot reach {host}: {said}")
    if "unrecognized option" in errors[1] or "illegal option" in errors[1]:
        raise NoTar(f"tar on {host} is not GNU tar: {said}; install it there, or use --sync-method stream")
    failures = _named_failures(errors[0], sending=True)
    for gfid, failure in _named_failures(errors[1], sending=False).items():
        failures.setdefault(gfid, failure)
    # A sender that dies of SIGPIPE is a victim: the far side says why.
    if there < 0 or (here < 0 and here != -signal.SIGPIPE):
        raise LinkLost(f"tar was killed (here {here}, on {host} {there}): {said}")
    # 1 from the sender: files changed while they were read. 2 is for errors that name files, or for fatal ones.
    broken = there not in {0, 2} or here not in {0, 1, 2} or "Error is not recoverable: exiting now" in said
    if broken or ((here == 2 or there == 2) and not failures):
        general = failure_from(f"tar failed (exit status {here} here, {there} on {host}): {said}")
        return {gfid: failures.get(gfid, general) for gfid in asked}
    missing = Failure("io", f"tar did not send it (exit status {here} here, {there} on {host})")
    return failures | {gfid: missing for gfid in asked if gfid not in arrived and gfid not in failures}


def _named_failures(errors: str, *, sending: bool) -> dict[bytes, Failure]:
    failures: dict[bytes, Failure] = {}
    for line in errors.splitlines():
        match = _NAMED.match(line)
        if match is None:
            continue
        gfid, words = bytes.fromhex(match[1]), match[2]
        if sending and ("No such file or directory" in words or "removed before we read it" in words):
            failures.setdefault(gfid, Failure("vanished", line))
        elif sending and ("shrank by" in words or "changed as we read it" in words):
            continue  # the look afterwards sees that; what was sent is no worse than any copy of a busy file
        else:
            failures.setdefault(gfid, failure_from(line))
    return failures


@cache
def common_compressor(shell: tuple[str, ...], probe: str = "command -v") -> str | None:
    """The first compressor that is here and, by way of ``shell``, there. Asked once per process."""
    for name in _COMPRESSORS:
        if shutil.which(name) is None:
            continue
        if not shell:
            return name
        done = subprocess.run([*shell, f"{probe} {name}"], stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode == 0:
            return name
    return None


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
