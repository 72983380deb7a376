"""The link to the secondary: a relay of TCP that can be slow, and cut where nobody expects it, in the middle of a frame."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

_CHUNK = 1 << 16
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER


class Wire:
    """Relays what comes to ``port`` to another port of this host. ``delay_s``: how long all that passes is held."""

    def __init__(self, to_port):
        self.delay_s, self.cuts = 0.0, 0
        self._to = ("127.0.0.1", to_port)
        self._left = None  # bytes until the cut
        self._pairs = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, size):
        """The connection on which the byte number ``size`` from now comes is cut behind it."""
        with self._lock:
            self._left = size

    def cut_now(self):
        """Cut all connections, if the cut that was asked for last did not come."""
        with self._lock:
            due, self._left = self._left is not None, None
            self.cuts += due
        for pair in list(self._pairs) if due else []:
            self._reset(pair)

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in list(self._pairs):
            self._reset(pair)

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near):
        try:
            far = socket.create_connection(self._to, 5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        pair = (near, far)
        self._pairs.append(pair)
        back = threading.Thread(target=self._relay, args=(far, near, pair), daemon=True)
        back.start()
        self._relay(near, far, pair)
        back.join()
        self._reset(pair)

    def _relay(self, one, other, pair):
        with contextlib.suppress(OSError):  # reset, by either end or by us
            while data := one.recv(_CHUNK):
                if self.delay_s:
                    time.sleep(self.delay_s)
                passes = self._passing(len(data))
                other.sendall(data[:passes])
                if passes < len(data):
                    self._reset(pair)
            other.shutdown(socket.SHUT_WR)
            return
        self._reset(pair)

    def _passing(self, size):
        """How much of so many bytes comes through."""
        with self._lock:
            if self._left is None:
                return size
            if size <= self._left:
                self._left -= size
                return size
            passes, self._left = self._left, None
            self.cuts += 1
            return passes

    def _reset(self, pair):
        with contextlib.suppress(ValueError):
            self._pairs.remove(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                end.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
            end.close()
