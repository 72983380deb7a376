"""A session's own key (push-pem): put on the secondary, proved to serve that session only, taken back."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from replication.errors import SeamarkError, UsageError
from replication.remote import pem
from replication.remote.answers import SecondaryError
from replication.remote.look import looking, ssh_options
from replication.remote.target import parse_target
from scheduler.checks.outcome import Outcome, good
from scheduler.preflight import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.remote.endpoint import SshOptions
    from replication.session import Session, SessionDir


def by_own_key(place: SessionDir, session: Session) -> Session:
    """The session as it is when it goes by its own key."""
    return msgspec.structs.replace(session, ssh=msgspec.structs.replace(session.ssh, identity=str(place.key)))


def has_own_key(place: SessionDir, session: Session) -> bool:
    return session.ssh.identity == str(place.key)


def push_key(place: SessionDir, session: Session, access: SshOptions) -> Iterator[Outcome]:
    """Make a key, put it there by the operator's ``access``, prove it. Raises SeamarkError, and then no key is there."""
    target = parse_target(session.secondary)
    if not target.is_remote:
        raise UsageError("push-pem is for a secondary that is reached by ssh: user@host:/path")
    new = place.key.with_name("id_ed25519.new")
    try:
        answer = pem.push(target, access, session.id, pem.make_key(new))
        yield good("push-pem", f"{target.login}: a key for this session alone is in {answer['file']}")
        try:
            yield from _prove(place, session, pem.gated(access, new), str(answer["file"]))
        except BaseException:
            with contextlib.suppress(SeamarkError):
                pem.take_back(target, access, session.id)
            raise
        new.replace(place.key)
    finally:
        new.unlink(missing_ok=True)


def _prove(place: SessionDir, session: Session, options: SshOptions, file: str) -> Iterator[Outcome]:
    """The key serves this session, and nothing else. Raises SeamarkError."""
    target = parse_target(session.secondary)
    try:
        with looking(place, session, dry=True, options=options):
            pass
    except SecondaryError as error:
        raise refused(session, error) from None
    except SeamarkError as error:
        raise SeamarkError(
            f"the new key does not work: {error.message} (does sshd there read {file}? see AuthorizedKeysFile, and the "
            "modes of the directories above it)"
        ) from None
    yield good("key", "it serves this session")
    holes = pem.holes_in(target, options)
    if holes:
        raise SeamarkError(
            f"sshd on {target.host} does not hold the key to its limits (it allows: {', '.join(holes)}); it was "
            "taken back. OpenSSH 7.2 or newer is needed there"
        )
    yield good(
        "key",
        "and nothing else: commands, other directories, rsync and scp elsewhere, forwarding are refused",
    )


def revoke_key(place: SessionDir, session: Session) -> None:
    """Have the session's key let in no more. Raises SeamarkError."""
    options = replace(ssh_options(place, session, dry=True), connect_timeout_s=10.0)
    pem.revoke(parse_target(session.secondary), options)


def by_hand(session_id: str) -> str:
    """What to do where the secondary cannot be reached."""
    return (
        f"the key is still let in there: remove the line that ends in 'seamark-session:{session_id}' from "
        f"~/.ssh/authorized_keys of that user, and ~/.local/share/seamark/gate-{session_id}.pyz"
    )
