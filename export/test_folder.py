"""Artifact folders are replaced whole, wherever --out points and whatever ends the export."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adakv_model.errors import UserError
from device_tests.exporting import ROOT
from export import folder as folders
from export.folder import atomic_folder
from export.options import default_out

# Writes an artifact named by argv[2] into argv[1], argv[3] times; "stay" waits inside the block.
WRITER = """
import sys, time
from pathlib import Path
from export.folder import atomic_folder
from export.options import default_out
target, name, times = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for _ in range(1 if times == "stay" else int(times)):
    with atomic_folder(target) as folder:
        for file in ("manifest.json", "model.pte"):
            (folder / file).write_text(name, encoding="utf-8")
        if times == "stay":
            print(folder, flush=True)
            time.sleep(600)
"""


def write(target: Path, name: str) -> None:
    with atomic_folder(target) as folder:
        for file in ("manifest.json", "model.pte"):
            (folder / file).write_text(name, encoding="utf-8")


def holds(target: Path) -> str:
    """What the artifact is; it must be whole."""
    names = {(target / file).read_text(encoding="utf-8") for file in ("manifest.json", "model.pte")}
    assert len(names) == 1
    return names.pop()


def writer(target: Path, name: str, times: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(target), name, times]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def staying(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process inside the block, and its temporary folder."""
    process = writer(tmp_path / "out", "half", "stay")
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()


def test_a_link_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "store", "old")
    (tmp_path / "link").symlink_to("store")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert holds(tmp_path / "store") == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "store"]


@pytest.mark.parametrize("empty", [True, False])
def test_the_current_folder_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool) -> None:
    if not empty:
        write(tmp_path, "old")
        (tmp_path / "chat_template.jinja").write_text("of the old one", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    write(Path("."), "new")
    assert tmp_path.stat().st_ino == before == Path(".").stat().st_ino
    assert holds(Path(".")) == "new"
    assert sorted(os.listdir()) == ["manifest.json", "model.pte"]


def test_a_mount_point_has_its_contents_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounting needs rights that tests lack, so only the question is answered for the file system."""
    write(tmp_path / "disk", "old")
    before = (tmp_path / "disk").stat().st_ino
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    write(tmp_path / "disk", "new")
    assert (tmp_path / "disk").stat().st_ino == before
    assert holds(tmp_path / "disk") == "new"
    assert len(list((tmp_path / "disk").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "package").mkdir(mode=0o755)
            for name in ("manifest.json", "libadakv_ops.so", "package/weights"):
                (folder / name).touch()
                (folder / name).chmod(0o644)
            (folder / "runner").touch(mode=0o700)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]}
    plain, full = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {
        "out": full, "package": full, "manifest.json": plain, "libadakv_ops.so": full, "weights": plain, "runner": full,
    }  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing(staying: tuple[subprocess.Popen[str], Path], number: int, tmp_path: Path) -> None:
    process, temporary = staying
    assert temporary.is_dir()
    process.send_signal(number)
    assert process.wait(timeout=60) in (128 + number, -number)
    assert list(tmp_path.iterdir()) == []


def test_a_living_export_is_left_alone_and_a_dead_one_removed(
    staying: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, temporary = staying
    write(tmp_path / "out", "other")
    assert temporary.is_dir(), "its process lives"
    process.kill()
    process.wait()
    assert temporary.is_dir()
    write(tmp_path / "out", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert holds(tmp_path / "out") == "new"


def test_an_artifact_that_a_killed_export_had_moved_aside_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / f".out.{folders._OLD}abcdefgh"
    aside.mkdir()
    write(aside / "out", "old")
    with pytest.raises(UserError), atomic_folder(tmp_path / "out"):
        raise UserError("a bad option")
    assert holds(tmp_path / "out") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_of_the_user_stay(tmp_path: Path) -> None:
    for name in (".out.settings", ".out.old.settings", "out.adakv-new-x", ".other.adakv-new-x"):
        (tmp_path / name).mkdir()
    write(tmp_path / "out", "new")
    assert len(list(tmp_path.iterdir())) == 5


def test_of_two_exports_that_race_the_last_wins_and_nothing_stays(tmp_path: Path) -> None:
    processes = [writer(tmp_path / "out", name, "300") for name in ("a", "b")]
    for process in processes:
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
    assert holds(tmp_path / "out") in ("a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="cannot use .*loop"):
        write(tmp_path / "loop", "x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: choose a folder"):
        write(tmp_path / "file", "x")
    with pytest.raises(UserError, match="cannot write to .*/file"):
        write(tmp_path / "file" / "out", "x")


def test_names_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SmolLM2-1.7B", "SmolLM2-1.7B-Instruct"):
        (tmp_path / name).mkdir()
        assert default_out("x", tmp_path / name, "android") == Path(f"artifacts/{name}-android")
    (tmp_path / "SmolLM2-1.7B-Instruct.Q4_1.gguf").touch()
    gguf = tmp_path / "SmolLM2-1.7B-Instruct.Q4_1.gguf"
    assert default_out("x", gguf, "ios") == Path("artifacts/SmolLM2-1.7B-Instruct.Q4_1-ios")
    monkeypatch.chdir(tmp_path / "SmolLM2-1.7B")
    assert default_out("x", Path("."), "android") == Path("artifacts/SmolLM2-1.7B-android")
    assert default_out("x", Path("../SmolLM2-1.7B-Instruct/"), "android").name == "SmolLM2-1.7B-Instruct-android"
    assert default_out("x", Path("owner/Name-1.7B"), "ios") == Path("artifacts/owner--Name-1.7B-ios")
    assert default_out("owner/Name-1.7B", None, "ios") == Path("artifacts/owner--Name-1.7B-ios")
    assert default_out("smollm2-1.7b", None, "ios") == Path("artifacts/smollm2-1.7b-ios")
