"""Delivers the events of all sessions of a node: to webhooks, and to commands.

A process of its own: whatever hangs there holds up nobody. Events of a session go to each target in their
order, each again until it was taken (or a day has passed), with back-off; so an event may arrive twice, and
has an id by which that can be seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from replication.errors import SeamarkError
from replication.session import SessionDir, session_names
from replication.session_file import drop_asides
from scheduler.events import Waiting, spool

if TYPE_CHECKING:
    import threading

    from replication.settings import EventSettings

log = logging.getLogger("seamark.events")
SIGNATURE = "X-Seamark-Signature"
TIMEOUT_S = 10.0
COMMAND_S = 30.0
_FIRST_S, _MOST_S = 1.0, 300.0
_GIVE_UP_S = 86_400.0
_COMMAND = "command"
_COMMAND_TRIES = 5
_LOOK_EVERY_S = 0.5
_THREADS = 8


@dataclass(slots=True)
class _Try:
    """One event on its way to one target."""

    path: Path
    tries: int = 0
    due: float = 0.0
    running: Future[str] | None = None


class Courier:
    """One for a state directory. ``step`` never blocks."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._pool = ThreadPoolExecutor(_THREADS, "events")
        self._tries: dict[tuple[str, str], _Try] = {}

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``. What is not delivered then is at the next start."""
        while not stop.wait(_LOOK_EVERY_S):
            self.step()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def step(self) -> None:
        """Look once at everything that waits."""
        for name in session_names(self._state_dir):
            place = SessionDir(self._state_dir, name)
            directory = spool(place)
            if not directory.is_dir():
                continue
            try:
                events = place.load_config().events
            except SeamarkError:
                continue  # damaged: when it is mended
            for target in targets(events):
                self._serve(name, target, events, sorted(directory.glob("*.json")))
            self._clear(directory, targets(events))

    def _serve(self, name: str, target: str, events: EventSettings, waiting: list[Path]) -> None:
        """Go on with the oldest event that this target has not had."""
        found = next(((p, w) for p in waiting if (w := _read(p)) is not None and target not in w.done), None)
        if found is None:
            self._tries.pop((name, target), None)
            return
        path, wanted = found
        attempt = self._tries.get((name, target))
        if attempt is None or attempt.path != path:
            attempt = self._tries[name, target] = _Try(path)
        if attempt.running is None:
            if time.monotonic() >= attempt.due:
                attempt.running = self._pool.submit(deliver, target, events, wanted.event)
            return
        if attempt.running.done():
            self._ended(name, target, attempt, wanted, attempt.running.result())

    def _ended(self, name: str, target: str, attempt: _Try, wanted: Waiting, problem: str) -> None:
        attempt.running = None
        attempt.tries += 1
        where = _shown(target)
        if not problem:
            _done(attempt.path, target)
            return
        late = time.time() - float(wanted.event["time"]) > _GIVE_UP_S
        if late or (target == _COMMAND and attempt.tries >= _COMMAND_TRIES):
            log.error("%s: event %s was not delivered to %s: %s", name, wanted.event["event"], where, problem)
            _done(attempt.path, target)
            return
        delay = min(_MOST_S, _FIRST_S * 2.0 ** (attempt.tries - 1))
        attempt.due = time.monotonic() + delay
        log.warning(
            "%s: event %s: %s: %s; next try in %.0f s", name, wanted.event["event"], where, problem, delay
        )

    @staticmethod
    def _clear(directory: Path, wanted: list[str]) -> None:
        """Remove what every target has had."""
        for path in directory.glob("*.json"):
            waiting = _read(path)
            if waiting is None or set(wanted) <= set(waiting.done):
                path.unlink(missing_ok=True)
        drop_asides(directory, "*.new")


def targets(events: EventSettings) -> list[str]:
    """To whom events go: addresses, and the command as one."""
    return [*events.webhook, *([_COMMAND] if events.command else [])]


def deliver(target: str, events: EventSettings, event: dict[str, Any]) -> str:
    """Tell one target of one event. Returns what was wrong, empty when it was taken. Never raises."""
    body = json.dumps(event).encode("ascii")
    try:
        if target == _COMMAND:
            return _run(list(events.command), body)
        return _post(target, events.secret, event, body)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def signature(secret: str, body: bytes) -> str:
    """What the receiver compares: HMAC-SHA256 of the body as it was sent (RFC 2104), in hex."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is redirected would become a GET without its body."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, secret: str | None, event: dict[str, Any], body: bytes) -> str:
    headers = {
        "Content-Type": "application/json", "User-Agent": "seamark", "X-Seamark-Event": event["event"],
        "X-Seamark-Delivery": event["id"],
    }  # fmt: skip
    if secret is not None:
        headers[SIGNATURE] = signature(secret, body)
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 -- http(s) only, says the setting
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)


def _run(words: list[str], body: bytes) -> str:
    try:
        done = subprocess.run(
            words,
            input=body,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {COMMAND_S:.0f} s"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"exit code {done.returncode}" + (f": {said[-1][:200]}" if said else "")
    return ""


def _shown(target: str) -> str:
    """A target as it may be logged: an address may hold a token."""
    scheme, colon, rest = target.partition("://")
    return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}/…" if colon else target


def _read(path: Path) -> Waiting | None:
    try:
        # Not msgspec's decoder: it takes no lone surrogates, which names may hold.
        return msgspec.convert(json.loads(path.read_bytes()), Waiting)
    except (OSError, ValueError):
        return None


def _done(path: Path, target: str) -> None:
    waiting = _read(path)
    if waiting is not None:
        waiting.done.append(target)
        aside = path.with_suffix(".new")
        with contextlib.suppress(OSError):
            # ASCII again: what came as an escaped surrogate has to stay one.
            aside.write_text(json.dumps(msgspec.structs.asdict(waiting)), encoding="ascii")
            aside.replace(path)
