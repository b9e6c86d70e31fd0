"""Which numbers an option takes, whatever it means: no NaN or infinity, nothing beyond what a counter or timer holds.

Light: no torch. `command_line.command` checks every numeric option of a command with it, on top of the option's own
`min`; options in a file or in a comma-separated list are checked with it too.
"""

from __future__ import annotations

import math
from typing import TypeVar

from adakv_model.errors import UserError

LARGEST_COUNT = 2**31 - 1  # tokens, rounds, threads, ...: int32 in the runtime
LARGEST_REAL = 1e6  # seconds, GiB, bits, degrees, ...: the system's timers take 2^31 ms
N = TypeVar("N", int, float)
SEED = "--seed"
SEEDS = (-(2**63), 2**64 - 1)  # of torch's generators


def check_number(option: str, value: float) -> None:
    """Raises UserError for a number that no option takes. option: its flag, for the message."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        least, most = SEEDS if option == SEED else (-LARGEST_COUNT, LARGEST_COUNT)
        if not least <= value <= most:
            size = "64 bits" if option == SEED else "31 bits"
            raise UserError(f"{option} {_short(value)} does not fit {size}: choose a smaller number")
    elif not math.isfinite(value) or abs(value) > LARGEST_REAL:
        raise UserError(f"{option} {value:g} must be a number, of at most {LARGEST_REAL:,.0f}")


def number_list(option: str, text: str, kind: type[N], least: float | None = None) -> list[N]:
    """ "128,512" -> [128, 512], without repetitions. Raises UserError for an empty list, other text, numbers below
    `least` and those that `check_number` refuses."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} takes {what} separated by commas, such as 2,4, not {text!r}") from error
    for value in values:
        check_number(option, value)
        if least is not None and value < least:
            raise UserError(f"{option} takes numbers of at least {least:g}, not {value:g}")
    return list(dict.fromkeys(values))


def _short(value: int) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}... ({len(text)} digits)"
