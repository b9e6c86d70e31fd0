"""Where a checkpoint lies, told from its path alone. Light: no torch, so that command lines check it first."""

from __future__ import annotations

import re
from pathlib import Path

from adakv_model.errors import UserError


def is_hub_id(path: Path | str) -> bool:
    """Whether a path can only be a model hub id, `owner/name`: nothing on this machine has that name."""
    return not Path(path).exists() and bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path)))


def check_place(path: Path) -> None:
    """Raises UserError unless the path is a folder, a .gguf file or a model hub id."""
    if path.is_dir() or is_hub_id(path):
        return
    if not path.exists():
        raise UserError(f"{path} does not exist: pass a Hugging Face folder or a .gguf file")
    if path.suffix.lower() != ".gguf":
        raise UserError(f"{path} is neither a folder nor a .gguf file: pass the folder of config.json")
