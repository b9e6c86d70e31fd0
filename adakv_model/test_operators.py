"""The four operators over one layer's state: the C++ kernels against the torch reference, to the last bit."""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adakv_model import attention, reference
from adakv_model.features import FEATURES
from adakv_model.kv_cache import columns
from adakv_model.packing import Side
from adakv_model.plan import ATTENTION_SUMS, FIRST_TIER, OBSERVATIONS, SINK, WINDOW, CachePlan
from adakv_model.quantizer import BAND_BITS, SUPPORTED_BITS, hadamard, join_bands, n_bands, transform
from adakv_model.runtime import native
from adakv_model.window import left

TORCH = SimpleNamespace(
    depart=reference.depart, assign=reference.assign, attend=attention.attend, observe=reference.observe
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The torch side is many small operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_bits(random: np.random.Generator, dim: int, side: int) -> int:
    """Widths of a row: uniform in V rows and half of the K rows, else (nearly always) different from band to band."""
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

    def __init__(self, plan: CachePlan, kernels: Any, seed: int) -> None:
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
        self.mix = torch.randn(len(FEATURES), plan.n_tiers, generator=g)
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
    for name in ("progress", "tiers", "cache", "attention"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def split_slots(context: int, window: int, departure: int, n_tiers: int, seed: int) -> tuple[int, ...]:
    """Random capacities that just hold the context."""
    unit = 16 if departure > 1 else 1
    units = -(-(left(context - 1, window, departure) - 1) // unit)
    shares = np.random.default_rng(seed).multinomial(units, np.full(n_tiers, 1 / n_tiers))
    return tuple(unit * int(n) for n in shares)


@given(
    seed=st.integers(0, 2**20),
    dim=st.sampled_from([16, 32, 64, 128]),
    window=st.integers(1, 40),
    departure=st.one_of(st.just(1), st.integers(1, 40)),
    extra=st.integers(0, 60),
    n_tiers=st.integers(1, 5),
    aligned=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_operators_match_the_reference_to_the_last_bit(
    seed: int, dim: int, window: int, departure: int, extra: int, n_tiers: int, aligned: bool, data: st.DataObject
) -> None:
    chunk = data.draw(st.integers(1, departure if departure > 1 else window))
    sizes = data.draw(st.lists(st.integers(1, chunk), min_size=1, max_size=4))
    context = 1 + window + departure + extra
    capacities = split_slots(context, window, departure, n_tiers, seed)
    plan = make_plan(context, window, chunk, capacities, seed, dim, departure)
    theirs, ours = OneLayer(plan, TORCH, seed), OneLayer(plan, native, seed)
    expected, got = theirs.run(sizes, aligned=aligned), ours.run(sizes, aligned=aligned)
    assert_same_state(theirs, ours)
    assert torch.equal(got, expected)
    torch.testing.assert_close(ours.observed, theirs.observed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loud", [1e-30, 1e-8, 1e4])
def test_extreme_values_match_the_reference_to_the_last_bit(loud: float) -> None:
    plan = make_plan(120, 16, 32, split_slots(120, 16, 32, 4, 3), 3, departure=32)
    theirs, ours = OneLayer(plan, TORCH, 5), OneLayer(plan, native, 5)
    for layer in (theirs, ours):
        layer.qkv[:, ::3] *= loud
        layer.qkv[:, 41] = 0.0
    expected, got = theirs.run([32, 1, 7]), ours.run([32, 1, 7])
    assert expected.isfinite().all()
    assert_same_state(theirs, ours)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kernels", [TORCH, native], ids=["reference", "native"])
@pytest.mark.parametrize(("window", "departure"), [(16, 32), (5, 8), (40, 32), (16, 7), (16, 1)])
def test_any_aligned_chunking_equals_token_by_token_to_the_last_bit(kernels: Any, window: int, departure: int) -> None:
    chunk = departure if departure > 1 else 11  # departure 1: what is received is complete for chunks up to `chunk`
    plan = make_plan(110, window, chunk, split_slots(110, window, departure, 4, 3), 3, departure=departure)
    single = OneLayer(plan, kernels, 5)
    expected = single.run([1])
    for sizes in ([32], [3, 16, 1], [5, 11]):
        chunked = OneLayer(plan, kernels, 5)
        assert torch.equal(chunked.run(sizes), expected)
        assert_same_state(single, chunked)


@pytest.mark.parametrize("kernels", [TORCH, native], ids=["reference", "native"])
def test_chunks_that_cross_a_departure_only_change_what_the_controller_sees(kernels: Any) -> None:
    """With one tier there is nothing to decide: the same bits."""
    plan = make_plan(110, 16, 32, split_slots(110, 16, 32, 1, 3), 3, departure=32)
    aligned = OneLayer(plan, kernels, 5)
    expected = aligned.run([32])
    for sizes in ([7, 32], [20], [3, 16, 1]):
        crossing = OneLayer(plan, kernels, 5)
        assert torch.equal(crossing.run(sizes, aligned=False), expected)
        for name in ("progress", "tiers", "cache"):
            assert torch.equal(getattr(aligned, name), getattr(crossing, name)), name


@pytest.mark.parametrize("departure", [1, 32])
@pytest.mark.parametrize("n_tiers", [1, 2])
def test_any_chunking_of_long_contexts_equals_token_by_token(departure: int, n_tiers: int) -> None:
    """Tiers of more than one part."""
    plan = make_plan(1500, 24, 16, split_slots(1500, 24, departure, n_tiers, 3), 3, departure=departure)
    single = OneLayer(plan, native, 5)
    expected = single.run([1])
    for sizes in ([7], [16], [3, 16, 1], [5, 11]):
        chunked = OneLayer(plan, native, 5)
        assert torch.equal(chunked.run(sizes), expected)
        assert_same_state(single, chunked)


@pytest.mark.parametrize("departure", [1, 32])
def test_threads_change_nothing(departure: int) -> None:
    plan = make_plan(900, 16, 16, split_slots(900, 16, departure, 3, 3), 1, departure=departure)
    outputs, layers = [], []
    for threads in (1, 2, 3, 4):
        attend = partial(native.attend, threads=threads)
        kernels = SimpleNamespace(depart=native.depart, assign=native.assign, attend=attend, observe=native.observe)
        layers.append(OneLayer(plan, kernels, 2))
        outputs.append(layers[-1].run([16, 1]))
    for output, layer in zip(outputs, layers, strict=True):
        assert torch.equal(output, outputs[0])
        assert_same_state(layer, layers[0])


@pytest.mark.parametrize("departure", [1, 32])
def test_long_contexts_in_parts_match_the_reference_to_the_last_bit(departure: int) -> None:
    plan = make_plan(620, 16, 16, split_slots(620, 16, departure, 1, 1), 1, departure=departure)
    theirs, ours = OneLayer(plan, TORCH, 2), OneLayer(plan, native, 2)
    expected, got = theirs.run([16]), ours.run([16])
    assert_same_state(theirs, ours)
    assert torch.equal(got, expected)


def exact_attention(layer: OneLayer) -> Tensor:
    """Of the newest token over the rows that the cache holds, in float64: [H, D]."""
    plan, newest, group = layer.plan, layer.plan.context - 1, layer.plan.n_heads // layer.plan.n_kv_heads
    qkv, at, heads = layer.qkv[0, newest:].reshape(1, -1, plan.head_dim), slice(newest, newest + 1), []
    queries = attention.apply_rope(qkv[:, : plan.n_heads], layer.cos[at], layer.sin[at])[0]
    recent = torch.arange(plan.left(newest), newest + 1) % plan.ring
    for head in range(plan.n_kv_heads):
        held = []
        for side in Side:
            view = attention.UnitView(plan.layout(0)[2 * head + side], layer.cache, plan.head_dim, side)
            parts = [view.read(SINK, torch.tensor([0])), view.read(WINDOW, recent)]
            parts += [view.read(FIRST_TIER + k, torch.arange(n)) for k, n in enumerate(layer.progress[1:].tolist())]
            held.append(torch.cat(parts).double())
        q = transform(queries[head * group : (head + 1) * group], layer.q_transform[head]).double()
        probability = (q @ held[0].T).softmax(-1)
        heads.append(hadamard(probability @ held[1]) + layer.v_mean[head])
    return torch.cat(heads)


@pytest.mark.parametrize("seed", range(6))
def test_attention_is_what_the_rows_say(seed: int) -> None:
    """An independent sum in float64. int8 queries and weights leave the outputs 1 % apart."""
    plan = make_plan(330, 16, 32, split_slots(330, 16, 32, 3, seed), seed, departure=32)
    layer = OneLayer(plan, native, seed)
    got, expected = layer.run([32])[0, -1].reshape(plan.n_heads, -1), exact_attention(layer)
    assert (got - expected).norm() < 0.01 * (expected - layer.v_mean.repeat_interleave(3, 0)).norm()


@pytest.mark.parametrize("kernels", [TORCH, native], ids=["reference", "native"])
def test_blocks_leave_at_multiples_of_the_departure(kernels: Any) -> None:
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
        assert features.shape == (count + 3, len(FEATURES))
        marks.append(assigned.tolist())
    assert marks[0] == [[-1, -1, 0]] * 5
    assert marks[1] == [[-1, -1, 0]] * 5
    assert marks[2] == [[0, 0, 1], *[[-1, -1, 1]] * 3]  # position 4: token 1
    assert marks[3] == [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5], *[[-1, -1, 5]] * 3]  # 8: tokens 2 to 5
    assert marks[4] == [[-1, -1, 5]] * 6
    assert marks[5] == [[0, 5, 6], [0, 6, 7], [0, 7, 8], [0, 8, 9]]  # 12: tokens 6 to 9


def test_position_zero_resets() -> None:
    plan = make_plan(60, 8, 8, (20, 31), seed=4)
    layer = OneLayer(plan, native, 4)
    first = layer.run([8])
    before = layer.cache.clone()
    assert torch.equal(layer.run([8]), first)
    assert torch.equal(layer.cache, before)


@pytest.mark.parametrize("kernels", [TORCH, native], ids=["reference", "native"])
def test_past_the_context_nothing_is_overwritten(kernels: Any) -> None:
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
