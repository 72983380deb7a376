"""Start the secondary agent, here as a child process or there over ssh, and hand over a Link to it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from replication.remote.bundle import (
    NO_PYTHON_STATUS,
    OLDEST_PYTHON,
    PYTHON_FLAGS,
    PYTHONS,
    Bundle,
    bootstrap_arguments,
    build_bundle,
    gate_command,
    shell_command,
)
from replication.remote.endpoint import SshOptions
from replication.remote.errors import AgentFailed, LinkLost, NoPython, Unreachable
from replication.remote.link import Link, last_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    import paramiko

    from replication.remote.ssh import Connection
    from replication.remote.target import Target

# A login shell may talk before our command runs (motd, fortune); this much, and no longer than this.
_NOISE_BYTES = 256 << 10
_START_S = 60.0
_SOCKET_BUFFER = 1 << 20


def open_secondary(
    target: Target,
    options: SshOptions | None = None,
    arguments: list[bytes] | None = None,
    bundle: Bundle | None = None,
) -> Link:
    """A running secondary agent for ``target.path``; with ``arguments`` one that does something else, with ``bundle`` another program.

    Raises Unreachable, HostKeyUnknown, HostKeyChanged, AuthFailed, NoPython, AgentFailed, UsageError.
    """
    options = options or SshOptions()
    arguments = arguments or [b"serve", target.path]
    bundle = bundle or build_bundle()
    link, status = (
        _over_ssh(target, options, arguments, bundle)
        if target.is_remote
        else _child(target, options, arguments, bundle)
    )
    try:
        _shake_hands(link, bundle)
    except _NotStarted as problem:
        ended = status()
        link.close()
        raise _explain(target, link, ended, problem) from None
    except BaseException:
        link.close()
        raise
    return link


def _child(
    target: Target, options: SshOptions, words: list[bytes], bundle: Bundle
) -> tuple[Link, Callable[[], int | None]]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
    arguments = bootstrap_arguments(bundle, words)
    with theirs:
        # Its own session: Ctrl-C at the terminal is for us, and the agent ends when we do.
        process = subprocess.Popen(
            [sys.executable, *PYTHON_FLAGS, *arguments],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
    stderr = process.stderr
    assert stderr is not None

    def finish(abandon: bool) -> None:
        if abandon:
            ours.close()
            os.close(stderr.fileno())
            process.returncode = 0  # not our child: nothing to wait for
            return
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        ours.close()

    link = Link(ours, f"the secondary agent of {target}", options.answer_timeout_s, finish)

    def read_stderr() -> bytes:
        part = os.read(stderr.fileno(), 8192)
        if not part:
            stderr.close()
        return part

    link.collect_stderr(read_stderr)
    return link, lambda: _wait(process)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(2)
    return None


def _over_ssh(
    target: Target, options: SshOptions, words: list[bytes], bundle: Bundle
) -> tuple[Link, Callable[[], int | None]]:
    from replication.remote.ssh import connect  # a tenth of a second, and a local secondary needs none of it

    connection = connect(target, options)
    try:
        command = gate_command(target.path) if options.gated else shell_command(bundle, words)
        channel = connection.execute(command)
    except BaseException:
        connection.close()
        raise

    def finish(abandon: bool) -> None:
        if abandon:
            channel.closed = True  # or its finaliser would send a farewell on the parent's connection
            connection.abandon()
        else:
            _close_channel(channel, connection)

    link = Link(channel, f"the secondary agent on {connection.endpoint}", options.answer_timeout_s, finish)
    link.collect_stderr(lambda: _recv_stderr(channel))
    return link, lambda: _exit_status(channel)


def _close_channel(channel: paramiko.Channel, connection: Connection) -> None:
    with contextlib.suppress(Exception):
        channel.close()
    connection.close()


def _recv_stderr(channel: paramiko.Channel) -> bytes:
    while True:
        try:
            return channel.recv_stderr(8192)
        except TimeoutError:
            if channel.closed:
                return b""


def _exit_status(channel: paramiko.Channel) -> int | None:
    return channel.exit_status if channel.status_event.wait(2) else None


def _shake_hands(link: Link, bundle: Bundle) -> None:
    """Pass over what a login shell says, send the bundle if it is wanted, until the agent is ready.

    Raises AgentFailed with what was said instead, LinkLost.
    """
    noise = bytearray()
    deadline = time.monotonic() + _START_S
    link.patience.asked()
    try:
        while len(noise) <= _NOISE_BYTES and time.monotonic() < deadline:
            line = link.reader.readline(8192)
            if line.endswith(b"seamark-agent ready\n"):
                return
            if line.endswith(b"seamark-agent need\n"):
                link.writer.write(bundle.content)
            else:
                noise += line
    except LinkLost as error:
        raise _NotStarted(_text(noise), error) from None
    raise _NotStarted(_text(noise), None)


class _NotStarted(Exception):
    """What was on standard output instead, and how the link broke (None: it did not)."""

    def __init__(self, said: str, lost: LinkLost | None) -> None:
        super().__init__(said)
        self.said = said
        self.lost = lost


def _explain(target: Target, link: Link, status: int | None, problem: _NotStarted) -> Exception:
    """Why the agent did not come up, as the person should read it."""
    errors = link.stderr_tail(wait_s=1)
    if status == NO_PYTHON_STATUS:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        found = " ".join(errors.split()).rstrip(";")
        return NoPython(
            f"{target.host} has no Python >= {oldest} (tried {', '.join(PYTHONS)}"
            f"{'; found: ' + found if found else ''}); install python3 there, or put it on the PATH that ssh gives "
            f"to {target.user or 'this user'}"
        )
    if problem.lost is not None and status is None:
        return Unreachable(problem.lost.message)
    words = "; ".join(part for part in (last_lines(errors), last_lines(problem.said)) if part)
    where = f"on {target.host}" if target.is_remote else f"for {target}"
    ending = f" (exit status {status})" if status is not None else f" within {_START_S:g} s"
    return AgentFailed(f"the secondary agent {where} did not start{ending}: {words or 'it said nothing'}")


def _text(noise: bytearray) -> str:
    return noise.decode("utf-8", "replace")
