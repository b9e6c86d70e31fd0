"""Bookkeeping of the Core ML cache: positions, the controller's features, tiers and slots, masks; once a step.

The same rules as `depart`, `assign` and `observe` of adakv_model/reference.py, branch-free and without errors: a step
that may not run (see `Status`) computes, discards every write and reports itself in an output. Counts and positions
are int32; everything else becomes fp16 in the package, so sums stay sums (over layers and heads) until a logarithm
divides them, and counts and token ids are stored in two parts that fp16 holds exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from adakv_model.config import LlamaConfig
from adakv_model.controller import Controller
from adakv_model.model import rope_tables
from adakv_model.reference import ATTENTION_FLOOR, VARIANCE_FLOOR
from adakv_model.tables import CalibrationTables
from export.coreml.layout import OBSERVED, Pool, StateLayout
from export.coreml.storage import ALIGNMENT

COUNT_BASE, ID_BASE = 1024, 256  # low parts of the progress and history states
FULL = 1000  # added to the cost of a full tier
MASKED = -1e4  # exp of it is 0 in fp16
LOG_FREQUENCY, CONFIDENCE, ENTROPY, SURPRISAL, REPEATS, OWN, OWN_SQUARED, RECEIVED = range(len(OBSERVED))


class Status(IntEnum):
    """The `status` output of a step."""

    OK = 0
    CONTEXT_FULL = 1  # input_pos + tokens is past the context; nothing was stored
    BAD_POSITION = 2  # input_pos is neither 0 nor the number of tokens held; nothing was stored


@dataclass
class Writes:
    """Where the step's rows go in one kind of pool.

    slot: int32 [1], for one token. columns: float [rows, slots] one-hot, keep: [slots], for a chunk.
    """

    slot: Tensor | None
    columns: Tensor
    keep: Tensor

    @classmethod
    def at(cls, chosen: Tensor, column: Tensor, pool: Pool) -> Writes:
        """chosen: int32 [rows], 0 or 1; column: int32 [rows]."""
        target = chosen * column + (1 - chosen) * pool.trash
        columns = (torch.arange(pool.slots, dtype=torch.int32) == target.unsqueeze(1)).float()
        columns = columns * chosen.unsqueeze(1).float()
        return cls(target if target.shape[0] == 1 else None, columns, 1.0 - columns.sum(0))


@dataclass
class Step:
    """What all layers share in one step. T tokens, R window, G query heads a kv head."""

    cos: Tensor  # [D, T]
    sin: Tensor  # [D, T], the first half negated
    mask: Tensor  # [1, G T, rows]: rows are sink, narrow tiers, window pool, chunk
    leaving: Tensor  # [window slots, T] one-hot: the row that leaves as token i is appended
    fits: Tensor  # bool [1]: the context holds the chunk
    store: Tensor  # bool [1]: the step may write
    first: Tensor  # bool [1]: position 0
    ring: Writes
    copies: Writes | None
    tiers: list[Writes]
    age_ring: Tensor  # [T, R], 1 where the query counts for the ring row's received attention
    age_chunk: Tensor  # [T, T]
    position: Tensor  # int32 [1]
    plan: Tensor  # int32 [T, 2 + K], as reference.assign returns it
    progress: Tensor  # int32 [1 + K] after the step
    recent: Tensor | None = None  # [T, R + T] attention over layers and heads, filled by the layers
    own_squared: Tensor | None = None  # [T, T] its squares on the chunk

    def status(self) -> Tensor:
        """int32 [1], a `Status`."""
        wrong = torch.where(self.fits, int(Status.BAD_POSITION), int(Status.CONTEXT_FULL)).to(torch.int32)
        return torch.where(self.store, torch.zeros_like(wrong), wrong)


class Control(nn.Module):
    """States shared by all layers, and the two halves of a step around them."""

    progress: Tensor
    observed: Tensor
    history: Tensor
    last_logits: Tensor

    def __init__(
        self, config: LlamaConfig, layout: StateLayout, tables: CalibrationTables, controller: Controller | None
    ) -> None:
        super().__init__()
        self.layout, self.plan, self.controller = layout, layout.plan, controller
        for name, shape in layout.shared_shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        cos, sin = rope_tables(config, self.plan.context)
        self.register_buffer("cos", torch.cat((cos, cos), 1))  # [N, D]
        self.register_buffer("sin", torch.cat((-sin, sin), 1))
        if self.plan.adaptive:
            self.register_buffer("frequency", tables.token_log_frequency.float())

    cos: Tensor
    sin: Tensor
    frequency: Tensor

    def begin(self, tokens: Tensor, input_pos: Tensor) -> Step:
        """tokens: int32 [1, T]; input_pos: int32 [1]."""
        plan, count = self.plan, tokens.shape[1]
        position = input_pos
        held = self._held()
        first = position == 0
        fits = position + count <= plan.context
        store = torch.logical_and(torch.logical_or(first, position == held[:1]), fits)
        ids = torch.arange(count, dtype=torch.int32)
        at = torch.where(store, position, torch.zeros_like(position)) + ids  # [T]
        slot = torch.remainder(at, plan.window)
        leaving = (at - plan.window >= 1).to(torch.int32)
        fill = torch.where(first, torch.zeros_like(held[1:]), held[1:])
        tier, chosen, places, fills = self._assign(self._wanted(slot), leaving, fill)
        allowed = store.to(torch.int32)
        progress = torch.where(store, torch.cat((position + count, fills[-1])), held)
        written = [c * allowed for c in chosen]  # each int32 [T]
        window = self.layout.window_pool(0)
        ring_start = window.slots - plan.window
        columns = torch.arange(window.slots, dtype=torch.int32).unsqueeze(1)
        stacked = torch.stack(fills)  # [T, K]
        return Step(
            cos=self.cos[at].T,
            sin=self.sin[at].T,
            mask=self._mask(at, slot, stacked, fill, chosen, window),
            leaving=(columns == (slot + ring_start)).float(),
            store=store,
            first=torch.logical_and(first, store),
            ring=Writes.at((at >= 1).to(torch.int32) * allowed, slot + ring_start, window),
            copies=self._copies(written, places, window),
            tiers=[Writes.at(written[k], places, self.layout.tier_pool(0, k)) for k in self.layout.narrow_tiers],
            age_ring=self._age(at.unsqueeze(1) - self._ring_positions(at[:1])),
            age_chunk=self._age(ids.unsqueeze(1) - ids),
            position=position,
            plan=torch.cat((torch.stack((tier, places), 1), stacked), 1),
            fits=fits,
            progress=progress,
        )

    def _held(self) -> Tensor:
        """int32 [1 + K]: tokens held, then rows used in each tier."""
        low, high = (row[: 1 + self.plan.n_tiers].to(torch.int32) for row in self.progress.reshape(2, -1))
        return low + high * COUNT_BASE

    def _wanted(self, slot: Tensor) -> Tensor:
        """The controller's tier for each leaving token: int32 [T, 1]."""
        if self.controller is None:
            return torch.zeros_like(slot).unsqueeze(1)
        return self.controller(self._features(slot)).argmax(-1, keepdim=True).to(torch.int32)

    def _features(self, slot: Tensor) -> Tensor:
        """reference.depart's features [T, 8] from the sums in the observed state."""
        plan = self.plan
        observed = self.observed.reshape(len(OBSERVED), -1)
        width = observed.shape[1]
        picked = (torch.arange(width, dtype=torch.int32) == slot.unsqueeze(1)).float()  # [T, R]
        raw = picked @ observed.T  # [T, 8]
        column = {name: raw[:, i : i + 1] for i, name in enumerate(OBSERVED)}
        heads = plan.n_layers * plan.n_heads
        queries = heads * max(plan.lag, 1)
        own = column["own"]
        variance = (column["own_squared"] - own * (own * (1.0 / heads))).clamp(min=0.0)
        return torch.cat(
            (
                column["log_frequency"],
                column["confidence"],
                torch.log(variance + VARIANCE_FLOOR * heads) - math.log(heads),
                column["entropy"],
                column["surprisal"],
                torch.log(own + ATTENTION_FLOOR * heads) - math.log(heads),
                torch.log(column["repeats"] + 1.0),
                torch.log(column["received"] + ATTENTION_FLOOR * queries) - math.log(queries),
            ),
            dim=1,
        )

    def _assign(
        self, wanted: Tensor, leaving: Tensor, fill: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
        """Tier and slot int32 [T] (-1 if nothing leaves), chosen [K] of int32 [T], and the fill [K] after each token.

        The nearest tier with room, narrower before wider: cost 2 |k - wanted|, plus 1 for a wider one.
        """
        plan = self.plan
        rank = torch.arange(plan.n_tiers, dtype=torch.int32)
        room = torch.tensor(plan.capacities, dtype=torch.int32)
        away = rank - wanted
        cost = torch.abs(away) * 2 + (away > 0).to(torch.int32)  # [T, K]
        picks, slots, fills = [], [], []
        for i in range(leaving.shape[0]):
            price = cost[i] + (fill >= room).to(torch.int32) * FULL
            pick = (price == price.amin()).to(torch.int32) * leaving[i : i + 1]
            slots.append((pick * (fill + 1)).sum(0, keepdim=True, dtype=torch.int32) - 1)
            fill = fill + pick
            picks.append(pick)
            fills.append(fill)
        chosen = torch.stack(picks)  # [T, K]
        tier = (chosen * (rank + 1)).sum(1, dtype=torch.int32) - 1
        return tier, [chosen[:, k] for k in range(plan.n_tiers)], torch.cat(slots), fills

    def _copies(self, written: list[Tensor], places: Tensor, window: Pool) -> Writes | None:
        if not window.tiers:
            return None
        column = sum(written[k] * (places + first) for k, first in zip(window.tiers, window.first_columns, strict=True))
        any_of = sum(written[k] for k in window.tiers)
        assert isinstance(column, Tensor)
        assert isinstance(any_of, Tensor)
        return Writes.at(any_of, column, window)

    def _ring_positions(self, start: Tensor) -> Tensor:
        """int32 [R]: the newest position before `start` in each slot of the ring (negative if there is none)."""
        back = start - 1 - torch.arange(self.plan.window, dtype=torch.int32) + self.plan.window
        return start - 1 - torch.remainder(back, self.plan.window)

    def _age(self, age: Tensor) -> Tensor:
        return torch.logical_and(age >= 1, age <= self.plan.lag).float()

    def _mask(
        self, at: Tensor, slot: Tensor, fills: Tensor, before: Tensor, chosen: list[Tensor], window: Pool
    ) -> Tensor:
        """Additive mask [1, G T, rows]. A query sees the sink, its tiers' rows, the ring and the chunk up to itself.

        The window's pool is read as it was before the step: a row that moves to a copied tier in this step is seen
        where it still lies in the ring. fills: int32 [T, K] after each token; before: int32 [K].
        """
        plan, query = self.plan, at.unsqueeze(1)
        visible = [torch.ones(at.shape[0], 1)]
        for k in self.layout.narrow_tiers:
            slots = torch.arange(self.layout.tier_pool(0, k).slots, dtype=torch.int32)
            visible.append((slots < fills[:, k : k + 1]).float())
        ring = self._ring_positions(at[:1])
        recent = ring > query - plan.window
        if window.tiers:
            held = [torch.arange(plan.capacities[k], dtype=torch.int32) < before[k : k + 1] for k in window.tiers]
            visible.append(torch.cat([h.float() for h in held]).expand(at.shape[0], -1))
            moved = torch.stack([chosen[k] for k in window.tiers]).sum(0).unsqueeze(1).float()  # [T, 1]
            ring_slots = torch.arange(plan.window, dtype=torch.int32)
            moved = ((ring_slots == slot.unsqueeze(1)).float() * moved).sum(0)  # [R]
            recent = torch.logical_or(recent, moved > 0.5)
        unused = window.slots - plan.window - sum(plan.capacities[k] for k in window.tiers)
        visible.append(torch.zeros(at.shape[0], unused))
        visible.append(torch.logical_and(ring >= 1, recent).float())
        visible.append(torch.logical_and(at >= 1, at <= query).float())
        mask = (1.0 - torch.cat(visible, dim=1)) * MASKED
        return torch.cat([mask] * (plan.n_heads // plan.n_kv_heads)).unsqueeze(0)

    def end(self, step: Step, logits: Tensor, tokens: Tensor) -> None:
        """logits: [1, T, V]. Records the observations and closes the step."""
        used = self.plan.n_tiers + 1
        parts = _two_parts(step.progress, COUNT_BASE)  # [2, 1 + K]
        row = torch.cat((parts, torch.zeros(2, ALIGNMENT - used)), dim=1)
        self.progress.copy_(row.reshape(self.progress.shape))
        if self.plan.adaptive:
            self._observe(step, logits[0], tokens[0])

    def _observe(self, step: Step, logits: Tensor, tokens: Tensor) -> None:
        plan, count = self.plan, tokens.shape[0]
        assert step.recent is not None
        assert step.own_squared is not None
        at = step.position + torch.arange(count, dtype=torch.int32)
        repeats = self._repeats(step, tokens, at)
        predicted = self._prediction(step, logits, tokens)
        chunk = step.recent[:, plan.window :]
        diagonal = torch.eye(count)
        values = torch.stack(
            (
                self.frequency[tokens],
                *(value * (at >= 1).float() for value in predicted),
                repeats,
                (chunk * diagonal).sum(0),
                (step.own_squared * diagonal).sum(0),
                (chunk * step.age_chunk).sum(0),
            )
        )  # [8, T]
        allowed = step.store.float()
        old = self.observed.reshape(len(OBSERVED), -1)
        width = old.shape[1]
        slot = torch.remainder(at, plan.window).unsqueeze(1)
        entered = (torch.arange(width, dtype=torch.int32) == slot).float() * allowed  # [T, R]
        received = (step.recent[:, : plan.window] * step.age_ring).sum(0, keepdim=True) * allowed  # [1, R]
        if width > plan.window:
            received = torch.cat((received, torch.zeros(1, width - plan.window)), dim=1)
        old = torch.cat((old[:RECEIVED], old[RECEIVED:] + received))
        new = old * (1.0 - entered.sum(0)) + values @ entered
        self.observed.copy_(new.reshape(self.observed.shape))

    def _repeats(self, step: Step, tokens: Tensor, at: Tensor) -> Tensor:
        """Earlier occurrences of each token [T]; appends the tokens to the history."""
        ids = _two_parts(tokens, ID_BASE)  # [2, T]
        old = self.history.reshape(2, -1)  # [2, N]
        slots = torch.arange(old.shape[1], dtype=torch.int32)
        same = (old.unsqueeze(1) == ids.unsqueeze(2)).float()  # [2, T, N]
        before = same[0] * same[1] * (slots < step.position).float()
        inside = (tokens.unsqueeze(1) == tokens).float() * torch.ones(len(ids[0]), len(ids[0])).tril(-1)
        entered = (slots == at.unsqueeze(1)).float() * step.store.float()  # [T, N]
        new = old * (1.0 - entered.sum(0)) + ids @ entered
        self.history.copy_(new.reshape(self.history.shape))
        return before.sum(1) + inside.sum(1)

    def _prediction(self, step: Step, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Confidence, entropy and surprisal [T] of the predictions that the chunk's tokens answer."""
        vocabulary = logits.shape[1]
        last = self.last_logits[0, 0, :, :vocabulary]  # [1, V]
        previous = last if logits.shape[0] == 1 else torch.cat((last, logits[:-1]))
        below = previous - previous.amax(1, keepdim=True)
        mass = torch.exp(below)
        total = mass.sum(1)
        log_total = torch.log(total)
        entropy = log_total - (mass * below).sum(1) / total
        surprisal = log_total - below.gather(1, tokens.long().unsqueeze(1))[:, 0]
        kept = torch.where(step.store, logits[-1:], last)
        if vocabulary < self.last_logits.shape[-1]:
            kept = torch.cat((kept, torch.zeros(1, self.last_logits.shape[-1] - vocabulary)), dim=1)
        self.last_logits.copy_(kept.reshape(self.last_logits.shape))
        return 1.0 / total, entropy, surprisal


def _two_parts(x: Tensor, base: int) -> Tensor:
    """Low and high part of non-negative int32 [n], both exact in fp16: float [2, n]."""
    low = torch.remainder(x, base)
    return torch.stack((low.float(), (x - low).float() * (1.0 / base)))
