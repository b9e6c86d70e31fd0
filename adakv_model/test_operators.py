"""The four operators over one layer's state: the C++ kernels against the torch reference, to the last bit."""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adakv_model import attention, native, reference
from adakv_model.kv_cache import columns
from adakv_model.packing import Side
from adakv_model.plan import ATTENTION_SUMS, FIRST_TIER, OBSERVATIONS, SINK, WINDOW, CachePlan, left
from adakv_model.quantizer import BAND_BITS, SUPPORTED_BITS, hadamard, join_bands, n_bands, transform

TORCH = SimpleNamespace(
    depart=reference.depart, assign=reference.assign, attend=attention.attend, observe=reference.observe
)


def random_bits(random: np.random.Generator, dim: int, side: int) -> int:
    """Widths of a row: V rows and half of the K rows uniform, the others (nearly always) different from band to band."""
    if side == Side.VALUE or random.integers(2):
        return int(random.choice(SUPPORTED_BITS))
    return join_bands([int(b) for b in random.choice(BAND_BITS, size=n_bands(dim))])


def make_plan(
    context: int, window: int, chunk: int, capacities: tuple[int, ...], seed: int, dim: int = 64, departure: int = 1
) -> CachePlan:
    random = np.random.default_rng(seed)
    layers, kv_heads = 1, 2
    units = (layers, kv_heads, 2, len(capacities))
    return CachePlan(
        context=context,
        window=window,
        window_bits=int(random.choice([8, 16])),
        chunk=chunk,
        n_heads=6,
        n_kv_heads=kv_heads,
        n_layers=layers,
        head_dim=dim,
        vocab_size=50,
        tier_bits=(2, 3, 4, 8, 16)[: len(capacities)],
        capacities=capacities,
        unit_bits=np.array([random_bits(random, dim, i[2]) for i in np.ndindex(units)]).reshape(units),
        scale_modes=random.integers(0, 2, size=(layers, kv_heads, 2)),
        departure=departure,
    )


class OneLayer:
    """The four operators over one layer's state, fed with random projections."""

    def __init__(self, plan: CachePlan, kernels, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.plan, self.kernels = plan, kernels
        shape = (plan.n_kv_heads, plan.head_dim)
        self.k_mean, self.v_mean = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
        noise = torch.randn(*shape, plan.head_dim, generator=g) * 0.3 / plan.head_dim**0.5
        self.k_transform = hadamard(torch.eye(plan.head_dim) + noise)  # invertible, not orthogonal
        self.q_transform = torch.linalg.inv(self.k_transform).transpose(-1, -2) / math.sqrt(plan.head_dim)
        angle = torch.rand(plan.context, plan.head_dim // 2, generator=g) * 6.28
        self.cos, self.sin = angle.cos(), angle.sin()
        self.qkv = torch.randn(1, plan.context, (plan.n_heads + 2 * plan.n_kv_heads) * plan.head_dim, generator=g)
        self.tokens = torch.randint(0, plan.vocab_size, (1, plan.context), generator=g)
        self.logits = torch.randn(1, plan.context, plan.vocab_size, generator=g) * 4
        self.mix = torch.randn(len(reference.FEATURES), plan.n_tiers, generator=g)
        self.log_frequency = -torch.rand(plan.vocab_size, generator=g) * 10
        self.capacities = torch.tensor(plan.capacities, dtype=torch.int32)
        self.progress = torch.zeros(1 + plan.n_tiers, dtype=torch.int32)
        self.tiers = torch.zeros(plan.context, dtype=torch.uint8)
        self.history = torch.zeros(plan.context, dtype=torch.int32)
        self.observed = torch.zeros(plan.ring, len(OBSERVATIONS))
        self.attention = torch.zeros(plan.ring, len(ATTENTION_SUMS), dtype=torch.int64)
        self.last_logits = torch.zeros(plan.vocab_size)
        self.cache = torch.zeros(plan.layer_bytes(0), dtype=torch.uint8)
        self.workspace = torch.zeros(plan.workspace_bytes, dtype=torch.uint8)

    def step(self, p: int, count: int) -> Tensor:
        plan, ops, at, chunk = self.plan, self.kernels, torch.tensor([p]), slice(p, p + count)
        tokens = self.tokens[:, chunk].contiguous()
        features = ops.depart(
            tokens, at, self.log_frequency, self.progress, self.history, self.observed, self.attention,
            plan.n_heads, plan.lag, plan.window, plan.departure,
        )  # fmt: skip
        assigned = ops.assign(
            features @ self.mix, at, self.capacities, self.progress, self.tiers, plan.window, plan.departure
        )
        out = ops.attend(
            self.qkv[:, chunk], self.cos, self.sin, assigned, at, self.k_mean, self.v_mean,
            columns(self.k_transform), columns(self.q_transform), plan.layout(0), self.cache, self.attention,
            self.workspace, plan.lag, plan.window, plan.departure,
        )  # fmt: skip
        ops.observe(self.logits[:, chunk], tokens, at, self.observed, self.last_logits)
        return out

    def run(self, chunks: list[int], *, aligned: bool = True) -> Tensor:
        """The whole context in chunks of these sizes, repeated; cut at multiples of `departure` if aligned."""
        outputs: list[Tensor] = []
        p, context = 0, self.plan.context
        for size in itertools.cycle(chunks):
            for count in self.plan.chunks(p, min(size, context - p)) if aligned else [min(size, context - p)]:
                outputs.append(self.step(p, count))
                p += count
            if p == context:
                return torch.cat(outputs, dim=1)
        raise AssertionError


def assert_same_state(a: OneLayer, b: OneLayer) -> None:
    assert torch.equal(a.progress, b.progress)
    assert torch.equal(a.tiers, b.tiers)
    assert torch.equal(a.cache, b.cache)


@given(
    seed=st.integers(0, 2**20),
    window=st.integers(1, 12),
    extra=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_operators_match_the_reference(seed: int, window: int, extra: list[int], data: st.DataObject) -> None:
    chunk = data.draw(st.integers(1, window))
    sizes = data.draw(st.lists(st.integers(1, chunk), min_size=1, max_size=4))
    plan = make_plan(1 + window + sum(extra), window, chunk, tuple(extra), seed, dim=32)
    theirs, ours = OneLayer(plan, reference, seed), OneLayer(plan, native, seed)
    expected, got = theirs.run(sizes), ours.run(sizes)
    assert_same_state(theirs, ours)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.observed, theirs.observed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.attention.double(), theirs.attention.double(), atol=500.0, rtol=1e-5)


def split_slots(context: int, window: int, departure: int, n_tiers: int, seed: int) -> tuple[int, ...]:
    """Random capacities that just hold the context."""
    unit = 16 if departure > 1 else 1
    units = -(-(left(context - 1, window, departure) - 1) // unit)
    shares = np.random.default_rng(seed).multinomial(units, np.full(n_tiers, 1 / n_tiers))
    return tuple(unit * int(n) for n in shares)


@given(
    seed=st.integers(0, 2**20),
    window=st.integers(1, 40),
    departure=st.integers(1, 40),
    extra=st.integers(0, 60),
    n_tiers=st.integers(1, 5),
    aligned=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_bookkeeping_matches_the_reference(
    seed: int, window: int, departure: int, extra: int, n_tiers: int, aligned: bool, data: st.DataObject
) -> None:
    chunk = data.draw(st.integers(1, departure if departure > 1 else window))
    sizes = data.draw(st.lists(st.integers(1, chunk), min_size=1, max_size=4))
    context = 1 + window + departure + extra
    capacities = split_slots(context, window, departure, n_tiers, seed)
    plan = make_plan(context, window, chunk, capacities, seed, 16, departure)
    mixed = SimpleNamespace(depart=native.depart, assign=native.assign, attend=reference.attend, observe=native.observe)
    theirs, ours = OneLayer(plan, reference, seed), OneLayer(plan, mixed, seed)
    expected, got = theirs.run(sizes, aligned=aligned), ours.run(sizes, aligned=aligned)
    assert_same_state(theirs, ours)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.observed, theirs.observed, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.attention, theirs.attention)


@pytest.mark.parametrize(("window", "departure"), [(16, 32), (5, 8), (40, 32), (16, 7)])
@pytest.mark.parametrize("sizes", [[32], [3, 16, 1], [5, 11]])
def test_any_aligned_chunking_of_the_reference_equals_token_by_token(
    window: int, departure: int, sizes: list[int]
) -> None:
    plan = make_plan(130, window, departure, split_slots(130, window, departure, 4, 3), 3, departure=departure)
    single, chunked = OneLayer(plan, reference, 5), OneLayer(plan, reference, 5)
    expected, got = single.run([1]), chunked.run(sizes)
    assert_same_state(single, chunked)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kernels", [reference, native], ids=["reference", "native"])
def test_blocks_leave_at_multiples_of_the_departure(kernels) -> None:
    window, departure = 3, 4
    plan = make_plan(20, window, departure, (16,), 1, departure=departure)
    layer = OneLayer(plan, kernels, 1)
    marks = []
    for p, count in ((0, 2), (2, 2), (4, 1), (5, 4), (9, 3), (12, 1)):
        tokens, at = layer.tokens[:, p : p + count].contiguous(), torch.tensor([p])
        features = kernels.depart(
            tokens, at, layer.log_frequency, layer.progress, layer.history, layer.observed, layer.attention, 6,
            plan.lag, window, departure,
        )  # fmt: skip
        assigned = kernels.assign(
            features[:, :1].contiguous(), at, layer.capacities, layer.progress, layer.tiers, window, departure
        )
        assert features.shape == (count + 3, len(reference.FEATURES))
        marks.append(assigned.tolist())
    assert marks[0] == [[-1, -1, 0]] * 5
    assert marks[1] == [[-1, -1, 0]] * 5
    assert marks[2] == [[0, 0, 1], *[[-1, -1, 1]] * 3]  # position 4: token 1
    assert marks[3] == [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5], *[[-1, -1, 5]] * 3]  # 8: tokens 2 to 5
    assert marks[4] == [[-1, -1, 5]] * 6
    assert marks[5] == [[0, 5, 6], [0, 6, 7], [0, 7, 8], [0, 8, 9]]  # 12: tokens 6 to 9


@pytest.mark.parametrize("sizes", [[7], [16], [3, 16, 1], [5, 11]])
def test_any_chunking_of_the_reference_equals_token_by_token(sizes: list[int]) -> None:
    plan = make_plan(120, 24, 16, (20, 30, 15, 20, 10), seed=3)
    single, chunked = OneLayer(plan, reference, 5), OneLayer(plan, reference, 5)
    expected, got = single.run([1]), chunked.run(sizes)
    assert_same_state(single, chunked)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [[7], [16], [3, 16, 1], [5, 11]])
@pytest.mark.parametrize("capacities", [(20, 30, 15, 20, 10), (900, 500, 300, 30, 10), (700,)])
def test_any_chunking_of_the_kernels_equals_token_by_token_to_the_last_bit(
    sizes: list[int], capacities: tuple[int, ...]
) -> None:
    plan = make_plan(25 + sum(capacities), 24, 16, capacities, seed=3)
    single, chunked = OneLayer(plan, native, 5), OneLayer(plan, native, 5)
    assert torch.equal(single.run([1]), chunked.run(sizes))
    assert_same_state(single, chunked)
    assert torch.equal(single.attention, chunked.attention)


def test_long_context_in_parts_matches_the_reference() -> None:
    plan = make_plan(1500, 16, 16, (600, 500, 300, 63, 20), seed=1)
    theirs, ours = OneLayer(plan, reference, 2), OneLayer(plan, native, 2)
    expected, got = theirs.run([16]), ours.run([16])
    assert_same_state(theirs, ours)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_position_zero_resets() -> None:
    plan = make_plan(60, 8, 8, (20, 31), seed=4)
    layer = OneLayer(plan, native, 4)
    first = layer.run([8])
    before = layer.cache.clone()
    assert torch.equal(layer.run([8]), first)
    assert torch.equal(layer.cache, before)


@pytest.mark.parametrize("kernels", [reference, native], ids=["reference", "native"])
def test_past_the_context_nothing_is_overwritten(kernels) -> None:
    plan = make_plan(40, 8, 8, (20, 11), seed=4)
    layer = OneLayer(plan, kernels, 4)
    layer.run([8])
    state = {n: getattr(layer, n).clone() for n in ("cache", "tiers", "progress", "history", "observed")}
    layer.tokens, layer.qkv = layer.tokens.repeat(1, 2), layer.qkv.repeat(1, 2, 1)
    with pytest.raises(ValueError, match="context full: position 41 is past the capacity of 40"):
        layer.step(40, 1)
    with pytest.raises(ValueError, match="continue at 40 or reset at 0"):
        layer.step(39, 1)
    for name, value in state.items():
        assert torch.equal(getattr(layer, name), value), name


def test_full_tiers_spill_to_the_nearest_narrower_first() -> None:
    fill, capacities = [3, 0, 2, 1], [3, 4, 2, 9]
    assert reference.nearest_tier_with_room(2, fill, capacities) == 1
    assert reference.nearest_tier_with_room(0, fill, capacities) == 1
    assert reference.nearest_tier_with_room(3, fill, capacities) == 3
    with pytest.raises(ValueError, match="every tier is full"):
        reference.nearest_tier_with_room(1, capacities, capacities)
