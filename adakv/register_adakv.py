"""Installed as optimum/commands/register/register_adakv.py, where optimum-cli looks for subcommands."""

from optimum.commands.export.base import ExportCommand

from adakv.optimum_export import AdakvExportCommand

REGISTER_COMMANDS = [(AdakvExportCommand, ExportCommand)]
