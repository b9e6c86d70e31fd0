"""Where a decode step's time goes: by operator, by function, and against what reading its bytes takes.

in:  an artifact of export.py --target android; for functions, perf
out: tables on the terminal, --json with everything, --page: a section of docs/speed.md

    python scripts/profile_step.py --artifact DIR --threads 2 --json profile.json
    python scripts/profile_step.py --artifact DIR --page docs/speed.md
    python scripts/profile_step.py --artifact DIR --contexts 512 --no-functions        # seconds, without perf

Three processes for every context and number of threads: one that is only timed, one that the runtime traces (its
events say what each operator takes), and one that perf samples (which says what the functions inside take). The limit
is the bytes of the weights and of the stored rows at the bandwidth that this machine reads memory with, measured in
the same run.
"""

from __future__ import annotations

import needs_packages  # noqa: F401

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adakv_model.command_line import HELP_NAMES, command
from adakv_model.digest import sha256_of
from adakv_model.errors import UserError
from adakv_model.numbers import number_list
from adakv_model.text_file import read_text
from adakv_model.whole_file import check_file, write_json
from kernel_speed.program import ROOT, build, run_benchmark
from kernel_speed.summary import rooflines
from pages import replace_section, wide_console
from peers.children import SCRIPTS, run_child
from peers.measure import RESULT, cpu_name
from step_profile import events, functions
from step_profile.report import Profile, page, tables

if TYPE_CHECKING:
    from adakv_model.runtime.artifact import Artifact

TEXT = ROOT / "device_tests" / "parity" / "text.txt"
TIMEOUT = 900.0
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def tokens_of(artifact: Artifact, text: Path, count: int) -> list[int]:
    """Tokens of the text, repeated; any tokens where the artifact has no tokenizer."""
    if not artifact.has_tokenizer:
        return random.Random(0).choices(range(artifact.plan.vocab_size), k=count)
    ids = artifact.codec.encode_start(read_text(text))
    return (ids * (count // len(ids) + 1))[:count]


def library_with_symbols(artifact: Artifact) -> Path:
    """The build's library, which still names its functions, where the artifact has the one installed from it; else the
    artifact's own."""
    from adakv_model.runtime.native import operator_library

    built = sorted(ROOT.glob("build/cp*/libadakv_ops.so"), key=lambda path: path.stat().st_mtime)
    same = built and sha256_of(artifact.operator_library) == sha256_of(operator_library())
    return built[-1] if same else artifact.operator_library


def start(job: dict[str, Any], folder: Path, prefix: list[str], isa: str | None) -> dict[str, Any]:
    """The result of one step_profile.child. Raises UserError with its last line if it fails."""
    file = folder / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    variables = os.environ | {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"} | ({"ADAKV_ISA": isa} if isa else {})
    command = [*prefix, sys.executable, "-m", "step_profile.child", str(file)]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=TIMEOUT)
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if not results:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(f"a profiled run failed: {lines[-1].strip() if lines else f'exit status {done.returncode}'}")
    return json.loads(results[-1][len(RESULT) :])


def sample(job: dict[str, Any], folder: Path, isa: str | None) -> list[functions.Function]:
    """Functions of a run under perf."""
    path, data = functions.perf(), folder / "perf.data"
    control, acknowledge = folder / "control", folder / "acknowledge"
    for pipe in (control, acknowledge):
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    pipes = {"control": str(control), "acknowledge": str(acknowledge)}
    start(job | pipes, folder, functions.record_command(path, data, control, acknowledge), isa)
    return functions.read(path, data)


def profile(
    artifact: Artifact, context: int, threads: int, steps: int, text: Path, with_functions: bool, isa: str | None,
    read_gb_s: float,
) -> Profile:  # fmt: skip
    """All measurements at one context."""
    tokens = tokens_of(artifact, text, context + 1)
    plan = artifact.plan
    where: dict[str, Any] = {"artifact": str(artifact.folder.resolve())}
    job = where | {"library": str(artifact.operator_library.resolve()), "threads": threads, "steps": steps}
    job["tokens"] = tokens[:context]
    plain = run_child(
        {"engine": "adakv", "model": job["artifact"], "tokens": tokens, "steps": steps, "threads": threads}
        | {"isa": isa, "random": True},
        Path(),
        TIMEOUT,
    )
    if "error" in plain:
        raise UserError(f"the timed run failed: {plain['error']}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dump = folder / "events.etdp"
        traced = start(job | {"dump": str(dump)}, folder, [], isa)
        operators, total = events.operators(events.read_events(dump, steps))
        sampled: list[functions.Function] = []
        if with_functions:
            named = job | {"library": str(library_with_symbols(artifact)), "steps": min(8 * steps, context // 2)}
            sampled = sample(named, folder, isa)
    parts: dict[str, float] = {}
    for function in sampled:
        parts[function.part] = parts.get(function.part, 0.0) + function.share
    return Profile(
        context=context,
        threads=threads,
        isa=isa or "all instruction sets",
        step_min=min(plain["decode_ms"]),
        step_median=statistics.median(plain["decode_ms"]),
        traced=total,
        groups=events.groups(operators, total),
        operators=operators,
        functions=sampled,
        weight_bytes=artifact.manifest["weights"]["weight_bytes"],
        cache_bytes=round(plan.stored_bits(traced["tier_counts"], context) * context * plan.values_per_token / 8),
        read_gb_s=read_gb_s,
        parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
    )


@app.command(context_settings=HELP_NAMES)
@command
def main(
    artifact: Annotated[Path, typer.Option(help="Folder written by adakv export --target android.")],
    contexts: Annotated[str, typer.Option(help="Tokens in the cache at the last step.")] = "512,4096",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    steps: Annotated[int, typer.Option(help="Decode steps that are timed and traced.", min=4)] = 32,
    with_functions: Annotated[
        bool, typer.Option("--functions/--no-functions", help="Sample functions with perf.")
    ] = True,
    isa: Annotated[str | None, typer.Option(help="Limit our kernels to an instruction set (avx2).")] = None,
    text: Annotated[Path, typer.Option(help="Text to feed, repeated if it is too short.")] = TEXT,
    json_path: Annotated[Path | None, typer.Option("--json", help="All figures.")] = None,
    page_path: Annotated[Path | None, typer.Option("--page", help="Page whose section is rewritten.")] = None,
    build_dir: Annotated[Path, typer.Option(help="Where the bandwidth's program is compiled.")] = ROOT / "build",
) -> None:
    """Profile, then show and write what was found."""
    check_file(json_path, "--json")
    from adakv_model.runtime.artifact import Artifact

    opened = Artifact(artifact)
    lengths, counts = number_list("--contexts", contexts, int, 1), number_list("--threads", threads, int, 1)
    if min(lengths) < 2 * steps:
        raise UserError(f"--contexts must be at least twice --steps, {2 * steps}")
    if max(lengths) > opened.plan.context:
        raise UserError(f"{artifact} holds {opened.plan.context} tokens: export with --context {max(lengths)}")
    if with_functions:
        functions.perf()
    program = build("kernel_benchmark", build_dir / "cpp-release")
    memory = rooflines(run_benchmark(program, threads=counts, rounds=60, isas=["none"], weights=0))
    profiles = [
        profile(opened, context, count, steps, text, with_functions, isa, memory[count].read)
        for count in counts
        for context in lengths
    ]
    console = wide_console()
    for one in profiles:
        for table in tables(one):
            console.print(table)
    command, cpu = " ".join(["python scripts/profile_step.py", *sys.argv[1:]]), cpu_name()
    if json_path is not None:
        facts = {"command": command, "cpu": cpu, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        document = facts | {"artifact": opened.manifest["command"], "profiles": [p.to_json() for p in profiles]}
        write_json(json_path, document)
    if page_path is not None:
        cache = opened.manifest["kv_cache"]
        name = (
            f"{opened.manifest['model']['name']}, {cache['policy']} cache, {cache['bits_per_value']:.2f} bits a value"
        )
        replace_section(page_path, "profile_step", page(profiles, cpu, name))


if __name__ == "__main__":
    app()
