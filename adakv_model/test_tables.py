"""Calibration tables: files that can be read again, and one clear line for those that cannot."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adakv_model.budget import plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.testing_checkpoints import SMALL
from adakv_model.config import DEFAULT_MODEL, LlamaConfig, get_model
from adakv_model.controller import ImportanceScorer
from adakv_model.errors import UserError
from adakv_model.features import FEATURE_SETS, FEATURES
from adakv_model.kv_cache import MixedPrecisionCache
from adakv_model.quantizer import ScaleMode, hadamard, n_bands
from adakv_model.simulation.plan_rows import PlanRows
from adakv_model.tables import CalibrationTables, RowTables, neutral_tables, shipped_tables

DEFAULT: LlamaConfig = get_model(DEFAULT_MODEL).config


def random_tables(seed: int = 0, hidden: int = 16, contexts: tuple[int, ...] = (256, 512)) -> CalibrationTables:
    """Tables for SMALL with nothing special about them."""
    g = torch.Generator().manual_seed(seed)
    units = (SMALL.n_layers, SMALL.n_kv_heads)
    rows = [
        RowTables(
            context=context,
            k_mean=torch.randn(*units, SMALL.head_dim, generator=g),
            k_transform=torch.randn(*units, SMALL.head_dim, SMALL.head_dim, generator=g).half(),
            sensitivity=torch.rand(*units, 2, n_bands(SMALL.head_dim), generator=g) + 0.1,
        )
        for context in contexts
    ]
    return CalibrationTables(
        rows=tuple(rows),
        v_mean=torch.randn(*units, SMALL.head_dim, generator=g),
        scale_modes=torch.randint(0, 2, (*units, 2), generator=g).to(torch.uint8),
        token_log_frequency=-10 * torch.rand(SMALL.vocab_size, generator=g),
        scorers={features: ImportanceScorer(hidden) for features in FEATURE_SETS},
        score_quantiles={features: torch.linspace(-2 - i, 3, 9) for i, features in enumerate(FEATURE_SETS)},
        feature_quantiles=torch.randn(len(FEATURES), 9, generator=g).sort(dim=1).values,
        info={"calibrated": True, "text": {"name": "été.txt", "tokens": 7}},
    )


def same_tables(a: CalibrationTables, b: CalibrationTables) -> bool:
    apart = ("scorers", "score_quantiles", "info", "rows")
    plain = [f.name for f in fields(CalibrationTables) if f.name not in apart]
    states = [[t.scorers[f].state_dict() | {"q": t.score_quantiles[f]} for f in FEATURE_SETS] for t in (a, b)]
    same_scorers = all(all(map(torch.equal, x.values(), y.values())) for x, y in zip(*states, strict=True))
    same_rows = [r.context for r in a.rows] == [r.context for r in b.rows] and all(
        torch.equal(getattr(x, n), getattr(y, n))
        for x, y in zip(a.rows, b.rows, strict=True)
        for n in ("k_mean", "k_transform", "sensitivity")
    )
    plain_same = all(torch.equal(getattr(a, n), getattr(b, n)) for n in plain)
    return same_scorers and a.info == b.info and same_rows and plain_same


@pytest.mark.parametrize("hidden", [1, 16, 24])
def test_saved_tables_load_as_they_were(tmp_path: Path, hidden: int) -> None:
    tables, path = random_tables(hidden=hidden), tmp_path / "t.safetensors"
    tables.save(path)
    assert same_tables(CalibrationTables.load(path), tables)
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays behind"


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    random_tables(1).save(path)
    CalibrationTables.load(path).save(path)
    other = random_tables(2)
    other.save(path)
    assert same_tables(CalibrationTables.load(path), other)


def test_shipped_tables_fit_the_default_model() -> None:
    tables = CalibrationTables.load(shipped_tables(DEFAULT_MODEL))
    tables.check(DEFAULT)
    assert tables.info["calibrated"] is True
    assert [rows.context for rows in tables.rows] == [512, 1024, 2048, 4096, DEFAULT.max_position_embeddings]
    assert all(rows.sensitivity.mean().item() == pytest.approx(1.0, abs=1e-3) for rows in tables.rows)
    assert set(tables.scale_modes.unique().tolist()) <= {0, 1}
    assert all((q.diff() >= 0).all() for q in (*tables.score_quantiles.values(), tables.feature_quantiles))
    assert tables.token_log_frequency.exp().sum().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("features", FEATURE_SETS)
def test_shipped_scorers_read_their_own_features(features: str) -> None:
    weights = CalibrationTables.load(shipped_tables(DEFAULT_MODEL)).scorers[features].hidden.weight
    used = [name for name, column in zip(FEATURES, weights.T, strict=True) if column.any()]
    assert set(used) == set(FEATURE_SETS[features])


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no calibration tables at .*t\.safetensors: make them with adakv calibrate"):
        CalibrationTables.load(tmp_path / "t.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "t.safetensors"
    random_tables().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"is not a calibration table file .*: make it with adakv calibrate"):
        CalibrationTables.load(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all" * 100, b"\xff" * 64], ids=["empty", "text", "ff"])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a calibration table file"):
        CalibrationTables.load(path)


FOREIGN = {
    "a model": {"model.norm.weight": torch.ones(8)},
    "nothing": {},
    "a scorer alone": {f"all.{k}": v.clone() for k, v in ImportanceScorer().state_dict().items()},
}


@pytest.mark.parametrize("tensors", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, tensors: dict[str, Any]) -> None:
    path = tmp_path / "t.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match="is not a calibration table file"):
        CalibrationTables.load(path)


def test_a_scorer_for_other_features_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    random_tables().save(path)
    tensors = load_file(path)
    tensors["all.hidden.weight"] = torch.zeros(16, 5)
    save_file(tensors, path)
    with pytest.raises(UserError, match="is not a calibration table file"):
        CalibrationTables.load(path)


@pytest.mark.parametrize("name", ["512.k_transform", "v_mean"])
def test_tables_with_a_number_that_is_none_are_refused(name: str, tmp_path: Path) -> None:
    """A transform that overflowed fp16 would make every row NaN."""
    random_tables().save(tmp_path / "tables.safetensors")
    tensors = load_file(tmp_path / "tables.safetensors")
    tensors[name].view(-1)[3] = torch.inf
    save_file(tensors, tmp_path / "tables.safetensors")
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
        CalibrationTables.load(tmp_path / "tables.safetensors")


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    random_tables().save(path)
    save_file(load_file(path), path, metadata={"info": "{half"})
    with pytest.raises(UserError, match="is not a calibration table file"):
        CalibrationTables.load(path)


def with_rows(tables: CalibrationTables, **changes: Any) -> CalibrationTables:
    """The tables with changes to the longest context's rows."""
    return replace(tables, rows=(*tables.rows[:-1], replace(tables.rows[-1], **changes)))


def refused(changed: CalibrationTables) -> None:
    with pytest.raises(UserError, match=r"the calibration tables are for a model of .* run adakv calibrate"):
        changed.check(SMALL)


def test_tables_of_another_model_are_refused() -> None:
    random_tables().check(SMALL)
    with pytest.raises(UserError, match=r"\(2, 2, 16\) .*, not \(30, 3, 64\): run adakv calibrate"):
        random_tables().check(DEFAULT)
    refused(with_rows(random_tables(), k_mean=torch.zeros(2, 2, 32)))
    refused(replace(random_tables(), token_log_frequency=torch.zeros(SMALL.vocab_size + 1)))
    with pytest.raises(UserError, match=r"adakv calibrate"):
        plan_cache(DEFAULT, random_tables(), CacheOptions())


WRONG_ROWS: dict[str, Any] = {"k_transform": torch.eye(16), "sensitivity": torch.ones(2, 2, 2)}
WRONG: dict[str, Any] = {
    "v_mean": torch.zeros(2, 2, 8),
    "scale_modes": torch.zeros(2, 1, 2, dtype=torch.uint8),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_table_must_have_the_shape_of_the_model(name: str) -> None:
    refused(replace(random_tables(), **{name: WRONG[name]}))


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_every_context_s_tables_must_have_the_shape_of_the_model(name: str) -> None:
    refused(with_rows(random_tables(), **{name: WRONG_ROWS[name]}))


@pytest.mark.parametrize(("context", "expected"), [(64, 256), (256, 256), (257, 512), (9999, 512)])
def test_a_cache_uses_the_tables_of_the_shortest_context_that_holds_it(context: int, expected: int) -> None:
    tables = random_tables()
    assert tables.at(context).context == expected
    assert [rows.context for rows in tables.only(context).rows] == [expected]
    config, options = (
        replace(SMALL, max_position_embeddings=512),
        CacheOptions(min(context, 500), 16, "tables", 5.5, departure=1),
    )
    plan, slim = (plan_cache(config, t, options).plan for t in (tables, tables.only(context)))
    assert tables.for_plan(plan) is tables.at(options.context)
    assert np.array_equal(plan.unit_bits, slim.unit_bits)


MODELS = pytest.mark.parametrize("config", [SMALL, replace(DEFAULT, n_layers=3)], ids=["other vocabulary", "same"])


@MODELS
def test_neutral_tables_fit_any_model_and_make_equal_units(config: LlamaConfig) -> None:
    tables = neutral_tables(config)
    tables.check(config)
    assert tables.info["calibrated"] is False
    (rows,) = tables.rows
    assert rows.context == config.max_position_embeddings
    assert not rows.k_mean.any()
    assert not tables.v_mean.any()
    assert (rows.sensitivity == 1).all()
    assert tables.scale_modes.float().mean((0, 1)).tolist() == [float(ScaleMode.RMS), float(ScaleMode.UNBIASED)]
    assert tables.v_mean.data_ptr() != rows.k_mean.data_ptr()


def test_neutral_tables_borrow_the_controller_and_the_frequencies_of_the_same_vocabulary() -> None:
    donor, tables = CalibrationTables.load(shipped_tables(DEFAULT_MODEL)), neutral_tables(DEFAULT)
    assert torch.equal(tables.token_log_frequency, donor.token_log_frequency)
    assert tables.score_quantiles.keys() == FEATURE_SETS.keys()
    for features, scorer in tables.scorers.items():
        assert torch.equal(tables.score_quantiles[features], donor.score_quantiles[features])
        assert all(map(torch.equal, scorer.state_dict().values(), donor.scorers[features].state_dict().values()))


@MODELS
@pytest.mark.parametrize("policy", ["adaptive", "static-4"])
def test_neutral_tables_make_a_plan(config: LlamaConfig, policy: str) -> None:
    kv_bits = 14.0 if policy == "adaptive" else None  # bookkeeping weighs on so small a cache
    plan = plan_cache(config, neutral_tables(config), CacheOptions(128, 16, policy, kv_bits, departure=1)).plan
    assert sum(plan.capacities) == 128 - 1 - 16


@pytest.mark.parametrize("policy", ["static-2", "static-3", "static-4", "static-8", "fp16", "tables"])
def test_rows_of_uniform_width_use_a_hadamard_transform_in_the_cache_and_the_simulator(policy: str) -> None:
    tables = random_tables()
    plan = plan_cache(
        SMALL, tables, CacheOptions(128, 16, policy, 5.5 if policy == "tables" else None, departure=1)
    ).plan
    assert plan.banded == (policy == "tables")
    rows, cache = PlanRows(plan, tables), MixedPrecisionCache(SMALL, plan, tables, None)
    rotation = hadamard(torch.eye(SMALL.head_dim)).half().float().expand_as(tables.at(128).k_transform)
    expected = tables.at(128).k_transform.float() if plan.banded else rotation
    for layer in range(SMALL.n_layers):
        stored, query = (getattr(cache, f"{side}_columns_{layer}").transpose(-1, -2) for side in "kq")
        assert torch.equal(stored, expected[layer])
        assert torch.equal(rows.k_transform[layer].transpose(-1, -2), stored)
        assert torch.equal(rows.q_transform[layer].transpose(-1, -2) / math.sqrt(SMALL.head_dim), query)
