"""Somebody who changes a volume all the time, and knows what has to be on a secondary once the mark is beyond it."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import threading
import time
from collections import Counter
from typing import NamedTuple

_DIRECTORIES = 8
_NAMES = 40
_DIRECTORY = b"a directory"


class Fact(NamedTuple):
    """What a path is since ``done_ns``, as its only writer left it; ``content`` None: nothing is there."""

    done_ns: int
    content: bytes | None
    mode: int = 0
    mark: bytes = b""  # an extended attribute
    owner: int = 0


def seen(path):
    """The same, of what is there; an OSError says that it cannot be told."""
    try:
        found = os.lstat(path)
        mode, mark = stat.S_IMODE(found.st_mode), b""
        with contextlib.suppress(FileNotFoundError):
            with contextlib.suppress(OSError):
                mark = os.getxattr(path, "user.load")
            if stat.S_ISDIR(found.st_mode):
                return Fact(0, _DIRECTORY, mode, mark, found.st_uid)
            with open(path, "rb") as file:
                return Fact(0, file.read(), mode, mark, found.st_uid)
    except FileNotFoundError:
        return Fact(0, None)


class Load:
    """Creates, overwrites, appends, renames, links and deletes in ``root``, in an area of its own.

    Errors of a volume that is away are met by trying something else: what became of that path is then not known.
    """

    def __init__(self, root, name="load", seed=1, pause=0.03):
        self.root, self.name, self.pause = root, name, pause
        self.draw = random.Random(seed)
        self.facts: dict[str, Fact] = {}
        self.done: Counter = Counter()
        self.errors: Counter = Counter()
        self._held = threading.Lock()
        self.still = threading.Lock()  # who holds it is undisturbed
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name)

    @property
    def count(self):
        return sum(self.done.values())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def go_on(self, run, steps=200, timeout=120):
        """Until so many more changes are made."""
        goal = self.count + steps
        run.wait_for(lambda: self.count >= goal, f"{steps} changes to {self.root}", timeout)

    # ---- working

    def _work(self):
        steps = (
            [self.write] * 4
            + [self.overwrite] * 3
            + [self.append] * 2
            + [self.rename] * 3
            + [self.rename_over] * 2
        )
        steps += [
            self.link,
            self.unlink,
            self.attributes,
            self.attributes,
            self.dress_directory,
            self.move_directory,
            self.remove_directory,
        ]
        while not self._over.wait(self.pause):
            step = self.draw.choice(steps)
            with self.still:
                try:
                    step()
                    self.done[step.__name__] += 1
                except OSError as error:
                    self.errors[f"{step.__name__}: {error.strerror}"] += 1
                    time.sleep(0.05)

    def _path(self):
        directory = f"{self.name}/d{self.draw.randrange(_DIRECTORIES)}"
        os.makedirs(self.root / directory, exist_ok=True)
        return f"{directory}/n{self.draw.randrange(_NAMES)}"

    def _there(self):
        """A path at which there is a file, and what it is."""
        known = [path for path, fact in list(self.facts.items()) if fact.content not in (None, _DIRECTORY)]
        if not known:
            raise FileNotFoundError(2, "nothing yet")
        path = self.draw.choice(known)
        return path, self.facts[path]

    @contextlib.contextmanager
    def _changing(self, *paths):
        """Facts of ``paths`` do not hold any more; those that are returned by the block do from then on."""
        with self._held:
            for path in paths:
                self.facts.pop(path, None)
        found = {}
        yield found
        now = time.time_ns()
        with self._held:
            self.facts |= {path: fact._replace(done_ns=now) for path, fact in found.items()}

    def _content(self):
        return self.draw.randbytes(self.draw.choice((100, 3000, 20_000, 200_000)))

    def write(self):
        path = self._path()
        content = self._content()
        with self._changing(path) as facts:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.root / path)
            (self.root / path).write_bytes(content)
            os.chmod(self.root / path, 0o640)
            facts[path] = Fact(0, content, 0o640)

    def overwrite(self):
        path, fact = self._there()
        if not fact.content or self._is_linked(path):
            return
        at = self.draw.randrange(len(fact.content))
        new = self.draw.randbytes(min(500, len(fact.content) - at))
        with self._changing(path) as facts:
            with open(self.root / path, "r+b") as file:
                file.seek(at)
                file.write(new)
            facts[path] = fact._replace(content=fact.content[:at] + new + fact.content[at + len(new) :])

    def append(self):
        path, fact = self._there()
        if self._is_linked(path):
            return
        with self._changing(path) as facts:
            with open(self.root / path, "ab") as file:
                file.write(b"more")
            facts[path] = fact._replace(content=fact.content + b"more")

    def _is_linked(self, path):
        return os.lstat(self.root / path).st_nlink > 1

    def rename(self):
        self._rename(f"{self._path()}-{self.count}")

    def rename_over(self):
        self._rename(self._path())

    def _rename(self, new):
        path, fact = self._there()
        if path == new or self._is_linked(path):
            return
        with self._changing(path, new) as facts:
            os.rename(self.root / path, self.root / new)
            facts |= {path: Fact(0, None), new: fact}

    def link(self):
        path, fact = self._there()
        new = f"{self._path()}+{self.count}"
        with self._changing(new) as facts:
            os.link(self.root / path, self.root / new)
            facts[new] = fact

    def unlink(self):
        path, _ = self._there()
        with self._changing(path) as facts:
            os.unlink(self.root / path)
            facts[path] = Fact(0, None)

    def attributes(self):
        path, fact = self._there()
        if self._is_linked(path):
            return
        mode, mark = self.draw.choice((0o600, 0o644, 0o755)), b"%d" % self.count
        with self._changing(path) as facts:
            os.chmod(self.root / path, mode)
            os.setxattr(self.root / path, "user.load", mark)
            facts[path] = fact._replace(mode=mode, mark=mark)

    def dress_directory(self):
        path = os.path.dirname(self._path())
        mode, mark, owner = (
            self.draw.choice((0o700, 0o755, 0o1777)),
            b"%d" % self.count,
            self.draw.choice((0, 1234)),
        )
        with self._changing(path) as facts:
            os.chmod(self.root / path, mode)
            os.chown(self.root / path, owner, owner)
            os.setxattr(self.root / path, "user.load", mark)
            facts[path] = Fact(0, _DIRECTORY, mode, mark, owner)

    def move_directory(self):
        old = self.root / self.name / f"m{self.draw.randrange(3)}"
        if not old.exists():
            old.mkdir()
            for number in range(5):
                (old / f"f{number}").write_bytes(self._content())
        os.rename(old, f"{old}-{self.count}")

    def remove_directory(self):
        moved = [name for name in os.listdir(self.root / self.name) if name.startswith("m")]
        if len(moved) > 4:
            where = self.root / self.name / self.draw.choice(moved)
            for name in os.listdir(where):
                os.unlink(where / name)
            os.rmdir(where)

    # ---- judging

    def missed(self, secondary, mark_ns):
        """What is not on the secondary though the mark is beyond it: texts. Also how many facts were looked at."""
        with self._held:
            due = {path: fact for path, fact in self.facts.items() if fact.done_ns < mark_ns}
        found = []
        for path, fact in due.items():
            if self._differs(secondary / path, fact) and self.facts.get(path) is fact:
                there = seen(secondary / path)
                # Gluster itself may have lost it.
                if self._differs(secondary / path, fact) and self.facts.get(path) is fact and not self._differs(self.root / path, fact):  # fmt: skip
                    found.append(f"{path}, done {(mark_ns - fact.done_ns) / 1e9:.3f} s before the mark: {_words(fact)}, there is {_words(there)}")  # fmt: skip
        return found, len(due)

    @staticmethod
    def _differs(path, fact):
        try:
            return seen(path) != fact._replace(done_ns=0)
        except OSError:
            return True


def _words(fact):
    if fact.content is None:
        return "nothing"
    return f"{len(fact.content)} bytes {fact.content[:4].hex()}…{fact.content[-4:].hex()}, {fact.mode:o}, {fact.mark!r}"


class MarkJudge:
    """Looks, whenever the mark has moved, whether all is there that the load did before it."""

    def __init__(self, run, loads):
        self.run, self.loads = run, loads
        self.found: list[str] = []
        self.marks = self.looked = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._judge, name="judge")

    def _judge(self):
        last = 0
        while not self._over.wait(0.2):
            with contextlib.suppress(Exception):
                mark = self.run.progress()["stime_ns"]
                if mark != last:
                    last = mark
                    self.look(mark)

    def look(self, mark_ns):
        self.marks += 1
        for load in self.loads:
            missed, looked = load.missed(self.run.secondary, mark_ns)
            self.found += [f"mark {self.marks}: {text}" for text in missed]
            self.looked += looked

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def assert_kept(self):
        """Also at the last mark, if it has not been looked at."""
        self.look(self.run.progress()["stime_ns"])
        said = f"{len(self.found)} of {self.looked} at {self.marks} marks: {self.found[:8]}"
        assert not self.found, said
        assert self.looked, said
