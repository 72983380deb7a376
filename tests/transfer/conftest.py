"""A primary volume and a stand-in for the secondary agent: stage and commit as the protocol says, and no more."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from replication.transfer.item import FileItem
from replication.volume.directory import DirectoryVolume
from replication.volume.identity import identify
from tests.sshd import shared_ssh_server, ssh_server  # noqa: F401


class StandIn:
    """A secondary whose index is a dict: gfid to the names it has there. Has call() of a client."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[bytes, list[str]] = {}
        self.in_place: set[bytes] = set()
        self.committed: dict[bytes, list] = {}
        self.refuse: dict[str, tuple[str, str]] = {}
        root.mkdir()

    def call(self, op, payload=b"", **arguments):
        return SimpleNamespace(header=getattr(self, f"op_{op}")(**arguments))

    def unit(self, name):
        return self.root / ".seamark" / "staging" / name

    def op_stage(self, unit, gfids, in_place):
        for part in ("new", "basis"):
            (self.unit(unit) / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        for gfid in gfids:
            for name in self.names.get(bytes.fromhex(gfid), [])[:1]:
                if (self.root / name).exists():
                    place = "new" if bytes.fromhex(gfid) in self.in_place else "basis"
                    link = self.unit(unit) / place / gfid
                    link.unlink(missing_ok=True)
                    os.link(self.root / name, link)
        return {
            "path": f".seamark/staging/{unit}/new",
            "basis": f".seamark/staging/{unit}/basis",
            "in_place": [gfid for gfid in gfids if bytes.fromhex(gfid) in self.in_place],
        }

    def op_commit(self, unit, items):
        errors = []
        for gfid, size, mode, _uid, _gid, mtime, atime, *rest in items:
            key, new = bytes.fromhex(gfid), self.unit(unit) / "new" / gfid
            if gfid in self.refuse:
                errors.append([gfid, *self.refuse[gfid]])
                continue
            os.chmod(new, mode & 0o7777)
            os.utime(new, ns=(atime, mtime))
            self.committed[key] = [size, *rest]
            if key not in self.in_place:
                for name in self.names.setdefault(key, [gfid])[:1]:
                    os.replace(new, self.root / name)
        for part in ("new", "basis"):
            for file in (self.unit(unit) / part).iterdir():
                file.unlink()
            (self.unit(unit) / part).rmdir()
        self.unit(unit).rmdir()
        return {"errors": errors, "done": len(items) - len(errors)}


@pytest.fixture
def secondary(tmp_path):
    return StandIn(tmp_path / "secondary with space's")


class Primary:
    """A real directory volume, and items of what is in it."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.volume = DirectoryVolume(os.fsencode(root))

    def item(self, path: str | bytes, how="new") -> FileItem:
        raw = os.fsencode(path)
        gfid, stat = identify(self.volume.root_fd, raw)
        return FileItem(gfid, raw, how, stat.ino, stat.ctime_ns, stat.size, stat.nlink)

    def write(self, path: str | bytes, content: bytes, how="new") -> FileItem:
        full = os.path.join(os.fsencode(self.root), os.fsencode(path))
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as file:
            file.write(content)
        return self.item(path, how)


@pytest.fixture
def primary(tmp_path):
    primary = Primary(tmp_path / "primary")
    yield primary
    primary.volume.close()
