"""Command line of `adakv export` and `python export.py`: reads options, checks them, and only then loads torch."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from adakv_model.command_line import HELP_NAMES, command, completed
from adakv_model.terminal import make_console, print_note, working
from export import listing
from export.folder import replacing, try_target
from export.options import ExportOptions, flag
from export.presets import PRESETS, gather

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

OTHER = "Other"


def main(
    preset: Annotated[
        str | None,
        typer.Option(
            help="Named options (--list-presets), which a file and flags override.",
            autocompletion=completed(PRESETS),
            rich_help_panel=OTHER,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of options: `kv-bits = 3.25`; flags override it.", rich_help_panel=OTHER),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the sizes; write nothing.", rich_help_panel=OTHER)
    ] = False,
    list_presets: Annotated[
        bool, typer.Option("--list-presets", help="Print the presets and end.", rich_help_panel=OTHER)
    ] = False,
    list_models: Annotated[
        bool, typer.Option("--list-models", help="Print the registered models and end.", rich_help_panel=OTHER)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the manifest (or list, or plan) as JSON.", rich_help_panel=OTHER)
    ] = False,
    **flags: Any,
) -> None:
    """Export SmolLM with an adaptive-precision KV cache for a phone.

    Writes a folder with the program, the tokenizer and manifest.json, e.g.

      adakv export --preset phone-4k --out artifacts/mine

      adakv export --target android --kv-bits 3.5 --context 2048 --dry-run

      adakv export --target ios --weights int4 --deployment-target iOS26 --cache-io int8
    """
    if list_presets or list_models:
        listing.show(PRESETS if list_presets else listing.models(), as_json)
        return
    given = {name: value for name, value in flags.items() if value is not None}
    export(gather(preset, config, given), dry_run=dry_run, as_json=as_json)


def export(options: ExportOptions, *, dry_run: bool, as_json: bool) -> None:
    """Check the options, plan or write the artifact, and print what a command prints of it."""
    options.check()
    if note := replacing(options.folder):
        print_note(make_console(), note)
    if dry_run:
        with working("planning"):
            from export import dry_run as dry

            planned = dry.plan(options)
        print(json.dumps(planned.to_json())) if as_json else dry.show(planned)
        return
    try_target(options.folder)
    with working("loading torch"):
        from export import summary
        from export.run import export_model

    manifest = export_model(options, command_line(sys.argv))
    summary.show(manifest, options)
    if as_json:
        print(json.dumps(manifest))


def command_line(words: list[str]) -> list[str]:
    """For the manifest: the program by its name, as its folder is of the machine that exported."""
    program = Path(words[0])
    return [program.parent.name if program.name == "__main__.py" else program.name, *words[1:]]


def _parameter(field: Field[Any], kind: Any) -> inspect.Parameter:
    """The flag of a field of ExportOptions: None where it was not given."""
    meta = field.metadata
    shown = meta["shown"]
    option = typer.Option(
        flag(field.name),
        help=meta["help"] + (f" \\[default: {shown}]" if shown else ""),
        show_default=False,
        rich_help_panel=meta["panel"],
        autocompletion=completed(meta["choices"]) if meta["choices"] else None,
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def with_export_flags(function: Any) -> Any:
    """The function with a flag for every field of ExportOptions in place of its `**flags`."""
    signature = inspect.signature(function, eval_str=True)
    kinds = get_type_hints(ExportOptions)
    flags = [_parameter(field, kinds[field.name]) for field in fields(ExportOptions)]
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    function.__signature__ = signature.replace(parameters=flags + own)
    return function


app.command(context_settings=HELP_NAMES)(command(with_export_flags(main)))
