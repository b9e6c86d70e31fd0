"""The cache outside the package: int8 inputs that the host keeps, and outputs with what a step adds to them.

If whole pools came back as outputs, Core ML would hold every pool twice. So a step returns only its new rows, and
the host writes them into its arrays before the next step: `plan` says where (`write_step` of device_tests/
coreml/host.py is the procedure, in ten lines). One kind of pool is one input over all layers, [1, channels of all
layers, 1, slots], so a row that arrives is one column; its scales are a second input in fp16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from export.coreml.layout import Pool, StateLayout
from export.coreml.storage import FP16

CACHE = "cache"  # name of the program's argument; torch.export joins it and the keys with an underscore
NEW = "new"
SCALES = "scales"
SINK = "sink"
WINDOW = "window"


@dataclass(frozen=True)
class Array:
    """An input [1, channels, 1, columns]; the output with its new rows has the step's tokens as columns."""

    dtype: str
    channels: int
    columns: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, self.channels, 1, self.columns)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class InputLayout:
    """The arrays of a cache with int8 storage."""

    states: StateLayout

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Pools of every layer: narrow tiers by rising tier, then the window with the copied tiers."""
        return (*(f"tier{k}" for k in self.states.narrow_tiers), WINDOW)

    def pools(self, kind: str) -> list[Pool]:
        """The pool of each layer."""
        place, layers = self.kinds.index(kind), range(self.states.plan.n_layers)
        return [self.states.pools(layer)[place] for layer in layers]

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """By name, without `cache_`. Layer l of a kind begins at channel `first_channels(kind)[l]`."""
        plan, arrays = self.states.plan, {}
        for kind in self.kinds:
            pools = self.pools(kind)
            slots = pools[0].slots
            codes = sum(pool.row.scales_channel for pool in pools)
            arrays[kind] = Array(self.states.storage.dtype, codes, slots)
            arrays[f"{kind}_{SCALES}"] = Array(FP16.dtype, sum(pool.row.units for pool in pools), slots)
        arrays[SINK] = Array(FP16.dtype, plan.n_layers, self.states.sink_shape[-1])
        return arrays

    def first_channels(self, kind: str) -> list[int]:
        counts = [pool.row.scales_channel for pool in self.pools(kind)]
        return [0, *np.cumsum(counts)[:-1].tolist()]

    def outputs(self, tokens: int) -> dict[str, Array]:
        """By name, without `new_`: new columns of every pool, and the whole sink."""
        return {
            name: array if name == SINK else Array(array.dtype, array.channels, tokens)
            for name, array in self.arrays.items()
        }

    def output_bytes(self, tokens: int) -> int:
        return sum(array.bytes for array in self.outputs(tokens).values())

    def to_manifest(self) -> dict[str, Any]:
        """The `core_ml_inputs` section: what a host that keeps the arrays needs beside the plan."""
        layout, plan = self.states, self.states.plan
        window = layout.window_pool(0)
        return {
            "arrays": {
                f"{CACHE}_{name}": {
                    "dtype": array.dtype,
                    "shape": list(array.shape),
                    "bytes": array.bytes,
                    "new": f"{NEW}_{name}",
                }
                for name, array in self.arrays.items()
            },
            "tiers": [self._place(k, window) for k in range(plan.n_tiers)],
            "window": {
                "array": f"{CACHE}_{WINDOW}",
                "first_column": window.slots - plan.window,
                "columns": plan.window,
            },
            "sink": f"{CACHE}_{SINK}",
            "layer_channels": {kind: self.first_channels(kind) for kind in self.kinds},
            "output_bytes": {str(tokens): self.output_bytes(tokens) for tokens in sorted({1, plan.chunk})},
        }

    def _place(self, tier: int, window: Pool) -> dict[str, Any]:
        """Array and first column of a tier; a copied tier takes its rows from the window's ring."""
        if tier in window.tiers:
            first = window.first_columns[window.tiers.index(tier)]
            return {"array": f"{CACHE}_{WINDOW}", "first_column": first, "copied": True}
        return {"array": f"{CACHE}_tier{tier}", "first_column": 0, "copied": False}
