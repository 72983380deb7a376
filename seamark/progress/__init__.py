"""How far a run is, for eyes and for scripts: a block on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

from typing import TextIO

from scheduler.options import RunOptions
from seamark.progress.display import Display, NoProgress
from seamark.progress.json_lines import JsonProgress
from seamark.progress.plain import PlainProgress
from seamark.progress.terminal import TerminalProgress, can_show

__all__ = ["Display", "JsonProgress", "NoProgress", "PlainProgress", "TerminalProgress", "make_display"]

# Seconds between plain lines while nothing but numbers changes: asked for, or just not a terminal.
ASKED_INTERVAL = 5.0
QUIET_INTERVAL = 60.0


def make_display(options: RunOptions, stream: TextIO, json_stream: TextIO) -> Display:
    """The display that ``options`` ask for: people read ``stream`` (standard error), scripts ``json_stream``."""
    if options.log_json:
        return JsonProgress(json_stream)
    if options.progress is False:
        return NoProgress(stream)
    title = f"{options.primary.decode(errors='replace')} → {options.secondary}"
    if can_show(stream):
        return TerminalProgress(stream, title)
    return PlainProgress(stream, ASKED_INTERVAL if options.progress else QUIET_INTERVAL)
