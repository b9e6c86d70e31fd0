"""What python -m device_tests.bench does, once its options are known."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from adakv_model.command_line import if_interrupted
from adakv_model.errors import UserError
from adakv_model.numbers import number_list
from adakv_model.runtime.artifact import Artifact
from adakv_model.terminal import make_console, print_note
from adakv_model.whole_file import PICTURES, check_file
from device_tests.bench import dashboard, trace
from device_tests.bench.comparing import MIN_PAIRS
from device_tests.bench.cooling import Cooling
from device_tests.bench.plan import check_contexts, matrix
from device_tests.bench.plot import plot as draw
from device_tests.bench.records import artifact_names, row
from device_tests.bench.rows import HEADER, SAMPLE, ResultsFile, Row
from device_tests.bench.session import Options, Session
from device_tests.bench.summary import failures, groups
from device_tests.bench.table import show as show_speed
from device_tests.bench.text import DEFAULT_TEXT, tokens_of
from device_tests.compare import any_verdict, comparisons
from device_tests.compare import show as show_verdicts
from device_tests.devices import Bundle, Device, find

ON_THIS_MACHINE = ("host", "qemu", "simulator", "mac")  # they would disturb each other
SLOW_TO_FIND = ("adb", "simulator", "ios")  # their servers may take half a minute to answer

progress = make_console()


@dataclass(frozen=True)
class Request:
    """The command line; see cli.py."""

    devices: Sequence[str]
    artifacts: Sequence[Path]
    results: Path
    pp: str
    tg: str
    depth: str
    reps: int
    threads: str
    cpu_mask: str | None
    delay: float
    cooling: Cooling
    timeout: float
    text: Path | None
    resume: bool
    plot: Path | None
    trace: Path | None
    dashboard: Path | None


def execute(request: Request) -> list[str]:
    """Measures and shows; what went wrong on the way. Raises UserError for what can be mended before anything runs."""
    check_file(request.plot, "--plot", PICTURES)
    check_file(request.trace, "--trace")
    check_file(request.dashboard, "--dashboard")
    names = artifact_names(request.artifacts)
    opened = {name: Artifact(folder) for folder, name in names.items()}
    lengths = {"pp": request.pp, "tg": request.tg, "depth": request.depth}
    chosen = matrix(*(number_list(f"--{name}", text, int, 0) if text.strip() else [] for name, text in lengths.items()))
    check_contexts({name: one.plan.context for name, one in opened.items()}, chosen)
    threads = number_list("--threads", request.threads, int, 1) if request.threads else [0]
    if request.cpu_mask is not None and len(threads) > 1:
        raise UserError("--cpu-mask goes with one number of --threads")
    fed = {name: tokens_of(one, request.text or DEFAULT_TEXT) for name, one in opened.items()}
    if len(opened) > 1 and request.reps < MIN_PAIRS:
        print_note(
            progress,
            f"a verdict needs {MIN_PAIRS} repetitions and --reps is {request.reps}: this run gives times only, unless"
            f" --resume adds to earlier ones; --reps {MIN_PAIRS} gives a verdict",
        )
    devices = []
    for selector in dict.fromkeys(request.devices):
        if selector.partition(":")[0] in SLOW_TO_FIND:
            progress.print(f"looking for {selector} ...", style="dim", soft_wrap=True)
        devices += find(selector)
    options = Options(chosen, request.reps, threads, request.cpu_mask, request.delay, request.cooling, request.timeout)
    results = ResultsFile(request.results, header(opened, fed, options, **lengths), request.resume)

    def kept() -> str:
        return f"{len(results.of(SAMPLE))} runs are kept in {results.path}, and --resume does the rest"

    try:
        with if_interrupted(kept):
            problems = run_all(devices, opened, fed, options, results)
    finally:
        results.close()
    verdict = True
    try:
        verdict = show(results.rows, request)
    except UserError as error:
        problems.append(str(error))
    problems += failures(results.rows)
    if not verdict and not problems:
        problems.append("no two artifacts could be compared, for the reasons above; what was measured is kept")
    return problems


def header(opened: dict[str, Artifact], fed: dict[str, list[int]], options: Options, **words: str) -> Row:
    """What must be equal for results to belong together. reps are left out: a resumed run may ask for more."""
    bundle = Bundle({}, ())
    for one in opened.values():
        bundle = bundle.with_artifact(one.folder, [one.program.name])
    identities = {name: bundle.artifacts[one.folder.resolve()] for name, one in opened.items()}
    if len(set(identities.values())) < len(opened):
        raise UserError("two artifacts are the same program: nothing can be learned from their difference")
    said = {
        **words,
        "artifacts": identities,
        "tokens_sha256": hashlib.sha256(json.dumps(fed).encode()).hexdigest()[:16],
        "threads": list(options.threads),
        "cpu_mask": options.cpu_mask,
    }
    return row(HEADER, run=secrets.token_hex(6), version=version("adakv"), options=said)


def run_all(
    devices: Sequence[Device],
    opened: dict[str, Artifact],
    fed: dict[str, list[int]],
    options: Options,
    results: ResultsFile,
) -> list[str]:
    """Phones at the same time, everything on this machine one after the other; what went wrong."""

    def run(device: Device) -> str | None:
        def say(line: str) -> None:
            progress.print(f"{device.selector}: {line}", style="dim", soft_wrap=True)

        try:
            Session(device, opened, fed, options, results, say).run()
        except UserError as error:
            return f"{device.selector}: {error}"
        return None

    here = [device for device in devices if device.kind in ON_THIS_MACHINE]
    elsewhere = [device for device in devices if device.kind not in ON_THIS_MACHINE]
    problems = [run(device) for device in here]
    if elsewhere:
        with ThreadPoolExecutor(len(elsewhere)) as pool:
            problems += pool.map(run, elsewhere)
    return [problem for problem in problems if problem is not None]


def show(rows: list[Row], request: Request) -> bool:
    """Tables, verdicts, what failed, and the files asked for. Raises UserError.

    False where several artifacts were measured and none can be compared with another.
    """
    found = groups(rows)
    console = make_console(stderr=False)
    show_speed(found, console)
    compared = comparisons(found, None, None) if len({group.artifact["id"] for group in found}) > 1 else []
    if compared:
        show_verdicts(compared, console)
    if request.plot is not None:
        draw(rows, request.plot)
    samples = [one for one in rows if one["kind"] == SAMPLE]
    if request.trace is not None and samples:
        trace.write(samples[-1], request.trace)
    if request.dashboard is not None:
        dashboard.write(rows, request.dashboard)
    return not compared or any_verdict(compared)
