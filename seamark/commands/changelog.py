"""`seamark changelog`: look into changelogs."""

from __future__ import annotations

import errno
import os
import sys

import click

from replication.errors import NotFoundError, SeamarkError


@click.group()
def changelog() -> None:
    """Look into changelogs."""


@changelog.command()
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=str)
)
def dump(files: tuple[str, ...]) -> None:
    """Print changelog segments as text, a record a line: Seamark's own, and those of Gluster bricks."""
    from replication.changelog.dump import dump as dump_to

    try:
        dump_to(files, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        name = os.fsdecode(error.filename) if error.filename else ", ".join(files)
        kind = NotFoundError if error.errno == errno.ENOENT else SeamarkError
        raise kind(f"{name}: {error.strerror}") from None
