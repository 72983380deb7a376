"""`seamark completion`: what a shell needs to complete commands, options and names of sessions."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(no_args_is_help=True)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print completion for a shell; try it with: eval "$(seamark completion bash)".

    To keep it, write it to ~/.local/share/bash-completion/completions/seamark, to _seamark in a directory of
    zsh's fpath, or to ~/.config/fish/completions/seamark.fish.
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "seamark", "_SEAMARK_COMPLETE").source())
