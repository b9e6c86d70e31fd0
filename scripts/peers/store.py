"""The results file: options, finished cells, rows. Written atomically after every cell, so that a run can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError
from adakv_model.whole_file import write_json

KEY = ("system", "cache", "batch", "flawed", "context", "threads", "round")


class Store:
    """Cells of a run: dictionaries with the fields of KEY and either samples or `error`."""

    def __init__(self, path: Path, options: dict[str, Any], resume: bool) -> None:
        """options: what must be equal for results to belong together. Raises UserError."""
        self.path, self.options = path, options
        self.cells: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.probes: dict[str, dict[str, Any]] = {}  # system -> what probe.py found; kept, so that batches stay equal
        if resume and path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            cells, options = content["cells"], content["options"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is not a results file of this script ({error}): name another") from error
        different = sorted(k for k in self.options.keys() | options.keys() if self.options.get(k) != options.get(k))
        if different:
            raise UserError(
                f"{self.path} was made with other {', '.join(different)}: name another file, or no --resume"
            )
        self.cells = [cell for cell in cells if "error" not in cell]  # failures are tried again
        self.probes = content.get("probes", {})

    def has(self, **key: Any) -> bool:
        return any(all(cell[k] == key[k] for k in KEY) for cell in self.cells)

    def add(self, cell: dict[str, Any]) -> None:
        self.cells.append(cell)
        self.write([])

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Raises UserError where the file cannot be written."""
        content = {"options": self.options, "notes": self.notes, "probes": self.probes, "rows": rows}
        content["cells"] = self.cells
        write_json(self.path, content)
