"""`optimum-cli export adakv`: the options of `adakv export`, as a subcommand of Hugging Face optimum.

optimum finds it by its own mechanism: a module in the namespace package `optimum.commands.register`, where
CMakeLists.txt installs register_adakv.py.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_type_hints

import typer
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from adakv_model.command_line import ending, refuse_empty
from adakv_model.errors import DEBUG
from adakv_model.signals import ended_by_signals
from adakv_model.terminal import prepare_streams
from export import listing
from export.cli import export
from export.options import ExportOptions, flag
from export.presets import PRESETS, gather

SWITCHES = {
    "--dry-run": "Print the plan and the sizes; write nothing.",
    "--list-presets": "Print the presets and end.",
    "--list-models": "Print the registered models and end.",
    "--json": "Print the manifest (or list, or plan) as JSON.",
    "--debug": "Show tracebacks and the runtime's log.",
}


class AdakvExportCommand(BaseOptimumCLICommand):
    """The subcommand; imports torch when it runs, not before."""

    COMMAND = CommandInfo(
        name="adakv", help="Export SmolLM with an adaptive-precision KV cache: ExecuTorch .pte or Core ML package."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """A flag for every field of ExportOptions, None where it is not given."""
        kinds = get_type_hints(ExportOptions)
        for each in fields(ExportOptions):
            kind, meta = kinds[each.name], each.metadata
            text = (meta["help"] + (f" Default: {meta['shown']}." if meta["shown"] else "")).replace("%", "%%")
            if kind is bool:
                parser.add_argument(flag(each.name), action="store_true", default=None, help=text)
                continue
            kind = get_args(kind)[0] if isinstance(kind, UnionType) else kind
            parser.add_argument(flag(each.name), type=kind, choices=meta["choices"] or None, help=text)
        parser.add_argument("--preset", choices=tuple(PRESETS), help="Named options, which a file and flags override.")
        parser.add_argument("--config", type=Path, help="TOML file of options; flags override it.")
        for name, text in SWITCHES.items():
            parser.add_argument(name, action="store_true", help=text)

    def run(self) -> None:
        """Export, and end the process with the exit code of `adakv export`."""
        prepare_streams()
        names = [each.name for each in fields(ExportOptions)]
        given = {name: value for name in names if (value := getattr(self.args, name)) is not None}
        if self.args.debug:
            os.environ[DEBUG] = "1"
        try:
            with ending(), ended_by_signals():
                if self.args.list_presets or self.args.list_models:
                    listing.show(PRESETS if self.args.list_presets else listing.models(), self.args.json)
                else:
                    for name, value in given.items():
                        refuse_empty(flag(name), value)
                    options = gather(self.args.preset, self.args.config, given)
                    export(options, dry_run=self.args.dry_run, as_json=self.args.json)
        except typer.Exit as end:
            sys.exit(end.exit_code)
