"""What the scripts' commands share: where resumable work is kept, the progress bar. Light: torch is loaded in use."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from adakv_model.errors import UserError
from adakv_model.terminal import Bars, make_console, text_column
from adakv_model.utf8_path import utf8_path
from adakv_model.whole_file import check_file, write_whole

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
KEPT_ITEMS = "finished items are kept (--work-dir), and the same command goes on with them"
KEPT_WINDOWS = KEPT_ITEMS.replace("items", "windows")
WORK_REMEDY = "free some space or pass another --work-dir"


def work_folder(root: Path, **identity: Any) -> Path:
    """A folder for the intermediate results of exactly these inputs. Raises UserError if it cannot be
    made."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    folder = root / digest[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): pass another --work-dir") from error
    return folder


def digest_of(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def resumable(path: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in `path`, computed and written atomically if the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    if path.is_file():
        try:
            with utf8_path(path) as named:
                return load_file(named)
        except SafetensorError:
            log.warning("%s is damaged and is computed again", path)
    tensors = compute()
    write_whole(path, save(tensors), WORK_REMEDY)
    return tensors


def track(title: str, items: Sequence[Any]) -> Iterator[Any]:
    """Iterate with a progress bar; in a pipe, a line when it starts."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = make_console()
    if not console.is_terminal:  # a log has no bar
        console.print(f"{title}, {len(items)} ...")
    with Bars(text_column("{task.description}"), *columns, console=console) as progress:
        yield from progress.track(items, description=title)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Sorted, as records are compared. Raises UserError."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def check_output(path: Path) -> None:
    """Raise UserError early rather than after the work."""
    check_file(path, "--out", (".safetensors",))


def set_threads(threads: int) -> None:
    if threads > 0:
        import torch

        torch.set_num_threads(threads)


def command_line(script: str) -> str:
    """The command for a results file: absolute paths by their name alone, since they mean nothing elsewhere."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return " ".join([script, *words])
