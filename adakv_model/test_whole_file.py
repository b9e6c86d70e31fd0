"""Files that commands write: whole or as before, whatever the disk, the name and the place are."""

from __future__ import annotations

import os
import resource
import signal
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adakv_model.checkpoints.testing_checkpoints import SMALL
from adakv_model.errors import UserError
from adakv_model.tables import CalibrationTables, neutral_tables
from adakv_model.utf8_path import utf8_path
from adakv_model.whole_file import append_line, check_file, write_json, write_whole

NAMES = ("plain", "sp ace", "[red]x", "new\nline", "bad\udcff", "ümlaut")


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """Files get at most `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_replaced_and_nothing_else_is_left(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for content in ("first", "höher"):
        write_whole(path, content)
        assert path.read_text(encoding="utf-8") == content
        assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path, fresh = tmp_path / "a.json", tmp_path / "b.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()
    with little_room(100):
        for target in (path, fresh):
            with pytest.raises(UserError, match=r"cannot write .*json \(File too large\): choose another place"):
                write_json(target, "x" * 1000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    with little_room(10), pytest.raises(UserError, match="pass another --results"):
        append_line(path, "x" * 100, "pass another --results")
    assert not path.exists()
    append_line(path, "first")
    with little_room(10), pytest.raises(UserError):
        append_line(path, "x" * 100)
    assert path.read_text(encoding="utf-8") == "first\n"


def test_full_tables_are_one_error_and_leave_nothing(tmp_path: Path) -> None:
    with little_room(100), pytest.raises(UserError, match="cannot write"):
        neutral_tables(SMALL).save(tmp_path / "t.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_devices_and_links_stay_what_they_are(tmp_path: Path) -> None:
    """As root, renaming a file to /dev/null would end it for the whole machine."""
    read, write = os.pipe()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    write_whole(Path(f"/dev/fd/{write}"), "along")
    assert os.read(read, 100) == b"along"
    for handle in (read, write, reader):
        os.close(handle)
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "linked")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "linked"


def test_places_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    check_file(None, "--json")
    check_file(tmp_path / "new.json", "--json")
    check_file(tmp_path / "new.PNG", "--plot", (".png",))
    for name, message in {
        "none/a": r"^--json: the folder .*none does not exist",
        "file/a": r"^--json: the folder .*file does not exist",
        "": "is a folder: name a file in it",
    }.items():
        with pytest.raises(UserError, match=message):
            check_file(tmp_path / name, "--json")
    check_file(tmp_path / "none" / "a", "--results", folders=True)
    with pytest.raises(UserError, match=r"^--results: cannot write to .*file:"):
        check_file(tmp_path / "file" / "a", "--results", folders=True)
    with pytest.raises(UserError, match=r"^--plot .*a.foo must end in .png"):
        check_file(tmp_path / "a.foo", "--plot", (".png",))


@pytest.mark.parametrize("name", NAMES)
def test_libraries_read_files_of_any_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    tables = neutral_tables(SMALL)
    tables.save(path)
    assert torch.equal(CalibrationTables.load(path).v_mean, tables.v_mean)
    save_file({"x": torch.arange(3)}, path)
    with utf8_path(path) as named:
        assert load_file(named)["x"].tolist() == [0, 1, 2]


def test_threads_write_beside_each_other(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(8)]
    contents = [bytes([number]) * (1 << 20) for number in range(8)]
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(write_whole, paths, contents))
    assert [path.read_bytes() for path in paths] == contents
    assert len(list(tmp_path.iterdir())) == len(paths)
