"""The runtime and the operator library, loaded in a process of their own: a damaged library ends that one only."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from collections.abc import Iterator

from adakv.doctor.finding import Finding, Machine, fatal, info, ok, shown, silent, slow

# What the child prints: the library, the instruction set of its kernels, what of ExecuTorch's SDK is there.
CHILD = """
import json
from adakv_model.runtime import native
found = {"library": str(native.operator_library())}
import executorch
found["executorch"] = list(executorch.__path__)[0]
from executorch.extension.pybindings import _C
library = native.load_library()
found["kernels"] = library.adakv_attend_kernels().decode()
print(json.dumps(found))
"""
FAST = ("avx2", "avx512", "vnni", "dotprod", "i8mm", "neon")
BUILD = "make venv (it builds the library against the pinned ExecuTorch)"


def operators(machine: Machine) -> Iterator[Finding]:
    status, output = machine.run([sys.executable, "-c", CHILD], timeout=120)
    line = output.splitlines()[-1] if output else ""
    try:
        found = json.loads(line)
    except ValueError:
        found = {}
    if status or "kernels" not in found:
        yield fatal("operator library", _death(status, line), BUILD)
        return
    yield ok("executorch", shown(found["executorch"]))
    library, kernels = shown(found["library"]), found["kernels"]
    if any(name in kernels.lower() for name in FAST):
        yield ok("operator library", f"{library}, kernels {kernels}")
    else:
        yield slow(
            "operator library",
            f"{library}, kernels {kernels}: this CPU has no instructions that they use",
            "use a machine with AVX2 (x86-64) or NEON (arm64)",
        )
    override = machine.environment.get("ADAKV_OPS_LIBRARY")
    if override:
        yield silent("operator library", f"ADAKV_OPS_LIBRARY names {override}", "unset ADAKV_OPS_LIBRARY")


def processor(machine: Machine) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{platform.machine()}, {cores} of {os.cpu_count()} cores"
    yield (
        slow("processor", text, "an export takes minutes on one core: allow two")
        if cores < 2
        else ok("processor", text)
    )
    threads = machine.environment.get("OMP_NUM_THREADS")
    if threads is not None:
        yield info("processor", f"OMP_NUM_THREADS={threads} limits torch, not the runtime (--threads does)")


def _death(status: int, line: str) -> str:
    """Why the child ended."""
    if status < 0:
        return f"the process that loads it died of {signal.Signals(-status).name}: the library is damaged or foreign"
    return line.partition(": ")[2] or line or f"exit status {status}"
