"""`seamark doctor`: everything that could be wrong with a session now, each with what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replication.errors import SeamarkError
from seamark.commands.shared import named_session, session_argument, show_checks, state_dir_option
from seamark.logs import session_log

if TYPE_CHECKING:
    from replication.session import SessionDir
    from scheduler.checks.outcome import Outcome


@click.command(no_args_is_help=True)
@session_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_dir_option
def doctor(name: str, as_json: bool, state_dir: str) -> int:
    """Check session NAME: what `create` checks, and whatever else could be wrong now. Ends with 1 if anything is."""
    place = named_session(state_dir, name)
    outcomes = _checks(place, state_dir)
    if not as_json:
        return 0 if all(outcome.ok for outcome in show_checks(outcomes)) else 1
    ok = True
    for outcome in outcomes:
        ok = ok and outcome.ok
        row = {"message_type": "check", "name": outcome.name, "level": outcome.level, "says": outcome.says}
        click.echo(json.dumps(row))
    return 0 if ok else 1


def _checks(place: SessionDir, state_dir: str) -> Iterator[Outcome]:
    from scheduler.checks.now import check_now
    from scheduler.checks.outcome import fail, good
    from scheduler.checks.pair import check_pair

    try:
        config = place.load_config()
    except SeamarkError as error:
        yield fail("settings", error)
        return
    yield good("settings", str(place.named_config))
    log = Path(session_log(state_dir, place.name))
    try:
        session = place.load()
    except SeamarkError:  # the state is damaged, and is said to be by its own check
        from replication.session import Session, SessionState, pair_id

        session = Session.of(place.name, config, SessionState(id=pair_id(config.primary, config.secondary)))
    yield from check_now(place, session, state_dir, log)
    yield from check_pair(place, session, state_dir)
