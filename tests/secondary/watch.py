"""What a reader of the secondary may never see: a name that vanishes while it is replaced, or half a file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections import Counter

HIDDEN = b".seamark"


class Watch:
    """Looks at a secondary before and after each request, also when the agent was killed in the middle.

    Directories are told by their inode numbers, so that a name keeps its key when its directory moves.
    """

    def __init__(self, root, contents):
        self.root = root
        self.contents = contents  # the whole contents that files may have

    def standing(self):
        """(inode numbers of all directories, {(directory, name)} of what is no directory), limbo's included."""
        directories, names = set(), set()
        limbo = os.path.join(self.root, HIDDEN, b"limbo")
        for top in (self.root, *(os.path.join(limbo, n) for n in os.listdir(limbo))):
            for at, below, files in os.walk(top):
                if at == self.root:
                    below.remove(HIDDEN)
                ino = os.lstat(at).st_ino
                directories.add(ino)
                links = [n for n in below if os.path.islink(os.path.join(at, n))]
                names.update((ino, n) for n in files + links)
        return directories, names

    def _vanished(self, before):
        directories, names = self.standing()
        return {key for key in before[1] - names if key[0] in directories}

    def whole(self):
        for at, below, files in os.walk(self.root):
            if at == self.root:
                below.remove(HIDDEN)
            for path in (os.path.join(at, n) for n in files):
                if stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, "rb") as file:
                        assert file.read() in self.contents, f"{path}: not one whole version"

    def _index(self):
        return contextlib.closing(
            sqlite3.connect(os.fsdecode(os.path.join(self.root, HIDDEN, b"index.sqlite")))
        )

    @contextlib.contextmanager
    def observing(self, listings):
        """Names that stood before, and stand for something now that is no directory, are there.

        After a kill nobody knows what the index will say: there it goes for names that were observed to be so.
        """
        before = self.standing()
        observed = self._observed(listings)
        try:
            yield
        except BaseException:
            gone = self._vanished(before) & observed
            assert not gone, f"absent after a kill: {gone}"
            raise
        finally:
            self.whole()
        gone = self._vanished(before) & self._entries()
        assert not gone, f"absent, though the index has them: {gone}"

    @contextlib.contextmanager
    def sending(self):
        """Content and metadata take no name away."""
        before = self.standing()
        try:
            yield
        finally:
            gone = self._vanished(before)
            assert not gone, f"absent: {gone}"
            self.whole()

    def _entries(self):
        with self._index() as index:
            found = index.execute(
                """SELECT d.ino, e.name FROM entry e JOIN inode d ON d.id = e.parent JOIN inode i ON i.id = e.inode
                WHERE i.mode & 61440 <> 16384"""
            )
            return {(ino, bytes(name)) for ino, name in found}

    def _observed(self, listings):
        with self._index() as index:
            inos = {bytes(gfid): ino for gfid, ino in index.execute("SELECT gfid, ino FROM inode")}
        entries = [(li.parent, e) for li in listings for e in li.entries if e.inode and not e.inode.is_dir]
        places = Counter(gfid for gfid, _ in {(e.inode.gfid, (p, e.name)) for p, e in entries})
        # What was seen at several names though it has one moved meanwhile: all but one of them are old.
        return {(inos.get(p), e.name) for p, e in entries if e.inode.nlink > 1 or places[e.inode.gfid] == 1}
