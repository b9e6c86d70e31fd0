"""How windows are traced, as the command lines of calibrate.py and train_controller.py have it. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from adakv_model.cache_options import DEFAULT_CHUNK, DEFAULT_WINDOW
from adakv_model.errors import UserError
from adakv_model.window import largest_chunk, left, observed_queries


@dataclass(frozen=True)
class Settings:
    """How windows are traced: when tokens leave (``plan.left``), and from how many queries on features are known."""

    context: int = 2048
    window: int = DEFAULT_WINDOW
    chunk: int = DEFAULT_CHUNK
    departure: int = DEFAULT_CHUNK
    seed: int = 0

    @property
    def lag(self) -> int:
        """As ``CachePlan.lag``."""
        return observed_queries(self.window, self.chunk, self.departure)

    @property
    def departing(self) -> slice:
        """Positions that leave the window before the text ends."""
        return slice(1, left(self.context - 1, self.window, self.departure))


def checked_settings(context: int, window: int, chunk: int, departure: int, seed: int) -> Settings:
    if chunk > largest_chunk(window, departure):
        limit = "--window" if departure == 1 else "--departure"
        raise UserError(f"--chunk {chunk} must be at most {limit}, {largest_chunk(window, departure)}")
    if window + departure >= context:
        raise UserError(f"--context {context} must be more than --window {window} + --departure {departure}")
    return Settings(context, window, chunk, departure, seed)


def has_second_sample(index: int) -> bool:
    """Every fourth window is held out; two samples there tell a real oracle from a lucky one."""
    return index % 4 == 3
