"""A real `seamark run` of a test: its own state, its own processes, and ways to look at and disturb it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from tasks.ledger import connect
from tasks.servers import from_json
from tests.judge import differences

REPOSITORY = Path(__file__).resolve().parents[2]


class SeamarkRun:
    """`python -m seamark run …` with --log-json; messages are collected while it runs."""

    def __init__(self, primary, secondary, state, *options, env=None, prefix=(), python_path=()):
        self.primary, self.secondary, self.state = primary, secondary, Path(state)
        self.messages: list[dict] = []
        self.stderr = open(f"{os.fspath(state)}.stderr", "ab+")
        command = [
            *prefix, sys.executable, "-m", "seamark", "run", os.fspath(primary), os.fspath(secondary),
            "--state-dir", os.fspath(state), "--log-json", *options,
        ]  # fmt: skip
        environment = {
            **os.environ,
            **(env or {}),
            "PYTHONPATH": os.pathsep.join(map(str, [*python_path, REPOSITORY])),
        }
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self.messages.append(json.loads(line))

    # ---- looking

    def of_type(self, kind):
        return [message for message in list(self.messages) if message.get("message_type") == kind]

    @property
    def status(self):
        found = self.of_type("status")
        return found[-1] if found else {}

    def wait(self, timeout=60):
        """Until it ends by itself; its exit code."""
        try:
            return self.process.wait(timeout)
        finally:
            self._reader.join(5)
            if self.process.returncode is not None:
                self.process.stdout.close()

    def wait_for(self, condition, what, timeout=60):
        """Until ``condition()`` holds; fails with what was logged when it does not in time."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if condition():
                return
            assert self.process.poll() is None, f"ended while waiting for {what}: {self.report()}"
            time.sleep(0.05)
        raise AssertionError(f"{what}: not within {timeout} s; {self.report()}")

    def wait_idle(self, timeout=60):
        """Until everything that was changed so far is on the secondary, says the run."""
        since = len(self.messages)
        self.wait_for(
            lambda: any(m.get("phase") == "idle" for m in self.messages[since:] if m.get("message_type") == "status"),
            "idle", timeout,
        )  # fmt: skip

    def wait_same(self, timeout=60, judge=differences):
        """Until the judges see no difference."""
        until = time.monotonic() + timeout
        while found := judge(self.primary, self.secondary):
            if time.monotonic() > until:
                raise AssertionError(f"still different: {found[:20]}; {self.report()}")
            assert self.process.poll() is None, f"ended: {self.report()}"
            time.sleep(0.2)

    def report(self):
        self.stderr.seek(0)
        logs = [m.get("message", "") for m in self.of_type("log")[-25:]]
        services = ""
        for path in self.state.glob("sessions/*/services.log"):
            services += path.read_text(errors="replace")[-1500:]
        return json.dumps(
            {"status": self.status, "errors": self.of_type("error"), "logs": logs, "services": services,
             "stderr": self.stderr.read()[-2000:].decode(errors="replace")}, indent=1,
        )  # fmt: skip

    # ---- disturbing

    def children(self, name=None):
        """(pid, role) of all processes below the run; the role is what is known from the log, or the command."""
        found = []
        todo = [self.process.pid]
        while todo:
            parent = todo.pop()
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for task in Path(f"/proc/{parent}/task").iterdir():
                    for child in (task / "children").read_text().split():
                        todo.append(int(child))
                        found.append(int(child))
        return found

    def pids(self, service):
        """The pid of a service, as the run wrote it down; some are started a moment after the others."""
        (path,) = self.state.glob("sessions/*/pids.json")
        self.wait_for(lambda: service in json.loads(path.read_text()), f"{service} to be started")
        return json.loads(path.read_text())[service]

    def redis(self):
        """A client of the run's own Redis."""
        (path,) = self.state.glob("sessions/*/servers.json")
        return connect(from_json(path.read_bytes()))

    def counters(self):
        """The live counters of the ledger: files, bytes, bytes_sent, …."""
        with self.redis() as client:
            (key,) = client.keys("seamark:*:counters")
            return {name.decode(): int(value) for name, value in client.hgetall(key).items()}

    def stop(self, number=signal.SIGTERM, timeout=90):
        """Ask it to end; its exit code. Nothing of it may be left behind."""
        below = self.children()
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.wait(timeout)
        deadline = time.monotonic() + 5
        while left := [pid for pid in below if _alive(pid)]:
            assert time.monotonic() < deadline, f"left behind: {left}: {[_command(pid) for pid in left]}"
            time.sleep(0.05)
        return code

    def kill(self):
        """kill -9 of everything, as a crash of the host would: at once, so that nobody sees another one's end and closes in order."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in [self.process.pid, *self.children()]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.wait(10)

    def query(self, statement):
        """Rows of the progress database."""
        (path,) = self.state.glob("sessions/*/progress.sqlite")
        with contextlib.closing(sqlite3.connect(path)) as db:
            return db.execute(statement).fetchall()

    def progress(self):
        """The durable row of this session."""
        (path,) = self.state.glob("sessions/*/progress.sqlite")
        with sqlite3.connect(path) as db:
            db.row_factory = sqlite3.Row
            return dict(db.execute("SELECT * FROM brick").fetchone())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            below = self.children()
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                for pid in [self.process.pid, *below]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        self.wait(10)

    def close(self):
        self.stderr.close()


def secondary_agents(run):
    """Process ids of the secondary agents that are children of this run (of a local secondary)."""
    return agents_among(run.children())


def agents_among(pids):
    """Those of these processes that are secondary agents; their arguments are in base64."""
    found = []
    serve = base64.b64encode(b"serve")
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if serve in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _command(pid):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return "?"
