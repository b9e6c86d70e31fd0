"""The order of runs, and where they run."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adakv_model.errors import UserError
from device_tests.bench.cores import fast_cores, place
from device_tests.bench.plan import Test, check_contexts, interleaved, matrix
from device_tests.devices import Conditions, Core

TESTS = matrix([128], [64], [0, 512])


@given(st.integers(1, 4), st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True))
def test_artifacts_take_turns(artifacts: int, reps: int, threads: list[int]) -> None:
    names = [f"a{i}" for i in range(artifacts)]
    cells = list(interleaved(names, TESTS, threads, reps))
    assert len(set(cells)) == len(cells) == artifacts * reps * len(TESTS) * len(threads)
    for start in range(0, len(cells), artifacts):
        block = cells[start : start + artifacts]
        assert {cell.artifact for cell in block} == set(names)
        assert len({(cell.test, cell.threads, cell.rep) for cell in block}) == 1
    assert all(one.rep <= other.rep for one, other in pairwise(cells))


def test_every_artifact_goes_first_as_often() -> None:
    cells = list(interleaved(["a", "b"], TESTS, [1], 4))
    firsts = Counter((cell.artifact, cell.test) for cell in cells[::2])
    assert set(firsts.values()) == {2}


def test_tests_are_llama_benchs() -> None:
    assert [test.name for test in TESTS] == ["pp128 @ d0", "tg64 @ d0", "pp128 @ d512", "tg64 @ d512"]
    assert Test(512, 0, 64).tokens == 576
    assert [test.name for test in matrix([0], [8, 8], [0])] == ["tg8 @ d0"]
    with pytest.raises(UserError, match="nothing to measure"):
        matrix([0], [], [0])
    with pytest.raises(UserError, match="needs 640 tokens and mine holds 600"):
        check_contexts({"mine": 600}, TESTS)


def phone(*khz: int | None) -> Conditions:
    return Conditions("phone", cores=tuple(Core(i, max_khz=k) for i, k in enumerate(khz)))


BIG_LITTLE = phone(1800, 1800, 1800, 1800, 2400, 2400, 2400, 2850)


def test_slow_cores_are_never_used_by_default() -> None:
    assert [core.index for core in fast_cores(BIG_LITTLE.cores)] == [7, 4, 5, 6]
    default = place(BIG_LITTLE, None, None)
    assert (default.threads, default.mask, default.slow) == (4, "f0", False)
    one = place(BIG_LITTLE, 1, None)
    assert (one.mask, one.slow) == ("80", False)


def test_asking_for_slow_cores_says_so() -> None:
    assert place(BIG_LITTLE, 6, None).slow
    assert place(BIG_LITTLE, None, "ff").slow
    assert not place(BIG_LITTLE, None, "0xC0").slow
    assert place(BIG_LITTLE, None, "0xC0").mask == "c0"


def test_equal_and_unknown_cores_are_not_restricted() -> None:
    assert place(phone(3000, 3000), None, None).mask is None
    assert place(phone(None, None, None, None, None, None), None, None).threads == 4
    assert place(Conditions("?"), None, None).threads == 1


@pytest.mark.parametrize("mask", ["", "g", "-1", "0", "100"])
def test_masks_that_cannot_be(mask: str) -> None:
    with pytest.raises(UserError, match="--cpu-mask"):
        place(BIG_LITTLE, 2, mask)
