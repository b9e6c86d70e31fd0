"""manifest.json of an artifact folder: names of files, and the reading that commands share. Light: no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError

PROGRAM, MANIFEST, TOKENIZER, TEMPLATE = "model.pte", "manifest.json", "tokenizer.json", "chat_template.jinja"
CALIBRATION = "calibration.safetensors"
FORMAT = 2  # of the folder; 2: rows in tiled blocks, tokens leave the window in blocks

SECTIONS = ("command", "model", "kv_cache", "versions", "files")  # that every artifact of this format has


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete artifact. Raises UserError if the folder is missing, partial, damaged or foreign."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"no artifact at {folder}: {_instead(folder)}")
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise damaged(folder, str(error)) from error
    if not isinstance(manifest, dict):
        raise damaged(folder, "it holds no JSON object")
    if (found := manifest.get("format")) != FORMAT:
        raise UserError(f"{folder} has format {found}, and this version reads {FORMAT}: export again")
    lost = [name for name in SECTIONS if not manifest.get(name)]
    if lost:
        raise damaged(folder, f"it lacks {', '.join(lost)}")
    manifest.setdefault("program", PROGRAM)
    _check_sections(folder, manifest)
    missing = [name for name in manifest["files"] if not (folder / name).is_file()]
    if missing or not (folder / manifest["program"]).exists():
        raise UserError(f"{folder} lacks {', '.join(missing) or manifest['program']}: export again")
    return manifest


def all_logits(manifest: dict[str, Any]) -> bool:
    """Whether a step returns the logits of every token; without an entry it does."""
    return manifest.get("logits", "all") == "all"


def require_all_logits(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises UserError for a program that returns the last token's alone."""
    if not all_logits(manifest):
        raise UserError(
            f"{folder} returns the logits of a step's last token only: export one that returns all with"
            " `adakv export --logits all --out artifacts/check`"
        )


def _instead(folder: Path) -> str:
    """What to name, or to do, where `folder` is no artifact."""
    if (folder.parent / MANIFEST).is_file():
        return f"name the folder, {folder.parent}"
    try:
        held = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
    except OSError:
        held = []
    if held:
        return f"it holds artifacts, name one of them: {', '.join(held)}"
    if folder.exists():
        return "name a folder that `adakv export` wrote"
    return f"make one with `adakv export --target android --out {folder}`"


def is_calibrated(manifest: dict[str, Any]) -> bool:
    """Whether its tables were made for its checkpoint; of neutral ones they say that they were not."""
    return manifest.get("calibration", {}).get("calibrated") is not False


def damaged(folder: Path, reason: str) -> UserError:
    """The error about a manifest that no export wrote like that."""
    return UserError(f"{folder / MANIFEST} is damaged ({reason}): export again")


def _check_sections(folder: Path, manifest: dict[str, Any]) -> None:
    """What every reader relies on; the plan is checked where it is rebuilt."""
    model, files, program = manifest["model"], manifest["files"], manifest["program"]
    wrong = [name for name in ("model", "kv_cache", "versions", "files") if not isinstance(manifest[name], dict)]
    if wrong:
        raise damaged(folder, f"{wrong[0]} is no object")
    ids = model.get("eos_token_ids")
    if not isinstance(model.get("vocab_size"), int) or not isinstance(ids, list):
        raise damaged(folder, "its model has no vocab_size or eos_token_ids")
    for name, described in files.items():
        known = isinstance(described, dict) and {"bytes", "sha256"} <= described.keys()
        if not known or Path(name).is_absolute() or ".." in Path(name).parts:
            raise damaged(folder, f"files: {name}")
    if not isinstance(program, str) or Path(program).name != program:
        raise damaged(folder, f"program: {program!r}")
