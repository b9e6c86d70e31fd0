"""What is run, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from adakv_model.errors import UserError


@dataclass(frozen=True)
class Test:
    """As llama-bench's: `pp` tokens prefilled, or `tg` decoded one by one, with `depth` tokens in the cache before."""

    depth: int
    pp: int
    tg: int

    __test__ = False  # no test class of pytest's

    @property
    def name(self) -> str:
        """Such as "pp512 @ d2048"."""
        kind = f"pp{self.pp}" if self.pp else f"tg{self.tg}"
        return f"{kind} @ d{self.depth}"

    @property
    def tokens(self) -> int:
        """In the cache at its end."""
        return self.depth + self.pp + self.tg

    def to_json(self) -> dict[str, int]:
        return {"pp": self.pp, "tg": self.tg, "depth": self.depth}


@dataclass(frozen=True)
class Cell:
    """One process of the runner. artifact: its id. threads: 0 is the runtime's own choice."""

    artifact: str
    test: Test
    threads: int
    rep: int


def matrix(pp: Sequence[int], tg: Sequence[int], depths: Sequence[int]) -> list[Test]:
    """Every length at every depth, 0 tokens left out. Raises UserError where nothing is left."""
    chosen = [Test(d, p, 0) for d, p in product(depths, pp) if p]
    chosen += [Test(d, 0, t) for d, t in product(depths, tg) if t]
    if not chosen:
        raise UserError("nothing to measure: give --pp or --tg tokens, and a --depth")
    return sorted(set(chosen), key=lambda test: (test.depth, not test.pp, test.pp, test.tg))


def interleaved(artifacts: Sequence[str], tests: Sequence[Test], threads: Sequence[int], reps: int) -> Iterator[Cell]:
    """Repetitions outermost, artifacts innermost and next to each other, starting with another one each time: what
    changes slowly on a device is the same for all artifacts, and what the first run of a group suffers too."""
    for rep in range(reps):
        for number, (test, count) in enumerate(product(tests, threads)):
            start = (rep + number) % len(artifacts)
            for artifact in (*artifacts[start:], *artifacts[:start]):
                yield Cell(artifact, test, count, rep)


def check_contexts(contexts: dict[str, int], tests: Sequence[Test]) -> None:
    """contexts: of artifacts, by name. Raises UserError where a test does not fit one of them."""
    for name, context in contexts.items():
        for test in tests:
            if test.tokens > context:
                raise UserError(
                    f"{test.name} needs {test.tokens} tokens and {name} holds {context}:"
                    " measure less, or export it with a larger --context"
                )
