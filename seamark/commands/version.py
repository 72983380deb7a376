"""`seamark version`."""

from __future__ import annotations

import platform

import click

import seamark


@click.command()
def version() -> None:
    """Print the version of Seamark and of what it runs on."""
    click.echo(f"seamark {seamark.__version__} (Python {platform.python_version()}, {platform.system()})")
