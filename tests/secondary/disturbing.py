"""What somebody else may do to a secondary at any moment: take away, replace and move what is there, limbo included.

Run as a program it is a secondary agent that is disturbed so, and sometimes killed, at its own fault points: arguments SEED, CHANCE, TIMES,
and then the agent's. CHANCE: of a disturbance at each point; TIMES: how many of them at most.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import stat
import sys

_HIDDEN = b".seamark"
_libc = ctypes.CDLL(None, use_errno=True)


def objects(root):
    """Paths of all that stands in a secondary, and of what waits in limbo."""
    found = []
    for top in (root, os.path.join(root, _HIDDEN, b"limbo")):
        for at, below, files in os.walk(top):
            if at == root:
                below.remove(_HIDDEN)
            found += [os.path.join(at, name) for name in sorted(below + files)]
    return found


def disturb(root, choose):
    """One thing, by chance. ``root`` as bytes. What it moves out of the root is removed."""
    there = objects(root)
    if not there:
        return
    path = choose.choice(there)
    kind = choose.choice(["remove", "remove", "replace", "move", "move", "exchange", "plant"])
    with contextlib.suppress(OSError):
        globals()["_" + kind](root, path, there, choose)


def _remove(root, path, there, choose):
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _replace(root, path, there, choose):
    _remove(root, path, there, choose)
    if choose.random() < 0.5:
        os.mkdir(path)
        path = os.path.join(path, b"foreign")
    with open(path, "wb") as file:
        file.write(b"foreign")


def _move(root, path, there, choose):
    directories = [root] + [p for p in there if stat.S_ISDIR(os.lstat(p).st_mode)]
    name = choose.choice([b"a", b"b", b"c", b"foreign", os.path.basename(path)])
    target = os.path.join(choose.choice(directories), name)
    if not os.path.lexists(target):
        os.rename(path, target)


def _exchange(root, path, there, choose):
    _libc.renameat2(-100, path, -100, choose.choice(there), 2)


def _plant(root, path, there, choose):
    at = path if stat.S_ISDIR(os.lstat(path).st_mode) else os.path.dirname(path)
    with open(os.path.join(at, choose.choice([b"a", b"b", b"foreign"])), "xb") as file:
        file.write(b"foreign")


def main():
    from replication.secondary import faults
    from replication.secondary.__main__ import main as serve

    seed, chance, times = int(sys.argv.pop(1)), float(sys.argv.pop(1)), int(sys.argv.pop(1))
    root, choose = os.fsencode(sys.argv[-1]), random.Random(seed)

    def point(name):
        nonlocal times
        if times and choose.random() < chance:
            times -= 1
            if choose.random() < 0.15:
                os.kill(os.getpid(), signal.SIGKILL)
            disturb(root, choose)

    faults.point = point
    return serve(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
