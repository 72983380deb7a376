"""Roles of a session under a supervisor of one's own, begun by the very commands that `seamark roles` prints."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys

import pytest

from tests.judge import assert_same, rsync_differences
from tests.scheduler.test_monitor import node  # noqa: F401
from tests.system.trees import many_small_files

RECORDED = ("filesystem", "directories")
ROLES = ("agent", "control", "data", "beat")


class Supervisor:
    """What people have: it knows a command line, and no more of it than its process."""

    def __init__(self, base, environment):
        self.base = base
        self.environment = {
            name: word for name, word in environment.items() if not name.startswith("SEAMARK_")
        }
        self.processes = {}

    def start(self, role, command):
        with open(self.base / f"{role}.log", "ab") as log:
            self.processes[role] = subprocess.Popen(
                shlex.split(command),
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd="/",
                start_new_session=True,
            )

    def ended(self, role, number=signal.SIGTERM):
        process = self.processes.pop(role)
        process.send_signal(number)
        return process.wait(60)

    def logs(self):
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.base.glob("*.log")))

    def end(self):
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def own(tmp_path, node):  # noqa: F811
    (tmp_path / "own").mkdir()
    made = Supervisor(tmp_path / "own", node.environment)
    yield made
    made.end()


def status(node):  # noqa: F811
    return " ".join(node.ok("status", "photos", "--detail").split())  # whose lines are cut to a width


def detector(node):  # noqa: F811
    return json.loads(node.ok("status", "photos", "--json"))["detector"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_role_under_a_supervisor_of_ones_own(node, own):  # noqa: F811
    node.state = node.base / "a state's"  # what is printed is for a shell
    node.environment["SEAMARK_STATE_DIR"] = str(node.state)
    primary, copy = node.session("photos")
    many_small_files(primary, 10, 20)
    node.monitor(*(word for role in ROLES for word in ("--without", role)))
    node.ok("start", "photos")
    node.wait_for(lambda: (node.state / "sessions/photos/servers.json").exists(), "the session to begin")
    printed = dict(line.split(": ", 1) for line in node.ok("roles", "photos").splitlines())
    assert tuple(printed) == ROLES
    assert node.ok("roles", "photos", "beat") == printed["beat"] + "\n"
    for role in ROLES:
        own.start(role, printed[role])
    node.wait_for(
        lambda: copy.exists() and not rsync_differences(primary, copy), lambda: f"the copy\n{own.logs()}", 90
    )
    node.wait_for(lambda: "HEALTHY Yes" in status(node), lambda: f"health\n{status(node)}")
    assert set(node.pids("photos")) == set(), "the monitor started a role that is not its own"
    (primary / "later").write_text("recorded by the agent")
    node.wait_for_file(copy / "later", "recorded by the agent")
    assert detector(node) in RECORDED

    # each is missed when it is not there, and what it missed is made good when it is back
    for role, said in (("control", "worker control"), ("agent", "agent")):
        own.ended(role, signal.SIGKILL)
        (primary / f"without {role}").write_text(role)
        node.wait_for(
            lambda said=said: f"{said} (under its own supervisor)" in status(node),
            lambda: f"the reason\n{status(node)}",
        )
        own.start(role, printed[role])
        node.wait_for_file(copy / f"without {role}", role)
        node.wait_for(lambda: "HEALTHY Yes" in status(node), lambda: f"health\n{status(node)}")

    # a stopped session is recorded, and not replicated
    node.ok("stop", "photos")
    (primary / "while stopped").write_text("kept")
    (copy / "later").read_text()
    with pytest.raises(AssertionError):
        node.wait_for(lambda: (copy / "while stopped").exists(), "what must not come", timeout=8)
    node.ok("start", "photos")
    node.wait_for_file(copy / "while stopped", "kept")
    log = node.state / "logs" / "photos.log"
    assert log.read_text().count("hybrid crawl") <= 2, log.read_text()

    node.wait_for(lambda: not rsync_differences(primary, copy), "both to be the same")
    for role in ROLES:
        assert own.ended(role) == 0, (role, own.logs())
    assert "Traceback" not in own.logs()
    assert_same(primary, copy)
    assert node.stop() == 0


def test_what_such_roles_refuse(node, own):  # noqa: F811
    def run(role, command):
        own.start(role, command)
        code = own.processes.pop(role).wait(60)
        said = (own.base / f"{role}.log").read_text()
        assert "Traceback" not in said
        assert len(said.splitlines()) == 1, said
        return code, said

    python = sys.executable
    where = f"env SEAMARK_STATE_DIR={node.state}"
    app = f"{python} -m celery -A scheduler.roles"
    assert run("1", f"{where} {app} beat") == (4, "seamark: SEAMARK_SESSION names no session\n")
    assert run("2", f"{where} SEAMARK_SESSION=none {app} beat")[0] == 4
    node.session("photos")
    code, said = run("3", f"{where} SEAMARK_SESSION=photos {app} worker")
    assert (code, "was not started yet" in said) == (5, True)
    assert node.command("roles", "photos").returncode == 5
    assert node.command("agent", "none").returncode == 4
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: (node.state / "sessions/photos/servers.json").exists(), "the session to begin")
    code, said = run("4", f"{where} SEAMARK_SESSION=photos {app} worker -Q stream")
    assert (code, "with -Q" in said) == (2, True)
    node.wait_for(lambda: "agent" in node.pids("photos"), "the monitor's own agent")
    node.wait_for(lambda: detector(node) in RECORDED, "it to record")
    code, said = run("5", f"{where} {python} -m seamark agent photos")
    assert (code, "without agent" in said) == (8, True)
    (node.state / "sessions/photos/servers.json").write_text("{")
    code, said = run("6", f"{where} SEAMARK_SESSION=photos {app} beat")
    assert (code, "is damaged" in said) == (1, True)
