"""Time the lowering of a few layers along three paths, alternating, to see what the fast one saves.

stock:     to_edge_transform_and_lower with XNNPACK's own pass list
one pass:  the same with the lean pass list (export.lowering.LeanXnnpackPartitioner)
lean:      what export.py does: to_edge once, then the lean pass list
"""

from __future__ import annotations

import needs_packages  # noqa: F401

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Annotated

import typer
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, EdgeProgramManager, to_edge_transform_and_lower
from rich.table import Table
from torch.export import ExportedProgram

from adakv_model.budget import plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.command_line import HELP_NAMES, command
from adakv_model.config import get_model
from adakv_model.tables import neutral_tables
from adakv_model.terminal import make_console
from export import lowering
from export.android import build_exportable
from export.options import default_embedding
from export.quiet import quiet
from export.weights import quantize_weights

RECIPE = "8da8w"  # one whose layers XNNPACK computes

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def trace(layers: int) -> ExportedProgram:
    """The exported program of SmolLM2-135M with fewer layers, random quantized weights and the default cache."""
    config = dataclasses.replace(get_model("smollm2-135m").config, n_layers=layers)
    checkpoint = Checkpoint(config, draw_weights(config, 0), None, None, "profile", {}, random=True)
    tables = neutral_tables(config)
    planned = plan_cache(config, tables, CacheOptions())
    model = build_exportable(checkpoint, tables, planned)
    quantize_weights(model, RECIPE, default_embedding(RECIPE))
    return lowering.trace(model, planned.plan)


def together(program: ExportedProgram, partitioner: XnnpackPartitioner) -> EdgeProgramManager:
    config = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
    return to_edge_transform_and_lower(program, partitioner=[partitioner], compile_config=config)


@app.command(context_settings=HELP_NAMES)
@command
def main(
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each path; the minimum is reported.")] = 2,
) -> None:
    """Print the seconds of each path."""
    paths: dict[str, Callable[[ExportedProgram], EdgeProgramManager]] = {
        "stock": lambda program: together(program, XnnpackPartitioner()),
        "one pass": lambda program: together(program, lowering.LeanXnnpackPartitioner()),
        "lean": lambda program: lowering.lower(program, {}),
    }
    seconds: dict[str, float] = {}
    delegates: dict[str, int] = {}
    for _ in range(repeats):
        for name, path in paths.items():
            with quiet():
                program = trace(layers)
                started = time.perf_counter()
                edge = path(program)
            seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - started)
            delegates[name] = lowering.operator_calls(edge)[lowering.DELEGATE]
    table = Table("path", "seconds", "of stock", "delegates", title=f"{layers} layers")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}", f"{value / seconds['stock']:.2f}", str(delegates[name]))
    make_console().print(table)
    print(json.dumps({"layers": layers, "seconds": seconds, "delegates": delegates}))


if __name__ == "__main__":
    app()
