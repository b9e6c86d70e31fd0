"""`adakv`: a typer app whose commands are imported when they are called, so that help takes no torch."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from adakv.commands import COMMANDS
from adakv_model.command_line import EXIT_MEANING, HELP_NAMES, ending
from adakv_model.errors import DEBUG

EPILOG = "Exit codes: " + "; ".join(f"{int(code)} {meaning}" for code, meaning in EXIT_MEANING.items()) + "."


class LazyGroup(TyperGroup):
    """Lists the commands of `COMMANDS` from their lines of help, and imports one when it is called or completed."""

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


app = typer.Typer(
    cls=LazyGroup,
    context_settings=HELP_NAMES,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(version("adakv"))
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Export SmolLM to phones with an adaptive-precision KV cache, and look after what was exported."""


def _listed(name: str, text: str) -> None:
    """A command that only lists itself: LazyGroup puts the real one in its place."""

    @app.command(name, help=text)
    def stub() -> None: ...


for _entry in COMMANDS:
    _listed(_entry.name, _entry.help)
