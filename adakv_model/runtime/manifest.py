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
        raise UserError(f"no artifact at {folder}: make one with `adakv export --target android --out {folder}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): export again") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object): export again")
    if (found := manifest.get("format")) != FORMAT:
        raise UserError(f"{folder} has format {found}, and this version reads {FORMAT}: export again")
    lost = [name for name in SECTIONS if not manifest.get(name)]
    if lost:
        raise UserError(f"{path} is damaged (it lacks {', '.join(lost)}): export again")
    missing = [name for name in manifest["files"] if not (folder / name).is_file()]
    program = manifest.get("program", PROGRAM)
    if missing or not (folder / program).exists():
        raise UserError(f"{folder} lacks {', '.join(missing) or program}: export again")
    return manifest
