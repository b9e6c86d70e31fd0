"""When tokens leave the window, and which chunks of tokens a step may therefore append."""

from __future__ import annotations

from collections.abc import Iterator


def left(position: int, window: int, departure: int) -> int:
    """The oldest token still in the window once `position` is appended; those before it, but for the sink, have left.

    Tokens leave as a position that is a multiple of `departure` is appended: then all that are `window` behind or
    more. -1 is the empty cache.
    """
    return max(1, position // departure * departure - window + 1)


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
