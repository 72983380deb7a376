"""compose.yaml as it is, run by an engine of the test's own: it replicates, survives kills, and gives no more rights than it says.

Public images cannot be assumed to be within reach: images of the same names are made of this host's Debian packages.
Grafana is no Debian package: what stands in for it reads what Grafana is given, and answers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from tests.conftest import missing
from tests.debian import absent, write_root
from tests.engine import Engine, need_engine, run
from tests.filesystems import filesystem
from tests.judge import rsync_differences
from tests.system.harness import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(1500)]

SESSION = "/var/lib/seamark/sessions/demo"
BASE = (
    "ca-certificates", "curl", "openssh-client", "openssh-server", "prometheus", "python3-venv", "redis-server", "rsync",
    "tzdata",
)  # fmt: skip
KINDS = ("redis", "primary", "worker", "flower", "prometheus", "grafana", "secondary")
COMPOSE = (REPOSITORY / "compose.yaml").read_text()
ROOTS = {
    "setup",
    "primary",
    "worker",
    "flower",
    "secondary",
}  # who is root in its container, says compose.yaml
NOT_OURS = (
    "--filter=-x trusted.seamark.*",
    "--filter=-x user.seamark.*",
)  # the mark: trusted.* here, user.* there
GRAFANA = """
import http.server, json, os
from pathlib import Path
for name in ("datasources/seamark.yml", "dashboards/seamark.yml"):
    assert "apiVersion: 1" in (Path(os.environ["GF_PATHS_PROVISIONING"]) / name).read_text()
assert json.loads(Path(os.environ["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).read_text())["panels"]
assert len(Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text()) > 20
(Path("/var/lib/grafana") / "grafana.db").touch()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.ThreadingHTTPServer(("", 3000), Handler).serve_forever()
"""


def image(service):
    """The public image that compose.yaml names for a service, or for the build of one."""
    (found,) = re.findall(rf"\$\{{SEAMARK_{service}:-([^}}]+)\}}", COMPOSE)
    return found


class Stack:
    """What compose.yaml brings up."""

    def __init__(self, engine, directory):
        self.engine = engine
        self.ports = dict(zip(("FLOWER", "PROMETHEUS", "GRAFANA"), free_ports(3), strict=True))
        self.env = {
            **{name: value for name, value in engine.env.items() if not name.startswith("SEAMARK_")},
            **{f"SEAMARK_{name}_PORT": str(port) for name, port in self.ports.items()},
            "SEAMARK_BUILD_NETWORK": "host", "SEAMARK_LOAD": "1", "COMPOSE_PROJECT_NAME": "demo", "COMPOSE_HTTP_TIMEOUT": "300",
        }  # fmt: skip
        self.primary = engine.data / "volumes" / "demo_demo" / "_data"
        self.replica = engine.data / "volumes" / "demo_replica" / "_data" / "replica"
        self.make_images(directory)

    def make_images(self, directory):
        root = directory / "root.tar"
        write_root(root, *BASE)
        base = image("BASE")
        self.engine.docker("import", root, base)
        root.unlink()
        for name in ("SECONDARY_BASE", "REDIS_IMAGE"):
            self.engine.docker("tag", base, image(name))
        made = directory / "images"
        made.mkdir()
        (made / "grafana.py").write_text(GRAFANA)
        for service, lines in {
            "PROMETHEUS_IMAGE": ["RUN install -d -o 65534 -g 65534 /prometheus", 'ENTRYPOINT ["prometheus"]'],
            "GRAFANA_IMAGE": [
                "COPY grafana.py /", "RUN install -d -o 472 -g 472 /var/lib/grafana", 'ENTRYPOINT ["python3", "/grafana.py"]',
            ],
        }.items():  # fmt: skip
            (made / "Dockerfile").write_text("\n".join([f"FROM {base}", *lines]))
            self.engine.docker("build", "--network", "none", "--tag", image(service), made)

    def compose(self, *words, **more):
        return run(["docker-compose", *words], env=self.env, cwd=REPOSITORY, **more)

    def containers(self, service=None):
        """What the engine knows of the containers of a service; of all services."""
        ids = self.compose("ps", "--quiet", *([service] if service else [])).split()
        return json.loads(self.engine.docker("inspect", *ids)) if ids else []

    def healthy(self, service, count=1):
        found = self.containers(service)
        return len(found) == count and all(health(container) == "healthy" for container in found)

    def seamark(self, *words):
        return self.compose("exec", "-T", "primary", "seamark", *words)

    def status(self):
        (line,) = self.seamark("status", "demo", "--json").splitlines()
        return json.loads(line)

    def wait_for(self, condition, what, timeout=180):
        until = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < until, (what, self.report())
            time.sleep(1)

    def report(self):
        told = subprocess.run(
            ["docker-compose", "logs", "--tail", "15", *KINDS], env=self.env, cwd=REPOSITORY, capture_output=True, text=True
        ).stdout  # fmt: skip
        return self.compose("ps") + told[-6000:]

    def get(self, service, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[service]}{path}", timeout=30) as answer:
            return answer.read().decode()

    def metric(self, query):
        """What Prometheus has scraped: the values of a query's answer."""
        found = json.loads(self.get("PROMETHEUS", f"/api/v1/query?query={query}"))
        return [float(one["value"][1]) for one in found["data"]["result"]]

    def signal(self, container, number):
        """Send it to all processes of a container but the first, which only waits for them."""
        first = container["State"]["Pid"]
        found = [int(pid) for pid in self.engine.docker("top", container["Id"], "-eo", "pid").split()[1:]]
        assert first in found and len(found) > 1
        for pid in found:  # in whatever order: numbers begin again one day
            if pid != first:
                os.kill(pid, number)

    def inspect(self, container_id):
        (found,) = json.loads(self.engine.docker("inspect", container_id))
        return found


def health(container):
    return container["State"]["Health"]["Status"]


def free_ports(count):
    with_sockets = [socket.socket() for _ in range(count)]
    for one in with_sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in with_sockets]
    for one in with_sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    need_engine()
    if lacking := absent(*BASE):
        missing(f"not installed: {', '.join(lacking)}")
    directory = tmp_path_factory.mktemp("docker")
    with filesystem("ext4", directory, mib=8192) as data, Engine(directory, data) as engine:
        made = Stack(engine, directory)
        try:
            made.compose("up", "--build", "--detach")
            yield made
        finally:
            made.compose("down", "--volumes", "--timeout", "20")


def test_everything_comes_up(stack):
    for kind in KINDS:
        stack.wait_for(lambda kind=kind: stack.healthy(kind), f"a healthy {kind}")
    stack.wait_for(lambda: stack.status()["last_synced"] and stack.status()["healthy"], "a mark")
    (path,) = stack.engine.data.glob("volumes/demo_state/_data/sessions/demo/detector")
    assert path.read_text() == "filesystem", "changes are recorded by one mark"


def test_changes_are_replicated_and_seen_by_prometheus(stack):
    special(stack.primary / "special")
    stack.wait_for(lambda: (stack.replica / "special" / "last").exists(), "what was made just now")
    stack.wait_for(lambda: stack.metric("seamark_up") == [1], "a scrape")
    stack.wait_for(lambda: stack.metric("seamark_lag_seconds"), "a lag")
    before = stack.metric("seamark_files_total")[0]
    stack.wait_for(lambda: stack.metric("seamark_files_total")[0] > before, "files that keep coming")
    rules = json.loads(stack.get("PROMETHEUS", "/api/v1/rules"))["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
    assert "SeamarkFaulty" in {rule["name"] for group in rules for rule in group["rules"]}


def special(place):
    """What only a privileged secondary can keep."""
    place.mkdir()
    for number, owner in enumerate([(0, 0), (1234, 5678), (10001, 0)]):
        (place / f"f{number}").write_text("x" * number)
        os.chown(place / f"f{number}", *owner)
        (place / f"f{number}").chmod(0o600)
    os.link(place / "f1", place / "link")
    (place / "symlink").symlink_to("nowhere")
    os.mkfifo(place / "fifo")
    os.mknod(place / "null", 0o644 | 0o020000, os.makedev(1, 3))
    os.setxattr(place / "f2", "user.test", b"1")
    (place / "f2").chmod(0o4755)
    (place / "last").write_text("last")


def test_privileges_are_what_is_said(stack):
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    for port in stack.ports.values():
        assert re.findall(rf"(\S+):{port}\s", listening) == ["127.0.0.1"]
    secrets = [
        path.read_text().strip() for path in stack.engine.data.glob("volumes/demo_*/_data/**/password")
    ]
    assert len(secrets) == 3
    for container in stack.containers():
        service = container["Config"]["Labels"]["com.docker.compose.service"]
        told, host = json.dumps(container), container["HostConfig"]
        assert not [secret for secret in secrets if secret in told], f"{service} shows a password"
        assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"] and not host["Privileged"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert host["Memory"] and host["PidsLimit"]
        assert ((container["Config"]["User"] or "0").split(":")[0] in ("0", "root")) == (service in ROOTS), (
            service
        )
    logs = stack.compose("logs", "--no-color")
    assert not [secret for secret in secrets if secret in logs]


def test_kills_of_every_kind_and_a_frozen_worker_lose_nothing(stack):
    stack.compose("up", "--detach", "--no-recreate", "--scale", "worker=4")
    stack.wait_for(lambda: stack.healthy("worker", 4), "four workers")
    frozen = stack.containers("worker")[-1]
    stack.signal(frozen, signal.SIGSTOP)
    try:
        for kind in KINDS:
            # one that dies with another container may not run at the moment: then its process is 0, which is our own group
            stack.wait_for(lambda: stack.containers(kind)[0]["State"]["Pid"] > 0, f"a {kind} that runs")  # noqa: B023
            container = stack.containers(kind)[0]
            assert container["State"]["Pid"] > 0, container["State"]
            os.kill(container["State"]["Pid"], signal.SIGKILL)  # and with it all of the container
            stack.wait_for(lambda: came_back(stack, container), f"{kind} again")  # noqa: B023
        stack.wait_for(
            lambda: health(stack.inspect(frozen["Id"])) == "unhealthy", "an unhealthy worker that is frozen"
        )
    finally:
        stack.signal(frozen, signal.SIGCONT)
    for kind in KINDS:
        count = 4 if kind == "worker" else 1
        stack.wait_for(lambda kind=kind, count=count: stack.healthy(kind, count), f"a healthy {kind}", 300)
    pids = json.loads(stack.compose("exec", "-T", "primary", "cat", f"{SESSION}/pids.json"))
    stack.compose("exec", "-T", "primary", "sh", "-c", f"kill -9 {pids['beat']}")
    (stack.primary / "special" / "last").write_text("after all of it")
    stack.compose("stop", "load")
    stack.seamark("checkpoint", "demo", "now")
    stack.seamark("checkpoint", "demo", "wait", "--timeout", "240")
    assert (stack.replica / "special" / "last").read_text() == "after all of it"
    assert len(list(stack.replica.glob("d*/*"))) > 1000
    assert rsync_differences(stack.primary, stack.replica, *NOT_OURS) == []


def came_back(stack, before):
    now = stack.inspect(before["Id"])
    return now["State"]["Running"] and now["State"]["StartedAt"] != before["State"]["StartedAt"]
