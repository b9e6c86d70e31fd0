"""`adakv`: a typer app whose commands are imported when they are called, so that help takes no torch."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import _completion_shared
from typer.core import TyperGroup
from typer.main import get_command

from adakv.commands import COMMANDS
from adakv_model.command_line import EXIT_MEANING, HELP_NAMES, Exit, console, ending
from adakv_model.errors import DEBUG
from adakv_model.terminal import print_error

EPILOG = "Exit codes: " + "; ".join(f"{int(code)} {meaning}" for code, meaning in EXIT_MEANING.items()) + "."


COMPLETION = ("--install-completion", "--show-completion")
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")  # those that typer completes in


class LazyGroup(TyperGroup):
    """Lists the commands of `COMMANDS` from their lines of help, and imports one when it is called or completed."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As typer's, but for the completion of a shell that has none, or that cannot be installed."""
        words = kwargs.get("args") or (args[0] if args else None) or sys.argv[1:]
        if words and words[0] in COMPLETION:
            _check_shell()
            if words[0] == COMPLETION[0] and not os.access(home := Path.home(), os.W_OK | os.X_OK):
                remedy = f"set HOME to a folder of yours, or use adakv {COMPLETION[1]}"
                print_error(console, f"cannot write to {home}: {remedy}")
                sys.exit(Exit.USER)
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        entry = next((e for e in COMMANDS if args and e.name == args[0]), None)
        if entry is not None:
            if "--debug" in args:
                os.environ[DEBUG] = "1"
            with ending():
                command = get_command(entry.load())
            command.name = entry.name
            self.commands[entry.name] = command
        return super().resolve_command(ctx, args)


def _check_shell() -> None:
    """End with one line where typer has no completion."""
    shell = _completion_shared._get_shell_name()
    if shell not in SHELLS:
        found = f"and the shell here is {shell}" if shell else "and no shell is above this process"
        print_error(console, f"completion is for {', '.join(SHELLS)}, {found}: call this in one of them")
        sys.exit(Exit.USER)


app = typer.Typer(
    cls=LazyGroup,
    context_settings=HELP_NAMES,
    epilog=EPILOG,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(version("adakv"))
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Export SmolLM to phones with an adaptive-precision KV cache, and look after what was exported."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def _listed(name: str, text: str) -> None:
    """A command that only lists itself: LazyGroup puts the real one in its place."""

    @app.command(name, help=text)
    def stub() -> None: ...


for _entry in COMMANDS:
    _listed(_entry.name, _entry.help)
