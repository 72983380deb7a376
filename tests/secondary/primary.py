"""A small primary for tests: looks at a real directory, tells a real agent, sends what it wants."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

from replication.observation import Change, Entry, Inode, Listing
from replication.remote.client import SecondaryClient
from replication.remote.encoding import encode_listing
from replication.volume.content import read_observed
from replication.volume.directory import DirectoryVolume, settled
from replication.volume.identity import ROOT_GFID, identify
from replication.volume.xattrs import read_xattrs
from tests.secondary.consistency import assert_consistent

REPOSITORY = Path(__file__).resolve().parents[2]
FOREVER = 1 << 60
# The far side may have another Python than we have: try with SEAMARK_AGENT_PYTHON=python3.9.
AGENT_PYTHON = os.environ.get("SEAMARK_AGENT_PYTHON", sys.executable)

# Another user may not be allowed to read this Python: it is loaded first. A process that changed its
# user is not dumpable, and then does not own its /proc/self.
BECOME = """
import ctypes, os, sys
import replication.secondary.recovery
from replication.secondary.__main__ import main
user = int(sys.argv.pop(1))
os.setgroups([]); os.setgid(user); os.setuid(user)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
sys.exit(main(sys.argv[1:]))
"""


class Far:
    """An agent process on a root, and a client to it. ``before_hello`` is called with its process id.

    Whatever it was asked, its index is consistent when it ends.
    """

    def __init__(
        self,
        root,
        *,
        python=AGENT_PYTHON,
        fault="",
        epoch=1,
        user=None,
        start=None,
        before_hello=None,
        **hello,
    ):
        self.root = root
        environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), SEAMARK_TRACE="1")
        if fault:
            environment["SEAMARK_FAULT"] = fault
        start = start or ["-m", "replication.secondary"] if user is None else ["-c", BECOME, str(user)]
        self.process = subprocess.Popen(
            [python, "-X", "utf8", *start, "serve", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            cwd="/",
        )
        self.reader = os.fdopen(os.dup(self.process.stdout.fileno()), "rb", 1 << 20)
        self.process.stdout.close()
        self.client = SecondaryClient(self.reader, self.process.stdin)
        try:
            if before_hello is not None:
                before_hello(self.process.pid)
            self.hello = self.client.hello(
                **{"session": "s", "volume": "v", "epoch": epoch, "create": True, **hello}
            )
        except BaseException:
            self.close()
            raise

    def close(self):
        self.client.close()
        self.process.wait(20)
        self.client._thread.join(5)
        self.reader.close()
        assert_consistent(self.root)

    def __enter__(self):
        return self.client

    def __exit__(self, *_):
        self.close()


class Primary:
    """A tree that is replicated. Directories are found again by gfid through a scan: it is small."""

    lenient = False  # somebody else is at the secondary: not everything that is sent can be placed

    def __init__(self, root):
        self.root = os.fsencode(root)
        self.contents = {b""}  # every whole content that was ever sent, or compared
        self.sent = set()  # every one that was sent because it was wanted

    # ---- looking

    def gfid(self, path=b""):
        if path in (b"", b"."):
            return ROOT_GFID
        fd = os.open(os.path.join(self.root, os.path.dirname(path)), os.O_RDONLY)
        try:
            return identify(fd, os.path.basename(path))[0]
        finally:
            os.close(fd)

    def entry(self, dir_fd, name, change=Change.UNKNOWN):
        try:
            gfid, s = identify(dir_fd, name)
            target = os.readlink(name, dir_fd=dir_fd) if stat.S_ISLNK(s.mode) else None
        except FileNotFoundError:
            return Entry(name, None)
        ctime = settled(s.ctime_ns)
        inode = Inode(
            gfid, s.mode, s.uid, s.gid, s.nlink, s.ino, s.rdev, s.size, s.mtime_ns, s.atime_ns, ctime
        )
        return Entry(name, inode, target, change)

    def own(self, fd, gfid):
        entry = self.entry(fd, b".")
        return Entry(b".", entry.inode._replace(gfid=gfid), None, Change.NONE)

    def look(self, directory, names):
        """A partial listing; None when the directory is not there."""
        try:
            gfid = self.gfid(directory)
            fd = os.open(os.path.join(self.root, directory), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            return Listing(gfid, [self.entry(fd, n) if n != b"." else self.own(fd, gfid) for n in names])
        finally:
            os.close(fd)

    def listing(self, directory):
        fd = os.open(os.path.join(self.root, directory), os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = [os.fsencode(n) for n in os.listdir(fd) if directory or n != ".seamark"]
            return Listing(self.gfid(directory), [self.entry(fd, n) for n in names], complete=True)
        finally:
            os.close(fd)

    def paths(self):
        """gfid -> path of everything."""
        found = {ROOT_GFID: b""}
        for directory, dirs, files in os.walk(self.root):
            if directory == self.root and b".seamark" in dirs:
                dirs.remove(b".seamark")
            for name in dirs + files:
                path = os.path.relpath(os.path.join(directory, name), self.root)
                found[self.gfid(path)] = path
        return found

    # ---- sending

    def along(self, listings):
        """Content of small files that still are as they were observed, to travel with the observations."""
        paths = self.paths()
        found = []
        volume = DirectoryVolume(self.root)
        for listing in listings:
            if listing.parent not in paths:
                continue
            fd = os.open(os.path.join(self.root, paths[listing.parent]), os.O_RDONLY | os.O_DIRECTORY)
            for entry in listing.entries:
                read = read_observed(volume, fd, entry)
                if read is not None:
                    self.contents.add(read[0])
                    found.append((entry.inode.gfid.hex(), read[1], read[0]))
            os.close(fd)
        volume.close()
        return found

    def item(self, gfid, path):
        full = os.path.join(self.root, path)
        s = os.lstat(full)
        return [
            gfid.hex(), s.st_size if stat.S_ISREG(s.st_mode) else 0, s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns,
            s.st_atime_ns, settled(s.st_ctime_ns), s.st_ino, read_xattrs(full),
        ]  # fmt: skip

    def send(self, client, answer, paths=None):
        """Send what an answer asks for: content and metadata. Directories to list are returned."""
        paths = self.paths() if paths is None else paths
        items, blobs = [], []
        for g, how in answer.need:
            path = paths.get(bytes.fromhex(g))
            if path is None:
                continue
            item = self.item(bytes.fromhex(g), path)
            content = Path(os.fsdecode(os.path.join(self.root, path))).read_bytes()
            item[1] = len(content)
            self.contents.add(content)
            if how == "compare":
                digest = blake2b(content, digest_size=32).hexdigest()
                header = client.call("compare", items=[[g, len(content), digest, item]]).header
                assert self.lenient or header["errors"] == []
                if g not in header["differ"]:
                    continue
            items.append(item)
            blobs.append(content)
            self.sent.add(content)
        if items:
            errors = client.data(items, blobs)
            assert self.lenient or [e for e in errors if e[1] != "not-found"] == []
        self.send_metadata(client, answer.meta, paths)
        return [paths[bytes.fromhex(g)] for g in answer.list if bytes.fromhex(g) in paths]

    def send_metadata(self, client, gfids, paths):
        rows = []
        for g in gfids:
            path = paths.get(bytes.fromhex(g))
            if path is not None:
                item = self.item(bytes.fromhex(g), path)
                rows.append([item[0], *item[2:]])
        if rows:
            errors = client.metadata(rows)
            assert self.lenient or [e for e in errors if e[1] != "not-found"] == []

    def crawl(self, client, crawl="c", *, stamp=1, rebuilt=False, purge=True):
        """List everything, top down."""
        client.begin_crawl(crawl)
        paths = self.paths()
        for directory, dirs, _ in os.walk(self.root):
            dirs.sort()
            if directory == self.root and b".seamark" in dirs:
                dirs.remove(b".seamark")
            relative = os.path.relpath(directory, self.root)
            relative = b"" if relative == b"." else relative
            answer = client.observe([self.listing(relative)], crawl=crawl, limbo_until=stamp)
            assert answer.unknown == []
            self.send(client, answer, paths)
        self.send_metadata(client, [ROOT_GFID.hex()], paths)
        client.end_crawl(crawl, rebuilt=rebuilt)
        if purge:
            client.purge(stamp)
        return paths


def differences(a, b):
    """What the judge prints: nothing, when the trees are the same."""
    done = subprocess.run(
        ["rsync", "-naHAXSi", "--delete", "--checksum", "--numeric-ids", "--exclude=/.seamark",
         os.fsencode(a) + b"/", os.fsencode(b) + b"/"],
        capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout.decode("utf-8", "replace")


__all__ = ["FOREVER", "Far", "Primary", "differences", "encode_listing"]
