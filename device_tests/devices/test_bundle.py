"""Bundles: what is in them follows content, not names."""

from __future__ import annotations

from pathlib import Path

import pytest

from adakv_model.errors import UserError
from device_tests.devices.bundle import Bundle


def folder_with(path: Path, **files: str) -> Path:
    for name, content in files.items():
        target = path / name.replace("__", "/").replace("_pte", ".pte")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    return path


def test_an_artifact_is_named_by_its_program(tmp_path: Path) -> None:
    first = folder_with(tmp_path / "a name; with $(odd) characters", model_pte="weights")
    same = folder_with(tmp_path / "copy", model_pte="weights")
    other = folder_with(tmp_path / "other", model_pte="other weights")
    bundle = Bundle({}, ("./run",))
    for folder in (first, same, other):
        bundle = bundle.with_artifact(folder)
    assert bundle.remote_artifact(first) == bundle.remote_artifact(same) != bundle.remote_artifact(other)
    assert len(bundle.files) == 2
    assert all(character not in name for name in bundle.files for character in "; $()'\"")


def test_a_program_may_be_a_folder(tmp_path: Path) -> None:
    first = folder_with(tmp_path / "a", model__weights="1", model__graph="2", manifest="x")
    second = folder_with(tmp_path / "b", model__weights="1", model__graph="3", manifest="x")
    bundle = Bundle({}, ("./run",)).with_artifact(first, ("model", "manifest")).with_artifact(second, ("model",))
    assert bundle.remote_artifact(first) != bundle.remote_artifact(second)
    assert f"{bundle.remote_artifact(first)}/model/weights" in bundle.files
    assert f"{bundle.remote_artifact(first)}/manifest" in bundle.files


def test_a_runner_folder_keeps_names_and_executable_bits(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, runner="#!", lib__a="x")
    (folder / "runner").chmod(0o755)
    bundle = Bundle.of_runner(folder, ["./runner"], "x86_64").with_inputs({"tokens": folder / "runner"})
    assert {name: file.executable for name, file in bundle.files.items()} == {
        "runner": True,
        "lib/a": False,
        "in/tokens": False,
    }
    assert bundle.size == 2 + 1 + 2


def test_a_missing_program_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*model.pte"):
        Bundle({}, ()).with_artifact(tmp_path)
