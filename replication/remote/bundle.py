"""The programs that run on other hosts, each as one file: a zipapp, and the command that starts it.

``replication.secondary`` is the secondary agent, ``replication.bricknode`` what tells what the bricks of a node record.

The modules keep their names, so one source serves both sides. The same sources always give the same
bytes; the far side keeps the file under its digest and never runs another content by that name.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import shlex
import zipfile
import zlib
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING

from replication.secondary.protocol import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.resources.abc import Traversable

_MAIN = 'import runpy\nrunpy.run_module("{}", run_name="__main__", alter_sys=True)\n'
# What replication.bricknode needs beside itself: no more than the standard library either.
_BRICKNODE = (
    "changelog/__init__", "changelog/brickctimes", "changelog/brickfollow", "changelog/brickplace", "changelog/bricktail", "changelog/glusterlog",
    "changelog/inotify", "changelog/record", "errors", "gluster/__init__", "gluster/glusterd", "secondary/__init__",
    "secondary/authorized", "secondary/boot", "secondary/handles", "secondary/protocol",
)  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold
OLDEST_PYTHON = (3, 9)
# The system's own first: what PATH has may be a wrapper that takes longer to start than our agent.
PYTHONS = (
    "/usr/bin/python3",
    "/usr/local/bin/python3",
    "python3",
    *(f"python3.{n}" for n in range(15, 8, -1)),
)
NO_PYTHON_STATUS = 96
# -I and -S: nothing of the user's or the site's Python set-up; utf8: names are bytes, whatever the locale.
PYTHON_FLAGS = ("-I", "-S", "-X", "utf8")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The zipapp. ``digest`` is its sha256 in hex."""

    content: bytes
    digest: str


@functools.cache
def build_bundle() -> Bundle:
    """The secondary agent, packed from wherever this package was imported: a checkout, a wheel, a zip."""
    package = resources.files("replication")
    return _pack("replication.secondary", _python_files(package / "secondary", "replication/secondary"))


@functools.cache
def build_bricknode() -> Bundle:
    """The program for nodes with bricks."""
    package = resources.files("replication")
    more = ((f"replication/{name}.py", (package / f"{name}.py").read_bytes()) for name in _BRICKNODE)
    own = _python_files(package / "bricknode", "replication/bricknode")
    return _pack("replication.bricknode", itertools.chain(own, more))


def _pack(program: str, sources: Iterable[tuple[str, bytes]]) -> Bundle:
    package = resources.files("replication")
    above = ("replication/__init__.py", (package / "__init__.py").read_bytes())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in [("__main__.py", _MAIN.format(program).encode()), *sorted([above, *sources])]:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o600 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, compresslevel=9)
    content = packed.getvalue()
    return Bundle(content, sha256(content).hexdigest())


def gate_command(root: bytes) -> str:
    """What starts the agent by a key that is limited to one root (secondary/gate.py)."""
    return f"seamark-agent {VERSION} {root.hex()}"


def _python_files(directory: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in directory.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _python_files(entry, f"{name}/{entry.name}")
        elif entry.name.endswith((".py", ".sql")):
            yield f"{name}/{entry.name}", entry.read_bytes()


def bootstrap_arguments(bundle: Bundle, arguments: list[bytes]) -> list[str]:
    """What follows ``python3 FLAGS``: -c, the program of far_side.py, and its arguments."""
    source = (resources.files("replication.remote") / "far_side.py").read_bytes()
    packed = base64.b64encode(zlib.compress(source, 9)).decode()
    program = f'import base64,zlib;exec(zlib.decompress(base64.b64decode("{packed}")))'
    words = [base64.b64encode(word).decode() for word in arguments]
    return ["-c", program, bundle.digest, str(len(bundle.content)), *words]


def shell_command(bundle: Bundle, arguments: list[bytes]) -> str:
    """One line for whatever login shell the account has: run the first Python that is new enough.

    It exits with NO_PYTHON_STATUS, and the versions it met on standard error, when there is none.
    No newline, no exclamation mark: csh would take them amiss.
    """
    test = f"import sys;sys.exit(sys.version_info<{OLDEST_PYTHON})"
    script = (
        f"for p in {' '.join(PYTHONS)}; do "
        f'if "$p" -I -S -c "{test}" </dev/null >/dev/null 2>&1; then exec "$p" {" ".join(PYTHON_FLAGS)} "$@"; fi; '
        'v=$("$p" -V </dev/null 2>&1) && f="$f $p is $v;"; done; '
        f'echo "$f" >&2; exit {NO_PYTHON_STATUS}'
    )
    return shlex.join(["exec", "sh", "-c", script, "seamark", *bootstrap_arguments(bundle, arguments)])
