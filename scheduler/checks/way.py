"""The way to the secondary, step by step: ssh, host key, login, Python, the agent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.errors import SeamarkError
from replication.remote.bundle import build_bundle
from replication.remote.client import SecondaryClient
from replication.remote.errors import (
    AgentFailed,
    AuthFailed,
    HostKeyChanged,
    HostKeyUnknown,
    NoPython,
    Unreachable,
)
from replication.remote.launch import open_secondary
from scheduler.checks.outcome import Outcome, fail, good, warn

if TYPE_CHECKING:
    from collections.abc import Generator

    from replication.remote.endpoint import SshOptions
    from replication.remote.target import Target
    from replication.session import Session

# In the order in which they are taken; an error of one means that those before it were made.
_STEPS = (("ssh", "reachable"), ("host key", "known"), ("login", "accepted"))
_STOPS = (
    (Unreachable, "ssh"), (HostKeyUnknown, "host key"), (HostKeyChanged, "host key"), (AuthFailed, "login"),
    (NoPython, "Python"), (AgentFailed, "agent"),
)  # fmt: skip
_CLOCK_WARN_S = 1.0


class Far(NamedTuple):
    """A secondary, and how it is reached."""

    session: Session
    target: Target
    options: SshOptions


def walk(ctx: Far) -> Generator[Outcome, None, dict[str, Any] | None]:
    """The steps, and what the survey of the far side says; None when it could not be made."""
    try:
        link = open_secondary(ctx.target, ctx.options)
    except SeamarkError as error:
        stop = next((name for kind, name in _STOPS if isinstance(error, kind)), "ssh")
        yield from _before(ctx, stop)
        yield fail(stop, _advised(ctx, stop, error))
        return None
    try:
        yield from _before(ctx, "")
        client = SecondaryClient(link.reader, link.writer)  # type: ignore[arg-type]
        facts = client.survey()
        yield good("Python", f"{facts['python']}, as user {facts['user']}")
        if ctx.options.gated and facts["agent"] != build_bundle().digest:
            yield warn(
                "agent",
                "the one that lies there with the session's key is of another version; it works, and is renewed by: "
                f"seamark push-pem {ctx.session.name}",
            )
        if ctx.target.is_remote:
            yield clock(client)
    except SeamarkError as error:
        yield fail("agent", error)
        return None
    finally:
        link.close()
    return facts


def _advised(ctx: Far, stop: str, error: SeamarkError) -> SeamarkError:
    """A key of the session's own that is not let in (any more) is put there again by push-pem."""
    if not ctx.options.gated or stop != "login":
        return error
    return SeamarkError(f"{error.message}; a new one: seamark push-pem {ctx.session.name}", error.exit_code)


def _before(ctx: Far, stop: str) -> Generator[Outcome, None, None]:
    if not ctx.target.is_remote:
        return
    for name, words in _STEPS:
        if name == stop:
            return
        yield good(name, f"{ctx.target.login}: {words}")


def clock(client: SecondaryClient) -> Outcome:
    """The difference of the clocks, as the quickest of some round trips shows it."""
    looks = []
    for _ in range(5):
        began, ticks = time.time_ns(), time.monotonic_ns()
        theirs = client.ping()
        trip = time.monotonic_ns() - ticks
        looks.append((trip, theirs - (began + trip // 2)))
    trip, difference = min(looks)
    said = f"{abs(difference) / 1e9:.3f} s {'ahead' if difference > 0 else 'behind'} (± {trip / 2e9:.3f} s)"
    if abs(difference) - trip / 2 > _CLOCK_WARN_S * 1e9:
        return warn("clock", f"the secondary's is {said}: nothing depends on it, but times in logs will not "
                    "match; run NTP on both hosts")  # fmt: skip
    return good("clock", f"the secondary's is {said}")
