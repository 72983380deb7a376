"""What a walk did not find where it was to be: looked for when all is applied that was recorded by then.

A directory that is to be listed, and has moved, stays unlisted on the secondary, whatever its name becomes there. The
mark waits (replication/unsettled.py) until the changelog is applied up to a moment after that, so that the secondary has the
name, and until what is unlisted then was listed.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from replication import unsettled
from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.secondary.layout import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tasks.context import Context

_AGAIN_S = 30
_AT_ONCE = 1000  # directories


def settle(ctx: Context, epoch: int, *, walking: bool) -> None:
    """Go on with what may have been missed. ``walking``: units of entries are under way, and list what they find."""
    rows = ctx.progress.look(unsettled.rows)
    if not rows:
        return
    front = ctx.progress.brick().front
    asked = [row.id for row in rows if row.upto is None]
    due = [row.id for row in rows if row.upto is not None and row.upto <= front]
    if due and not walking:
        if list_again(ctx, epoch):
            asked += due
        else:
            ctx.progress.change(lambda db: unsettled.settled(db, due))
    if not asked:
        return
    try:
        position = int(agent_call(ctx.place.changelog, "barrier")["position"])
    except (AgentRefused, AgentUnreachable):
        return  # the next look asks again
    ctx.progress.change(lambda db: unsettled.wait_for(db, asked, position))


def list_again(ctx: Context, epoch: int) -> bool:
    """Have directories listed that no listing was applied of, and whether there were any.

    Each is asked for once, which is durable in the changelog. What cannot be listed stays unlisted: what failed is on the
    failure list, and what is mounted there is not ours.
    """
    looks: dict[bytes, list[bytes]] = {}
    asked: set[bytes] = set()
    for path in _unlisted(ctx, epoch):
        if any(above in asked for above in _above(path)):
            continue  # D of a directory has all below it listed
        if not ctx.ledger.once_in(_AGAIN_S, f"list:{os.fsdecode(path)}"):
            continue
        asked.add(path)
        directory, name = os.path.split(path)
        looks.setdefault(directory, []).append(name)
        if len(asked) >= _AT_ONCE:
            break
    for directory, names in looks.items():
        with contextlib.suppress(AgentRefused, AgentUnreachable):
            # Refused: it has moved since. Then it has another path when it is asked for next.
            text = os.fsdecode(directory)
            agent_call(
                ctx.place.changelog, "look", dir=text, names=[os.fsdecode(n) for n in names], kinds="EMD"
            )
    return bool(asked)


def _unlisted(ctx: Context, epoch: int) -> Iterator[bytes]:
    """Paths of directories that somebody has to list, those above others first."""
    failing = {key.partition(":")[2] for key in ctx.progress.failing()}
    client = ctx.secondary(epoch).client
    after = None
    while True:
        page, after = client.unlisted(after)
        for path in sorted(path for _, path in page):
            # What has no name there has come to an end, or comes with a record of its own.
            if path.startswith(HIDDEN + b"/") or os.fsdecode(path) in failing:
                continue
            if not ctx.volume.is_mount_point(path):
                yield path
        if after is None:
            return


def _above(path: bytes) -> Iterator[bytes]:
    while path := os.path.dirname(path):
        yield path
