"""How the mixed-precision cache lies in Core ML states: row layouts, pools, and the width table they need.

Core ML states hold fp16 only and ML Programs have no bit operations: see coreml_storage.py for the packing of codes,
there and in int8 inputs. A *row* is one token of one layer: the codes of all K heads, those of all V heads, one fp16
scale per (head, K or V), padding. A *pool* is a state [1, channels, 1, slots] whose column is a row; both axes are
multiples of 32. With int8 storage a pool's codes and scales are parts of two inputs (coreml_inputs.py).

All kv heads of a layer share one width for K and one for V in each tier (`coarse_plan`), so that a row unpacks with
one or two short chains of operations instead of one per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from adakv_model.budget import BUDGETED, PlannedCache, allocate
from adakv_model.plan import CachePlan
from adakv_model.quantizer import BAND_BITS, ScaleMode, row_bytes
from adakv_model.tables import CalibrationTables
from export.coreml_storage import ALIGNMENT, FP16, SCALE_BYTES, Storage

RAW_BITS = 16  # a row stored as fp16 values, without codes and scales
STATE_PREFIX = "model_cache_"  # of a state's name in the package: where the buffer lies in CoreMLProgram


def aligned(count: int, alignment: int = ALIGNMENT) -> int:
    return -(-count // alignment) * alignment


@dataclass(frozen=True)
class Section:
    """A run of channels of a row: the packed codes of `units` consecutive units. Units: K heads, then V heads."""

    bits: int
    units: int
    channel: int
    elements: int


@dataclass(frozen=True)
class RowLayout:
    """One token of one layer. k_bits = v_bits = 16: raw fp16 values, no scales."""

    k_bits: int
    v_bits: int
    kv_heads: int
    head_dim: int
    storage: Storage = FP16

    @property
    def raw(self) -> bool:
        return self.k_bits == RAW_BITS

    @property
    def units(self) -> int:
        return 2 * self.kv_heads

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Packed runs of codes; K and V share one if they are equally wide."""
        if self.raw:
            return ()
        widths = (self.k_bits, self.v_bits)
        runs = [(widths[0], self.units)] if widths[0] == widths[1] else [(b, self.kv_heads) for b in widths]
        sections, channel = [], 0
        for bits, units in runs:
            count = self.storage.elements(units * self.head_dim, bits)
            sections.append(Section(bits, units, channel, count))
            channel += count
        return tuple(sections)

    @property
    def scales_channel(self) -> int:
        return sum(s.elements for s in self.sections)

    @property
    def used_channels(self) -> int:
        return self.units * self.head_dim if self.raw else self.scales_channel + self.units

    @property
    def channels(self) -> int:
        return aligned(self.used_channels, self.storage.channel_alignment)

    @property
    def bytes(self) -> int:
        """Of one row: codes and padding in the storage's elements, scales in fp16."""
        scales = 0 if self.raw else self.units
        return (self.channels - scales) * self.storage.element_bytes + scales * SCALE_BYTES


@dataclass(frozen=True)
class Pool:
    """One state of one layer. Tier tiers[i] begins at column first_columns[i]; `trash` takes discarded writes."""

    name: str
    row: RowLayout
    slots: int
    trash: int
    tiers: tuple[int, ...]
    first_columns: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, self.row.channels, 1, self.slots)

    @property
    def bytes(self) -> int:
        return self.slots * self.row.bytes


@dataclass(frozen=True)
class StateLayout:
    """Every pool and state of a package, from a plan with one K and one V width per (layer, tier)."""

    plan: CachePlan
    storage: Storage = FP16

    @cached_property
    def copied_tiers(self) -> tuple[int, ...]:
        """Tiers as wide as the window in every layer: their rows are copies and lie in the window's pool."""
        same = (self.plan.unit_bits == self.plan.window_bits).all((0, 1, 2))
        return tuple(k for k in self._used_tiers if same[k])

    @cached_property
    def narrow_tiers(self) -> tuple[int, ...]:
        return tuple(k for k in self._used_tiers if k not in self.copied_tiers)

    @property
    def _used_tiers(self) -> list[int]:
        return [k for k, capacity in enumerate(self.plan.capacities) if capacity > 0]

    def row(self, layer: int, tier: int) -> RowLayout:
        k_bits, v_bits = (int(b) for b in self.plan.unit_bits[layer, 0, :, tier])
        return RowLayout(k_bits, v_bits, self.plan.n_kv_heads, self.plan.head_dim, self.storage)

    @cached_property
    def window_row(self) -> RowLayout:
        bits = self.plan.window_bits
        return RowLayout(bits, bits, self.plan.n_kv_heads, self.plan.head_dim, self.storage)

    @cached_property
    def window_columns(self) -> tuple[int, ...]:
        """First column of each copied tier in the window's pool; the ring is the pool's last `window` columns."""
        starts, end = [], 0
        for k in self.copied_tiers:
            starts.append(end)
            end += self.plan.capacities[k]
        return tuple(starts)

    def window_pool(self, layer: int) -> Pool:
        copied = sum(self.plan.capacities[k] for k in self.copied_tiers)
        slots = aligned(copied + 1 + self.plan.window)
        name, columns = f"window_{layer}", self.window_columns
        return Pool(name, self.window_row, slots, slots - self.plan.window - 1, self.copied_tiers, columns)

    def tier_pool(self, layer: int, tier: int) -> Pool:
        slots = aligned(self.plan.capacities[tier] + 1)
        return Pool(f"tier{tier}_{layer}", self.row(layer, tier), slots, slots - 1, (tier,), (0,))

    def pools(self, layer: int) -> list[Pool]:
        """Narrow tiers by rising tier, then the window with the copied tiers."""
        return [*(self.tier_pool(layer, k) for k in self.narrow_tiers), self.window_pool(layer)]

    @property
    def sink_shape(self) -> tuple[int, int, int, int]:
        """Position 0 of one layer: raw fp16, units x head_dim."""
        return (1, 1, 1, aligned(2 * self.plan.n_kv_heads * self.plan.head_dim))

    @cached_property
    def shared_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """States of the whole model, by name.

        progress: [2, 32] counts, low 10 bits and the rest; observed: [8, window]; history: [2, context] ids, low 8
        bits and the rest. Rows are padded to a multiple of 32.
        """
        plan = self.plan
        sizes = {"progress": 2 * ALIGNMENT}
        if plan.adaptive:
            sizes["observed"] = len(OBSERVED) * aligned(plan.window)
            sizes["history"] = 2 * aligned(plan.context)
            sizes["last_logits"] = aligned(plan.vocab_size)
        return {name: (1, 1, 1, size) for name, size in sizes.items()}

    def layer_shapes(self, layer: int) -> dict[str, tuple[int, int, int, int]]:
        shapes = {f"sink_{layer}": self.sink_shape}
        return shapes | {pool.name: pool.shape for pool in self.pools(layer)}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """State name (without the module prefix) to shape; all float16. Only fp16 pools are states."""
        shapes = dict(self.shared_shapes)
        if self.storage is FP16:
            for layer in range(self.plan.n_layers):
                shapes |= self.layer_shapes(layer)
        return shapes

    @property
    def pool_bytes(self) -> dict[str, int]:
        """Bytes of rows over all layers: sink, window with the copied tiers, narrow tiers by nominal bits; the rest."""
        layers = range(self.plan.n_layers)
        totals = {
            "sink": len(layers) * SCALE_BYTES * int(np.prod(self.sink_shape)),
            "window": sum(self.window_pool(layer).bytes for layer in layers),
        }
        for k in self.narrow_tiers:
            name = f"tier_{self.plan.tier_bits[k]}"
            totals[name] = totals.get(name, 0) + sum(self.tier_pool(layer, k).bytes for layer in layers)
        return totals | {"shared": sum(SCALE_BYTES * int(np.prod(shape)) for shape in self.shared_shapes.values())}

    @property
    def bytes_allocated(self) -> int:
        return sum(self.pool_bytes.values())

    @property
    def bits_per_value(self) -> float:
        """Allocated bits per K or V value of a full context, padding and bookkeeping included."""
        return 8 * self.bytes_allocated / self.plan.values

    def row_bits(self) -> dict[str, float]:
        """Bits a value of a row, padding and scales included, by nominal tier; mean over layers."""
        plan = self.plan
        values = 2 * plan.n_kv_heads * plan.head_dim
        return {
            str(plan.tier_bits[k]): round(
                8 * float(np.mean([self.row(layer, k).bytes for layer in range(plan.n_layers)])) / values, 4
            )
            for k in self._used_tiers
        }

    def summary(self) -> dict:
        """Bytes of this form of the cache: what the two forms are compared by."""
        return {
            "bytes_allocated": self.bytes_allocated,
            "bits_per_value": round(self.bits_per_value, 4),
            "share_of_fp16": round(self.bytes_allocated / self.plan.fp16_bytes, 4),
            "bytes": self.pool_bytes,
            "row_bits_per_value": self.row_bits(),
        }

    def to_manifest(self) -> dict:
        """The `core_ml_states` section: what a reader of the states needs beside the plan."""
        widths = {str(self.plan.tier_bits[k]): self.plan.unit_bits[:, 0, :, k].tolist() for k in self.narrow_tiers}
        return {
            "cache_io": self.storage.name,
            "dtype": self.storage.dtype,
            **self.summary(),
            "row_share_of_fp16": {tier: round(bits / 16, 4) for tier, bits in self.row_bits().items()},
            "k_and_v_bits": widths,
            "states": {
                STATE_PREFIX + ("control_" if name in self.shared_shapes else "") + name: {
                    "shape": list(shape),
                    "bytes": SCALE_BYTES * int(np.prod(shape)),
                }
                for name, shape in self.shapes.items()
            },
        }


#: Rows of the `observed` state: plan.OBSERVATIONS, then plan.ATTENTION_SUMS (over layers, heads and queries).
OBSERVED = ("log_frequency", "confidence", "entropy", "surprisal", "repeats", "own", "own_squared", "received")


def coarse_plan(planned: PlannedCache, tables: CalibrationTables) -> PlannedCache:
    """The same cache with one K and one V width per (layer, tier), fp16 scales, and padding put to use.

    A row is padded to a multiple of 32 elements; K, then V, takes the next width wherever the row stays as long.
    No tier is wider than the window: a row that passed through 8 bits holds no more, whatever its nominal width.
    The padding is that of fp16 states for every storage, so that both forms of a cache hold the same codes.
    """
    plan = replace(planned.plan, scale_modes=planned.plan.scale_modes | int(ScaleMode.HALF))
    if plan.policy not in BUDGETED:
        return PlannedCache(plan, planned.thresholds)
    weights = tables.sensitivity.double().numpy().sum((1, 3))  # [L, 2]
    sizes = np.ones(weights.size, dtype=np.int64)
    tiers = [allocate(weights.ravel(), sizes, float(b)).reshape(weights.shape) for b in tier_means(plan)]
    widths = np.stack(tiers, axis=-1)
    widths = np.minimum(widths, plan.window_bits)
    for layer in range(plan.n_layers):
        for tier in range(plan.n_tiers):
            widths[layer, :, tier] = _use_padding(widths[layer, :, tier], plan)
    unit_bits = np.repeat(widths[:, None], plan.n_kv_heads, axis=1)
    return PlannedCache(replace(plan, unit_bits=unit_bits), planned.thresholds)


def tier_means(plan: CachePlan) -> np.ndarray:
    """Mean bits of a code in each tier: [K]."""
    bits = np.vectorize(lambda b: 8 * row_bytes(int(b), plan.head_dim) / plan.head_dim, otypes=[float])
    return bits(plan.unit_bits).reshape(-1, plan.n_tiers).mean(0)


def _use_padding(widths: Sequence[int], plan: CachePlan) -> list[int]:
    def row(pair: list[int]) -> int:
        return RowLayout(pair[0], pair[1], plan.n_kv_heads, plan.head_dim).channels

    best = [int(b) for b in widths]
    for side in (0, 1):
        for wider in BAND_BITS:
            candidate = [*best]
            candidate[side] = wider
            if best[side] < wider <= plan.window_bits and row(candidate) <= row(best):
                best = candidate
    return best
