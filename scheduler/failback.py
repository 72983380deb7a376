"""Failback: what changed on the promoted side goes back to the old primary, which becomes its secondary.

The old primary is compared with what is known of it; what it wrote and never sent is displaced there. Then
an ordinary session replicates to it. When the roles were turned round once more, the session of before finds that
its own root was promoted later than its secondary, and takes it back by itself (`take_back`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from replication import session_file
from replication.errors import ExitCode, NotFoundError, SeamarkError, UsageError
from replication.failback.agreement import Agreement
from replication.failback.promoted import owner_of, promoted_root
from replication.failback.recorded import recorded_of
from replication.failback.seeding import Plan, Seeding, as_line
from replication.private import private_dir
from replication.progress import has_filled
from replication.remote.answers import SecondaryError
from replication.remote.look import looking, named, ssh_options
from replication.remote.target import parse_target
from replication.session import (
    Recording,
    Session,
    SessionDir,
    SessionState,
    node_name,
    pair_id,
    session_names,
)
from replication.settings import SessionConfig, SshSettings
from scheduler.failover import CODES, look, secondary_of
from scheduler.preflight import InChild
from scheduler.status_file import StatusFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.failback.promoted import PromotedRoot
    from replication.remote.endpoint import SshOptions

log = logging.getLogger("seamark.failback")
_COMMENT = (
    "The way back of session {name}, whose secondary was promoted: seamark failback. See docs/runbook.md."
)


def session_on(state_dir: Path, root: PromotedRoot) -> SessionDir | None:
    """The session of this node that replicates from this root to its old primary; None: there is none yet.

    That is one that an earlier failback has made, or, where roles are turned round again, the one of before.
    """
    for name in session_names(state_dir):
        place = SessionDir(state_dir, name)
        with contextlib.suppress(SeamarkError, OSError):
            if leads_back(place, root):
                return place
    return None


def leads_back(place: SessionDir, root: PromotedRoot) -> bool:
    """Whether a session replicates from this root to its old primary, and not on to a third place. Raises SeamarkError, OSError."""
    state = place.state()
    config = place.load_config()
    if os.path.realpath(config.primary) != os.path.realpath(root.path):
        return False
    if state is None:  # whoever wrote it down was killed before that
        return _COMMENT.format(name=root.of.get("name", "?")) in place.config.read_text(encoding="utf-8")
    return state.back_from == root.session or _went_there(state.id, config.secondary, root.of)


def _went_there(session: str, secondary: str, of: dict[str, Any]) -> bool:
    """Whether a session from a promoted root replicated to its old primary before the roles were turned round.

    ``of``: what the root knows of that. Paths may be the same on all hosts, those of a chain too: a path alone says nothing.
    """
    if of.get("back_from"):
        return bool(of["back_from"] == session)
    # It is of an older version, or that session began in its place. There was one only if that primary was promoted before.
    target = parse_target(secondary)
    here = target.is_remote or of.get("node", node_name()) == node_name()
    return bool(of.get("term", 1)) and here and os.fsdecode(target.path) == of.get("path")


def old_primary_of(root: PromotedRoot) -> str:
    """Where it was, as far as the root knows. Raises UsageError."""
    node, path = root.of.get("node"), root.of.get("path")
    if not path:
        raise UsageError(f"{root.path} does not know where its primary was: give --to [user@]host:/path")
    return str(path) if node == node_name() else f"{node}:{path}"


def new_session(
    state_dir: Path, root: PromotedRoot, name: str | None, secondary: str, ssh: SshSettings
) -> tuple[SessionDir, Session]:
    """The session that replicates back; nothing is written down of it yet (``keep``). Raises SeamarkError."""
    wanted = name or root.of.get("name") or "failback"
    taken = set(session_names(state_dir))
    if name in taken:
        raise UsageError(f"there is a session {name} already, with another primary; choose another --name")
    place = SessionDir(state_dir, wanted if wanted not in taken else f"{wanted}-back"[:64])
    if place.config.exists():
        raise UsageError(f"there are sessions {wanted} and {place.name} already; give another --name")
    config = SessionConfig(
        primary=root.path, secondary=str(parse_target(secondary)), filters=root.filters, ssh=ssh
    )
    state = SessionState(id=pair_id(config.primary, config.secondary), back_from=root.session)
    return place, Session.of(place.name, config, state)


def only_recorded(place: SessionDir) -> bool:
    """Whether a session has never replicated: it was made by a failover. Raises SeamarkError."""
    state = place.state()
    return (
        state is not None
        and state.recording is not None
        and not (state.recording.used or has_filled(place.progress))
    )


def by_way_of(session: Session, to: str | None, ssh: SshSettings) -> Session:
    """The same session, with what is said of where its secondary is, and how it is reached. Raises SeamarkError."""
    secondary = str(parse_target(to)) if to is not None else session.secondary
    said = {
        name: value
        for name in SshSettings.__struct_fields__
        if (value := getattr(ssh, name)) != getattr(SshSettings(), name)
    }
    return msgspec.structs.replace(
        session, secondary=secondary, id=pair_id(session.primary, secondary), ssh=msgspec.structs.replace(session.ssh, **said),
    )  # fmt: skip


def keep(place: SessionDir, session: Session, root: PromotedRoot) -> None:
    """Write a session down, or the way that it takes by now; it is not started. Raises SeamarkError."""
    config = SessionConfig(**{name: getattr(session, name) for name in SessionConfig.__struct_fields__})
    if not place.config.exists() or (place.named_config.exists() and place.load_config() != config):
        session_file.write_new(place.named_config, config, _COMMENT.format(name=root.of.get("name", "?")))
    private_dir(place.path)
    place.change_state(id=session.id, instance=session.instance, root=session.root, back_from=root.session)


def follows(place: SessionDir, session: Session, access: SshOptions | None = None) -> bool:
    """Whether the old primary is this session's secondary already. Raises SeamarkError when it cannot be asked."""
    try:
        with looking(place, session, dry=True, options=access) as (_, hello):
            return hello["index"] != "new" and not hello.get("missing")
    except SecondaryError as error:
        if error.code in ("promoted", "not-empty", "owned", "not-found"):
            return False
        raise SeamarkError(f"{session.secondary}: {error}") from None


@contextlib.contextmanager
def agreement_of(place: SessionDir, root: PromotedRoot, scratch: Path) -> Iterator[Agreement]:
    """A scan of a promoted root, with what the session of the way back has recorded there. Raises SeamarkError."""
    with contextlib.ExitStack() as stack:
        recorded = recorded_of(place, root)
        if recorded is not None:
            stack.callback(recorded.close)
        yield stack.enter_context(contextlib.closing(Agreement(scratch / "agreement.sqlite", root, recorded)))


class Failback:
    """One failback of a session whose primary was promoted. Close it. ``access``: another way there than the session's own."""

    def __init__(self, place: SessionDir, session: Session, access: SshOptions | None = None) -> None:
        self._place = place
        self._session = session
        self._target = parse_target(session.secondary)
        self._access = access or ssh_options(place, session, dry=True)
        self.root = promoted_root(session.primary)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Failback:
        with self._stack as stack:
            try:
                client = stack.enter_context(secondary_of(self._target, self._access))
                self._seeding = Seeding(
                    client,
                    self.root,
                    session=self._session.id,
                    volume=self._session.root,
                    of=named(self._session),
                )
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seamark-")))
                self._seeding.know(stack.enter_context(agreement_of(self._place, self.root, scratch)))
            except SecondaryError as error:
                raise self._refused(error) from None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _refused(self, error: SecondaryError) -> SeamarkError:
        if error.code == "not-found":
            return NotFoundError(
                f"{self._target}: there is no such directory; to fill a new one: seamark create"
            )
        return SeamarkError(f"{self._target}: {error}", CODES.get(error.code, ExitCode.ERROR))

    def plan(self) -> Plan:
        """What it would do; nothing is changed. Raises SeamarkError."""
        try:
            return self._seeding.plan()
        except SecondaryError as error:
            raise self._refused(error) from None

    def commit(self) -> Plan:
        """Do it; all findings are appended to ``report`` first. Raises SeamarkError."""
        try:
            with self.report.open("a", encoding="ascii") as file:
                plan = self._seeding.commit(
                    lambda finding: file.write(
                        as_line(finding, time=round(time.time(), 3), term=self.root.term) + "\n"
                    )
                )
        except SecondaryError as error:
            raise self._refused(error) from None
        log.info(
            "%s: %d of %d objects on %s are as they are known; %d were displaced there",
            self._session.name, plan.agreed, plan.known, self._target, plan.displaced,
        )  # fmt: skip
        return plan

    @property
    def report(self) -> Path:
        """Where every finding is written down, a JSON object a line."""
        return self._place.path / "failback.ndjson"


def take_back(place: SessionDir, session: Session) -> None:
    """Where this root was promoted after its secondary was: the roles were turned round again, and that becomes ours.

    The session's lock is held. Does nothing where that is not so. Raises SeamarkError.
    """
    owner = owner_of(session.primary)
    if owner is None or not (owner.get("promoted") or {}).get("done"):
        return
    alive = StatusFile(place)
    # Who reports nothing for a minute is taken for stuck, and a large tree takes longer.
    done = InChild(lambda: _take_back(place, session, owner)).meanwhile(alive.starting)
    if done:
        log.warning("%s: it is the primary again: %s", session.name, done["says"])


def taken_back(place: SessionDir, root: PromotedRoot, **changes: object) -> None:
    """The old primary is the secondary: what was recorded until then has done its duty. Raises SeamarkError."""
    used = Recording(term=root.term, position=0, since_ns=root.done_ns, used=True)
    place.change_state(recording=used, back_from=root.session, **changes)


def _take_back(place: SessionDir, session: Session, owner: dict[str, Any]) -> dict[str, str]:
    try:
        with looking(place, session, dry=True):
            return {}
    except SecondaryError as error:
        if error.code != "promoted":
            return {}
    target, options = parse_target(session.secondary), ssh_options(place, session)
    with secondary_of(target, options) as client:
        if look(client, target, None).term >= int(owner["term"]):
            return {}  # it is the primary, and says so to whoever comes
    if session.back_from != owner["session"] and not _went_there(
        session.id, session.secondary, owner.get("of") or {}
    ):
        return {}  # it was promoted as a secondary of something else
    with Failback(place, msgspec.structs.replace(session, back_from=owner["session"])) as failback:
        plan = failback.plan()
        if loss := sum(plan.counts.get(what, 0) for what in ("new", "changed", "replaced")):
            raise SeamarkError(
                f"{target} was written to after the roles were turned round ({loss} objects): look at it, and make it the secondary "
                f"with: seamark failback {session.name}"
            )
        plan = failback.commit()
        taken_back(place, failback.root)
    return {
        "says": f"{plan.agreed} of {plan.known} objects there are as they are known; {plan.displaced} displaced"
    }
