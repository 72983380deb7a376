"""``seamark-secondary serve ROOT``: frames on standard input and output, until the stream ends.

``install SESSION ROOT-IN-HEX KEY`` and ``revoke SESSION`` change which key serves a session; one line of JSON
says what became of it. ``gate SESSION ROOT-IN-HEX`` is what such a key starts.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from typing import Any, Callable, Dict

from replication.secondary import authorized, mounting
from replication.secondary.gate import gate
from replication.secondary.protocol import VERSION
from replication.secondary.receiver import allow_many_files
from replication.secondary.server import Server


def main(arguments: list[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "serve":
        return serve(os.fsencode(arguments[1]))
    if len(arguments) == 3 and arguments[0] == "gate":
        return gate(arguments[1], bytes.fromhex(arguments[2]))
    if len(arguments) == 4 and arguments[0] == "install":
        return _said(lambda: authorized.install(arguments[1], bytes.fromhex(arguments[2]), arguments[3]))
    if len(arguments) == 2 and arguments[0] == "revoke":
        return _said(lambda: authorized.revoke(arguments[1]))
    print("usage: seamark-secondary serve ROOT   (protocol {})".format(VERSION), file=sys.stderr)
    return 2


def serve(root: bytes, limited: bool = False) -> int:
    """One connection."""
    os.umask(0)
    if os.environ.get("SEAMARK_TRACE"):
        import faulthandler
        import signal

        faulthandler.register(signal.SIGUSR1)
    allow_many_files()
    # A frame makes tens of thousands of objects and no cycles; the collector would walk them in vain.
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    reader = io.BufferedReader(io.FileIO(0, "rb"), buffer_size=1 << 20)
    # Nothing else may write into the stream of frames.
    out = os.dup(1)
    os.dup2(2, 1)
    writer = io.FileIO(out, "wb")
    try:
        volume = mounting.hold(root)
        return Server(root, reader, writer, limited, volume).serve()
    except mounting.VolumeAway as reason:
        print("seamark: {}".format(reason), file=sys.stderr)
        return 1


def _said(work: Callable[[], Dict[str, Any]]) -> int:
    try:
        answer = work()
    except authorized.Refused as reason:
        answer = {"error": str(reason)}
    except OSError as error:
        answer = {"error": "{}: {}".format(error.filename, error.strerror)}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
