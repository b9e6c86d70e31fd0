"""Cache plan: the single source of truth for the storage format.

A plan fixes, before export, how many tokens each tier can hold and how wide every unit's rows are; a *unit* is
one (layer, kv head, K or V). From it follow every byte offset (:class:`Segment`), which Python writes into the
artifact and every backend, kernel and test reads from there. ``docs/cache-format.md`` describes it in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adakv_model.packing import BLOCK, padded
from adakv_model.quantizer import SUPPORTED_BITS, ScaleMode, row_bytes, scale_bytes
from adakv_model.window import cut, largest_chunk, left, observed_queries

ALIGNMENT = 16  # bytes; every block of codes or scales starts on a multiple of it
MAX_TIERS = 8
PART_ROWS = 512  # rows of a tier whose softmax is summed together, before it joins the others

#: Columns of the layout table, one row per (unit of the layer, segment).
LAYOUT_COLUMNS = ("bits", "rows", "codes_offset", "scale_offset", "scale_mode")

SINK, WINDOW, FIRST_TIER = 0, 1, 2  # segment numbers; tier k is segment FIRST_TIER + k
SINK_BITS = 16
IN_SINK, IN_WINDOW = 254, 255  # marks in the per-position tier table

#: Raw per-token observations kept while a token is in the window (float32 columns of the ``observed`` ring).
OBSERVATIONS = (
    "log_frequency",  # log of the token's unigram probability in the calibration text
    "confidence",  # max probability of the prediction that this token answers
    "entropy",  # its entropy, nats
    "surprisal",  # -log p(token), nats
    "repeats",  # earlier occurrences of the same token id in the context
)

#: Attention sums kept beside them (int64 columns of the ``attention`` ring), in units of ATTENTION_UNIT: integers,
#: because their sum does not depend on the order in which chunks and layers arrive.
ATTENTION_SUMS = (
    "own",  # over layers and heads, of the attention the token pays to itself
    "own_squared",  # of the square of the same
    "received",  # over layers, heads and the next `lag` queries, of the attention it receives
)
ATTENTION_UNIT = 2.0**-24


@dataclass(frozen=True)
class Segment:
    """One run of equal rows inside a layer's buffer. bits: the widths of a row, see ``quantizer.join_bands``."""

    bits: int
    rows: int
    codes_offset: int
    scale_offset: int
    scale_mode: ScaleMode


@dataclass(frozen=True)
class CachePlan:
    """Capacities and widths of a mixed-precision KV cache.

    tier_bits: mean bits of a code in each tier, a name for it (and of ``pool_bytes``).
    unit_bits: [n_layers][n_kv_heads][2 (K, V)][n_tiers] row widths, each as ``quantizer.join_bands`` codes them;
    scale_modes: [n_layers][n_kv_heads][2], ``ScaleMode.HALF`` in all of them or in none.
    departure: tokens leave the window as a position that is a multiple of it is appended (see :func:`left`).
    predictions: whether the controller, if there is one, needs the model's predictions (``features.FEATURE_SETS``).
    """

    context: int
    window: int
    window_bits: int
    chunk: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    head_dim: int
    vocab_size: int
    tier_bits: tuple[float, ...]
    capacities: tuple[int, ...]
    unit_bits: np.ndarray
    scale_modes: np.ndarray
    policy: str = "adaptive"
    departure: int = 1
    predictions: bool = True

    def __post_init__(self) -> None:
        if self.departure < 1:
            raise ValueError(f"departure {self.departure} must be at least 1")
        most = largest_chunk(self.window, self.departure)
        if not 1 <= self.chunk <= most:
            limit = f"departure = {most}" if self.departure > 1 else f"window = {most}"
            raise ValueError(f"prefill chunk {self.chunk} must lie in [1, {limit}]")
        if sum(self.capacities) != self.slots:
            raise ValueError(f"tier capacities {self.capacities} must sum to {self.slots}")
        if any(c % self.slot_block for c in self.capacities):
            raise ValueError(f"tier capacities {self.capacities} must be multiples of {self.slot_block}")
        expected = (self.n_layers, self.n_kv_heads, 2, self.n_tiers)
        if self.unit_bits.shape != expected or self.scale_modes.shape != expected[:3]:
            raise ValueError(f"unit tables must have shape {expected}, not {self.unit_bits.shape}")
        if len(np.unique(self._half)) > 1:
            raise ValueError("scales are stored in one form throughout")
        if (self.unit_bits[:, :, 1] > max(SUPPORTED_BITS)).any():
            raise ValueError("V rows have one width for all channels")
        if self.n_tiers > MAX_TIERS:
            raise ValueError(f"a cache has at most {MAX_TIERS} tiers, not {self.n_tiers}")

    @property
    def n_tiers(self) -> int:
        return len(self.tier_bits)

    def left(self, position: int) -> int:
        """The oldest token still in the window once `position` is appended."""
        return left(position, self.window, self.departure)

    @property
    def ring(self) -> int:
        """Rows of the window segment and of what is observed; position t has row t % ring.

        The window is longest just before a block leaves: window + departure - 1.
        """
        return round_up(self.window + self.departure - 1, BLOCK)

    @property
    def stored_in_tiers(self) -> int:
        """Tokens that must fit into the tiers when the context is full: all but the sink and the window."""
        return self.left(self.context - 1) - 1

    @property
    def slot_block(self) -> int:
        """Every capacity is a multiple of it."""
        return BLOCK if self.departure > 1 else 1

    @property
    def slots(self) -> int:
        """Rows of all tiers together."""
        return round_up(self.stored_in_tiers, self.slot_block)

    @property
    def lag(self) -> int:
        """See ``window.observed_queries``, for chunks as those of :meth:`chunks`."""
        return observed_queries(self.window, self.chunk, self.departure)

    def chunks(self, position: int, count: int, size: int | None = None) -> Iterator[int]:
        """Sizes of the chunks that append `count` tokens at `position`: at most `size`, by default the plan's chunk.

        None crosses a multiple of `departure`, so that the cache does not depend on how a text was cut.
        """
        return cut(position, count, min(size or self.chunk, self.chunk), self.departure)

    @property
    def banded(self) -> bool:
        """Whether any row has bands of different widths."""
        return bool((self.unit_bits > max(SUPPORTED_BITS)).any())

    @property
    def _half(self) -> np.ndarray:
        return self.scale_modes & int(ScaleMode.HALF) != 0

    @property
    def half_scales(self) -> bool:
        """Whether narrow rows store fp16 scales (for Core ML) rather than one byte, which is all the kernels read."""
        return bool(self._half.any())

    @property
    def adaptive(self) -> bool:
        """Whether a controller decides (more than one tier)."""
        return self.n_tiers > 1

    @property
    def observes(self) -> bool:
        """Whether every token's prediction is observed, for the controller."""
        return self.adaptive and self.predictions

    @property
    def values(self) -> int:
        """K and V values in a full context."""
        return self.context * self.values_per_token

    @property
    def values_per_token(self) -> int:
        return self.n_layers * self.n_kv_heads * 2 * self.head_dim

    def _specs(self, layer: int, unit: int) -> list[tuple[int, int, ScaleMode]]:
        """(bits, rows, scale mode) of each segment of one unit (unit = 2 * kv head + {0: K, 1: V})."""
        head, side = divmod(unit, 2)
        mode = ScaleMode(int(self.scale_modes[layer, head, side]))
        fixed = [(SINK_BITS, 1, ScaleMode.RMS), (self.window_bits, self.ring, ScaleMode.RMS)]
        tiers = self.unit_bits[layer, head, side]
        return fixed + [(int(b), rows, mode) for b, rows in zip(tiers, self.capacities, strict=True)]

    @cached_property
    def _layers(self) -> list[tuple[list[list[Segment]], int]]:
        layers = []
        for layer in range(self.n_layers):
            end, units = 0, []
            for unit in range(2 * self.n_kv_heads):
                segments: list[Segment] = []
                for bits, rows, mode in self._specs(layer, unit):
                    whole, codes = rows if len(segments) == SINK else padded(rows), end
                    scales = _align(codes + whole * row_bytes(bits, self.head_dim))
                    end = _align(scales + whole * scale_bytes(bits, mode))
                    segments.append(Segment(bits, rows, codes, scales, mode))
                units.append(segments)
            layers.append((units, end))
        return layers

    def segments(self, layer: int) -> list[list[Segment]]:
        """Segments of one layer's buffer: [2 * n_kv_heads][2 + n_tiers]."""
        return self._layers[layer][0]

    def layer_bytes(self, layer: int) -> int:
        return self._layers[layer][1]

    def layout(self, layer: int) -> Tensor:
        """The layer's layout table for the operator: int32 [2 * n_kv_heads, 2 + n_tiers, 5]."""
        rows = [[[int(getattr(s, c)) for c in LAYOUT_COLUMNS] for s in u] for u in self.segments(layer)]
        return torch.tensor(rows, dtype=torch.int32)

    @property
    def workspace_bytes(self) -> int:
        """Scratch of the attention kernels, shared by all layers; not part of the cache (`attend_workspace` in C++)."""
        group, dim, stride = self.n_heads // self.n_kv_heads, self.head_dim, round_up(self.ring + 1, 64)
        parts = 1 + sum(-(-padded(rows) // PART_ROWS) for rows in self.capacities)
        queries = self.chunk * self.n_heads
        pieces = [4 * dim, dim, 16, 16, 4 * stride, 4, 4]  # bytes a query
        sizes = [n * queries for n in pieces] + [4 * self.n_kv_heads * parts * group * (2 + dim)]
        return sum(round_up(size, 64) for size in sizes) + 64

    @property
    def bookkeeping_bytes(self) -> dict[str, int]:
        """State beside the rows: what the slots need, and what the controller observes."""
        parts = {"progress": 4 * (1 + self.n_tiers), "tiers": self.context}
        parts["attention"] = 8 * self.ring * len(ATTENTION_SUMS)
        if self.adaptive:
            parts["history"] = 4 * self.context
            parts["observed"] = 4 * self.ring * len(OBSERVATIONS)
        if self.observes:
            parts["last_logits"] = 4 * self.vocab_size
        return parts

    @property
    def pool_bytes(self) -> dict[str, int]:
        """Bytes of rows and scales by segment, over all layers, without alignment."""
        names = ["sink", "window", *(f"tier_{b}" for b in self.tier_bits)]
        totals = dict.fromkeys(names, 0)
        for layer in range(self.n_layers):
            for unit in self.segments(layer):
                for name, s in zip(names, unit, strict=True):
                    totals[name] += s.rows * (row_bytes(s.bits, self.head_dim) + scale_bytes(s.bits, s.scale_mode))
        return totals

    @property
    def bytes_allocated(self) -> int:
        """Everything the cache keeps between steps: rows, scales, alignment and bookkeeping."""
        layers = sum(self.layer_bytes(layer) for layer in range(self.n_layers))
        return layers + sum(self.bookkeeping_bytes.values())

    @property
    def bits_per_value(self) -> float:
        """Allocated bits per K or V value of a full context, everything included."""
        return 8 * self.bytes_allocated / self.values

    @property
    def fp16_bytes(self) -> int:
        """An unquantized fp16 cache of the same context."""
        return 2 * self.values

    def stored_bits(self, counts: Sequence[int], tokens: int) -> float:
        """Bits per stored value after `tokens` tokens, `counts` of them in each tier: rows and scales only."""
        in_window = max(tokens - 1 - int(sum(counts)), 0)
        total = min(tokens, 1) * stored_row_bits(SINK_BITS, self.head_dim)
        total += in_window * stored_row_bits(self.window_bits, self.head_dim)
        total += float(np.dot(self.tier_costs, counts))
        return total / max(tokens, 1)

    @cached_property
    def tier_costs(self) -> np.ndarray:
        """Mean bits per value of a token's rows in each tier, scales included: [K]."""

        def cost(bits: int, mode: int) -> float:
            return stored_row_bits(int(bits), self.head_dim, ScaleMode(int(mode)))

        costs = np.vectorize(cost, otypes=[float])(self.unit_bits, self.scale_modes[..., None])
        return costs.reshape(-1, self.n_tiers).mean(0)

    def to_manifest(self) -> dict[str, Any]:
        """The `kv_cache` section of an artifact's manifest."""
        return {
            "policy": self.policy,
            "context": self.context,
            "window": self.window,
            "window_bits": self.window_bits,
            "prefill_chunk": self.chunk,
            "departure": self.departure,
            "predictions": self.predictions,
            "tiers": [
                {"bits": b, "capacity": c, "mean_stored_bits": round(float(self.tier_costs[k]), 4)}
                for k, (b, c) in enumerate(zip(self.tier_bits, self.capacities, strict=True))
            ],
            "bytes": {**self.pool_bytes, **self.bookkeeping_bytes},
            "bytes_allocated": self.bytes_allocated,
            "bits_per_value": round(self.bits_per_value, 4),
            "fp16_bytes": self.fp16_bytes,
            "unit_bits": self.unit_bits.tolist(),
            "scale_modes": self.scale_modes.tolist(),
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "n_layers": self.n_layers,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
        }

    @classmethod
    def from_manifest(cls, section: dict[str, Any]) -> CachePlan:
        """Rebuild the plan that an artifact was exported with."""
        same = ("context", "window", "window_bits", "n_heads", "n_kv_heads", "n_layers", "head_dim")
        return cls(
            **{name: section[name] for name in same},
            vocab_size=section["vocab_size"],
            chunk=section["prefill_chunk"],
            departure=section.get("departure", 1),
            predictions=section.get("predictions", True),
            policy=section["policy"],
            tier_bits=tuple(t["bits"] for t in section["tiers"]),
            capacities=tuple(t["capacity"] for t in section["tiers"]),
            unit_bits=np.array(section["unit_bits"], dtype=np.int64),
            scale_modes=np.array(section["scale_modes"], dtype=np.int64),
        )


def stored_row_bits(bits: int, head_dim: int, mode: ScaleMode = ScaleMode.RMS) -> float:
    """Bits per value of one row, its scale included."""
    return 8 * (row_bytes(bits, head_dim) + scale_bytes(bits, mode)) / head_dim


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _align(offset: int) -> int:
    return round_up(offset, ALIGNMENT)
