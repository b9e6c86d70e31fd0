"""Train the cache's controller: token features -> importance score, for calibration tables that exist.

in:  a checkpoint, a text, and the tables that scripts/calibrate.py wrote
out: the same tables with a scorer for each feature set (in place or --out), and FILE.json, a log of the results

    python scripts/train_controller.py --text wikitext2_valid.txt.gz --tokens 65536 --tables t.safetensors

With calibrate.py's text, tokens and settings its finished windows are reused, and only the fit remains.
"""

from __future__ import annotations

import needs_packages  # noqa: F401

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adakv_model.cache_options import DEFAULT_CHUNK, DEFAULT_WINDOW
from adakv_model.command_line import HELP_NAMES, command, if_interrupted
from adakv_model.config import DEFAULT_MODEL
from adakv_model.digest import default_cache_dir
from adakv_model.errors import UserError
from adakv_model.numbers import number_list
from adakv_model.terminal import working
from training import cli
from training.settings import checked_settings, has_second_sample

BUDGETS = "2.5,2.75,3.25,4"
STEP_TOKENS = 1024  # of an on-policy step, and of the windows that judge it

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings=HELP_NAMES)
@command
@if_interrupted(lambda: cli.KEPT_WINDOWS)
def main(
    text_file: Annotated[Path, typer.Option("--text", help="UTF-8 text, .gz allowed.")],
    tables: Annotated[Path, typer.Option(help="Calibration tables of this checkpoint.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default: into --tables.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to use, in whole windows spread over the text.")] = 65536,
    model: Annotated[str, typer.Option(help="Registered model name.")] = DEFAULT_MODEL,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder or .gguf instead of --model.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of one window of text.", min=8)] = 2048,
    window: Annotated[int, typer.Option(help="Newest tokens that the cache keeps at 8 bits.", min=1)] = DEFAULT_WINDOW,
    chunk: Annotated[int, typer.Option(help="Prefill chunk of the cache.", min=1)] = DEFAULT_CHUNK,
    departure: Annotated[int, typer.Option(help="Tokens that leave the window together.", min=1)] = DEFAULT_CHUNK,
    seed: Annotated[int, typer.Option(help="Seed of the sampled targets and of the fit.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps of one fit.", min=1)] = 1500,
    on_policy: Annotated[int, typer.Option(help="Steps of on-policy training after the fit.", min=0)] = 0,
    budgets: Annotated[str, typer.Option(help="Total bits per value of the on-policy steps, taken in turn.")] = BUDGETS,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch decides.")] = 0,
    work_dir: Annotated[Path | None, typer.Option(help="Resumable work; default ~/.cache/adakv/training.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as one JSON object instead.")] = False,
) -> None:
    """Fit the controller on the model's own loss and report it on held-out windows.

    For example: adakv train --checkpoint path/to/hf-folder --text train.txt --tables mine.safetensors
    """
    out = out or tables
    cli.check_output(out)
    settings = checked_settings(context, window, chunk, departure, seed)
    bits = tuple(number_list("--budgets", budgets, float, 0))
    with working("loading torch"):
        from adakv_model.checkpoints.load import load_checkpoint
        from adakv_model.corpus import cut_windows, read_tokens
        from adakv_model.tables import CalibrationTables
        from training.collect import collect, mean_rows
        from training.controller_fit import one_thread, show, train, tune
        from training.on_policy import OnPolicy

    cli.set_threads(threads)
    calibrated = CalibrationTables.load(tables)
    loaded = load_checkpoint(model, path=checkpoint)
    calibrated.check(loaded.config)
    source = read_tokens(text_file, loaded)
    windows = cut_windows(source.ids, tokens, context)
    if len(windows) < 4:
        raise UserError(f"--tokens {tokens} gives {len(windows)} windows of {context}: training needs 4 or more")
    work = work_dir or default_cache_dir() / "training"
    k_mean, v_mean = mean_rows(loaded, windows, work)
    records = collect(
        loaded,
        windows,
        k_mean,
        v_mean,
        calibrated.token_log_frequency,
        settings,
        work,
        has_second_sample,
    )
    with one_thread():  # a fit is many tiny steps
        results = train(records, settings, calibrated, steps)
    if on_policy:
        policy = OnPolicy(on_policy, bits, min(STEP_TOKENS, context), window, seed=seed)
        results["on_policy"] = tune(loaded, calibrated, windows, records, settings, policy, work)
    training = {
        "command": cli.command_line("train_controller.py"),
        "text": {"name": source.name, "sha256": source.sha256, "tokens": len(source.ids)},
        "tokens": windows.numel(),
        **asdict(settings),
        "steps": steps,
        **results,
    }
    calibrated.info |= {"controller": "trained", "training": training}
    calibrated.save(out)
    cli.write_json(out.with_suffix(".json"), calibrated.info)
    if as_json:
        print(json.dumps({"tables": str(out), **training}))
        return
    show(results)
    if "on_policy" in results:
        typer.echo(f"on-policy, log of KL over the fitted score's: {results['on_policy']['tuned_over_fitted']}")
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    app()
