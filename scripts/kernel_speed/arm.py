"""Cycles of the arm64 kernels on Arm cores that are not here: an estimate by llvm-mca, never a measurement.

A call of a kernel (three query heads) runs under an emulator that logs every instruction; what was logged goes to
llvm-mca as one straight piece, with a scheduling model of the core. Calls of two lengths say what a call of 512 slots
takes, of which the start is a small part. The model has every load hit the first cache and predicts every branch, so
memory is not in the figure.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from adakv_model.errors import UserError
from kernel_speed.program import TOOLCHAIN, build, require
from kernel_speed.summary import bits_name
from pages import markdown_table

SLOTS = 512  # of a call in a step; kPartRows of the kernels
TRACED = (64, 128)  # slots of the calls that are traced
CPUS = ("cortex-x4", "neoverse-n2", "cortex-a510", "cortex-a55")  # two large cores, two little ones
SETS = ("neon", "dotprod", "i8mm")
OTHERS = {"int8": "int8 rows, loop shape of XNNPACK's 3x16c4 dot", "fp16": "fp16 rows, float arithmetic"}
WITHOUT_I8MM = ("cortex-a55", "cortex-a75", "cortex-a76", "cortex-a78", "cortex-x1", "neoverse-n1")
OLDEST_MCA, NEWEST_MCA = 18, 30  # from 18 on there is a model of Cortex-A510
HEADER = ("rows", "set", "instructions")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(.*)$")
EXECUTED = re.compile(r"/([0-9a-f]{16})/.*\] ?(\S*)$")
CYCLES = re.compile(r"^Total Cycles:\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Estimate:
    """One kernel on one core. cycles: of one (slot, kv head) pair; instructions likewise."""

    kind: str  # score, sum
    isa: str
    bits: str
    cpu: str
    instructions: float
    cycles: float


@dataclass(frozen=True)
class Tools:
    qemu: str
    objdump: str
    mca: str

    @classmethod
    def find(cls) -> Tools:
        """Raises UserError for the first that is missing."""
        require("aarch64-linux-gnu-g++", "apt-get install g++-aarch64-linux-gnu")
        qemu = require("qemu-aarch64-static", "apt-get install qemu-user-static")
        objdump = require("aarch64-linux-gnu-objdump", "apt-get install binutils-aarch64-linux-gnu")
        versions = range(NEWEST_MCA, OLDEST_MCA - 1, -1)
        mca = next((path for v in versions if (path := shutil.which(f"llvm-mca-{v}"))), None)
        if mca is None:
            raise UserError(
                f"llvm-mca {OLDEST_MCA} or later is missing: apt-get install llvm-19, or a later one"
                " (apt-cache search '^llvm-[0-9]+$')"
            )
        return cls(qemu, objdump, mca)


def plain(text: str) -> str:
    """An instruction as objdump shows it, without addresses: llvm-mca resolves none."""
    text = text.split("//")[0].strip()
    if text.startswith("adrp"):
        return re.sub(r", .*", ", #4096", text)
    return re.sub(r"\b[0-9a-f]+ <[^>]*>", "#16", text)


def disassembly(objdump: str, program: Path) -> dict[int, str]:
    """Instructions by address."""
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(program)], capture_output=True, text=True, check=True
    )
    matches = (INSTRUCTION.match(line) for line in listing.stdout.splitlines())
    return {int(m[1], 16): plain(m[2]) for m in matches if m}


def executed(log: Path) -> list[int]:
    """Addresses between the marks of kernel_trace."""
    addresses: list[int] = []
    inside = False
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            match = EXECUTED.search(line.rstrip())
            if match is None:
                continue
            if match[2] == "trace_end":
                return addresses
            inside = inside or match[2] == "trace_begin"
            if inside:
                addresses.append(int(match[1], 16))
    raise UserError("the emulator logged no kernel call: qemu 7.2 or later with -singlestep is needed")


def trace(tools: Tools, program: Path, kind: str, isa: str, bits: int, slots: int, folder: Path) -> list[int]:
    """Addresses of the instructions that one call of a kernel executes."""
    log = folder / f"{kind}-{isa}-{bits}-{slots}.log"
    # Without SVE, so that the C library's own functions are ones that every core here has.
    command = [tools.qemu, "-cpu", "max,sve=off", "-singlestep", "-d", "exec,nochain", "-D", str(log)]
    words = [str(program), kind, isa, str(bits), str(slots)]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"kernel_trace {kind} {isa} {bits} failed under {Path(tools.qemu).name}: {done.stderr.strip()}")
    try:
        return executed(log)
    finally:
        log.unlink()


def cycles(mca: str, cpu: str, assembly: Path) -> int:
    """Raises UserError where llvm-mca does not know the core or an instruction."""
    options = ["-mtriple=aarch64", f"-mcpu={cpu}", "-iterations=1", "-instruction-info=0", "-resource-pressure=0"]
    done = subprocess.run([mca, *options, str(assembly)], capture_output=True, text=True)
    found = CYCLES.search(done.stdout)
    if found is None:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise UserError(f"llvm-mca for {cpu}: {errors[0] if errors else 'no result'}")
    return int(found[1])


def per_slot(counts: list[int]) -> float:
    """Of a call of SLOTS slots, from the counts of the traced calls: what a slot adds, and its part of the rest."""
    slope = (counts[1] - counts[0]) / (TRACED[1] - TRACED[0])
    return slope + (counts[0] - slope * TRACED[0]) / SLOTS


def kernels(widths: list[int]) -> list[tuple[str, str, int]]:
    """(kind, set, bits) of all kernels, ours and the others'. V rows have no bands."""
    ours = [(kind, isa, b) for isa in SETS for b in widths for kind in ("score", "sum") if kind == "score" or b <= 16]
    return ours + [(kind, isa, b) for isa, b in (("int8", 8), ("fp16", 16)) for kind in ("score", "sum")]


def estimate(widths: list[int], cpus: list[str], build_dir: Path) -> list[Estimate]:
    """Of every kernel on every core that has its instructions. Raises UserError if a tool is missing."""
    tools = Tools.find()
    program = build("kernel_trace", build_dir / "cpp-arm64", f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")
    instructions = disassembly(tools.objdump, program)
    jobs = kernels(widths)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)

        def estimates(job: tuple[str, str, int]) -> list[Estimate]:
            kind, isa, bits = job
            traces = [trace(tools, program, kind, isa, bits, slots, folder) for slots in TRACED]
            pieces = [folder / f"{kind}-{isa}-{bits}-{slots}.s" for slots in TRACED]
            for piece, addresses in zip(pieces, traces, strict=True):
                piece.write_text("\n".join(instructions[a] for a in addresses) + "\n", encoding="utf-8")
            executed_per_slot = per_slot([len(addresses) for addresses in traces])
            return [
                Estimate(
                    *(kind, isa, bits_name(bits), cpu),
                    instructions=executed_per_slot,
                    cycles=per_slot([cycles(tools.mca, cpu, piece) for piece in pieces]),
                )
                for cpu in cpus
                if not (isa == "i8mm" and cpu in WITHOUT_I8MM)
            ]

        return [one for found in pool.map(estimates, jobs) for one in found]


def table_rows(found: list[Estimate], cpus: list[str]) -> list[tuple[str, ...]]:
    """Rows, set, instructions, then cycles by core, K scores + V sums; banded K rows stand alone."""
    by_key = {(e.kind, e.isa, e.bits, e.cpu): e for e in found}
    rows = []
    for isa, bits in dict.fromkeys((e.isa, e.bits) for e in found):
        pairs = {cpu: [by_key.get((kind, isa, bits, cpu)) for kind in ("score", "sum")] for cpu in cpus}
        counted = next(p for p in pairs.values() if p[0] is not None)
        rows.append(
            (
                OTHERS.get(isa, f"{bits} bits"),
                {"int8": "dotprod", "fp16": "neon"}.get(isa, isa),
                " + ".join(f"{e.instructions:.0f}" for e in counted if e),
                *(" + ".join(f"{e.cycles:.1f}" for e in pairs[cpu] if e) for cpu in cpus),
            )
        )
    return rows


def table(found: list[Estimate], cpus: list[str], mca: str) -> Table:
    title = f"ESTIMATE ({mca}), not measured: cycles a (slot, kv head) pair, three query heads, K scores + V sums"
    shown = Table(title=title, title_justify="left")
    for column in (*HEADER, *cpus):
        shown.add_column(column, justify="left" if column in HEADER[:2] else "right", no_wrap=True)
    for row in table_rows(found, cpus):
        shown.add_row(*row)
    return shown


def page(found: list[Estimate], cpus: list[str], mca: str) -> str:
    """Markdown."""
    head = f"**Estimate ({mca}), not measured**: cycles a (slot, kv head) pair, three query heads, K scores + V sums."
    return head + "\n\n" + markdown_table((*HEADER, *cpus), table_rows(found, cpus), 2)


def to_json(found: list[Estimate], mca: str) -> dict[str, Any]:
    return {"estimate": mca, "measured": False, "slots": SLOTS, "queries": 3, "rows": [asdict(e) for e in found]}
