"""rsync and tar with the real secondary agent: observed, sent, committed, and judged by rsync."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from replication.errors import TemporaryError
from replication.observation import Change, Listing
from replication.remote import pem
from replication.remote.client import SecondaryClient
from replication.remote.launch import open_secondary
from replication.remote.target import Target
from replication.transfer.item import FileItem
from replication.transfer.rsync import RsyncSender, sync_by_rsync
from replication.transfer.tar import sync_by_tar
from replication.volume.identity import ROOT_GFID
from tests.conftest import need

MIB = 1 << 20


class Session:
    """A greeted agent, and what it wants of the primary's top directory."""

    def __init__(self, primary, root, target, options):
        self.primary, self.root, self.target, self.options = primary, root, target, options
        self.link = open_secondary(target, options)
        self.client = SecondaryClient(self.link.reader, self.link.writer)
        self.client.hello(session="a" * 32, volume="v", epoch=1, create=True)
        self.positions = iter(range(1, 100))

    def wanted(self, change=Change.DATA):
        volume = self.primary.volume
        names = volume.names(volume.root_fd, is_root=True)
        entries = [volume.observe(volume.root_fd, name, change) for name in names]
        seen = self.client.observe(
            [Listing(ROOT_GFID, entries, complete=True)], position=next(self.positions), limbo_until=1
        )
        by_gfid = {entry.inode.gfid.hex(): entry for entry in entries}
        return [
            FileItem(
                bytes.fromhex(gfid), e.name, how, e.inode.ino, e.inode.ctime_ns, e.inode.size, e.inode.nlink
            )
            for gfid, how in seen.need
            for e in [by_gfid[gfid]]
        ]

    def differences(self):
        done = subprocess.run(
            ["rsync", "-naHAXSi", "--delete", "--checksum", "--numeric-ids", "--exclude=/.seamark",
             f"{self.primary.root}/", f"{self.root}/"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [line for line in done.stdout.splitlines() if not line.endswith(" ./")]

    def close(self):
        self.link.close()
        self.client.close()


@pytest.fixture(params=["the user's key", "the session's key"])
def session(primary, tmp_path, shared_ssh_server, request):
    need("rsync", "tar")
    root = tmp_path / "secondary"
    target, options = shared_ssh_server.target(root), shared_ssh_server.options()
    if request.param == "the session's key":
        pem.push(target, options, "a" * 32, pem.make_key(tmp_path / "key"))
        options = pem.gated(options, tmp_path / "key")
    session = Session(primary, root, target, options)
    yield session
    session.close()


@pytest.mark.parametrize("send", [sync_by_rsync, sync_by_tar])
def test_new_and_changed_files_converge(session, primary, send):
    for number in range(20):
        primary.write(f"f{number}", os.urandom(number * 1000))
    primary.write("linked", b"one inode")
    os.link(primary.root / "linked", primary.root / "again")
    os.setxattr(primary.root / "f3", "user.colour", b"blue")
    os.chmod(primary.root / "f4", 0o4755)
    for _ in range(2):
        results = send(session.wanted(), primary.volume, session.client, session.target, session.options)
        assert {r.status for r in results} <= {"ok", "changed"}
        assert session.differences() == []
        (primary.root / "f5").write_bytes(b"another content")
        with (primary.root / "again").open("ab") as file:
            file.write(b", appended")
        primary.write("later", b"new")
    results = send(session.wanted(), primary.volume, session.client, session.target, session.options)
    assert session.differences() == []
    assert (session.root / "linked").stat().st_ino == (session.root / "again").stat().st_ino


@pytest.mark.parametrize("links", [1, 2])
def test_delta_against_the_present_version(session, primary, links):
    data = bytearray(os.urandom(32 * MIB))
    primary.write("big", bytes(data))
    if links == 2:
        os.link(primary.root / "big", primary.root / "big2")
    sync_by_rsync(session.wanted(), primary.volume, session.client, session.target, session.options)
    with (primary.root / "big").open("r+b") as file:
        file.seek(10 * MIB)
        file.write(os.urandom(MIB))
    sender = RsyncSender(primary.volume, session.client, session.target, session.options)
    (result,) = sender.send(session.wanted())
    assert result.status in {"ok", "changed"}
    assert sender.bytes_on_wire < MIB + 150_000
    assert session.differences() == []


class Interrupted(Exception):
    pass


def interrupt_after(session, items, mib):
    """Send slowly, and break off (it is told once a second how far it is)."""
    moved = [0]

    def progress(_files, size):
        moved[0] += size
        if moved[0] > mib * MIB:
            raise Interrupted

    slow = RsyncSender(
        session.primary.volume,
        session.client,
        session.target,
        session.options,
        bwlimit=5000,
        progress=progress,
    )
    with pytest.raises(Interrupted):
        slow.send(items)


def kept(session):
    """What is kept of an interrupted rsync: once its far side has noticed."""
    partial = session.root / ".seamark" / "staging" / "partial"
    until = time.monotonic() + 30
    while not (found := sorted(partial.iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def test_a_new_large_file_resumes(session, primary):
    primary.write("big", os.urandom(24 * MIB))
    items = session.wanted()
    interrupt_after(session, items, 6)
    assert not (session.root / "big").exists()
    assert len(kept(session)) == 1
    again = RsyncSender(primary.volume, session.client, session.target, session.options)
    (result,) = again.send(items)
    assert result.status in {"ok", "changed"}
    assert again.bytes_on_wire < 20 * MIB, "what had arrived was sent again"
    assert session.differences() == []
    assert kept_now(session) == []


def kept_now(session):
    return sorted((session.root / ".seamark" / "staging" / "partial").iterdir())


@pytest.mark.parametrize("inserted", [0, 1000])
def test_an_interrupted_delta_resumes(session, primary, inserted):
    """Twice: what the first try had, and what had not changed behind it, is the basis of the third."""
    kept_part, changed = os.urandom(24 * MIB), os.urandom(24 * MIB)
    primary.write("big", os.urandom(24 * MIB) + kept_part)
    sync_by_rsync(session.wanted(), primary.volume, session.client, session.target, session.options)
    (primary.root / "big").write_bytes(changed + bytes(inserted) + kept_part)
    items = session.wanted()
    assert [item.how for item in items] == ["data"]
    sent = []
    for _ in range(2):
        interrupt_after(session, items, 6)
        sent.append(max(path.stat().st_size for path in kept(session)))
    again = RsyncSender(primary.volume, session.client, session.target, session.options)
    (result,) = again.send(items)
    assert result.status in {"ok", "changed"}
    assert again.bytes_on_wire < 18 * MIB, "what had arrived, or what had not changed, was sent again"
    assert session.differences() == []
    assert kept_now(session) == []


def test_what_a_killed_rsync_had_is_kept(session, primary):
    """The far side's rsync itself: it has no time to put anything away."""
    primary.write("big", os.urandom(24 * MIB))
    items = session.wanted()
    staging = session.root / ".seamark" / "staging"
    killed = []

    def kill(_files, _size):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if (
                    words[0] == b"rsync"
                    and b"--server" in words
                    and os.readlink(path.parent / "cwd").startswith(str(staging))
                ):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    killed.append(path)

    slow = RsyncSender(
        primary.volume, session.client, session.target, session.options, bwlimit=5000,
        progress=lambda files, size: size > 0 and sum(f.stat().st_size for f in staging.glob("unit.*/new/.*")) > 6 * MIB
        and kill(files, size),
    )  # fmt: skip
    with contextlib.suppress(TemporaryError):
        slow.send(items)
    assert killed
    again = RsyncSender(primary.volume, session.client, session.target, session.options)
    (result,) = again.send(items)
    assert result.status in {"ok", "changed"}
    assert again.bytes_on_wire < 20 * MIB, "what had arrived was sent again"
    assert session.differences() == []


def test_local_target(primary, tmp_path):
    need("rsync", "tar")
    root = tmp_path / "secondary"
    session = Session(primary, root, Target(os.fsencode(root)), None)
    for number, send in enumerate((sync_by_rsync, sync_by_tar)):
        primary.write(f"f{number}", os.urandom(10_000))
        send(session.wanted(), primary.volume, session.client, session.target)
        assert session.differences() == []
    session.close()
