"""The folder for a phone: complete, self-contained, aligned for 16 KB pages, and it starts with no sysroot."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from adakv_model.errors import UserError
from device_tests.devices.emulated.testing import require_tools
from export.device_bundle import DESCRIPTION, LOADER, RUNNER, START, runner_folder, write_device_bundle
from scripts.make_tiny_artifact import main as make_tiny_artifact

PAGE = 16 * 1024
EMULATOR = ("qemu-aarch64-static", "-cpu", "cortex-a53")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_tools()
    folder = tmp_path_factory.mktemp("device")
    make_tiny_artifact(folder / "artifact", "none")
    write_device_bundle([folder / "artifact"], folder / "bundle")
    return folder / "bundle"


def readelf(option: str, path: Path) -> str:
    command = ["aarch64-linux-gnu-readelf", option, "--wide", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def programs(bundle: Path) -> list[Path]:
    return [path for path in bundle.rglob("*") if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"]


def test_description_and_sums_are_of_every_file(bundle: Path) -> None:
    description = json.loads((bundle / DESCRIPTION).read_text(encoding="utf-8"))
    there = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert there == {*description["files"], DESCRIPTION, "SHA256SUMS"}
    assert description["abi"] == "arm64-v8a"
    (identity,) = description["artifacts"]
    assert f"artifacts/{identity}/model.pte" in description["files"]
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=bundle, check=True, timeout=60)


def test_it_needs_no_library_from_outside(bundle: Path) -> None:
    found = programs(bundle)
    assert {RUNNER, LOADER} <= {path.name for path in found}
    for path in found:
        assert re.search(r"Machine:\s+AArch64", readelf("--file-header", path))
        needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("--dynamic", path)))
        assert needed <= {one.name for one in found}, path.name


def test_it_is_aligned_for_pages_of_16_kb(bundle: Path) -> None:
    for path in programs(bundle):
        segments = re.findall(r"^\s+LOAD\s+(.+)$", readelf("--program-headers", path), re.MULTILINE)
        assert segments
        for segment in segments:
            offset, address = (int(word, 16) for word in segment.split()[:2])
            alignment = int(segment.split()[-1], 16)
            assert alignment % PAGE == 0, path.name
            assert (offset - address) % PAGE == 0, path.name


def test_it_starts_without_a_sysroot(bundle: Path) -> None:
    """No -L for the emulator, so nothing but what is in the folder; from another working folder."""
    description = json.loads((bundle / DESCRIPTION).read_text(encoding="utf-8"))
    (identity,) = description["artifacts"]
    options = ["--artifact", f"artifacts/{identity}", "--tokens", "1,2,3", "--max-new-tokens", "4", "--json"]
    command = [*EMULATOR, *description["command"], *options]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt_tokens"] == 3
    started = (bundle / START).read_text(encoding="utf-8")
    assert started.startswith("#!/system/bin/sh\n")
    assert f'exec ./{LOADER} --library-path . ./{RUNNER} "$@"' in started


def test_an_ndk_runner_is_started_directly(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / RUNNER).write_bytes((bundle / RUNNER).read_bytes())
    folder, command = runner_folder(tmp_path)
    assert (folder, command) == (tmp_path, ("./adakv_runner",))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "name the folder that"), (b"\x7fELF" + bytes(16), "not for arm64")]
)
def test_a_wrong_runner_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / RUNNER).write_bytes(content)
    with pytest.raises(UserError, match=message):
        runner_folder(tmp_path)


def test_other_folders_are_not_replaced(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "mine").write_text("keep", encoding="utf-8")
    artifact = bundle.parent / "artifact"
    with pytest.raises(UserError, match="is not empty and not a folder with bundle.json"):
        write_device_bundle([artifact], tmp_path)
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "keep"
    write_device_bundle([artifact], bundle)  # one of its own kind is
