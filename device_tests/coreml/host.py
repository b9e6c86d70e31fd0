"""The arrays of a package with `--cache-io int8`: kept by the host, passed to every call, and extended after it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from device_tests.coreml.evaluator.precision import Precision
from export.coreml.inputs import CACHE, NEW, SCALES, SINK, WINDOW, InputLayout


class HostCache:
    """One sequence. `arrays` by the layout's names: int8 codes, fp16 scales and sink (float32 in "fp32" precision)."""

    def __init__(self, layout: InputLayout, precision: Precision) -> None:
        self.layout, self.plan = layout, layout.states.plan
        self.arrays = {
            name: np.zeros(a.shape, np.float32 if a.dtype == "float16" and precision == "fp32" else a.dtype)
            for name, a in layout.arrays.items()
        }

    @property
    def bytes(self) -> int:
        """On a device: scales and sink in fp16."""
        return sum(array.bytes for array in self.layout.arrays.values())

    def inputs(self) -> dict[str, np.ndarray]:
        return {f"{CACHE}_{name}": array for name, array in self.arrays.items()}

    def write_step(self, position: int, plan: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Store a step that reported success: plan int32 [T, 2 + K] and the `new_` outputs of `position` on.

        Token by token: the row that leaves the window goes where the plan says, then the new row takes its place in
        the ring. Position 0 is the sink alone.
        """
        if position == 0:
            self.arrays[SINK][:] = outputs[f"{NEW}_{SINK}"]
        pool = self.layout.states.window_pool(0)
        ring = pool.slots - self.plan.window
        window = (WINDOW, f"{WINDOW}_{SCALES}")
        for i, (tier, slot) in enumerate(plan[:, :2].tolist()):
            at = ring + (position + i) % self.plan.window
            if tier in pool.tiers:  # as wide as the window: the codes stay as they are
                column = pool.first_columns[pool.tiers.index(tier)] + slot
                for name in window:
                    self.arrays[name][..., column] = self.arrays[name][..., at]
            elif tier >= 0:
                for name in (f"tier{tier}", f"tier{tier}_{SCALES}"):
                    self.arrays[name][..., slot] = outputs[f"{NEW}_{name}"][..., i]
            if position + i > 0:
                for name in window:
                    self.arrays[name][..., at] = outputs[f"{NEW}_{name}"][..., i]

    def state(self, name: str) -> np.ndarray:
        """A layer's pool or sink as the states' form has it: tier1_3 float [1, channels, 1, slots], sink_0."""
        kind, _, layer = name.partition("_")
        if kind == SINK:
            return self.arrays[SINK][:, int(layer) : int(layer) + 1]
        row = self.layout.pools(kind)[int(layer)].row
        first = self.layout.first_channels(kind)[int(layer)]
        codes = self.arrays[kind][:, first : first + row.scales_channel]
        scales = self.arrays[f"{kind}_{SCALES}"][:, int(layer) * row.units : (int(layer) + 1) * row.units]
        return np.concatenate((codes.astype(scales.dtype), scales), axis=1)
