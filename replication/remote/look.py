"""A look at a secondary: how a session reaches it, and what it says of itself to somebody who changes nothing."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replication.failback.promoted import term_of
from replication.private import private_dir
from replication.progress import has_filled
from replication.remote.client import SecondaryClient
from replication.remote.endpoint import SshOptions
from replication.remote.launch import open_secondary
from replication.remote.target import parse_target
from replication.secondary.lineage import lineage_of
from replication.session import node_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.remote.link import Link
    from replication.session import Session, SessionDir


def ssh_options(place: SessionDir, session: Session, *, dry: bool = False) -> SshOptions:
    """How this session's secondary is reached. ``dry``: nothing is made here for it."""
    if not dry:
        private_dir(place.ssh_run)
    return SshOptions(
        port=session.ssh.port,
        identity=Path(session.ssh.identity) if session.ssh.identity else None,
        accept_new_host_key=session.ssh.accept_new_host_key,
        known_hosts_file=place.known_hosts,
        run_dir=None if dry else place.ssh_run,
        extra=session.ssh.options,
        answer_timeout_s=session.ssh.answer_timeout_s,
        gated=session.ssh.identity == str(place.key),
    )


def lineage_of_session(session: Session) -> list[str]:
    """The volumes that what a session sends comes from; its own last."""
    return lineage_of(os.fsencode(session.tree), session.root) if session.root else []


def client_of(link: Link) -> SecondaryClient:
    """A client on a fresh link."""
    return SecondaryClient(link.reader, link.writer)  # type: ignore[arg-type]


def named(session: Session) -> dict[str, Any]:
    """What the secondary keeps of who replicates to it, for people, and for the day of a promotion."""
    return {
        "name": session.name, "path": session.primary, "node": node_name(), "filters": list(session.filters),
        "term": term_of(session.tree), "back_from": session.back_from,
    }  # fmt: skip


@contextmanager
def looking(
    place: SessionDir,
    session: Session,
    *,
    create: bool = False,
    dry: bool = False,
    options: SshOptions | None = None,
) -> Iterator[tuple[SecondaryClient, dict[str, Any]]]:
    """A client that may only look, and what the secondary says of itself.

    With ``create`` a root that is missing is made; ``options``: another way there than the session's own. Raises SeamarkError, SecondaryError.
    """
    link = open_secondary(parse_target(session.secondary), options or ssh_options(place, session, dry=dry))
    try:
        client = client_of(link)
        hello = client.hello(
            session=session.id, volume=session.root or session.id, epoch=0, adopt=session.adopt,
            create=create, read_only=True, dry=dry, filled=has_filled(place.progress) and not session.adopt,
            lineage=lineage_of_session(session),
        )  # fmt: skip
        yield client, hello
    finally:
        link.close()


def claim(place: SessionDir, session: Session, epoch: int, takes: int) -> dict[str, Any]:
    """Take the secondary over from whoever has it with epoch ``takes``. Returns what it says from then on.

    Raises SeamarkError, SecondaryError.
    """
    link = open_secondary(parse_target(session.secondary), ssh_options(place, session))
    try:
        return client_of(link).hello(
            session=session.id, volume=session.root or session.id, epoch=epoch, adopt=session.adopt,
            filled=has_filled(place.progress) and not session.adopt, filters=session.filters,
            holder=session.instance, takes=takes, of=named(session), lineage=lineage_of_session(session),
        )  # fmt: skip
    finally:
        link.close()
