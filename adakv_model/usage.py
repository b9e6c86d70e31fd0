"""Help and usage errors of every command: options that leave room for what they mean, and errors in one line.

typer and rich have no setting for these, so two functions of `typer.rich_utils`, typer's main and what a console does
at the end of a pipe are replaced (both packages are pinned).
"""

from __future__ import annotations

import atexit
import re
import signal
import sys
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer import core, rich_utils

from adakv_model.errors import what_to_do
from adakv_model.terminal import make_console, prepare_streams, print_error, silence_output

_typer_main = core._main
FLAGS_WIDTH = 26  # columns; longer flags take a line of their own


def install() -> None:
    """Every typer app of this process prints its help and its usage errors this way."""
    rich_utils.rich_format_error = print_usage_error  # type: ignore[assignment]
    rich_utils._print_options_panel = _print_options
    core._main = run  # type: ignore[assignment]
    Console.on_broken_pipe = _end_of_pipe  # type: ignore[assignment,method-assign]


def run(command: Any, **options: Any) -> Any:
    """typer's main. Output that cannot be written, help included, ends as `command_line.Exit` says."""
    from adakv_model.command_line import Exit

    prepare_streams()
    try:
        try:
            return _typer_main(command, **options)
        finally:
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what ends libraries would print a traceback
            sys.stdout.flush()  # a full disk is noticed here, not when the interpreter ends
    except OSError as error:
        silence_output()
        if isinstance(error, BrokenPipeError):
            sys.exit(Exit.PIPE)
        if (reason := what_to_do(error)) is None:
            raise
        print_error(make_console(), reason)
        sys.exit(Exit.USER)
    except SystemExit:
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # typer met a broken pipe
            sys.exit(Exit.PIPE)
        raise


def _end_of_pipe(console: Console) -> None:
    """rich would end with 1, which is the code of a fault."""
    silence_output()
    raise BrokenPipeError


def print_usage_error(error: Any) -> None:
    """`error: ...` for an error of typer's own; typer ends with exit code 2 afterwards."""
    print_error(make_console(), usage_message(error))


def usage_message(error: Any) -> str:
    """What is wrong, and which help says what would be right."""
    parameter = getattr(error, "param", None)
    text = error.format_message().strip().rstrip(".")
    text = text[:1].lower() + text[1:]
    if parameter is not None and error.message:
        reason = error.message.strip().rstrip(".")
        reason = re.sub(r"^Input should be ", "must be ", reason).partition(", unable to")[0]
        reason = reason.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
        reason = reason.replace("a valid integer", "a whole number").replace("a valid number", "a number")
        text = f"{_name(parameter)} {reason}"
    elif parameter is not None:
        text = f"{_name(parameter)} is missing"
    if "Did you mean" in text or "Possible options" in text or error.ctx is None:
        return text
    return f"{text}: {error.ctx.command_path} --help lists what it takes"


def _name(parameter: Any) -> str:
    options = [name for name in parameter.opts if name.startswith("--")]
    return options[0] if options else str(parameter.display_name_raw)


def _print_options(*, name: str, params: list[Any], ctx: Any, markup_mode: Any, console: Console) -> None:
    """A panel: flags and their values left, what they mean right of them, or below them where they are long."""
    rows = [(_flags(each, ctx), _meaning(each, ctx, markup_mode)) for each in params]
    if not rows:
        return
    width = min(max(flags.cell_len for flags, _ in rows), FLAGS_WIDTH)
    lines: list[RenderableType] = []
    for flags, meaning in rows:
        if flags.cell_len > width:
            lines += [flags, Padding(meaning, (0, 0, 0, width + 2))]
            continue
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_column(width=width, no_wrap=True)
        row.add_column(overflow="fold")
        row.add_row(flags, meaning)
        lines.append(row)
    border = rich_utils.STYLE_OPTIONS_PANEL_BORDER
    console.print(Panel(Group(*lines), border_style=border, title=name, title_align="left"))


def _flags(parameter: Any, ctx: Any) -> Text:
    """`--threads <int>`, `--chat/--no-chat`, `-h, --help`; of an argument, its name."""
    if parameter.param_type_name == "argument":
        return Text(str(parameter.display_name_raw), style=rich_utils.STYLE_OPTION)
    named = ", ".join(sorted(parameter.opts, key=len))
    text = Text("/".join([named, *parameter.secondary_opts]), style=rich_utils.STYLE_OPTION, overflow="fold")
    kind = "" if parameter.is_flag else (parameter.display_type_rich(ctx=ctx) or "").replace(" range", "")
    return text.append(f" {kind}", style=rich_utils.STYLE_TYPES) if kind else text


def _meaning(parameter: Any, ctx: Any, markup_mode: Any) -> Text:
    """Its help, the numbers it takes, its default, and whether it is required, as one text."""
    help_text = rich_utils._get_parameter_help(param=parameter, ctx=ctx, markup_mode=markup_mode)
    parts = [part for part in help_text.renderables if isinstance(part, Text)]
    if parameter.help:  # as it is written: typer takes an unescaped [default: ...] for markup and drops it
        parts[0] = Text(parameter.help.replace("\\[", "["))
    if span := parameter._get_number_range_help_str():
        parts.insert(1, Text(f"[{span}]", style=rich_utils.STYLE_TYPES))
    joined = Text(" ").join(parts)
    joined.overflow = "fold"
    return joined
