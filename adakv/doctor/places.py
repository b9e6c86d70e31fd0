"""Where things are written and in which encoding: disk, memory, cache folder, locale."""

from __future__ import annotations

import locale
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from adakv.doctor.finding import Finding, Machine, fatal, info, ok, silent, slow
from adakv_model.config import DEFAULT_MODEL, get_model
from adakv_model.digest import default_cache_dir, sha256_of

GIB = 2**30
EXPORT_DISK = 0.5  # GiB: an artifact of the default model twice (the new one beside the old), and scratch
EXPORT_MEMORY = 1.5  # GiB: the default export takes 1.12


def disk(machine: Machine) -> Iterator[Finding]:
    places = {
        "here": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
        "cache": default_cache_dir(machine.environment),
    }
    for name, place in places.items():
        standing = next(p for p in (place, *place.parents) if p.exists())
        if not takes_files(standing):
            remedy = "name another place (--out for here, ADAKV_CACHE for the cache, TMPDIR for temporary files)"
            yield fatal("disk", f"{name} ({place}): nothing can be written to {standing}", remedy)
            continue
        free = shutil.disk_usage(standing).free / GIB
        text = f"{name} ({place}): {free:.1f} GiB free"
        if free < EXPORT_DISK:
            yield fatal("disk", text, f"free {EXPORT_DISK} GiB, or name another place (--out, ADAKV_CACHE, TMPDIR)")
        else:
            yield ok("disk", text)


def takes_files(place: Path) -> bool:
    """Whether files can be made there: not in a file, without permission, or in a system of no size such as /proc."""
    return place.is_dir() and os.access(place, os.W_OK) and shutil.disk_usage(place).total > 0


def memory(machine: Machine) -> Iterator[Finding]:
    path = Path("/proc/meminfo")
    if not path.is_file():
        yield info("memory", "not known on this system")
        return
    lines = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024 / GIB
    text = f"{free:.1f} GiB available; an export of 135M takes 1.1, of 1.7B 8"
    yield ok("memory", text) if free > EXPORT_MEMORY else slow("memory", text, "close programs, or add swap")


def cache(machine: Machine) -> Iterator[Finding]:
    folder = default_cache_dir(machine.environment)
    standing = next(p for p in (folder, *folder.parents) if p.exists())
    if not takes_files(standing):
        yield fatal("cache folder", f"{folder} cannot be written", "set ADAKV_CACHE to a writable folder")
        return
    bundled = get_model(DEFAULT_MODEL).bundled
    assert bundled is not None
    file = folder / Path(bundled.member).name
    if not file.is_file():
        yield info("cache folder", f"{folder} lacks the default checkpoint: the first export downloads 100 MB once")
    elif sha256_of(file) != bundled.member_sha256:
        yield silent("cache folder", f"{file} is corrupt: it will be downloaded again", f"rm {file}")
    else:
        yield ok("cache folder", f"{file}, SHA-256 as registered")


def encoding(machine: Machine) -> Iterator[Finding]:
    used = {"locale": locale.getpreferredencoding(False), "standard output": sys.stdout.encoding or "none"}
    foreign = {name: code for name, code in used.items() if code.lower().replace("-", "") != "utf8"}
    if foreign:
        shown = ", ".join(f"{name} {code}" for name, code in foreign.items())
        yield silent("locale", f"{shown}: letters may be replaced on the terminal", "export LC_ALL=C.UTF-8")
    else:
        yield ok("locale", "UTF-8")
