"""One comparison of a session's two ends, as a machine that goes on by steps: whoever runs it may be killed at any time.

First a walk: units compare directories, and hand on what they did not come to. What differs is a suspect. Suspects
are looked at again, when everything from before is on the secondary; what still differs then, on a primary that
stood still meanwhile, is a difference. Then groups of hard links are compared, and, if that was asked for, what
differs is mended and looked at once more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from replication.errors import TemporaryError
from replication.verify.compare import Difference
from replication.verify.looks import Suspect, suspect_from
from replication.verify.selection import WHOLE

if TYPE_CHECKING:
    from scheduler.verify.settling import Settling
    from scheduler.verify.store import Row, Store

_LOOKS = 200  # names in a unit of looks
_MENDS = 100
_MOST_ROUNDS = 4  # it changed on the primary between each of these looks and the next
_TOKEN_S = 0.3
_MENDING_S = 600.0
_TROUBLE_S = 120.0  # nothing but trouble for so long: it is given up
_AGAIN_S = 1.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be compared, and how. ``paths``: in hex, relative to the root; none: all of it."""

    content: bool = True
    paths: tuple[str, ...] = ()
    salt: str = ""
    low: int = 0
    high: int = WHOLE - 1  # as JSON has it: up to and with this
    share_bytes: int = 0  # a sample of about so many bytes: decides ``high``
    min_age_s: float = 0.0
    repair: bool = False
    list_equal: bool = False
    slice: int = 0  # n of ``slices``, for the proof that is kept; 0: none
    slices: int = 0


class Workers(Protocol):
    """Who does units: the session's workers, or this process."""

    def send(self, units: dict[int, dict[str, Any]]) -> None: ...
    def take(self) -> dict[int, dict[str, Any]]: ...
    def lost(self, units: list[int]) -> list[int]: ...


class Verification:
    """Goes on with the comparison that stands in ``store``."""

    def __init__(self, store: Store, workers: Workers, settling: Settling, jobs: int) -> None:
        self.store = store
        self._workers = workers
        self._settling = settling
        self._jobs = jobs
        self._token_at = 0.0
        self._held_until = 0.0
        self._troubled_since: float | None = None
        self.trouble = ""

    @staticmethod
    def begin(store: Store, asked: Asked) -> None:
        """Write down what is to be compared."""
        store.put(asked=msgspec.to_builtins(asked), started=time.time(), phase="begin")
        store.add_unit({"kind": "begin"})

    @property
    def asked(self) -> Asked:
        return msgspec.convert(self.store.get("asked"), Asked)

    @property
    def phase(self) -> str:
        return str(self.store.get("phase"))

    @property
    def done(self) -> bool:
        return self.phase == "done"

    def step(self) -> bool:
        """Take what is there, send what is next. Whether anything came. Raises TemporaryError, after long trouble."""
        outcomes = self._workers.take()
        under_way = self.store.out()
        for number, outcome in outcomes.items():
            if number in under_way:
                with self.store.write() as db:
                    self._apply(number, under_way.pop(number), outcome)
                    db.execute("DELETE FROM unit WHERE id = ? AND out = 1", (number,))
        if lost := self._workers.lost(list(under_way)):
            self._workers.send({number: under_way[number] for number in lost})
        with self.store.write():
            self._pass_tokens()
            if not under_way:
                self._next_phase()
            units = self._next_units(self._jobs - len(under_way))
        if units:
            self._workers.send(units)
        return bool(outcomes)

    # ---- what came of a unit

    def _apply(self, number: int, payload: dict[str, Any], outcome: dict[str, Any]) -> None:
        if "trouble" in outcome:
            self._hold(outcome["trouble"][1])
            self.store.db.execute("UPDATE unit SET out = 0 WHERE id = ?", (number,))
            return
        self._troubled_since, self.trouble = None, ""
        kind = payload["kind"]
        if kind == "begin":
            self._begun(outcome)
        elif kind == "walk":
            self._walked(outcome)
        elif kind == "look":
            self._looked(payload, outcome)
        else:
            self.store.put(displaced=self.store.get("displaced", 0) + outcome["displaced"])
            for path, _, _ in payload["items"]:
                self.store.change(
                    _bytes(path), state="wait", token=None, passed=0, rounds=0, here="", there=""
                )

    def _hold(self, why: str) -> None:
        """A unit was given back: others are sent a little later. Raises TemporaryError when that goes on for long."""
        now = time.monotonic()
        self.trouble = why
        self._troubled_since = self._troubled_since or now
        self._held_until = now + _AGAIN_S
        if now - self._troubled_since > _TROUBLE_S:
            raise TemporaryError(f"nothing could be compared for {_TROUBLE_S:.0f} s: {why}")

    def _begun(self, found: dict[str, Any]) -> None:
        asked = self.asked
        high = asked.high + 1
        if asked.share_bytes and found["bytes"]:
            high = min(WHOLE, WHOLE * asked.share_bytes // found["bytes"])
        manner = {
            "content": asked.content, "hash": found["hash"], "owners": found["owners"], "xattrs": found["xattrs"],
            "trusted": found["trusted"], "salt": asked.salt, "low": asked.low, "high": high,
        }  # fmt: skip
        before = time.time_ns() - int(asked.min_age_s * 1e9) if asked.min_age_s else 1 << 62
        self.store.put(manner=manner, changed_before_ns=before, phase="walk")
        paths = [bytes.fromhex(path) for path in asked.paths] or [b""]
        self.store.add_unit(self._unit("walk", dirs=[[_text(path), ""] for path in paths], top=True))
        for path in filter(None, paths):  # the name itself; what no directory lists
            self.store.suspect(Suspect(path, Difference.META))

    def _unit(self, kind: str, **more: Any) -> dict[str, Any]:
        return {
            "kind": kind, "manner": self.store.get("manner"), "changed_before_ns": self.store.get("changed_before_ns"),
            "list_equal": self.asked.list_equal, **more,
        }  # fmt: skip

    def _walked(self, found: dict[str, Any]) -> None:
        self.store.add_totals(found["totals"])
        for values in found["suspects"]:
            self.store.suspect(suspect_from(values))
        self.store.add_links((_bytes(path), here, there) for path, here, there in found["links"])
        rest = found["rest"]
        # In as many parts as there are hands; the first directories in it are the tops of what is left.
        parts = max(1, min(self._jobs, len(rest)))
        for start in range(parts):
            if dirs := rest[start::parts]:
                self.store.add_unit(self._unit("walk", dirs=dirs))

    def _looked(self, payload: dict[str, Any], outcome: dict[str, Any]) -> None:
        if not payload["linked"]:
            self.store.add_totals(outcome["totals"])
        for values in outcome["looks"]:
            look = suspect_from(values)
            row = self.store.row(look.path)
            if row is not None and row.state == "out":
                self._judge(row, look, payload)

    def _judge(self, row: Row, look: Suspect, payload: dict[str, Any]) -> None:
        """What a second look says of a suspect."""
        change = self.store.change
        same = row.passed and row.here == look.here
        if look.kind is Difference.EXTRA:
            same = same and row.there == look.there  # it was there before, and is no newer thing of that name
        old = bool(look.newest_ns) and look.newest_ns <= payload["arrived_ns"]
        settled = look.stable and bool(payload["arrived_ns"]) and (same or old)
        if look.kind is None and not row.linked:
            if row.mending:
                change(look.path, state="mended")
            else:
                self.store.drop(look.path)
        elif look.kind is None and settled:
            self.store.add_links([(look.path, *look.link)])
            change(look.path, state="checked")
        elif look.kind is Difference.UNREADABLE and look.stable:
            change(look.path, state="unreadable", kind=look.kind, detail=look.detail)
        elif settled:
            change(look.path, state="differs", kind=look.kind, detail=look.detail, regular=look.regular)
        elif payload["last"] or row.rounds >= _MOST_ROUNDS:
            if row.linked and look.kind is None and not row.mending:
                self.store.drop(look.path)
            else:
                change(look.path, state="unsettled", kind=look.kind, detail=look.detail)
        else:
            change(
                look.path, state="wait", kind=look.kind or row.kind, detail=look.detail or row.detail, here=look.here, there=look.there,
                rounds=row.rounds + 1, token=None, passed=0, asked_ns=0,
            )  # fmt: skip

    # ---- what is next

    def _pass_tokens(self) -> None:
        """Suspects wait until everything from before the last look is on the secondary."""
        db = self.store.db
        for (token,) in db.execute(
            "SELECT DISTINCT token FROM suspect WHERE state = 'wait' AND passed = 0 AND token IS NOT NULL"
        ).fetchall():
            if self._settling.passed(token):
                db.execute("UPDATE suspect SET passed = 1 WHERE token = ? AND state = 'wait'", (token,))
        if time.monotonic() < self._token_at:
            return
        if db.execute("SELECT 1 FROM suspect WHERE state = 'wait' AND token IS NULL LIMIT 1").fetchone():
            self._token_at = time.monotonic() + _TOKEN_S
            db.execute(
                "UPDATE suspect SET token = ?, asked_ns = ? WHERE state = 'wait' AND token IS NULL",
                (self._settling.token(), time.time_ns()),
            )

    def _next_phase(self) -> None:
        """Nothing is under way: if nothing waits either, what comes next."""
        db, store = self.store.db, self.store
        if db.execute("SELECT 1 FROM unit LIMIT 1").fetchone() or store.count("wait") or store.count("out"):
            return
        phase = self.phase
        if phase == "walk":
            store.put(phase="links")
            store.doubt_links()
        elif phase == "links":
            store.judge_links()
            if self.asked.repair and store.count("differs"):
                store.put(phase="mend")
                self._plan_mending()
            else:
                store.put(phase="done", ended=time.time())
        elif phase == "mend":
            store.judge_links()
            store.put(phase="done", ended=time.time())

    def _plan_mending(self) -> None:
        """Units of names that differ, and of those that show which of two links is wrong."""
        db = self.store.db
        rows = db.execute(
            "SELECT path, kind, regular FROM suspect WHERE state IN ('differs', 'partner') ORDER BY path DESC"
        ).fetchall()
        for start in range(0, len(rows), _MENDS):
            items = [
                [_text(bytes(path)), kind, bool(regular)]
                for path, kind, regular in rows[start : start + _MENDS]
            ]
            self.store.add_unit({"kind": "mend", "items": items})
        db.execute("UPDATE suspect SET mending = 1 WHERE state = 'differs'")
        db.execute(
            "UPDATE suspect SET state = 'mend', linked = (kind = 'LINKS') WHERE state IN ('differs', 'partner')"
        )

    def _next_units(self, room: int) -> dict[int, dict[str, Any]]:
        """As many units as may be sent. Each is out from now on."""
        if room <= 0 or time.monotonic() < self._held_until:
            return {}
        store = self.store
        for _ in range(room):
            if not self._gather_looks():
                break
        units = dict(store.units(room))
        for number, payload in units.items():
            if payload["kind"] == "look":
                payload["arrived_ns"] = (
                    self._settling.arrived_ns()
                )  # before the look, so it only errs to the safe side
            store.send_out(number, payload)
        return units

    def _gather_looks(self) -> bool:
        """A unit of looks at suspects whose time has come."""
        db = self.store.db
        now = time.time_ns()
        since = now - int(self._settling.patience() * 1e9)
        mending = now - int(_MENDING_S * 1e9)
        for linked in (0, 1):
            waiting = f"SELECT path FROM suspect WHERE state = 'wait' AND token IS NOT NULL AND linked = {linked} AND "
            rows = db.execute(waiting + "passed = 1 ORDER BY path LIMIT ?", (_LOOKS,)).fetchall()
            last = not rows
            rows = (
                rows
                or db.execute(
                    waiting + "asked_ns <= CASE WHEN mending THEN min(?, ?) ELSE ? END ORDER BY path LIMIT ?",
                    (since, mending, since, _LOOKS),
                ).fetchall()
            )
            if not rows:
                continue
            paths = [bytes(path) for (path,) in rows]
            db.executemany("UPDATE suspect SET state = 'out' WHERE path = ?", [(path,) for path in paths])
            self.store.add_unit(
                self._unit("look", paths=[_text(path) for path in paths], linked=linked, last=last)
            )
            return True
        return False


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
