"""Replacing an artifact folder as a whole: everything goes to a hidden folder beside it, renamed when complete.

Whatever ends the block (an error, Ctrl-C, SIGTERM, SIGHUP), nothing temporary stays. What a killed process left is
recognised by the lock that it no longer holds and removed by the next export to the same place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from adakv_model.errors import UserError
from adakv_model.permissions import permissions
from adakv_model.runtime.manifest import MANIFEST
from adakv_model.signals import ENDING, ended_by_signals

_NEW, _OLD = "adakv-new-", "adakv-old-"


def replacing(target: Path) -> str | None:
    """A note about the artifact that an export to `target` replaces."""
    try:
        made = (target / MANIFEST).stat().st_mtime
    except OSError:
        return None
    when = datetime.fromtimestamp(made, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    return f"replaces the artifact of {when} in {target}; --out names another folder"


def check_target(target: Path, mark: str = MANIFEST) -> None:
    """Raise UserError for a place where `atomic_folder` could not put anything, as far as a look can tell."""
    try:
        target = target.resolve()
        if target.exists():
            _check_replaceable(target, mark)
        place = _existing(target)
        if not place.is_dir():
            raise UserError(f"cannot write to {target.parent}: {place} is a file; choose another --out")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to {place}: no permission; choose another --out")
    except (OSError, RuntimeError) as e:
        raise UserError(f"cannot use {target} ({e}): choose another --out") from e


def try_target(target: Path) -> None:
    """Raise UserError, before any work, where no folder can be made at a place that looks right; leaves nothing."""
    place = _existing(target.resolve())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{target.name}.{_NEW}", dir=place))
    except OSError as e:
        raise UserError(f"cannot write to {place}: {e.strerror}; choose another --out") from e


def _existing(target: Path) -> Path:
    """The folder that `target` will be made in, or the nearest one above it that there is."""
    if target.is_dir() and _is_fixed(target):
        return target
    return next(path for path in (target.parent, *target.parent.parents) if path.exists())


@contextmanager
def atomic_folder(target: Path, mark: str = MANIFEST) -> Iterator[Path]:
    """A temporary folder that becomes `target` (replacing an earlier one of its kind) if the block succeeds.

    mark: the file by which such a folder is known.

    A link is followed. A folder that cannot be renamed, a mount point or the current folder, has its contents replaced.
    Files get the permissions of the user's umask. Raises UserError if the place cannot be written, the disk fills up,
    or `target` holds something else.
    """
    try:
        target = target.resolve()
        within = target.is_dir() and _is_fixed(target)
    except (OSError, RuntimeError) as e:  # a removed current folder; a circle of links
        raise UserError(f"cannot use {target} ({e}): choose another --out") from e
    place = target if within else target.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place):
            _remove_stale(place, target)
            _check_replaceable(target, mark)
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.{_NEW}", dir=place))
            alive = _hold(staging)
    except OSError as e:
        raise UserError(f"cannot write to {place}: {e.strerror}; choose another --out") from e
    try:
        with ended_by_signals():
            yield staging
            _use_umask(staging)
            with _undisturbed(), locked(place):
                _swap_contents(staging, target, mark) if within else _swap(staging, target)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {place} is full: free some space or choose another --out") from e
        raise UserError(f"cannot write {target}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(alive)


def _check_replaceable(target: Path, mark: str) -> None:
    if target.is_dir():
        if any(not _is_ours(path, target) for path in target.iterdir()) and not (target / mark).is_file():
            kind = "an artifact" if mark == MANIFEST else f"a folder with {mark}"
            raise UserError(f"{target} is not empty and not {kind}: choose another --out")
    elif target.exists():
        raise UserError(f"{target} is a file: choose a folder for --out")


def _is_ours(path: Path, target: Path) -> bool:
    return path.name.startswith((f".{target.name}.{_NEW}", f".{target.name}.{_OLD}"))


def _is_fixed(target: Path) -> bool:
    """Whether a folder must keep its inode: renaming it fails, or leaves the user's shell in a removed folder."""
    return os.path.ismount(target) or target == Path.cwd() or target in Path.cwd().parents


def _swap(staging: Path, target: Path) -> None:
    """Rename staging to target; an existing artifact is moved aside first and removed last."""
    if not target.exists():
        staging.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.{_OLD}", dir=target.parent))
    try:
        target.rename(old / target.name)
        try:
            staging.rename(target)
        except OSError:
            (old / target.name).rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _swap_contents(staging: Path, target: Path, mark: str) -> None:
    """Replace what target holds. The mark goes first and comes last: between, the folder is no artifact."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.{_OLD}", dir=target))
    try:
        present = [path for path in target.iterdir() if not _is_ours(path, target)]
        for path in sorted(present, key=lambda path: path.name != mark):
            path.rename(old / path.name)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == mark):
            path.rename(target / path.name)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _remove_stale(place: Path, target: Path) -> None:
    """Remove what killed exports to this place left, and put back an artifact that one had just moved aside."""
    for left in [path for path in place.iterdir() if path.is_dir() and _is_ours(path, target)]:
        if left.name.startswith(f".{target.name}.{_NEW}") and _is_held(left):
            continue
        if left.name.startswith(f".{target.name}.{_OLD}") and not target.exists() and (left / target.name).is_dir():
            (left / target.name).rename(target)
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time is in here with the same `folder`; no lock where the file system has none."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _try_lock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _hold(folder: Path) -> int:
    """A lock on a folder for as long as this process lives; closing the handle ends it."""
    handle = os.open(folder, os.O_RDONLY)
    _try_lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _is_held(folder: Path) -> bool:
    """Whether a process holds the folder; true where that cannot be told."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # its process is just removing it
        return True
    try:
        return not _try_lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)


def _try_lock(handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation)
    except OSError:
        return False
    return True


def _use_umask(folder: Path) -> None:
    """Give every file and folder the permissions that the user's umask leaves; libraries and copies had others."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            runs = path.is_dir() or path.suffix == ".so" or bool(path.stat().st_mode & 0o100)
            path.chmod(permissions(executable=runs))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals wait: between two renames there is no artifact."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
