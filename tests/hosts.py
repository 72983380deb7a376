"""Hosts that are network namespaces: each with links, mounts and a name of its own, on one bridge. Needs root.

A host is a process that holds its namespaces; whatever runs on it is started by nsenter, and ``kill`` ends all of
that at once, as a crash does. A link can be cut and healed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.sshd import SshServer

_NET = "10.88.0"


def _ip(*words, inside=None):
    enter = ["nsenter", "-n", "-t", str(inside)] if inside else []
    subprocess.run([*enter, "ip", *map(str, words)], check=True, capture_output=True)


def plug(switch, pid, port, address):
    """Give a namespace a link to the switch, with this address."""
    _ip("link", "add", "eth0", "netns", pid, "type", "veth", "peer", "name", port, "netns", switch)
    _ip("link", "set", port, "master", "br0", "up", inside=switch)
    for name in ("lo", "eth0"):
        _ip("link", "set", name, "up", inside=pid)
    _ip("addr", "add", f"{address}/24", "dev", "eth0", inside=pid)


class Host:
    """One host. ``address`` is its own on the bridge."""

    def __init__(self, name, number, switch):
        self.name, self.address, self._number, self._switch = name, f"{_NET}.{number}", number, switch
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--propagation", "private", "sleep", "infinity"]
        )
        here = os.readlink("/proc/self/ns/net")
        until = time.monotonic() + 20
        while os.readlink(f"/proc/{self.pid}/ns/net") == here or self._comm() != "sleep":
            assert time.monotonic() < until
            time.sleep(0.01)
        self.run("hostname", name)
        plug(switch, self.pid, self._port, self.address)

    @property
    def pid(self):
        return self._holder.pid

    @property
    def _port(self):
        return f"port{self._number}"

    def _comm(self):
        return Path(f"/proc/{self.pid}/comm").read_text().strip()

    @property
    def prefix(self):
        """What takes a command to this host."""
        return ["nsenter", "--net", "--mount", "--uts", "-t", str(self.pid)]

    def run(self, *command, **more):
        done = subprocess.run(
            [*self.prefix, *map(str, command)], capture_output=True, text=True, check=False, **more
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def start(self, *command, log, **more):
        with open(log, "ab") as out:
            return subprocess.Popen(
                [*self.prefix, *map(str, command)], stdout=out, stderr=out, cwd="/", **more
            )

    def mount(self, source, target):
        """A bind mount that only this host has."""
        target.mkdir(parents=True, exist_ok=True)
        self.run("mount", "--bind", source, target)

    # ---- trouble

    def cut(self):
        _ip("link", "set", self._port, "down", inside=self._switch)

    def heal(self):
        _ip("link", "set", self._port, "up", inside=self._switch)

    def pids(self):
        """All that runs on it, but for its holder."""
        mine = os.readlink(f"/proc/{self.pid}/ns/net")
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if os.readlink(entry / "ns/net") == mine and int(entry.name) != self.pid:
                    found.append(int(entry.name))
        return found

    def kill(self):
        """kill -9 of everything on it. Its disks, and its address, stay."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def down(self):
        self.kill()
        self._holder.kill()
        self._holder.wait()


class Network:
    """A bridge, and the hosts on it. ``down`` ends everything."""

    def __init__(self):
        self._switch = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        here = os.readlink("/proc/self/ns/net")
        until = time.monotonic() + 20
        while os.readlink(f"/proc/{self._switch.pid}/ns/net") == here:
            assert time.monotonic() < until
            time.sleep(0.01)
        self.hosts = []
        _ip("link", "add", "br0", "type", "bridge", inside=self._switch.pid)
        _ip("link", "set", "br0", "up", inside=self._switch.pid)

    def route(self, target, pid, beyond):
        """Have all hosts reach a network through the namespace of ``pid``, and ``beyond``, a namespace there, them."""
        gateway = f"{_NET}.200"
        plug(self._switch.pid, pid, "gateway", gateway)
        subprocess.run(
            ["nsenter", "-n", "-t", str(pid), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"], check=True
        )
        for host in self.hosts:
            _ip("route", "add", target, "via", gateway, inside=host.pid)
        _ip("route", "add", f"{_NET}.0/24", "via", target.replace("0/24", "1"), inside=beyond)

    def host(self, name):
        self.hosts.append(Host(name, len(self.hosts) + 1, self._switch.pid))
        return self.hosts[-1]

    def down(self):
        for host in self.hosts:
            host.down()
        self._switch.kill()
        self._switch.wait()


@contextlib.contextmanager
def inside(pid):
    """This process is in the network of another one for a moment; what it starts there stays. Source: setns(2)."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        _enter(there)
        yield
    finally:
        _enter(here)
        os.close(here)
        os.close(there)


def _enter(namespace):
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "setns")


class HostServer(SshServer):
    """An sshd on a host."""

    def __init__(self, host, directory):
        self._on = host
        super().__init__(directory, ListenAddress=host.address)

    def trust(self):
        self.host = self._on.address
        super().trust()

    def start(self):
        with inside(self._on.pid):
            super().start()
