"""A program in a real pseudo-terminal, and a screen (pyte) that shows what a person would see."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time

import pyte


class Terminal:
    """``code`` runs in Python with a terminal of the given size as its three standard streams."""

    def __init__(self, code, columns=100, lines=20, env=None):
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        clean = {
            key: value for key, value in os.environ.items() if key not in {"COLUMNS", "LINES", "NO_COLOR"}
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=clean | {"TERM": "xterm-256color"} | (env or {}),
            start_new_session=True,
            # the terminal's Ctrl-C is for those whose controlling terminal it is
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.master = master

    def read(self, seconds):
        """Take in what arrives within ``seconds``. False when the program closed its terminal."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: closed
            return False
        self.raw += data
        self.stream.feed(data)
        return bool(data)

    def wait(self, seconds=20):
        """Run to the end; the exit code."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.read(0.1):
            pass
        code = self.process.wait(max(deadline - time.monotonic(), 0.1))
        os.close(self.master)
        return code

    def lines(self):
        """All lines, those scrolled out at the top included, without trailing blanks."""
        above = [
            "".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top
        ]
        rows = [row.rstrip() for row in [*above, *self.screen.display]]
        while rows and not rows[-1]:
            rows.pop()
        return rows
