"""perf's samples of decode steps: the share of every function of the operator library, by what it does."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from adakv_model.errors import UserError

FREQUENCY = 4999  # samples a second; the kernel may give fewer
LIBRARY = "libadakv_ops"
#: What functions of the library do; the first pattern that is found in a name counts.
PARTS = (
    ("K scores", r"\bscore(_\w+)?\b"),
    ("V sums", r"\b(accumulate(_16)?|sum_group|quantize_weights)\b"),
    ("scales and unpacking of rows", r"read_scales|narrow_scales|unpack_tiles"),
    ("softmax", r"\b(softmax_part|largest)\b|exp"),
    (
        "transforms, RoPE, query codes",
        r"\b(transform|transform_block|quantize_query|prepare_queries|hadamard|rotate)\b",
    ),
    ("appending and demoting rows", r"append|demote|quantize_row|store_codes|load_codes|stored_form|for_codes"),
    ("joining parts, statistics", r"\bjoin\b|finish|record_attention|attend"),
    ("4-bit layers", r"int4|swiglu|norm|Activations|\bquantize\b"),
    ("output layer", r"table"),
    ("waiting between the loops of attention", r"ParallelFor::run"),
)
WAITING = "runtime and waiting for threads"
SAMPLE = re.compile(r"^\s*\d+\s+[0-9a-f]+\s+(.*) \((\S+)\)$")


@dataclass(frozen=True)
class Function:
    part: str
    name: str
    share: float  # of all samples


def part_of(symbol: str, dso: str) -> str:
    if LIBRARY in dso:
        return next((part for part, pattern in PARTS if re.search(pattern, symbol)), "other of the library")
    if "torch" in dso or "vdso" in dso or "pthread" in symbol:  # libexecutorch*.so, its pool, the binding
        return WAITING
    return "Python, C library, kernel"


def short(symbol: str) -> str:
    """A C++ name without its arguments."""
    symbol = symbol.replace("(anonymous namespace)::", "").replace("adakv::", "")
    return re.sub(r"\(.*", "", symbol).removeprefix("void ") or symbol


def count(script: str) -> list[Function]:
    """Functions by falling share, from the output of `perf script -F tid,ip,sym,dso`."""
    counter: Counter[tuple[str, str]] = Counter()
    for line in script.splitlines():
        if match := SAMPLE.match(line):
            counter[part_of(match[1], match[2]), short(match[1])] += 1
    total = sum(counter.values())
    return [Function(part, name, n / total) for (part, name), n in counter.most_common()]


def perf() -> str:
    """Path of a perf that can sample here. Raises UserError if there is none."""
    path = shutil.which("perf")
    if path is None:
        raise UserError("perf is missing: apt-get install linux-perf, or pass --no-functions")
    probe = subprocess.run(
        [path, "record", "-e", "cpu-clock", "-o", "/dev/null", "true"], capture_output=True, text=True
    )
    if probe.returncode:
        raise UserError(
            "perf may not sample here: set /proc/sys/kernel/perf_event_paranoid to 1, or pass --no-functions"
        )
    return path


def record_command(path: str, data: Path, control: Path, acknowledge: Path) -> list[str]:
    """The start of a command whose process is sampled once it asks for it."""
    return [
        path, "record", f"--control=fifo:{control},{acknowledge}", "-D", "-1", "-e", "cpu-clock",
        "-F", str(FREQUENCY), "-o", str(data), "--",
    ]  # fmt: skip


def read(path: str, data: Path) -> list[Function]:
    """Raises UserError if nothing was sampled."""
    done = subprocess.run(
        [path, "script", "-i", str(data), "-F", "tid,ip,sym,dso"], capture_output=True, text=True, errors="replace"
    )
    found = count(done.stdout)
    if not found:
        raise UserError(f"perf sampled nothing: {done.stderr.strip().splitlines()[-1:] or 'no output'}")
    return found
