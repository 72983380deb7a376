"""Where a seed is played: volumes on file systems of their own, a node with a monitor, a session, its processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

from replication import reading
from scheduler.procfs import born
from scheduler.redis_server import find_server
from tasks.ledger import connect
from tasks.servers import from_json
from tests.filesystems import filesystem, image, mounted
from tests.scheduler.test_monitor import Node, _below
from tests.sshd import SshServer, _free_port
from tests.system.harness import agents_among
from tests.system.thrash.wire import Wire

NAME = "thrashed"
_SECONDARY_MIB = 512
_CLOCK = Path(__file__).with_name("clock.c")
_PRIMARY_MIB = 3072
_SERVERS = ("redis-server", "valkey-server")
_ANSWER_S = 2.0


class Stage:
    """Everything of one seed, in ``base``; ``close`` ends and unmounts it."""

    def __init__(self, base, plan):
        self.base, self.plan = base, plan
        self._stack = contextlib.ExitStack()
        self.sshd = self.wire = self.broker = None
        self.stamp = base / "clock"
        self.node = Node(base)
        self.monitor_starts = 0
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self):
        plan, base = self.plan, self.base
        device = self._stack.enter_context(image("btrfs", base / "primary.img", mib=_PRIMARY_MIB))
        top = self._stack.enter_context(mounted("btrfs", device, base / "top"))
        self.primary, self.snapshots = top, top / ".seamark"  # never looked at in a primary
        if plan.subvolume:
            self.primary, self.snapshots = top / "live", top / "snapshots"
            _btrfs("subvolume", "create", self.primary)
        self.snapshots.mkdir()
        self.secondary_fs = self._stack.enter_context(
            filesystem(plan.secondary, base / "secondary", mib=_SECONDARY_MIB)
        )
        self.secondary = self.secondary_fs / "copy"
        if plan.clock:
            self.set_clock(0)
            library = base / "clock.so"
            subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, _CLOCK], check=True)
            self.node.environment |= {"LD_PRELOAD": str(library), "THRASH_CLOCK": str(self.stamp)}
        if plan.broker:
            self.broker = Broker(base / "broker")
        words = ["--set", f"sync-method={plan.sync_method}"]
        target = str(self.secondary)
        if plan.remote:
            self.sshd = SshServer(base / "sshd")
            self.wire = Wire(self.sshd.port)
            target = f"{self.sshd.user}@{self.sshd.host}:{self.secondary}"
            words += ["--ssh-port", self.wire.port, "--identity", self.sshd.identity, "--accept-new-host-key"]
        self.node.ok("create", NAME, self.primary, target, *words)

    def begin(self):
        self.keep_up()
        self.node.ok("start", NAME)

    # ---- what systemd does

    def keep_up(self):
        """Start the monitor if it is not there."""
        process = self.node.process
        if process is None or process.poll() is not None:
            self.monitor_starts += 1
            self.node.monitor(*(["--broker", self.broker.url] if self.broker else []))

    # ---- looking

    @property
    def session(self):
        return self.node.state / "sessions" / NAME

    def mark_ns(self):
        """The mark as the progress database has it, which is the truth; 0: there is none yet."""
        rows = "SELECT stime_ns FROM brick WHERE complete = 1"
        row = reading.ask(self.session / "progress.sqlite", lambda db: db.execute(rows).fetchone(), None)
        return row[0] if row else 0

    def processes(self, target):
        """Process ids of what is called ``target`` in a plan, at this moment."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            if target == "monitor":
                return [self.node.process.pid]
            if target == "redis" and self.broker:
                return [self.broker.process.pid]
            if target == "sshd":
                return [self.sshd.process.pid]
            if target == "connection":
                return self.sshd.pids()[1:]
            below = _below(self.node.process.pid)
            if target == "redis":
                return [pid for pid in below if Path(f"/proc/{pid}/comm").read_text().strip() in _SERVERS]
            if target == "secondary agent":
                return agents_among(self.sshd.pids() if self.sshd else below)
            if target == "session":
                return [_read_pids(self.node.state / "monitor")[f"session {NAME}"]]
            if target == "agent":
                monitors = _read_pids(self.node.state / "monitor")
                return [pid for name, pid in monitors.items() if name.startswith("agent ")]
            pids = _read_pids(self.session)
            if target == "pool child":
                workers = [pids["worker control"], pids["worker data"]]
                return [pid for worker in workers for pid in _below(worker)]
            return [pids[target]]
        return []

    def all_of_node(self):
        """Every process of this seed, whoever its parent is by now."""
        marks = {f"SEAMARK_STATE_DIR={self.node.state}".encode()}
        if self.sshd:
            marks.add(f"HOME={self.sshd.home}".encode())  # what a server that was killed has left behind
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if marks & set((entry / "environ").read_bytes().split(b"\0")):
                        found.append(int(entry.name))
        return found

    def redis(self):
        """A client of the Redis that the session uses."""
        return connect(from_json((self.session / "servers.json").read_bytes()), _ANSWER_S)

    def set_clock(self, seconds):
        """Where the node's clock stands, against the real one."""
        if not self.stamp.exists():
            self.stamp.write_bytes(bytes(8))
        with open(self.stamp, "r+b") as file:
            file.write(struct.pack("=q", seconds))

    # ---- snapshots

    def snapshot(self, name):
        """What has been written so far, flushed, for good."""
        _btrfs("subvolume", "snapshot", "-r", self.primary, self.snapshots / name)
        return self.snapshots / name

    def drop(self, snapshot):
        _btrfs("subvolume", "delete", snapshot)

    def list_all(self):
        """What is on both sides, our own files there included, for whoever looks into a failure: the file systems go."""
        for side in (self.primary, self.secondary):
            with open(self.base / f"{side.name}.list", "wb") as out:
                words = ["find", ".", "-printf", "%i %n %y %m %s %T+ %p %l\\n"]
                subprocess.run(words, cwd=side, stdout=out, stderr=out, check=False)
        hidden = self.secondary / ".seamark"
        for name in ("index.sqlite", "index.sqlite-wal", "owner"):
            with contextlib.suppress(OSError):
                shutil.copy(hidden / name, self.base / name)

    # ---- the end

    def cont(self):
        """Whatever was stopped goes on."""
        for _ in range(2):
            for pid in [*self.all_of_node(), *(self.sshd.pids() if self.sshd and self.sshd.process else [])]:
                _signal(pid, signal.SIGCONT)

    def close(self):
        """End everything, without asking."""
        if self.sshd:
            self.sshd.stop()
        if self.wire:
            self.wire.close()
        until = time.monotonic() + 20
        while found := self.all_of_node():
            for pid in found:
                _signal(pid, signal.SIGKILL)
            if self.node.process is not None:
                self.node.process.poll()
            assert time.monotonic() < until, found
            time.sleep(0.1)
        if self.node.process is not None:
            self.node.process.wait(20)
        if self.broker:
            self.broker.kill()
        for snapshot in sorted(self.snapshots.iterdir()) if self.snapshots.exists() else []:
            self.drop(snapshot)
        self._stack.close()


class Broker:
    """A Redis that can be killed, and come back with nothing, or with what it had a while ago."""

    def __init__(self, directory):
        directory.mkdir()
        self.directory, self.port, self.process = directory, _free_port(), None
        self.url = f"redis://127.0.0.1:{self.port}"
        self._kept = 0
        self.start()

    def start(self, dump="none"):
        """With what is in the file ``dump``, if there is one."""
        self._dump = self.directory / dump
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "save": "",
            "dir": self.directory,
            "dbfilename": dump,
            "appendonly": "no",
        }
        self.process = subprocess.Popen(
            [find_server(), *(str(word) for name, value in options.items() for word in (f"--{name}", value))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def kill(self):
        self.process.kill()
        self.process.wait()

    def keep(self, client):
        """Keep what it holds now; returns the name to bring it back by."""
        client.save()
        self._kept += 1
        return self._dump.rename(self.directory / f"old{self._kept}").name

    def bring_back(self, old):
        self.kill()
        self.start(old)


def identity(pid):
    """A process, told from a later one with the same number."""
    return pid, born(pid)


def _signal(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _read_pids(directory):
    return json.loads((directory / "pids.json").read_text())


def _btrfs(*words):
    subprocess.run(["btrfs", *map(str, words)], check=True, capture_output=True, timeout=120)
