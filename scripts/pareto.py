"""The frontier of cache policies: loss above fp16 against total bits, per context length.

in:  the results file of scripts/evaluate.py; with --run also what evaluate.py takes
out: OUT.png, OUT.md (tables) and OUT.json, with paired standard errors

    python scripts/pareto.py --out docs/pareto
    python scripts/pareto.py --out docs/pareto --run --data-dir DATA

--run first makes the points that are missing from the results file. It can be interrupted and started again.
"""

from __future__ import annotations

import needs_packages  # noqa: F401

from pathlib import Path
from typing import Annotated

import typer

from adakv_model.cache_options import DEFAULT_WINDOW
from adakv_model.command_line import HELP_NAMES, command, if_interrupted
from adakv_model.config import DEFAULT_MODEL
from adakv_model.errors import UserError
from adakv_model.numbers import number_list
from adakv_model.simulation.names import BUDGETED
from adakv_model.whole_file import check_file, write_whole
from evaluation import frontier, results
from evaluation.bench import console, open_bench
from evaluation.data import MIN_TOKENS, TEXT_TASK
from evaluation.policies import PolicySpec, parse_policy
from evaluation.runner import Evaluator, Task, evaluate_policy
from training import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

CONTEXTS = "512,2048,4096"
BITS = "2.5,2.75,3,3.25,3.5,4,4.5"
POLICIES = "adaptive,tables,static-2,static-3,static-4,static-8,random,recency,naive-4,kivi-3,kivi-4,paper@4.5"


@app.command(context_settings=HELP_NAMES)
@command
@if_interrupted(lambda: cli.KEPT_ITEMS)
def main(
    out: Annotated[Path, typer.Option(help="Path without suffix; .png, .md and .json are written.")],
    results_file: Annotated[Path, typer.Option("--results", help="Lines written by evaluate.py.")] = results.DEFAULT,
    task: Annotated[str, typer.Option(help="Task whose loss is drawn.")] = TEXT_TASK,
    contexts: Annotated[str, typer.Option(help="Context lengths, one panel each.")] = CONTEXTS,
    max_bits: Annotated[float, typer.Option(min=0.0, help="Right end of the plot; the tables have every point.")] = 5.0,
    run: Annotated[bool, typer.Option("--run", help="Evaluate the points that are missing.")] = False,
    policies: Annotated[
        str,
        typer.Option(help=f"With --run: which policies; NAME@BITS, or NAME at every --bits ({', '.join(BUDGETED)})."),
    ] = POLICIES,
    bits: Annotated[str, typer.Option(help="With --run: budgets in total bits.")] = BITS,
    data_dir: Annotated[Path | None, typer.Option(help="With --run: folder of the data files.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="With --run: tokens of text a point.")] = MIN_TOKENS,
    window: Annotated[
        int, typer.Option(min=1, help="With --run: newest tokens kept at --window-bits.")
    ] = DEFAULT_WINDOW,
    window_bits: Annotated[int | None, typer.Option(min=8, help="With --run: 8 or 16. [default: the policy's]")] = None,
    model: Annotated[str, typer.Option(help="With --run: registered model name or hub id.")] = DEFAULT_MODEL,
    checkpoint: Annotated[Path | None, typer.Option(help="With --run: checkpoint instead of --model.")] = None,
    tables: Annotated[Path | None, typer.Option(help="With --run: calibration tables.")] = None,
    work_dir: Annotated[Path | None, typer.Option(help="With --run: results of single items.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: the library decides.")] = 0,
) -> None:
    """Draw and tabulate the frontier from the results file."""
    cli.set_threads(threads)
    check_file(out.with_suffix(".json"), "--out")
    lengths = number_list("--contexts", contexts, int, 1)
    if run:
        bench = open_bench(model, checkpoint, tables, work_dir)
        budgets = number_list("--bits", bits, float, 0)
        done = set() if not results_file.is_file() else {identity(row) for row in results.read(results_file)}
        for length in lengths:
            wanted = specs(policies, budgets, PolicySpec("fp16", None, length, window, window_bits))
            evaluator = Evaluator(bench, Task(task, data_dir, length, tokens))
            make_missing(evaluator, wanted, done, results_file)
    rows = results.read(results_file)
    chosen = frontier.points(rows, task, lengths)
    if not chosen:
        raise UserError(f"{results_file} has no result of {task} at these contexts: pass --run")
    frontier.plot(chosen, out.with_suffix(".png"), f"{chosen[0].row['model']}, {task}", max_bits)
    write_whole(out.with_suffix(".md"), frontier.markdown(chosen))
    results.write_json(
        out.with_suffix(".json"), {"command": cli.command_line("scripts/pareto.py"), "points": frontier.table(chosen)}
    )
    console.print(f"{len(chosen)} points: wrote {out}.png, {out}.md, {out}.json")


def make_missing(evaluator: Evaluator, wanted: list[PolicySpec], done: set, results_file: Path) -> None:
    """Evaluate and append what `done` lacks; a budget that this context cannot meet is named and skipped."""
    for spec in wanted:
        key = (evaluator.task.name, evaluator.bench.checkpoint.name, spec.name, spec.kv_bits, spec.context, spec.window,
               spec.window_bits, evaluator.clusters)  # fmt: skip
        if key in done:
            continue
        try:
            spec.make(evaluator.bench.checkpoint.config, evaluator.bench.tables)
        except UserError as error:
            if spec.kv_bits is None:
                raise
            console.print(f"skipped {spec.title} at context {spec.context}: {error}")
            continue
        result = evaluate_policy(evaluator, spec)
        results.append(results_file, result | {"command": cli.command_line("scripts/pareto.py")})
        console.print(
            f"context {spec.context} {spec.title}: {result['total_bits']:.3f} bits, loss"
            f" {result['loss_diff']:+.5f} over fp16"
        )


def identity(row: dict) -> tuple:
    """What makes a result the point that --run wants."""
    keys = ("task", "model", "policy", "kv_bits", "context", "window", "window_bits", "n")
    return tuple(row[key] for key in keys)


def specs(policies: str, budgets: list[float], base: PolicySpec) -> list[PolicySpec]:
    """Every policy named, budgeted ones at every budget."""
    made = []
    for text in policies.split(","):
        spec = parse_policy(text.strip(), base, "--policies")
        every = spec.name in BUDGETED and spec.kv_bits is None
        made += [parse_policy(f"{spec.name}@{b:g}", base, "--policies") for b in budgets] if every else [spec]
    return made


if __name__ == "__main__":
    app()
