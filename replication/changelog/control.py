"""The agent's socket: one JSON object a line in, one a line out.

Requests are {"op": name, …}; answers hold "ok", and what the operation says or an "error".
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

SOCKET = "agent.sock"
_MAX_LINE = 8 << 20
Handler = Callable[[dict[str, Any]], dict[str, Any]]


class AgentUnreachable(Exception):
    """No agent answers at this store: none runs, or it hangs."""


class AgentRefused(Exception):
    """The agent could not do what it was asked to."""


class ControlServer:
    """Serves requests from within the agent's own loop: ``handle`` whatever the selector says is ready."""

    def __init__(
        self, directory: str, selector: selectors.BaseSelector, handler: Handler, name: str = SOCKET
    ) -> None:
        self._name = name
        self._selector = selector
        self._handler = handler
        self._buffers: dict[socket.socket, bytearray] = {}
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        # An address holds 107 bytes, a path more: the descriptor of the directory is always short.
        path = f"/proc/self/fd/{self._directory}/{name}"
        if os.path.lexists(path):
            os.unlink(path)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(16)
        selector.register(self._listener, selectors.EVENT_READ, self)

    def handle(self, file: object) -> None:
        """Accept, or read and answer."""
        if file is self._listener:
            self._accept()
        elif isinstance(file, socket.socket):
            self._read(file)

    def close(self) -> None:
        for connection in list(self._buffers):
            self._drop(connection)
        self._selector.unregister(self._listener)
        self._listener.close()
        try:
            os.unlink(self._name, dir_fd=self._directory)
        except FileNotFoundError:
            pass
        os.close(self._directory)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._buffers[connection] = bytearray()
        self._selector.register(connection, selectors.EVENT_READ, self)

    def _drop(self, connection: socket.socket) -> None:
        del self._buffers[connection]
        self._selector.unregister(connection)
        connection.close()

    def _read(self, connection: socket.socket) -> None:
        buffer = self._buffers[connection]
        try:
            data = connection.recv(1 << 16)
            buffer += data
            if not data or len(buffer) > _MAX_LINE:
                self._drop(connection)
                return
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                connection.settimeout(1.0)  # answers are short: only a client that hangs is cut off
                connection.sendall(json.dumps(self._answer(line)).encode("ascii") + b"\n")
                connection.setblocking(False)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise TypeError("a request is an object")
            return {"ok": True, **self._handler(request)}
        except Exception as error:  # whatever it is, the recorder has to go on
            log.warning("%s refused %.200r: %s", self._name, line, error)
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def agent_call(
    store: str | os.PathLike[str], op: str, *, timeout: float = 30.0, **args: Any
) -> dict[str, Any]:
    """Ask the agent of this store: barrier, look, status, retain, damaged. Returns its answer.

    ``timeout`` in seconds, for each step. Raises AgentUnreachable, AgentRefused.
    """
    try:
        answer = exchange(store, SOCKET, {"op": op, **args}, timeout)
    except (OSError, ValueError) as error:
        raise AgentUnreachable(f"no agent answers at {os.fspath(store)}: {error}") from error
    if not answer.get("ok"):
        raise AgentRefused(f"{op}: {answer.get('error')}")
    return answer


def exchange(
    directory: str | os.PathLike[str], name: str, request: dict[str, Any], timeout: float
) -> dict[str, Any]:
    """One request to whoever serves the socket ``name`` in a directory. Raises OSError, ValueError."""
    store = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(f"/proc/self/fd/{store}/{name}")
            connection.sendall(json.dumps(request).encode("ascii") + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
    finally:
        os.close(store)
    if not line.endswith(b"\n"):
        raise ConnectionResetError("it hung up")
    answer: dict[str, Any] = json.loads(line)
    return answer
