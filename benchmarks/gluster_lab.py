"""A GlusterFS, and gsyncd, for the time of one program, in namespaces of their own: nothing of this machine's is touched.

The program starts itself again in namespaces for mounts, network and processes, where glusterd has its usual paths and
port, and where everything ends with it. It needs root, glusterfs-server, xfsprogs, sshd and unshare(1).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from replication.gluster.address import GlusterAddress
from replication.gluster.mount import GlusterMount

PRIMARY, SECONDARY = "gprimary", "gsecond"  # names of this host: glusterd refuses 127.0.0.1
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # gsyncd has to see the system's python3
_INSIDE = "SEAMARK_BENCH_INSIDE"
_PORT = 2299
_PATIENCE_S = 120
_PR_SET_PDEATHSIG = 1
_OWN_PLACES = ("/var/lib/glusterd", "/var/log/glusterfs", "/var/lib/misc")
_VOLFILE = """volume management
    type mgmt/glusterd
    option working-directory /var/lib/glusterd
    option transport-type socket
    option transport.socket.bind-address 127.0.0.1
    option transport.address-family inet
    option transport.socket.read-fail-log off
    option ping-timeout 0
    option event-threads 1
end-volume
"""


def outside() -> bool:
    return _INSIDE not in os.environ


def run_inside(*words: str) -> int:
    """This program again, in namespaces of its own, with ``words`` at its end; its exit code."""
    groups = _Groups.make()
    command = [
        "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
        sys.executable, *sys.argv, *words,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, _INSIDE: str(groups.where)}, preexec_fn=_die_with_parent
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return process.wait()
    finally:
        process.kill()  # with it goes all that it started
        process.wait()
        groups.remove()


def _die_with_parent() -> None:
    """unshare(1) lets SIGTERM pass, and its child is killed when it is."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def rsync_for_gsyncd(given: str | None) -> str:
    """An rsync that gsyncd works with. 3.5 and later take /proc/PID/cwd by its text, and copy nothing, with exit code 0."""
    if given is not None:
        return given
    said = subprocess.run(["rsync", "--version"], capture_output=True, text=True, check=True).stdout
    version = said.split()[2].split(".")
    if (int(version[0]), int(version[1])) < (3, 5):
        return str(shutil.which("rsync"))
    folder = Path(tempfile.gettempdir()) / f"seamark-bench-rsync-{os.geteuid()}"
    found = folder / "usr" / "bin" / "rsync"
    if not found.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        offered = subprocess.run(
            ["apt-cache", "madison", "rsync"], capture_output=True, text=True, check=True
        )
        versions = [line.split("|")[1].strip() for line in offered.stdout.splitlines()]
        old = next((each for each in versions if each.startswith(("3.1", "3.2", "3.3", "3.4"))), None)
        if old is None:
            raise SystemExit("gsyncd needs an rsync before 3.5: give one with --gsyncd-rsync")
        subprocess.run(
            ["apt-get", "download", f"rsync={old}"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        subprocess.run(["dpkg-deb", "-x", *map(str, folder.glob("rsync_*.deb")), str(folder)], check=True)
    return str(found)


class _Groups:
    """Control groups, which count processor time, also of processes that have ended. Versions 1 and 2."""

    def __init__(self, where: Path) -> None:
        self.where = where

    @classmethod
    def make(cls) -> _Groups:
        for root in (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup")):
            if (root / "cgroup.procs").exists():
                where = root / f"seamark-bench-{os.getpid()}"
                where.mkdir()
                return cls(where)
        raise SystemExit("no control groups are mounted at /sys/fs/cgroup: processor time cannot be counted")

    def remove(self) -> None:
        """Once all that was in them has ended."""
        until = time.monotonic() + 10
        while self.where.exists() and time.monotonic() < until:
            for each in [*self.where.iterdir(), self.where]:
                if each.is_dir():
                    with contextlib.suppress(OSError):
                        each.rmdir()
            time.sleep(0.1)


class Cpu:
    """Processor time of one side. ``with`` it: what is started meanwhile belongs to it, with all that it starts."""

    def __init__(self, name: str) -> None:
        self._top = Path(os.environ[_INSIDE])
        self._where = self._top / name
        self._where.mkdir()

    def __enter__(self) -> None:
        self.take(os.getpid())

    def __exit__(self, *_: object) -> None:
        (self._top / "cgroup.procs").write_text(str(os.getpid()))

    def take(self, pid: int) -> None:
        (self._where / "cgroup.procs").write_text(str(pid))

    def seconds(self) -> float:
        usage = self._where / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        first = (self._where / "cpu.stat").read_text().split()
        return int(first[first.index("usage_usec") + 1]) / 1e6


def call(*words: str, check: bool = True) -> str:
    done = subprocess.run(
        words, env={**os.environ, "PATH": _PATH}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{words}: {done.stdout}"
    return done.stdout


def until(condition, what: str, patience_s: float = _PATIENCE_S, step_s: float = 0.2) -> None:
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {patience_s} s"
        time.sleep(step_s)


class GlusterLab:
    """glusterd, volumes of one brick each on XFS images, mounts. ``base``: on the disk to try."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._cleanup = contextlib.ExitStack()

    @contextlib.contextmanager
    def running(self, cpu: Cpu) -> Iterator[GlusterLab]:
        """``cpu``: of those whom glusterd starts."""
        self._hide()
        with self._cleanup:
            with cpu:
                subprocess.Popen(
                    ["glusterd", "--no-daemon", "-f", self.base / "glusterd.vol", "-p", self.base / "glusterd.pid"],
                    env={**os.environ, "PATH": _PATH}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            until(lambda: "UUID" in call("gluster", "--mode=script", "pool", "list", check=False), "glusterd")
            yield self

    def _hide(self) -> None:
        """Put places of our own over those that glusterd and ssh use."""
        call("ip", "link", "set", "lo", "up")
        call("mount", "-t", "tmpfs", "run", "/run")  # sockets of glusterd, and of its bricks
        for name in ("gluster", "sshd"):
            Path("/run", name).mkdir()
        for place in _OWN_PLACES:
            own = self.base / place.strip("/").replace("/", "-")
            own.mkdir()
            Path(place).mkdir(parents=True, exist_ok=True)
            call("cp", "-a", f"{place}/.", str(own))
            call("mount", "--bind", str(own), place)
        files = {
            "/etc/hosts": f"127.0.0.1 localhost {PRIMARY} {SECONDARY}\n",
            "/etc/ssh/ssh_config": f"UserKnownHostsFile {self.base}/known_hosts\nStrictHostKeyChecking no\nLogLevel ERROR\n",
        }
        for name, text in files.items():
            own = self.base / Path(name).name
            own.write_text(text)
            call("mount", "--bind", str(own), name)
        (self.base / "glusterd.vol").write_text(_VOLFILE)

    def volume(self, name: str, host: str, cpu: Cpu) -> str:
        """A new volume of one brick on an XFS of its own. ``cpu``: whose the brick is. Its address."""
        disk = self.base / "bricks" / name
        disk.mkdir(parents=True)
        image = self.base / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(12 << 30)
        call("mkfs.xfs", "-q", "-i", "size=512", str(image))
        call("mount", "-o", "loop,noatime", str(image), str(disk))
        call("gluster", "--mode=script", "volume", "create", name, f"{host}:{disk}/brick", "force")
        call("gluster", "--mode=script", "volume", "start", name)
        cpu.take(self.brick_pid(name))
        return f"gluster://{host}/{name}"

    def brick_pid(self, volume: str) -> int:
        answer = ET.fromstring(call("gluster", "--mode=script", "--xml", "volume", "status", volume))
        return int(answer.findtext(".//node/pid") or 0)

    def mount(self, volume: str, cpu: Cpu) -> Path:
        """The volume as its users have it."""
        where = self.base / "mounts" / volume
        where.mkdir(parents=True)
        with cpu:
            call(
                "mount",
                "-t",
                "glusterfs",
                "-o",
                f"acl,log-file={self.base}/{volume}.log",
                f"{PRIMARY}:/{volume}",
                str(where),
            )
        return where

    def judge(self, volume: str, cpu: Cpu) -> Path:
        """A mount that shows what is there now: without caches."""
        where = self.base / "judges" / volume / "mount"
        where.parent.mkdir(parents=True)
        mount = GlusterMount(GlusterAddress(PRIMARY, volume), where)
        with cpu:
            mount.start()
        self._cleanup.callback(mount.stop)
        return where


class Gsyncd:
    """The geo-replication of GlusterFS from one volume to another one."""

    def __init__(self, lab: GlusterLab, cpu: Cpu, primary: str, secondary: str, rsync: str) -> None:
        self._lab, self._cpu, self._primary, self._secondary = lab, cpu, primary, secondary
        self._begin_sshd(rsync)
        call("gluster", "system::", "execute", "gsec_create")
        keys = Path("/var/lib/glusterd/geo-replication/common_secret.pem.pub")
        shutil.copy(keys, lab.base / "authorized_keys")
        self._ask("create", "ssh-port", str(_PORT), "no-verify", "force")
        self._ask("config", "ssh-port", str(_PORT))
        self._ask("config", "rsync-command", rsync)

    def _ask(self, *words: str, check: bool = True) -> str:
        session = (self._primary, f"{SECONDARY}::{self._secondary}")
        return call("gluster", "--mode=script", "volume", "geo-replication", *session, *words, check=check)

    def _begin_sshd(self, rsync: str) -> None:
        base = self._lab.base
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / "host_key"))
        (base / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{_PORT}\nHostKey {base}/host_key\nPidFile none\nPermitRootLogin yes\n"
            f"AuthorizedKeysFile {base}/authorized_keys\nStrictModes no\nUsePAM no\nUseDNS no\n"
            f"MaxStartups 100:30:200\nMaxSessions 100\nSetEnv PATH={Path(rsync).parent}:{_PATH}\n"
        )
        with self._cpu:
            call("/usr/sbin/sshd", "-f", str(base / "sshd_config"), "-E", str(base / "sshd.log"))

    def use(self, method: str) -> None:
        """``method``: rsync or tarssh. A session that runs is started anew by that."""
        self._ask("config", "sync-method", method)

    def start(self) -> None:
        call("gluster", "--mode=script", "volume", "set", self._primary, "changelog.rollover-time", "3")
        self._pin(on=True)
        self._ask("start")

    def stop(self) -> None:
        self._ask("stop")

    def be_live(self, primary: Path, secondary: Path) -> int:
        """Until changes arrive; how often it had to be started again for that.

        The brick may put the worker off its list while it connects (glusterfs 10.3): then it says Changelog Crawl, and
        never hears of anything. One processor for the brick while the worker connects makes that rare.
        """
        for again in range(10):
            until(lambda: "Changelog Crawl" in self._ask("status", check=False), "gsyncd's changelog crawl")
            if self._canary(primary / f".canary{again}", secondary / f".canary{again}"):
                self._pin(on=False)
                return again
            self.stop()
            self._pin(on=True)
            self._ask("start")
        raise AssertionError("gsyncd never hears of a change")

    def _canary(self, here: Path, there: Path, patience_s: float = 14) -> bool:
        here.write_text("canary")
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if there.stat().st_size:
                    return True
            time.sleep(0.3)
        return False

    def _pin(self, *, on: bool) -> None:
        pid = str(self._lab.brick_pid(self._primary))
        last = (os.cpu_count() or 1) - 1
        call("taskset", "-a", "-c", "-p", "0" if on else f"0-{last}", pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            if (task / "comm").read_text().startswith("glfs_clogecon"):
                call("chrt", "-f" if on else "-o", "-p", "20" if on else "0", task.name)
