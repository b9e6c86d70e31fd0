"""What every command shares: exit codes, how errors end, `--debug`, the console. Light: no torch."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from adakv_model import usage
from adakv_model.errors import DEBUG, UserError, debugging, what_to_do
from adakv_model.numbers import check_number
from adakv_model.signals import ended_by_signals
from adakv_model.terminal import make_console, prepare_streams, print_error, silence_output

HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAULT = 1
    USER = 2
    CHECK = 3
    HANGUP = 129
    INTERRUPTED = 130
    PIPE = 141
    TERMINATED = 143


EXIT_MEANING = {
    Exit.DONE: "done",
    Exit.FAULT: "a fault of the program itself: one line, the traceback with --debug",
    Exit.USER: "something you can correct: an option, an input file, a full disk; one line says what to do",
    Exit.CHECK: "a check failed: doctor found something fatal, parity a difference, bench a failed run or no ratio",
    Exit.HANGUP: "the terminal went away (SIGHUP)",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.PIPE: "what reads the output has ended (adakv ... | head)",
    Exit.TERMINATED: "terminated (SIGTERM)",
}

usage.install()
console = make_console()
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks and the runtime's log.", rich_help_panel="Other")
]


@contextmanager
def ending() -> Iterator[None]:
    """Errors inside become one line on standard error and an exit code."""
    try:
        yield
        sys.stdout.flush()  # a full disk is noticed here, not when the interpreter ends
    except UserError as error:
        print_error(console, error)
        _end(Exit.USER, error)
    except KeyboardInterrupt as end:
        _print_interrupted(end)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except SystemExit as end:
        if end.code == Exit.TERMINATED:
            _print_interrupted(end)
        raise
    except ModuleNotFoundError as error:
        print_error(console, f"{error}: the installation is not complete; adakv doctor shows what is missing")
        _end(Exit.FAULT, error)
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        silence_output()
        raise typer.Exit(Exit.PIPE) from None
    except OSError as error:
        if (reason := what_to_do(error)) is None:
            _end_fault(error)
        print_error(console, reason)
        silence_output()
        _end(Exit.USER, error)
    except Exception as error:
        if _is_usage_error(error):
            raise
        _end_fault(error)


@contextmanager
def if_interrupted(what: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C and SIGTERM inside: `ending` says what() of them, such as what has been written."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        end.add_note(what())
        raise


def _print_interrupted(end: BaseException) -> None:
    notes = getattr(end, "__notes__", [])
    console.print(f"interrupted: {notes[0]}" if notes else "interrupted", soft_wrap=True)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A typer command that ends as `Exit` says, takes `--debug`, and refuses numbers that no option takes."""
    signature = inspect.signature(function, eval_str=True)
    flags = {name: _flag(parameter) for name, parameter in signature.parameters.items()}

    @functools.wraps(function)
    def wrapped(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        prepare_streams()
        if debug:
            os.environ[DEBUG] = "1"
        with ending(), ended_by_signals():
            for name, value in kwargs.items():
                if isinstance(value, int | float):
                    check_number(flags.get(name, name), value)
                refuse_empty(flags.get(name, name), value)
            function(*args, **kwargs)

    parameter = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption)
    wrapped.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), parameter]
    )
    return wrapped


def refuse_empty(flag: str, value: object) -> None:
    """Raise UserError for the path of `--flag ""`, which an unset variable leaves and Path takes for this folder."""
    paths = value if isinstance(value, list) else [value]
    words = sys.argv[1:]
    empty = f"{flag}=" in words or (flag, "") in pairwise(words)
    if empty and any(isinstance(path, Path) and path == Path() for path in paths):
        raise UserError(f"{flag} is empty: name a file or folder")


def _flag(parameter: inspect.Parameter) -> str:
    """What a user writes for a parameter."""
    options = getattr(parameter.annotation, "__metadata__", ())
    named = [name for option in options for name in getattr(option, "param_decls", None) or ()]
    return str(named[0]) if named else "--" + parameter.name.replace("_", "-")


def _is_usage_error(error: Exception) -> bool:
    """typer's own errors, which it prints itself."""
    return hasattr(error, "exit_code") and hasattr(error, "format_message")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _end_fault(error: Exception) -> NoReturn:
    print_error(console, f"{_first_line(error)} (a fault of the program: --debug shows where)")
    _end(Exit.FAULT, error)


def _end(code: Exit, error: Exception) -> NoReturn:
    if debugging():
        traceback.print_exception(error, file=sys.stderr)
    raise typer.Exit(int(code)) from None


def completed(choices: Collection[str]) -> Callable[[str], list[str]]:
    """Shell completion of an option with these values."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete
