"""Telling systemd how the monitor is (sd_notify(3)): ready, alive, stopping. Without systemd nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket
import time


class Notifier:
    """Speaks to the service manager that started this process, if it did."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")  # it is the monitor's alone, not its children's
        usec = os.environ.pop("WATCHDOG_USEC", "")
        # Twice as often as it is expected, at least.
        self._every_s = int(usec) / 2e6 if usec.isdecimal() else None
        self._due = 0.0

    def say(self, words: str) -> None:
        """Send a state: "READY=1", "STOPPING=1", "STATUS=…", …."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(words.encode(), address)

    def alive(self) -> None:
        """A sign of life, as often as the watchdog wants it."""
        if self._every_s is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._every_s / 2
            self.say("WATCHDOG=1")
