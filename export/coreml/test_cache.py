"""The Core ML cache in eager torch, before conversion, against adakv_model.reference: every policy, any chunking."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from adakv_model.budget import PlannedCache, plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.testing_checkpoints import SMALL
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.errors import UserError
from adakv_model.kv_cache import MixedPrecisionCache
from adakv_model.model import Llama, build_model
from adakv_model.tables import CalibrationTables, neutral_tables
from device_tests.coreml.host import HostCache
from export import lowering
from export.coreml.cache import CoreMLCache, CoreMLProgram
from export.coreml.control import Status
from export.coreml.convert import output_types
from export.coreml.plan import coarse_plan
from export.coreml.storage import FP16, INT8, Storage
from export.options import FEATURES_USED

CONFIG = replace(SMALL, head_dim=32, hidden_size=128)
TOKENS = torch.randint(0, CONFIG.vocab_size, (100,), generator=torch.Generator().manual_seed(3)).tolist()
ADAPTIVE = CacheOptions(context=100, window=8, kv_bits=6.5)
OPTIONS = [
    ADAPTIVE,
    replace(ADAPTIVE, kv_bits=9.0),
    *(CacheOptions(context=100, window=8, policy=p) for p in ("static-2", "static-3", "static-4", "static-8", "fp16")),
]


@pytest.fixture(scope="module")
def tables() -> CalibrationTables:
    """Bands of unequal sensitivity, and a K transform that is not orthogonal."""
    tables, generator = neutral_tables(CONFIG), torch.Generator().manual_seed(5)
    (rows,) = tables.rows
    noise = torch.randn(rows.k_transform.shape, generator=generator) * 0.05
    sensitivity = rows.sensitivity.clone()
    sensitivity[:, :, 0] *= torch.tensor([8.0, 2.0, 0.6, 0.2])
    rows = replace(rows, k_transform=(rows.k_transform.float() + noise).half(), sensitivity=sensitivity)
    return replace(tables, rows=(rows,))


def build(
    tables: CalibrationTables, options: CacheOptions, storage: Storage = FP16
) -> tuple[CoreMLProgram, Llama, PlannedCache]:
    planned = coarse_plan(plan_cache(CONFIG, tables, replace(options, departure=1, features=FEATURES_USED)), tables)
    weights = draw_weights(CONFIG, 0)

    core_ml = CoreMLCache(CONFIG, planned.plan, tables, planned.controller(tables), storage)
    ours = CoreMLProgram(build_model(CONFIG, weights, core_ml))
    cache = MixedPrecisionCache(CONFIG, planned.plan, tables, planned.controller(tables))
    return ours, build_model(CONFIG, weights, cache), planned


@torch.no_grad()
def run(program: CoreMLProgram, tokens: list[int], chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, V] and plans [n, 2 + K]; a rest that is no whole chunk goes one by one."""
    logits, plans, position = [], [], 0
    host = None if program.inputs is None else HostCache(program.inputs, "fp16")
    while position < len(tokens):
        count = chunk if position + chunk <= len(tokens) else 1
        ids = torch.tensor([tokens[position : position + count]], dtype=torch.int32)
        arguments: list[Any] = [ids, torch.tensor([position], dtype=torch.int32)]
        if host is not None:
            arguments.append({name: torch.from_numpy(array) for name, array in host.arrays.items()})
        results = dict(zip(output_types(program.inputs), program(*arguments), strict=True))
        rows, plan = results["logits"], results["plan"]
        assert int(results["status"]) == Status.OK
        if host is not None:
            host.write_step(position, plan.numpy(), {name: value.numpy() for name, value in results.items()})
        logits.append(rows[0])
        plans.append(plan)
        position += count
    return torch.cat(logits), torch.cat(plans)


CASES = [(o, FP16) for o in OPTIONS] + [(o, INT8) for o in OPTIONS if o.policy != "fp16"]


@pytest.mark.parametrize(("options", "storage"), CASES, ids=[f"{o.policy}-{o.kv_bits}-{s.name}" for o, s in CASES])
def test_equals_the_reference_for_any_chunking(
    options: CacheOptions, storage: Storage, tables: CalibrationTables
) -> None:
    ours, reference, planned = build(tables, options, storage)
    plan = planned.plan
    assert plan.banded == plan.adaptive, "mixed rows wherever there is a choice"
    with torch.no_grad():
        expected = torch.cat([reference(torch.tensor([[t]]), torch.tensor([i]))[0] for i, t in enumerate(TOKENS)])
    assert isinstance(reference.cache, MixedPrecisionCache)
    tiers = reference.cache.tiers[1 : len(TOKENS) - plan.window].tolist()
    for chunk in {1, plan.chunk}:
        logits, plans = run(ours, TOKENS, chunk)
        assert plans[plan.window + 1 :, 0].tolist() == tiers
        assert plans[-1, 2:].tolist() == reference.cache.progress[1:].tolist() == list(plan.capacities)
        assert float((logits - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_slots_are_given_in_order(tables: CalibrationTables) -> None:
    ours, _, planned = build(tables, ADAPTIVE)
    _, plans = run(ours, TOKENS, planned.plan.chunk)
    for tier in range(planned.plan.n_tiers):
        slots = plans[plans[:, 0] == tier, 1].tolist()
        assert slots == list(range(len(slots)))


@torch.no_grad()
def test_what_may_not_run_is_reported_and_stores_nothing(tables: CalibrationTables) -> None:
    ours, _, planned = build(tables, ADAPTIVE)
    run(ours, TOKENS, planned.plan.chunk)
    before = {name: value.clone() for name, value in ours.cache.named_buffers()}
    chunk = planned.plan.chunk
    for tokens, position, status in (
        (TOKENS[:1], 100, Status.CONTEXT_FULL),
        (TOKENS[:chunk], 99, Status.CONTEXT_FULL),
        (TOKENS[:1], 50, Status.BAD_POSITION),
        (TOKENS[:chunk], 3, Status.BAD_POSITION),
    ):
        ids = torch.tensor([tokens], dtype=torch.int32)
        assert int(ours(ids, torch.tensor([position], dtype=torch.int32))[2]) == status
    trash = {pool.name: pool.trash for layer in range(CONFIG.n_layers) for pool in ours.cache.layout.pools(layer)}
    for name, value in ours.cache.named_buffers():
        kept = torch.arange(value.shape[-1]) != trash.get(name, -1)
        assert torch.equal(value[..., kept], before[name][..., kept]), name


def test_a_16_bit_window_is_refused_where_it_does_not_fit(tables: CalibrationTables) -> None:
    with pytest.raises(UserError, match="drop --window-bits 16"):
        build(tables, replace(ADAPTIVE, window_bits=16, kv_bits=12.0))


def test_int8_holds_no_raw_rows(tables: CalibrationTables) -> None:
    with pytest.raises(UserError, match="drop --kv fp16 and --window-bits 16"):
        build(tables, CacheOptions(context=100, window=8, policy="fp16"), INT8)


def test_no_kernel_program_is_made_of_a_core_ml_plan(tables: CalibrationTables) -> None:
    _, reference, planned = build(tables, ADAPTIVE)
    with pytest.raises(ValueError, match="the kernels read scales of one byte only"):
        lowering.trace(reference, planned.plan)
