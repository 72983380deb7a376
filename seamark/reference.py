"""The reference of all commands, from the same source as --help.

python -m seamark.reference > docs/reference.md
python -m seamark.reference --man > docs/seamark.1
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click
from msgspec import Struct

from replication import settings
from replication.errors import ExitCode
from replication.server_settings import NodeSettings
from seamark.cli import cli

_CODES = {
    ExitCode.OK: "done, nothing is left to do", ExitCode.ERROR: "failed, and trying again does not help by itself",
    ExitCode.USAGE: "the command line, or the configuration, is wrong", ExitCode.PARTIAL: "done, but for some items",
    ExitCode.NOT_FOUND: "what was asked about does not exist", ExitCode.TEMPORARY: "failed in a way that may pass",
    ExitCode.LOCKED: "another process or session is at it", ExitCode.DIFFERENT: "differences were found",
    ExitCode.INTERRUPTED: "Ctrl-C",
}  # fmt: skip


def commands(group: click.Group, ctx: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its whole name, in the order of names; groups before what is in them."""
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=ctx)
        yield inner.command_path, command, inner
        if isinstance(command, click.Group):
            yield from commands(command, inner)


def _all() -> Iterator[tuple[str, click.Command, click.Context]]:
    return commands(cli, click.Context(cli, info_name="seamark"))


def _usage(command: click.Command, ctx: click.Context) -> str:
    return " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])


def _paragraphs(command: click.Command) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n")]


def _options(command: click.Command, ctx: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None and not re.search(r"(^|, )--(help|version)\b", record[0]):
            yield record


def markdown() -> str:
    lines = [
        "# Reference",
        "",
        "Made by `python -m seamark.reference` from what `--help` says; do not edit.",
        "",
    ]
    for path, command, ctx in _all():
        lines += [f"## {path}", "", f"    {_usage(command, ctx)}", ""]
        for paragraph in _paragraphs(command):
            lines += [paragraph, ""]
        options = list(_options(command, ctx))
        if options:
            lines += ["| option | |", "|---|---|"]
            lines += [f"| `{_cell(names)}` | {_cell(text)} |" for names, text in options]
            lines.append("")
    lines += ["## Settings", "", "Keys of `seamark config`, and of a session's file.", ""]
    lines += [*_keys(settings.Settings, "session"), "", "## Settings of a node", ""]
    lines += [
        "Keys of `seamark config all`, and of `seamark.toml`.",
        "",
        *_keys(NodeSettings, "monitor"),
    ]
    return "\n".join([*lines, ""])


def _keys(kind: type[Struct], restarted: str) -> Iterator[str]:
    yield "| key | default | |"
    yield "|---|---|---|"
    for key in settings.keys(kind).values():
        default = "" if key.default is None else f"`{key.default}`"
        restart = f"; counts when the {restarted} is started again" if key.restart else ""
        yield f"| `{key.name}` | {default} | {_cell(key.meaning)}{restart} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def man() -> str:
    """The same for man(1), in the macros of man(7)."""
    lines = [
        ".TH SEAMARK 1", ".SH NAME", r"seamark \- keeps a copy of a directory somewhere else, and says up to when it is complete",
        ".SH SYNOPSIS", r".B seamark", r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGS\fR]...", ".SH COMMANDS",
    ]  # fmt: skip
    for _, command, ctx in _all():
        lines += [".SS " + _roff(_usage(command, ctx))]
        for paragraph in _paragraphs(command):
            lines += [_roff(paragraph), ".PP"]
        for names, text in _options(command, ctx):
            lines += [".TP", f".B {_roff(names)}", _roff(" ".join(text.split()))]
    lines.append(".SH EXIT STATUS")
    for code, words in _CODES.items():
        lines += [".TP", f".B {int(code)}", _roff(words)]
    return "\n".join([*lines, ""])


def _roff(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    sys.stdout.write(man() if sys.argv[1:] == ["--man"] else markdown())
