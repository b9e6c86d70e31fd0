"""python -m device_tests.coreml_perplexity: what a package's weights cost, in perplexity.

Reads every linear's and the embedding's weights out of the saved package (decompressed as Core ML defines it), puts
them into the torch model over an unquantized cache, and scores windows of a text; beside it, the checkpoint's own
float weights. So it measures weight compression alone, not the KV cache.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track

from adakv_model.artifact import Artifact
from adakv_model.errors import UserError
from adakv_model.kv_cache import FloatCache
from adakv_model.model import Llama, build_model
from device_tests.parity.eager import checkpoint_of
from export.coreml_convert import DECODE, import_coremltools, quiet_stderr

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True, highlight=False)


def package_matrices(package: Path) -> Iterator[tuple[str, np.ndarray]]:
    """("gather" or "linear", float32 [N, K]) of the decode function's large weights, in program order."""
    ct = import_coremltools()
    with quiet_stderr():
        from coremltools.converters.mil.frontend.milproto.load import load

        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    for op in program.functions[DECODE].operations:
        if op.op_type in ("linear", "gather"):
            source = op.inputs["weight" if op.op_type == "linear" else "x"]
            value = source.val if source.val is not None else source.op.materialized_val_inference()
            yield op.op_type, np.asarray(value, dtype=np.float32)


def load_package_weights(model: Llama, package: Path) -> int:
    """Replace the model's matrices by the package's; how many were replaced. Raises UserError if they do not fit."""
    layers = [
        m for b in model.blocks() for m in (b.qkv_proj, b.o_proj, b.mlp.gate_proj, b.mlp.up_proj, b.mlp.down_proj)
    ]
    wanted = iter([*layers, model.lm_head])
    replaced = 0
    for kind, value in package_matrices(package):
        if kind == "gather" and value.shape == tuple(model.embed_tokens.weight.shape):
            model.embed_tokens.weight = torch.nn.Parameter(torch.from_numpy(value), requires_grad=False)
            replaced += 1
        elif kind == "linear" and min(value.shape) >= 64:  # not the controller
            linear = next(wanted)
            if tuple(linear.weight.shape) != value.shape:
                raise UserError(f"{package} is another model: its linear is {value.shape}, not {linear.weight.shape}")
            linear.weight = torch.nn.Parameter(torch.from_numpy(value), requires_grad=False)
            replaced += 1
    return replaced


@torch.no_grad()
def perplexity(model: Llama, tokens: list[int], windows: int, length: int) -> float:
    """exp of the mean loss over `windows` windows of `length` tokens, each from an empty cache."""
    losses = []
    for i in track(range(windows), description="windows", console=console, transient=True):
        ids = torch.tensor([tokens[i * length : (i + 1) * length]])
        model.cache = FloatCache(model.config, length)
        logits = model(ids, torch.tensor([0]))
        losses.append(float(F.cross_entropy(logits[0, :-1], ids[0, 1:])))
    return math.exp(sum(losses) / len(losses))


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    artifact: Annotated[Path, typer.Option(help="Folder written by export.py --target ios.")],
    text: Annotated[Path, typer.Option(help="Plain or gzipped text, such as wikitext2_test.txt.gz.")],
    windows: Annotated[int, typer.Option(min=1, help="Windows to score.")] = 4,
    length: Annotated[int, typer.Option(min=2, help="Tokens a window.")] = 1024,
) -> None:
    """Perplexity of a package's own weights against the checkpoint's; prints one JSON object."""
    try:
        opened = Artifact(artifact)
        checkpoint = checkpoint_of(opened)
        data = gzip.decompress(text.read_bytes()) if text.suffix == ".gz" else text.read_bytes()
        tokens = opened.codec.encode(data[: windows * length * 8].decode(errors="ignore"))
        if len(tokens) < windows * length:
            raise UserError(f"{text} has {len(tokens)} tokens: choose fewer or shorter windows")
        model = build_model(checkpoint.config, checkpoint.weights, FloatCache(checkpoint.config, length))
        of_checkpoint = perplexity(model, tokens, windows, length)
        replaced = load_package_weights(model, opened.program)
        of_package = perplexity(model, tokens, windows, length)
    except UserError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    result = {
        "weights": opened.manifest["weights"],
        "matrices": replaced,
        "tokens": windows * length,
        "perplexity_checkpoint": round(of_checkpoint, 4),
        "perplexity_package": round(of_package, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    app()
