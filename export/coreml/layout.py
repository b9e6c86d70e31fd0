"""How the mixed-precision cache lies in Core ML states: row layouts, pools, and the width table they need.

Core ML states hold fp16 only and ML Programs have no bit operations: see storage.py for the packing of codes,
there and in int8 inputs. A *row* is one token of one layer: the codes of all K heads, those of all V heads, one fp16
scale per (head, K or V), padding. A *pool* is a state [1, channels, 1, slots] whose column is a row; both axes are
multiples of 32. With int8 storage a pool's codes and scales are parts of two inputs (inputs.py).

All kv heads of a layer share their widths in each tier (`plan.coarse_plan`): one for each band of K, and one
for V. So a row unpacks in a short chain of operations for each width of K and one for V, whatever the number of heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from adakv_model.plan import CachePlan
from adakv_model.quantizer import SUPPORTED_BITS, ScaleMode, half_step, runs, split_bands
from export.coreml.storage import ALIGNMENT, FP16, SCALE_BYTES, Storage

RAW_BITS = 16  # a row stored as fp16 values, without codes and scales
STATE_PREFIX = "model_cache_"  # of a state's name in the package: where the buffer lies in CoreMLProgram


def aligned(count: int, alignment: int = ALIGNMENT) -> int:
    return -(-count // alignment) * alignment


@dataclass(frozen=True)
class Section:
    """A run of channels of a row: the packed codes of channels `first_dim` .. of the units `first_unit` .., all of
    `bits` bits. Units: K heads, then V heads. Levels times `gain` times the row's scale are the row's values."""

    bits: int
    first_unit: int
    units: int
    first_dim: int
    dims: int
    channel: int
    elements: int
    gain: float


@dataclass(frozen=True)
class RowLayout:
    """One token of one layer. k_bits, v_bits: widths of a head's row, as ``quantizer.join_bands`` codes them; both 16:
    raw fp16 values, no scales. modes: how K and V are read, the same for all heads."""

    k_bits: int
    v_bits: int
    kv_heads: int
    head_dim: int
    storage: Storage = FP16
    modes: tuple[ScaleMode, ScaleMode] = (ScaleMode.RMS, ScaleMode.RMS)

    @property
    def raw(self) -> bool:
        return self.k_bits == RAW_BITS

    @property
    def units(self) -> int:
        return 2 * self.kv_heads

    def reach(self, side: int) -> float:
        """What the stored scale of a K (0) or V (1) row is, in units of its RMS: the value at level 1 of its band that
        reaches furthest. Rows of plain 8 bits keep the window's scale instead."""
        bits = (self.k_bits, self.v_bits)[side]
        return max(_reach(width, self.modes[side]) for width in split_bands(bits, self.head_dim))

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Packed runs of codes: bands of K that are equally wide, then V; one for all if K and V are equally wide."""
        if self.raw:
            return ()
        if self.k_bits == self.v_bits and self.k_bits in SUPPORTED_BITS:
            parts = [(self.k_bits, 0, self.units, 0, self.head_dim, 1.0)]
        else:
            parts = [*self._side(0), *self._side(1)]
        sections, channel = [], 0
        for bits, first_unit, units, first_dim, dims, gain in parts:
            count = self.storage.elements(units * dims, bits)
            sections.append(Section(bits, first_unit, units, first_dim, dims, channel, count, gain))
            channel += count
        return tuple(sections)

    def _side(self, side: int) -> list[tuple[int, int, int, int, int, float]]:
        """The first fields of the sections of all K (0) or V (1) heads, and their gain."""
        bits, mode, dim, parts = (self.k_bits, self.v_bits)[side], self.modes[side], 0, []
        for width, bands in groupby(runs(bits, self.head_dim), key=lambda run: run[0]):
            dims = sum(channels for _, channels in bands)
            gain = 1.0 if bits in SUPPORTED_BITS else _reach(width, mode) / self.reach(side)
            parts.append((width, side * self.kv_heads, self.kv_heads, dim, dims, gain))
            dim += dims
        return parts

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


def _reach(width: int, mode: ScaleMode) -> float:
    """The value at level 1, in standard deviations, of a narrow row's channels of this width."""
    return 2.0**width * half_step(width, mode)


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
    """Every pool and state of a package, from a plan whose heads share widths and modes (`plan.coarse_plan`)."""

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
        k_mode, v_mode = (ScaleMode(int(m)) for m in self.plan.scale_modes[layer, 0])
        return RowLayout(k_bits, v_bits, self.plan.n_kv_heads, self.plan.head_dim, self.storage, (k_mode, v_mode))

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

    def summary(self) -> dict[str, Any]:
        """Bytes of this form of the cache: what the two forms are compared by."""
        return {
            "bytes_allocated": self.bytes_allocated,
            "bits_per_value": round(self.bits_per_value, 4),
            "share_of_fp16": round(self.bytes_allocated / self.plan.fp16_bytes, 4),
            "bytes": self.pool_bytes,
            "row_bits_per_value": self.row_bits(),
        }

    def _widths(self, tier: int) -> list[dict[str, Any]]:
        """Widths of a tier by layer: of each band of K, and of V."""
        rows = (self.row(layer, tier) for layer in range(self.plan.n_layers))
        return [{"k": split_bands(row.k_bits, row.head_dim), "v": row.v_bits} for row in rows]

    def to_manifest(self) -> dict[str, Any]:
        """The `core_ml_states` section: what a reader of the states needs beside the plan."""
        widths = {str(self.plan.tier_bits[k]): self._widths(k) for k in self.narrow_tiers}
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
