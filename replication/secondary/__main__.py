"""``seamark-secondary serve ROOT``: frames on standard input and output, until the stream ends."""

from __future__ import annotations

import gc
import io
import os
import sys

from replication.secondary.protocol import VERSION
from replication.secondary.receiver import allow_many_files
from replication.secondary.server import Server


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "serve":
        print("usage: seamark-secondary serve ROOT   (protocol {})".format(VERSION), file=sys.stderr)
        return 2
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
    return Server(os.fsencode(arguments[1]), reader, writer).serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
