"""Options as data: presets, files and flags come together, and every mistake is one line with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from adakv_model.cache_options import POLICIES
from adakv_model.config import MODELS
from adakv_model.errors import UserError
from export.options import BACKENDS, RECIPES, ExportOptions
from export.presets import PRESETS, gather, read_toml


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_its_own_checks(name: str) -> None:
    gather(name, None, {}).check()


def test_flags_override_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "phone-4k"\nkv-bits = 3\nwindow = 24\n', encoding="utf-8")
    options = gather(None, file, {"window": 32})
    assert (options.context, options.kv_bits, options.window) == (4096, 3.0, 32)
    assert gather("phone-8k", file, {}).context == 8192, "a preset named by a flag comes before the file's"
    assert gather(None, None, {}) == ExportOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kv-bit = 3", "unknown key 'kv-bit' in .*: did you mean 'kv-bits'?"),
        ("zzz = 3", "unknown key 'zzz' in .*: one of target, model"),
        ('context = "many"', "context in .* must be a whole number, not 'many'"),
        ("context = 2048.5", "must be a whole number"),
        ("context = true", "must be a whole number"),
        ("random-weights = 1", "must be true or false"),
        ("model = 3", "must be a text in quotes"),
        ("kv-bits = ", "is not TOML"),
        ('preset = "phone-5k"', "unknown --preset 'phone-5k': did you mean 'phone-"),
    ],
)
def test_mistakes_in_a_file(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        gather(None, file, {})


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read --config"):
        read_toml(tmp_path / "nowhere.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not TOML"):
        read_toml(tmp_path / "binary")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kv": "static-5"}, f"unknown --kv 'static-5': one of {', '.join(POLICIES)}"),
        ({"kv": "static-4", "kv_bits": 4.0}, "--kv static-4 has a fixed width"),
        ({"kv": "static-4", "features": "all"}, "decides nothing: drop it"),
        ({"quantize": "int3"}, f"one of {', '.join(RECIPES)}"),
        ({"backend": "metal"}, f"one of {', '.join(BACKENDS)}"),
        ({"model": "smollm3"}, "unknown model 'smollm3'"),
        ({"context": 100_000}, "more than the 8192 positions"),
        ({"model": "smollm-135m", "context": 4096}, "more than the 2048 positions"),
        ({"random_weights": True, "checkpoint": Path("x")}, "--random-weights needs only a model's name"),
        ({"tables": Path("/nonexistent/tables")}, "make them with adakv calibrate"),
        ({"target": "ios", "logits": "last"}, "drop --logits and --features"),
        ({"target": "ios", "cache_io": "int8"}, "needs --deployment-target iOS26"),
        ({"target": "ios", "cache_io": "int8", "backend": "executorch"}, "needs --backend coreml"),
        ({"target": "ios", "device_bundle": Path("x")}, "--device-bundle is for Android phones"),
    ],
)
def test_mistakes_in_options(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExportOptions(**values).check()  # type: ignore[arg-type]


def test_core_ml_takes_its_own_features_and_xnnpack_on_ios_those_of_android() -> None:
    core_ml = ExportOptions(target="ios").cache
    assert (core_ml.departure, core_ml.features) == (1, "all")
    assert ExportOptions(target="ios", backend="xnnpack").cache == ExportOptions().cache


def test_a_registered_model_is_found_in_any_case() -> None:
    assert ExportOptions(model="SmolLM2-360M").config == MODELS["smollm2-360m"].config
    assert ExportOptions(model="owner/name").config is None
