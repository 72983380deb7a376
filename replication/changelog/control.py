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
        self._asking: socket.socket | None = None  # whose request is being answered
        self._followers: set[socket.socket] = set()
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

    def follow(self) -> None:
        """Whoever asks at the moment is told from now on."""
        assert self._asking is not None
        self._followers.add(self._asking)

    def tell(self, words: dict[str, Any]) -> None:
        """A line to each follower. One that does not read is dropped."""
        line = json.dumps(words).encode("ascii") + b"\n"
        for connection in list(self._followers):
            try:
                whole = connection.send(line) == len(line)
            except OSError:
                whole = False
            if not whole:
                self._drop(connection)

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
        self._followers.discard(connection)
        self._selector.unregister(connection)
        connection.close()

    def _read(self, connection: socket.socket) -> None:
        buffer = self._buffers.get(connection)
        if buffer is None:
            return  # dropped since the selector found it readable: it was told something, and did not read
        try:
            data = connection.recv(1 << 16)
            buffer += data
            if not data or len(buffer) > _MAX_LINE:
                self._drop(connection)
                return
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                self._asking = connection
                answer = json.dumps(self._answer(line)).encode("ascii") + b"\n"
                connection.settimeout(1.0)  # answers are short: only a client that hangs is cut off
                connection.sendall(answer)
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


class Follower:
    """Told what the agent of a store does: ``mode`` says how it records. Raises AgentUnreachable, AgentRefused."""

    def __init__(self, store: str | os.PathLike[str], timeout: float = 10.0) -> None:
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            answer = self._begin(store, timeout)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise AgentUnreachable(f"no agent answers at {os.fspath(store)}: {error}") from error
        if not answer.get("ok"):
            self._socket.close()
            raise AgentRefused(f"follow: {answer.get('error')}")
        self.mode = str(answer["mode"])
        self._socket.setblocking(False)

    def _begin(self, store: str | os.PathLike[str], timeout: float) -> dict[str, Any]:
        directory = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        finally:
            os.close(directory)
        self._socket.sendall(b'{"op": "follow"}\n')
        while b"\n" not in self._buffer:
            self._receive()
        return self._lines()[0]

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[dict[str, Any]]:
        """What it said meanwhile, if anything. Raises AgentUnreachable when it has hung up."""
        try:
            self._receive()
        except BlockingIOError:
            return []
        except (OSError, ValueError) as error:
            raise AgentUnreachable(f"the agent has ended: {error}") from error
        return self._lines()

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data or len(self._buffer) > _MAX_LINE:
            raise ConnectionResetError("it hung up")
        self._buffer += data

    def _lines(self) -> list[dict[str, Any]]:
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self._socket.close()
