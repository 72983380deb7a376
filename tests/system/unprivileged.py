"""Running as a user who may do nothing in particular."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from tests.conftest import need

NOBODY = 65534


def as_nobody(*trees):
    """Words before a command that run it without any privilege; that user owns ``trees`` from now on.

    Where that user cannot reach the interpreter (it is below root's own home), the command gets a view of
    the file system in which it can.
    """
    need("setpriv", "unshare")
    for tree in trees:
        for directory, dirs, files in os.walk(tree):
            for name in [".", *dirs, *files]:
                os.chown(os.path.join(directory, name), NOBODY, NOBODY, follow_symlinks=False)
        _let_through(tree)
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", f"HOME={trees[0]}"]
    interpreter = Path(sys.executable).resolve()
    closed = next((p for p in reversed(interpreter.parents) if p.stat().st_mode & 0o005 != 0o005), None)
    if closed is None:
        return drop
    below = closed / interpreter.relative_to(closed).parts[0]
    kept = shlex.quote(os.fspath(trees[0] / ".interpreter"))
    script = (
        f"mkdir {kept}; mount --bind {shlex.quote(os.fspath(below))} {kept} && "
        f"mount -t tmpfs -o mode=755 tmpfs {closed} && mkdir {below} && mount --move {kept} {below} && "
        f'rmdir {kept} && exec "$@"'
    )
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *drop]


def _let_through(path):
    """pytest's own directories are for their owner alone."""
    for parent in Path(path).parents:
        mode = parent.stat().st_mode
        if mode & 0o005 != 0o005 and len(parent.parts) > 2:
            parent.chmod(mode | 0o055)
