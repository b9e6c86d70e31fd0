"""Calibrate a checkpoint: means, K transforms, sensitivities and token frequencies for its KV cache.

in:  a checkpoint (--model or --checkpoint) and a text
out: FILE.safetensors (adakv_model.tables.CalibrationTables) and FILE.calibrate.json, what was measured

    python scripts/calibrate.py --text wikitext2_valid.txt.gz --tokens 65536 --out tables.safetensors

The controller inside the file is the shipped one until scripts/train_controller.py trains it. Work is
resumable: every finished window is kept under --work-dir. Formulas: docs/training.md, training/collect.py.
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
from adakv_model.terminal import working
from training import cli
from training.settings import checked_settings, has_second_sample

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings=HELP_NAMES)
@command
@if_interrupted(lambda: cli.KEPT_WINDOWS)
def main(
    text_file: Annotated[Path, typer.Option("--text", help="UTF-8 text, .gz allowed.")],
    out: Annotated[Path, typer.Option(help="Calibration tables to write (.safetensors).")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to use, in whole windows spread over the text.")] = 65536,
    model: Annotated[str, typer.Option(help="Registered model name.")] = DEFAULT_MODEL,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder or .gguf instead of --model.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of one window of text.", min=8)] = 2048,
    window: Annotated[int, typer.Option(help="Newest tokens that the cache keeps at 8 bits.", min=1)] = DEFAULT_WINDOW,
    chunk: Annotated[int, typer.Option(help="Prefill chunk of the cache.", min=1)] = DEFAULT_CHUNK,
    departure: Annotated[int, typer.Option(help="Tokens that leave the window together.", min=1)] = DEFAULT_CHUNK,
    seed: Annotated[int, typer.Option(help="Seed of the sampled targets.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch decides.")] = 0,
    work_dir: Annotated[Path | None, typer.Option(help="Resumable work; default ~/.cache/adakv/training.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as one JSON object instead.")] = False,
) -> None:
    """Measure a checkpoint's calibration tables on a text.

    For example: adakv calibrate --checkpoint path/to/hf-folder --text train.txt --out mine.safetensors
    """
    cli.check_output(out)
    settings = checked_settings(context, window, chunk, departure, seed)
    with working("loading torch"):
        from adakv_model.checkpoints.load import load_checkpoint
        from adakv_model.corpus import cut_windows, read_tokens
        from adakv_model.tables import CalibrationTables, reading_gains
        from training.calibration import donor, far_damage, row_tables, sensitivity_report
        from training.collect import collect, mean_rows
        from training.frequency import log_frequencies
        from training.measure import PROBE_BITS, Probe, measure

    cli.set_threads(threads)
    loaded = load_checkpoint(model, path=checkpoint)
    source = read_tokens(text_file, loaded)
    windows = cut_windows(source.ids, tokens, context)
    frequency, added = log_frequencies(source.ids, loaded.config.vocab_size)
    work = work_dir or default_cache_dir() / "training"
    k_mean, v_mean = mean_rows(loaded, windows, work)
    records = collect(loaded, windows, k_mean, v_mean, frequency, settings, work, has_second_sample)
    rows = row_tables(loaded.config, records, settings, k_mean)
    tables = CalibrationTables(
        rows=rows,
        v_mean=v_mean,
        scale_modes=reading_gains(*v_mean.shape[:2]),
        token_log_frequency=frequency,
        info={"calibrated": True},
        **donor(out),
    )
    damage = far_damage(records, settings)
    report = {"sensitivity": sensitivity_report(damage), "damage_per_token": float(damage.mean(0).sum())}
    report |= measure(Probe(loaded, tables, windows[0], settings.window, work))
    calibration = {
        "command": cli.command_line("calibrate.py"),
        "checkpoint": {"name": loaded.name, **loaded.source},
        "text": {"name": source.name, "sha256": source.sha256, "tokens": len(source.ids)},
        "tokens": windows.numel(),
        "smoothing": added,
        "contexts": [r.context for r in rows],
        **asdict(settings),
        **report,
    }
    tables.info["calibration"] = calibration
    tables.check(loaded.config)
    tables.save(out)
    cli.write_json(out.with_suffix(".calibrate.json"), calibration)
    if as_json:
        print(json.dumps({"tables": str(out), **calibration}))
        return
    typer.echo(f"{windows.numel():,} tokens in {len(windows)} windows; unit sensitivities {report['sensitivity']}")
    typer.echo(f"KL with codes of {PROBE_BITS} bits, nats a token: {report['measured']}")
    typer.echo(f"wrote {out}; next: adakv train --tables {out}")


if __name__ == "__main__":
    app()
