"""Where rows lie while a step runs: in states that the graph updates, or in inputs that the host updates afterwards.

Both give the graph one pool a kind and layer, [1, channels, 1, slots] with codes and scales, and both write a step's
rows into it before they are read, so attention sees the same whatever the place.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from export.coreml.control import Step, Writes
from export.coreml.inputs import SCALES, SINK, WINDOW, InputLayout
from export.coreml.layout import Pool, StateLayout


class Place(Protocol):
    """What the cache needs of a place. `columns`: new rows of a pool, [channels, T]."""

    def register(self, layer: int) -> None:
        """Make what a layer keeps."""

    def open(self, arrays: dict[str, Tensor] | None) -> None:
        """Begin a step; arrays: the cache's inputs, if it has any."""

    def pool(self, layer: int, spec: Pool) -> Tensor:
        """[1, channels, 1, slots] as it was before the step, or as `write` left it."""

    def write(self, layer: int, spec: Pool, columns: Tensor, where: Writes) -> Tensor:
        """Store rows of a narrow tier; the pool with them."""

    def write_window(self, layer: int, fresh: Tensor, step: Step) -> None:
        """Store the chunk in the ring, and copy rows that leave for a tier of the window's width."""

    def sink(self, layer: int, first: Tensor, step: Step) -> Tensor:
        """Store position 0, [1, 1, 1, units D and padding], if this is its step; the sink's row, as long."""

    def new(self) -> list[Tensor]:
        """What the step returns for the host to store."""


def write_columns(pool: Tensor, columns: Tensor, where: Writes) -> None:
    """columns: [channels, T] into pool [1, channels, 1, slots]."""
    if where.slot is not None:
        pool[:, :, :, where.slot] = columns.reshape(1, -1, 1, 1)
    else:
        pool.copy_(pool * where.keep + (columns @ where.columns).reshape(pool.shape))


class States:
    """Buffers of the cache module, which become Core ML states."""

    def __init__(self, owner: nn.Module, layout: StateLayout) -> None:
        self.owner, self.layout = owner, layout

    def register(self, layer: int) -> None:
        for name, shape in self.layout.layer_shapes(layer).items():
            self.owner.register_buffer(name, torch.zeros(shape))

    def open(self, arrays: dict[str, Tensor] | None) -> None:
        assert arrays is None

    def pool(self, layer: int, spec: Pool) -> Tensor:
        return getattr(self.owner, spec.name)

    def write(self, layer: int, spec: Pool, columns: Tensor, where: Writes) -> Tensor:
        pool = self.pool(layer, spec)
        write_columns(pool, columns, where)
        return pool

    def write_window(self, layer: int, fresh: Tensor, step: Step) -> None:
        pool = self.pool(layer, self.layout.window_pool(layer))
        if step.copies is None:
            write_columns(pool, fresh, step.ring)
            return
        leaving = pool[0, :, 0] @ step.leaving  # [channels, T]
        if step.ring.slot is not None:
            write_columns(pool, leaving, step.copies)
            write_columns(pool, fresh, step.ring)
        else:
            both = torch.cat((step.ring.columns, step.copies.columns))
            keep = step.ring.keep + step.copies.keep - 1.0
            write_columns(pool, torch.cat((fresh, leaving), dim=1), Writes(None, both, keep))

    def sink(self, layer: int, first: Tensor, step: Step) -> Tensor:
        state = getattr(self.owner, f"sink_{layer}")
        state.copy_(torch.where(step.first, first, state))
        return state

    def new(self) -> list[Tensor]:
        return []


class Inputs:
    """Inputs of the program, unpacked a layer at a time; see inputs.py."""

    def __init__(self, layout: InputLayout) -> None:
        self.layout = layout

    def register(self, layer: int) -> None:
        """Nothing: the host keeps the arrays."""

    def open(self, arrays: dict[str, Tensor] | None) -> None:
        assert arrays is not None
        self.arrays = arrays
        self.columns: dict[str, list[Tensor]] = {kind: [] for kind in self.layout.kinds}
        self.sinks: list[Tensor] = []

    def pool(self, layer: int, spec: Pool) -> Tensor:
        kind = spec.name.partition("_")[0]
        first, row = self.layout.first_channels(kind)[layer], spec.row
        codes = self.arrays[kind][:, first : first + row.scales_channel]
        scales = self.arrays[f"{kind}_{SCALES}"][:, layer * row.units : (layer + 1) * row.units]
        return torch.cat((codes.float(), scales.float()), dim=1)

    def write(self, layer: int, spec: Pool, columns: Tensor, where: Writes) -> Tensor:
        pool = self.pool(layer, spec)
        write_columns(pool, columns, where)
        self.columns[spec.name.partition("_")[0]].append(columns)
        return pool

    def write_window(self, layer: int, fresh: Tensor, step: Step) -> None:
        """The host moves rows inside its window array: what leaves is already there."""
        self.columns[WINDOW].append(fresh)

    def sink(self, layer: int, first: Tensor, step: Step) -> Tensor:
        kept = torch.where(step.first, first, self.arrays[SINK][:, layer : layer + 1].float())
        self.sinks.append(kept)
        return kept

    def new(self) -> list[Tensor]:
        """In the order of `InputLayout.outputs`."""
        results = []
        for kind in self.layout.kinds:
            pools, columns = self.layout.pools(kind), self.columns[kind]
            splits = [pool.row.scales_channel for pool in pools]
            codes = torch.cat([c[:n] for c, n in zip(columns, splits, strict=True)])
            scales = torch.cat([c[n:] for c, n in zip(columns, splits, strict=True)])
            results.append(codes.reshape(1, len(codes), 1, -1).to(torch.int8))
            results.append(scales.reshape(1, len(scales), 1, -1).half())
        return [*results, torch.cat(self.sinks, dim=1).half()]
