"""Options as data: presets, files and flags come together, and every mistake is one line with a remedy."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from adakv_model.cache_options import POLICIES
from adakv_model.config import MODELS
from adakv_model.errors import UserError
from export.options import BACKENDS, RECIPES, USED_BY, ExportOptions, flag
from export.presets import PRESETS, gather, read_toml

ROOT = Path(__file__).parents[1]


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
        (
            {"target": "ios", "cache_io": "int8", "backend": "executorch"},
            "--cache-io is for --target ios .--backend coreml.",
        ),
        ({"target": "ios", "device_bundle": Path("x")}, "--device-bundle is for --target android"),
    ],
)
def test_mistakes_in_options(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExportOptions(**values).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "ios", "quantize": "8da8w"}, "--quantize is for --target android and .* use --weights"),
        ({"target": "ios", "embedding": "8"}, "--embedding is for --target android and .* drop it"),
        ({"weights": "int4"}, "--weights is for --target ios .* use --quantize"),
        ({"weights": "int8"}, "--weights is for --target ios"),
        ({"deployment_target": "iOS26"}, "--deployment-target is for --target ios"),
        ({"cache_io": "int8"}, "--cache-io is for --target ios"),
        ({"backend": "xnnpack"}, "--backend is for --target ios, and --target android does not read it"),
        ({"target": "ios", "backend": "xnnpack", "weights": "int4"}, "--backend xnnpack does not read it: use --quant"),
        ({"target": "ios", "backend": "executorch", "weights": "int4"}, "--backend executorch does not read it: drop"),
        ({"target": "ios", "device_runner": Path("x")}, "--device-runner is for --target android"),
    ],
)
def test_what_a_target_does_not_read_is_refused_by_name(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Defaults too where they are written down; from a preset as well."""
    with pytest.raises(UserError, match=message):
        gather(None, None, given)
    file = tmp_path / "mine.toml"
    file.write_text("".join(f'{flag(name)[2:]} = "{value}"\n' for name, value in given.items()), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        gather(None, file, {})


def test_a_preset_of_another_target_is_refused_too() -> None:
    with pytest.raises(UserError, match="--quantize is for --target android"):
        gather("lossless", None, {"target": "ios"}).check()
    gather(None, None, {"target": "ios", "backend": "xnnpack", "quantize": "8da8w"}).check()


def test_every_option_that_names_a_target_is_an_option() -> None:
    assert USED_BY.keys() <= {each.name for each in fields(ExportOptions)}


def test_a_preset_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert gather("phone-4k", None, {}).folder == Path("artifacts/smollm2-135m-instruct-android-phone-4k")
    assert gather("default", None, {}).folder == gather(None, None, {}).folder
    assert gather("phone-4k", None, {"out": tmp_path}).folder == tmp_path
    file = tmp_path / "mine.toml"
    file.write_text('preset = "phone-8k"\n', encoding="utf-8")
    assert gather(None, file, {"model": "smollm-135m"}).folder == Path("artifacts/smollm-135m-android-phone-8k")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "FILE"), "is a file: choose a folder for --out"),
        (("--out", "FILE/deeper"), "is a file; choose another --out"),
        (("--out", "FULL"), "is not empty and not an artifact"),
        (("--out", "/proc/none/x"), "cannot write to /proc"),
        (("--checkpoint", "/nowhere"), "/nowhere does not exist"),
        (("--checkpoint", "FILE"), "neither a folder nor a .gguf file"),
        (("--tables", "/nowhere"), "no calibration tables at /nowhere: make them with adakv calibrate"),
    ],
)
def test_paths_are_checked_before_torch_is_loaded(options: tuple[str, str], message: str, tmp_path: Path) -> None:
    full, file = tmp_path / "full", tmp_path / "full" / "file"
    full.mkdir()
    file.write_text("mine", encoding="utf-8")
    words = [word.replace("FILE", str(file)).replace("FULL", str(full)) for word in options]
    code = (
        "import sys\nfrom export.cli import app\n"
        f"try:\n    app({words!r})\nexcept SystemExit as end:\n    sys.exit(9 if 'torch' in sys.modules else end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in full.iterdir()] == ["file"]


def test_core_ml_takes_its_own_features_and_xnnpack_on_ios_those_of_android() -> None:
    core_ml = ExportOptions(target="ios").cache
    assert (core_ml.departure, core_ml.features) == (1, "all")
    assert ExportOptions(target="ios", backend="xnnpack").cache == ExportOptions().cache


def test_a_registered_model_is_found_in_any_case() -> None:
    assert ExportOptions(model="SmolLM2-360M").config == MODELS["smollm2-360m"].config
    assert ExportOptions(model="owner/name").config is None
