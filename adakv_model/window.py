"""When tokens leave the window, and which chunks of tokens a step may therefore append."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from torch import Tensor


@overload
def oldest(position: int, window: int, departure: int) -> int: ...


@overload
def oldest(position: Tensor, window: int, departure: int) -> Tensor: ...


def oldest(position: int | Tensor, window: int, departure: int) -> int | Tensor:
    """The oldest position still in the window once `position` is appended; negative where the text is shorter.

    Tokens leave as a position that is a multiple of `departure` is appended: then all that are `window` behind or
    more. -1 is the empty cache.
    """
    return position // departure * departure - window + 1


def left(position: int, window: int, departure: int) -> int:
    """`oldest`, of a cache with a sink: those before it, but for the sink, have left."""
    return max(1, oldest(position, window, departure))


def observed_queries(window: int, chunk: int, departure: int) -> int:
    """Queries after a token whose attention to it is known before any chunk in which it leaves.

    departure > 1: for chunks that cross no multiple of it, as those of :func:`cut`.
    """
    return window - (chunk if departure == 1 else 1)


def largest_chunk(window: int, departure: int) -> int:
    """Tokens that a step may append: at most one block leaves, or none of the chunk's own tokens."""
    return departure if departure > 1 else window


def cut(position: int, count: int, size: int, departure: int) -> Iterator[int]:
    """Sizes, at most `size`, of chunks that append `count` tokens at `position` and cross no multiple of `departure`
    (1: wherever)."""
    end = position + count
    while position < end:
        step = min(size, end - position)
        if departure > 1:
            step = min(step, departure - position % departure)
        yield step
        position += step
