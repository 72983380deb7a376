"""A GlusterFS of a test's own: glusterd on an address of its own in 127/8, bricks on an XFS image, mounts.

Several may run side by side: state, sockets and logs of each lie in its own directory (bricks keep their sockets in
/run/gluster, under names that are digests of their paths).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.filesystems import available, filesystem
from tests.sshd import SshServer

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_VOLFILE = """volume management
    type mgmt/glusterd
    option working-directory {base}/glusterd
    option run-directory {base}/run
    option glusterd-sockfile {base}/glusterd.sock
    option transport-type socket
    option transport.address-family inet
    option transport.socket.bind-address {host}
    option transport.socket.read-fail-log off
    option transport.socket.keepalive-time 10
    option transport.socket.keepalive-interval 2
    option transport.tcp-user-timeout 0
    option ping-timeout 0
    option event-threads 1
end-volume
"""
_PATIENCE_S = 60
_DASHES_OF_UUID = 4


def lacking() -> str:
    """Why no Gluster can run here; empty if one can."""
    if why := available("xfs"):
        return why
    for program in ("glusterd", "gluster", "glusterfs"):
        if not any(os.access(os.path.join(folder, program), os.X_OK) for folder in _PATH.split(os.pathsep)):
            return f"{program} is not installed"
    return ""


class Glusterd:
    """One node. ``environment``: in which `gluster` means this one. ``mib``: how much its bricks hold."""

    def __init__(self, base: Path, mib: int = 4096) -> None:
        self.base, self.mib = base, mib
        self.host = "127.{}.{}.{}".format(*(random.SystemRandom().randint(2, 250) for _ in range(3)))
        self._cleanup = contextlib.ExitStack()
        self._process: subprocess.Popen | None = None
        self.environment = {"PATH": f"{base}/bin{os.pathsep}{_PATH}"}

    def __enter__(self) -> Glusterd:
        for name in ("bin", "run", "glusterd", "mounts"):
            (self.base / name).mkdir(parents=True)
        program = self.base / "bin" / "gluster"
        words = f"--glusterd-sock={self.base}/glusterd.sock --log-file={self.base}/cli.log"
        program.write_text(f'#!/bin/sh\nPATH={_PATH}\nexec gluster {words} "$@"\n')
        program.chmod(0o755)
        (self.base / "glusterd.vol").write_text(_VOLFILE.format(base=self.base, host=self.host))
        try:
            self.disk = self._cleanup.enter_context(filesystem("xfs", self.base, mib=self.mib))
            self.start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["glusterd", "--no-daemon", "-f", f"{self.base}/glusterd.vol", "-p", f"{self.base}/glusterd.pid",
             "-l", f"{self.base}/glusterd.log"],
            env={**os.environ, "PATH": _PATH}, start_new_session=True,
        )  # fmt: skip
        self.wait_for(lambda: self.ask("pool", "list", check=False) is not None, "glusterd")

    def stop(self, *, bricks: bool = True) -> None:
        """As a node that loses its power: nothing of it is there any more (but for its disk)."""
        for pid in self.processes() if bricks else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        for where in sorted((self.base / "mounts").iterdir()):
            subprocess.run(["umount", "--lazy", where], capture_output=True, check=False)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self.wait_for(lambda: not self.processes(), "its processes to end")
        self._cleanup.close()

    def processes(self) -> list[int]:
        """Bricks, clients and helpers of this node: all that name its directory or its address."""
        mine = (os.fsencode(self.base), self.host.encode())
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[0].rsplit(b"/", 1)[-1] in (b"glusterfs", b"glusterfsd") and any(
                    each in word for word in words for each in mine
                ):
                    found.append(int(pid))
        return found

    def ask(self, *words: str, check: bool = True) -> ET.Element | None:
        """A command of gluster(8); its answer."""
        done = subprocess.run(
            [f"{self.base}/bin/gluster", "--mode=script", "--xml", *words], capture_output=True, check=False, timeout=90,
        )  # fmt: skip
        with contextlib.suppress(ET.ParseError):
            answer = ET.fromstring(done.stdout)
            if answer.findtext("opRet") == "0":
                return answer
        assert not check, f"gluster {words}: {done.stdout.decode()} {done.stderr.decode()}"
        return None

    def wait_for(self, condition, what: str, patience_s: float = _PATIENCE_S) -> None:
        until = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < until, f"{what}: not within {patience_s} s"
            time.sleep(0.1)

    # ---- volumes

    def brick(self, volume: str, number: int) -> Path:
        return self.disk / volume / f"brick{number}"

    def _named(self, volume: str, numbers) -> list[str]:
        (self.disk / volume).mkdir(exist_ok=True)
        return [f"{self.host}:{self.brick(volume, number)}" for number in numbers]

    def volume(self, name: str, bricks: int, *kind: str, start: bool = True, **options: str) -> str:
        """A new volume of so many bricks; ``kind``: words of `volume create`, as replica 3 arbiter 1. Its address."""
        self.ask("volume", "create", name, *kind, *self._named(name, range(bricks)), "force")
        for option, value in options.items():
            self.ask("volume", "set", name, option, value)
        if start:
            self.ask("volume", "start", name)
        return f"gluster://{self.host}/{name}"

    def add_bricks(self, volume: str, *numbers: int, kind: tuple[str, ...] = ()) -> None:
        self.ask("volume", "add-brick", volume, *kind, *self._named(volume, numbers), "force")

    def rebalance(self, volume: str) -> None:
        """Move files to where they belong by now; returns when that is done."""
        self.ask("volume", "rebalance", volume, "start", "force")
        self._moved("rebalance", volume)

    def empty_bricks(self, volume: str, *numbers: int) -> int:
        """Move everything away from bricks that are to be removed; how many files could not be moved for their users."""
        bricks = self._named(volume, numbers)
        self.ask("volume", "remove-brick", volume, *bricks, "stop", check=False)  # an earlier try
        self.ask("volume", "remove-brick", volume, *bricks, "start")
        return self._moved("remove-brick", volume, *bricks)

    def remove_bricks(self, volume: str, *numbers: int) -> None:
        """With what could not be moved away from them."""
        self.ask("volume", "remove-brick", volume, *self._named(volume, numbers), "force")

    def _moved(self, *words: str) -> int:
        def found(name: str) -> str | None:
            return self.ask("volume", *words, "status").findtext(f".//aggregate/{name}")

        self.wait_for(lambda: found("statusStr") not in {"in progress", None}, f"{words}", 300)
        assert found("statusStr") == "completed", found("statusStr")
        return int(found("failures") or 0)

    def replace_brick(self, volume: str, old: int, new: int) -> None:
        self.ask("volume", "replace-brick", volume, *self._named(volume, (old, new)), "commit", "force")

    def wait_healed(self, volume: str) -> None:
        """Until no brick of a replica knows of anything that another one lacks, while nobody writes."""

        def healed() -> bool:
            indices = [
                name
                for folder in (self.disk / volume).glob("brick*/.glusterfs/indices/*")
                for name in os.listdir(folder)
            ]
            # Besides what has to be healed each holds a file that the others are links to.
            return not [name for name in indices if name.count("-") == _DASHES_OF_UUID]

        self.wait_for(healed, "the replicas to be healed", 300)

    def mount(self, volume: str, name: str = "") -> Path:
        """The volume as its users have it."""
        where = self.base / "mounts" / (name or volume)
        where.mkdir()
        subprocess.run(
            ["mount", "-t", "glusterfs", "-o", f"acl,log-file={self.base}/{where.name}.log", f"{self.host}:/{volume}", where],
            env={**os.environ, "PATH": _PATH}, check=True,
        )  # fmt: skip
        return where

    def pid_of(self, volume: str, number: int) -> int | None:
        """The process of a brick."""
        path = os.fsencode(self.brick(volume, number))
        for pid in self.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"--brick-name" in words and words[words.index(b"--brick-name") + 1] == path:
                    return pid
        return None

    def kill_brick(self, volume: str, number: int) -> None:
        os.kill(self.pid_of(volume, number), signal.SIGKILL)

    def start_bricks(self, volume: str, *numbers: int) -> None:
        """Start what has ended of a volume. glusterd takes a while to see that a brick is gone."""

        def started() -> bool:
            self.ask("volume", "start", volume, "force", check=False)
            time.sleep(0.5)
            return all(self.pid_of(volume, number) for number in numbers)

        self.wait_for(started, f"the bricks of {volume}")

    def delete(self, volume: str) -> None:
        self.ask("volume", "stop", volume, "force", check=False)
        self.ask("volume", "delete", volume)
        shutil.rmtree(self.disk / volume)


class Pool:
    """Nodes of one pool, each with an sshd on its address; the first is the one that Seamark runs on.

    Every sshd has the same ``port``, a home of its own for root, and ``identity`` as the administrator's key.
    """

    def __init__(self, base: Path, size: int) -> None:
        self.base, self.size = base, size
        self._cleanup = contextlib.ExitStack()
        self.nodes: list[Glusterd] = []
        self.servers: list[SshServer] = []

    def __enter__(self) -> Pool:
        try:
            self.nodes = [Glusterd(self.base / f"node{number}", mib=2048) for number in range(self.size)]
            with ThreadPoolExecutor() as threads:  # each takes a while, waiting
                for node, began in [(node, threads.submit(node.__enter__)) for node in self.nodes]:
                    began.result()
                    self._cleanup.push(node)
            for node in self.nodes[1:]:
                self.nodes[0].wait_for(
                    lambda node=node: self.nodes[0].ask("peer", "probe", node.host, check=False) is not None,
                    "a peer",
                )
            for node in self.nodes:
                node.wait_for(lambda node=node: self._knows_all(node), "the peers to know each other")
            for node in self.nodes:
                self._serve(node)
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _knows_all(self, node: Glusterd) -> bool:
        peers = node.ask("pool", "list").findall("peerStatus/peer")
        return sum(peer.findtext("connected") == "1" for peer in peers) == self.size

    def _serve(self, node: Glusterd) -> None:
        base = node.base / "sshd"
        path = f"HOME={base}/home TMPDIR={base}/tmp PATH={node.environment['PATH']}"
        server = SshServer(base, host=node.host, port=self.port if self.servers else 0, SetEnv=path)
        self._cleanup.callback(server.stop)
        if self.servers:
            shutil.copy(self.servers[0].authorized_keys, server.authorized_keys)
        self.servers.append(server)

    @property
    def port(self) -> int:
        return self.servers[0].port

    @property
    def identity(self) -> Path:
        return self.servers[0].identity

    @property
    def environment(self) -> dict[str, str]:
        return self.nodes[0].environment

    def volume(self, name: str, where: list[int], *kind: str, **options: str) -> str:
        """A new volume with a brick on each of these nodes, in this order, and its address."""
        first = self.nodes[0]
        bricks = []
        for number, node in enumerate(where):
            (self.nodes[node].disk / name).mkdir(exist_ok=True)
            bricks.append(f"{self.nodes[node].host}:{self.nodes[node].brick(name, number)}")
        first.ask("volume", "create", name, *kind, *bricks, "force")
        for option, value in options.items():
            first.ask("volume", "set", name, option, value)
        first.ask("volume", "start", name)
        return f"gluster://{first.host}/{name}"

    def delete(self, name: str) -> None:
        self.nodes[0].ask("volume", "stop", name, "force", check=False)
        self.nodes[0].ask("volume", "delete", name)
        for node in self.nodes:
            shutil.rmtree(node.disk / name, ignore_errors=True)
