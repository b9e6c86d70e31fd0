"""Evaluate a cache policy: perplexity of a text, or accuracy on multiple-choice tasks, against fp16 and static caches.

in:  a checkpoint, a policy (or an exported artifact), data files or the public data sets
out: a table, --json FILE, one line in --results

    python scripts/evaluate.py --task wikitext2 --policy adaptive --kv-bits 3.25 --data-dir DATA --json out.json
    python scripts/evaluate.py --task hellaswag --policy adaptive --kv-bits 3.5 --against naive-4 --data-dir DATA
    python scripts/evaluate.py --task wikitext2 --artifact artifacts/mine --data-dir DATA

The quantized cache is simulated in batches, with the same numbers as the cache itself. Every item is scored once a
policy and kept under --work-dir: an interrupted run continues, and all comparisons are paired.
"""

from __future__ import annotations

import needs_packages  # noqa: F401

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from adakv_model.cache_options import DEFAULT_BITS_SHOWN, DEFAULT_CONTEXT, DEFAULT_WINDOW
from adakv_model.command_line import HELP_NAMES, command, if_interrupted
from adakv_model.config import DEFAULT_MODEL
from adakv_model.errors import UserError
from adakv_model.simulation.names import BUDGETED, NAMES
from adakv_model.terminal import make_console, print_note, working
from adakv_model.whole_file import check_file
from evaluation import results
from evaluation.data import MIN_TOKENS, TASKS, check_task
from evaluation.results import with_error
from training import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = make_console()


@app.command(context_settings=HELP_NAMES)
@command
@if_interrupted(lambda: cli.KEPT_ITEMS)
def main(
    task: Annotated[str, typer.Option(help=f"{', '.join(TASKS)}.")],
    policy: Annotated[str, typer.Option(help=f"{', '.join(NAMES)}.")] = "adaptive",
    kv_bits: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help=f"Budget in total bits per value: {', '.join(BUDGETED)}.",
            show_default=DEFAULT_BITS_SHOWN,
        ),
    ] = None,
    artifact: Annotated[
        Path | None, typer.Option(help="Score this exported program instead of a simulated policy.")
    ] = None,
    reference_artifact: Annotated[
        Path | None,
        typer.Option(help="With --artifact: program to compare with, e.g. of --kv fp16. [default: simulated fp16]"),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data files. [default: public data sets, downloaded]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First items (windows of text) only.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of text, in windows spread over it.")] = MIN_TOKENS,
    context: Annotated[
        int, typer.Option(min=2, help="Capacity of the cache; also the window of text.")
    ] = DEFAULT_CONTEXT,
    window: Annotated[int, typer.Option(min=1, help="Newest tokens kept at --window-bits.")] = DEFAULT_WINDOW,
    window_bits: Annotated[int | None, typer.Option(min=8, help="8 or 16. [default: the policy's]")] = None,
    departure: Annotated[
        int | None, typer.Option(min=1, help="Tokens that leave the window together. [default: a chunk of prefill]")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Compare with this policy too: NAME or NAME@BITS; repeatable.")
    ] = None,
    static: Annotated[
        bool, typer.Option("--static/--no-static", help="Compare with static caches at equal total bits.")
    ] = True,
    model: Annotated[str, typer.Option(help="Registered model name or hub id.")] = DEFAULT_MODEL,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder or .gguf instead of --model.")] = None,
    tables: Annotated[Path | None, typer.Option(help="Calibration tables. [default: the shipped ones]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    results_file: Annotated[Path, typer.Option("--results", help="Append the result to this file.")] = results.DEFAULT,
    work_dir: Annotated[
        Path | None, typer.Option(help="Resumable results of single items. [default: ~/.cache/adakv/evaluation]")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Score again what is already stored.")] = False,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB for K and V of the windows scored at once.")] = 2.0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: the library decides.")] = 0,
) -> None:
    """Score a task under a cache policy and compare it with fp16 and static caches on the same items.

    For example:

      adakv evaluate --task wikitext2 --policy adaptive --kv-bits 3.25 --data-dir DATA --json out.json

      adakv evaluate --task hellaswag --against naive-4 --limit 100

      adakv evaluate --task wikitext2 --artifact artifacts/check (exported with --logits all)
    """
    if reference_artifact is not None and artifact is None:
        raise UserError("--reference-artifact is what --artifact is compared with: pass both")
    check_task(task)
    check_file(json_file, "--json")
    check_file(results_file, "--results", folders=True)
    with working("loading torch"):
        from adakv_model.runtime import artifact as artifacts
        from evaluation.bench import open_bench
        from evaluation.policies import REFERENCE, PolicySpec, check_policies, parse_policy
        from evaluation.runner import Evaluator, Task, compare, evaluate_policy, header
        from evaluation.scorers import open_artifact

    cli.set_threads(threads)
    spec = PolicySpec(policy, kv_bits, context, window, window_bits, departure)
    others = tuple(parse_policy(name, spec, "--against") for name in against or ())
    if artifact is None:  # complain before weights are read
        for note in check_policies((spec, *others), model, checkpoint, tables):
            print_note(console, note)
    bench = open_bench(model, checkpoint, tables, work_dir, memory=memory, fresh=fresh)
    program = open_artifact(artifact, bench.checkpoint) if artifact else None
    if program is not None:
        if threads:
            artifacts.set_threads(threads)
        plan = program.plan
        context = min(context, plan.context)
        spec = PolicySpec(plan.policy, None, context, plan.window, plan.window_bits)
    for wanted in others:
        wanted.make(bench.checkpoint.config, bench.tables)  # of a program's context: complain before the long work
    evaluator = Evaluator(bench, Task(task, data_dir, context, tokens, limit))
    if program is None:
        result = evaluate_policy(evaluator, spec, static=static, against=others)
    else:
        mine = evaluator.artifact(program)
        if reference_artifact:
            reference = evaluator.artifact(open_artifact(reference_artifact, bench.checkpoint))
        else:
            reference = evaluator.policy(spec.named(REFERENCE))
        result = header(evaluator, spec) | compare(evaluator, mine, reference, spec, static=False, against=others)
        result |= {"artifact": program.folder.name, "allocated_bits": program.plan.bits_per_value}
    result["command"] = cli.command_line("scripts/evaluate.py")
    report(result)
    results.append(results_file, result)
    if json_file is not None:
        results.write_json(json_file, result)


def report(result: dict[str, Any]) -> None:
    """The result as a table on stderr."""
    table = Table(show_header=False)
    title = f"{result['task']} · {result['policy']}" + (f" at {result['kv_bits']:g}" if result["kv_bits"] else "")
    clusters = "1 cluster, which leaves no standard errors" if result["n"] == 1 else f"{result['n']} clusters"
    console.print(f"\n{title}, {clusters}, {result['tokens']:,} tokens")
    table.add_row("total bits per value", f"{result['total_bits']:.3f}")
    table.add_row("loss, perplexity", f"{with_error(result['loss'], result['loss_se'], 4)}, {result['ppl']:.3f}")
    for suffix, name in (("", "fp16"), ("_static", "static at equal bits")):
        if f"loss_diff{suffix}" in result:
            row = with_error(result["loss_diff" + suffix], result[f"loss_diff{suffix}_se"], sign="+")
            table.add_row(f"loss minus {name}", row)
    for key, name in (("acc", "accuracy"), ("acc_norm", "accuracy, normalized")):
        if key in result:
            table.add_row(name, f"{with_error(100 * result[key], 100 * result[key + '_se'], 2)} %")
            row = with_error(100 * result[key + "_diff"], 100 * result[key + "_diff_se"], 2, sign="+") + " points"
            table.add_row(f"{name}, minus fp16", row)
    if "same_choice" in result:
        table.add_row("same choice as fp16", f"{100 * result['same_choice']:.2f} %")
    for name, other in result.get("against", {}).items():
        difference = with_error(other["loss_diff"], other["loss_diff_se"], sign="+")
        row = f"{difference} (at {other['total_bits']:.3f} bits)"
        table.add_row(f"loss minus {name}", row)
    console.print(table)


if __name__ == "__main__":
    app()
