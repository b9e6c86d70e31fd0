"""What the command lines print with."""

from __future__ import annotations

import io

import pytest

from adakv_model.errors import UserError
from adakv_model.terminal import Bars, make_console


@pytest.mark.parametrize("disable", [False, True])
def test_progress_bars_write_nothing_into_a_pipe(disable: bool) -> None:
    """Not even an empty line, in front of an error either."""
    pipe = io.StringIO()
    with Bars(console=make_console(file=pipe), disable=disable) as bars:
        bars.advance(bars.add_task("work", total=2))
    with pytest.raises(UserError), Bars(console=make_console(file=pipe), disable=disable):
        raise UserError("no")
    assert pipe.getvalue() == ""
