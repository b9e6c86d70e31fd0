"""What a device needs to run an artifact: files by hash, and the command that starts the runner among them.

Layout of the remote folder, which is the working folder of every command:

    <runner files>               of the bundle, such as adakv_runner and its libraries
    artifacts/<id>/model.pte     id: first 16 digits of the program's SHA-256
    in/, out/                    token files that a run reads, logits and states that it writes

so that a command line holds relative names made here only: no path, serial or model name of a user's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from adakv_model.digest import ID_DIGITS, sha256_of
from adakv_model.errors import UserError

IN, OUT, ARTIFACTS = "in", "out", "artifacts"


@dataclass(frozen=True)
class BundleFile:
    """One file to push. sha256: hex; size: bytes."""

    path: Path
    sha256: str
    size: int
    executable: bool = False

    @classmethod
    def of(cls, path: Path, executable: bool = False) -> BundleFile:
        """Raises UserError where the file cannot be read."""
        try:
            return cls(path, sha256_of(path), path.stat().st_size, executable)
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror})") from error


@dataclass(frozen=True)
class Bundle:
    """files: name in the remote folder (posix, relative) -> what is there. command: how the runner starts, relative
    to that folder. abi: "x86_64", "arm64-v8a", "macos-arm64", ... or "" for any. features: CPU features without which
    the runner does not start (empty: it chooses kernels by itself)."""

    files: Mapping[str, BundleFile]
    command: tuple[str, ...]
    abi: str = ""
    features: tuple[str, ...] = ()
    #: folder of an artifact on this machine, resolved -> its id
    artifacts: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def of_runner(cls, folder: Path, command: Sequence[str], abi: str, features: Sequence[str] = ()) -> Bundle:
        """All files under a folder, with its names and its executable bits."""
        files = {
            path.relative_to(folder).as_posix(): BundleFile.of(path, bool(path.stat().st_mode & 0o100))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return cls(files, tuple(command), abi, tuple(features))

    def with_artifact(self, folder: Path, names: Sequence[str] = ("model.pte",)) -> Bundle:
        """Also the named files (or folders, as an .mlpackage is) of an artifact; names[0] is its program."""
        found: dict[str, BundleFile] = {}
        for name in names:
            path = folder / name
            parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            found |= {part.relative_to(folder).as_posix(): BundleFile.of(part) for part in parts}
        program = [file.sha256 for name, file in found.items() if Path(name).parts[0] == names[0]]
        digest = program[0] if len(program) == 1 else hashlib.sha256("".join(program).encode()).hexdigest()
        identity = digest[:ID_DIGITS]
        files = {f"{ARTIFACTS}/{identity}/{name}": file for name, file in found.items()}
        return replace(self, files={**self.files, **files}, artifacts={**self.artifacts, folder.resolve(): identity})

    def with_inputs(self, inputs: Mapping[str, Path]) -> Bundle:
        """Also small files under in/, by name."""
        files = {f"{IN}/{name}": BundleFile.of(path) for name, path in inputs.items()}
        return replace(self, files={**self.files, **files})

    def remote_artifact(self, folder: Path) -> str:
        """Relative name of an artifact's folder on the device: what the runner takes as --artifact."""
        return f"{ARTIFACTS}/{self.artifacts[folder.resolve()]}"

    @cached_property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())
