"""What the weight recipes of `export.py --quantize` cost: perplexity, bits a weight, file size, decode speed.

in:  a checkpoint, wikitext2_test.txt.gz in --data-dir, and with --speed artifact folders of the recipes
out: a table on the terminal, --json, and one line for every result appended to --results (JSONL)

    python scripts/weight_recipes.py --data-dir DATA
    python scripts/weight_recipes.py --data-dir DATA --artifact artifacts/a      # an exported program, or a package
    python scripts/weight_recipes.py --data-dir DATA --mixtures 5,10             # 8 bits for the most sensitive layers
    python scripts/weight_recipes.py --speed artifacts/a --speed artifacts/b     # alternating, no perplexity

Losses are teacher-forced over an unquantized cache in windows spread over the text, with torchao's quantized modules
(int8 activations simulated), as a paired difference to the float weights of the same checkpoint. A recipe whose
result for the same checkpoint, text and windows is in --results already is not computed again; an interrupted run
continues at the window it was in.
"""

from __future__ import annotations

import needs_packages  # noqa: F401

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as functional
import typer
from rich.table import Table
from torch import Tensor

from adakv_model.checkpoints.load import Checkpoint, load_checkpoint
from adakv_model.command_line import HELP_NAMES, command, if_interrupted
from adakv_model.config import DEFAULT_MODEL
from adakv_model.corpus import cut_windows, read_tokens
from adakv_model.digest import default_cache_dir
from adakv_model.errors import UserError
from adakv_model.kv_cache import FloatCache
from adakv_model.model import Llama, build_model
from adakv_model.numbers import number_list
from adakv_model.runtime.artifact import Artifact, set_threads
from adakv_model.terminal import make_console
from adakv_model.whole_file import append_line
from device_tests.coreml.weights import load_package_weights
from export.options import RECIPES, default_embedding
from export.weights import quantize_weights, stored_bits
from training import cli
from weights.shuffled import shuffled_channels
from weights.speed import alternate

TEXT = "wikitext2_test.txt.gz"
CALIBRATION_TEXT = "wikitext2_valid.txt.gz"  # layers are ranked on it
STOCK = "8da4w"
FORMAT = 2  # raise it when the arithmetic of a recipe changes: stored results are then computed again
Logits = Callable[[Tensor], Tensor]  # tokens int64 [1, T] -> float32 [T, V]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings=HELP_NAMES)
@command
@if_interrupted(lambda: cli.KEPT_WINDOWS)
def main(
    data_dir: Annotated[Path | None, typer.Option(help=f"Folder of {TEXT}.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to score, in whole windows spread over the text.", min=2)] = 4096,
    context: Annotated[int, typer.Option(help="Tokens of one window.", min=2)] = 1024,
    recipes: Annotated[
        str, typer.Option(help="Comma-separated recipe or recipe/embedding. [default: all]", show_default=False)
    ] = "",
    mixtures: Annotated[
        str, typer.Option(help=f"Also {STOCK} with so many decoder layers in 8 bits, the most sensitive ones: 5,10.")
    ] = "",
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Permute channels first: the same float model off its 4-bit grid.")
    ] = False,
    model: Annotated[str, typer.Option(help="Registered model name.")] = DEFAULT_MODEL,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder or .gguf instead of --model.")] = None,
    artifact: Annotated[list[Path], typer.Option(help="Also score this artifact's program (repeatable).")] = [],  # noqa: B006
    speed: Annotated[list[Path], typer.Option(help="Time this artifact; repeat to alternate several.")] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Rounds of --speed; the minimum is reported.", min=1)] = 30,
    threads: Annotated[int, typer.Option(help="Threads of torch and of the runtime.", min=1)] = 2,
    results: Annotated[Path | None, typer.Option(help="JSONL to append to. [default: the cache folder]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Compare weight recipes on one text, or time exported artifacts side by side."""
    if data_dir is None and not speed:
        raise UserError("nothing to do: pass --data-dir for perplexities, --speed for timings, or both")
    cli.set_threads(threads)
    rows: list[dict[str, Any]] = []
    if data_dir is not None:
        scorer = Scorer(load_checkpoint(model, path=checkpoint), data_dir / TEXT, tokens, context, shuffle, results)
        for name in recipes.split(",") if recipes else (*(r for r in RECIPES if r != "none"), "none/table"):
            rows.append(scorer.recipe(*parse(name)))
        if counts := number_list("--mixtures", mixtures, int, 0) if mixtures else []:
            order = scorer.by_sensitivity(data_dir / CALIBRATION_TEXT)
            rows += [scorer.mixture(order[:count]) for count in counts]
        rows += [scorer.artifact(Artifact(folder)) for folder in artifact]
    timings = []
    if speed:
        torch.set_num_threads(1)  # torch's own threads spin between operations, on the cores of the runtime's
        set_threads(threads)
        timings = alternate([Artifact(folder) for folder in speed], rounds)
    if as_json:
        print(json.dumps({"recipes": rows, "speed": timings}))
    show(rows, timings)


def parse(name: str) -> tuple[str, str]:
    """`recipe` or `recipe/embedding`."""
    recipe, _, embedding = name.partition("/")
    if recipe not in RECIPES:
        raise UserError(f"unknown recipe {recipe!r}: one of {', '.join(RECIPES)}")
    return recipe, embedding or default_embedding(recipe)


def _eager(model: Llama) -> Logits:
    return lambda window: model(window, torch.tensor([0]))[0]


class Scorer:
    """Losses of one checkpoint's recipes on the same windows; see the module's docstring."""

    def __init__(
        self, checkpoint: Checkpoint, file: Path, tokens: int, context: int, shuffle: bool, results: Path | None
    ) -> None:
        source = read_tokens(file, checkpoint)
        self.windows = cut_windows(source.ids, tokens, context)
        self.checkpoint, self.context = checkpoint, context
        if shuffle:
            self.checkpoint = replace(checkpoint, weights=shuffled_channels(checkpoint))
        self.identity = {
            "format": FORMAT,
            "checkpoint": checkpoint.source,
            "shuffled": shuffle,
            "text": {"name": source.name, "sha256": source.sha256},
            "windows": list(self.windows.shape),
        }
        self.results = results or default_cache_dir() / "weight_recipes.jsonl"
        self.work = cli.work_folder(default_cache_dir() / "weights", **self.identity)

    def recipe(self, recipe: str, embedding: str) -> dict[str, Any]:
        def build() -> tuple[Logits, dict[str, Any]]:
            model = self._model()
            quantize_weights(model, recipe, embedding)
            return _eager(model), stored_bits(model, self.checkpoint.config)

        return self._row({"recipe": recipe, "embedding": embedding}, build)

    def by_sensitivity(self, file: Path) -> list[int]:
        """Decoder layers, by how far the model's predictions move when that layer has 4 bits and the others 8, furthest
        first: KL divergence to the float model on one window of a text. The output layer has 4 bits throughout."""
        ids = read_tokens(file, self.checkpoint).ids
        window = cut_windows(ids, self.context, self.context)[0]
        folder = cli.work_folder(self.work, layers=STOCK, text=cli.digest_of(window))
        n_layers = self.checkpoint.config.n_layers

        def predictions(model: Llama) -> Tensor:
            return _eager(model)(window.unsqueeze(0)).log_softmax(-1)

        def moved(layer: int) -> dict[str, Tensor]:
            model = self._model()
            quantize_weights(model, STOCK, "none", [i for i in range(n_layers) if i != layer])
            return {"kl": functional.kl_div(predictions(model), expected, log_target=True, reduction="batchmean")}

        with torch.no_grad():
            expected = predictions(self._model())
            kl = [
                float(cli.resumable(folder / f"{i}.safetensors", functools.partial(moved, i))["kl"])
                for i in cli.track("layers", range(n_layers))
            ]
        return sorted(range(n_layers), key=lambda i: -kl[i])

    def mixture(self, wide: list[int]) -> dict[str, Any]:
        """The stock 4-bit recipe with these decoder layers in 8 bits."""

        def build() -> tuple[Logits, dict[str, Any]]:
            model = self._model()
            quantize_weights(model, STOCK, default_embedding(STOCK), wide)
            return _eager(model), stored_bits(model, self.checkpoint.config)

        name = f"{STOCK}, {len(wide)} layers 8da8w"
        return self._row({"recipe": name, "embedding": default_embedding(STOCK), "wide": str(sorted(wide))}, build)

    def artifact(self, artifact: Artifact) -> dict[str, Any]:
        """The same text through an exported program, which must hold a whole window, or under a package's weights."""
        manifest = artifact.manifest
        if manifest["target"] == "ios" and manifest["backend"] == "coreml":
            return self._package(artifact)
        artifact.require_all_logits()
        if artifact.plan.context < self.context:
            raise UserError(
                f"the artifact holds {artifact.plan.context} tokens: pass --context {artifact.plan.context}"
            )

        def build() -> tuple[Logits, dict[str, Any]]:
            host = artifact.load()

            def logits(window: Tensor) -> Tensor:
                host.reset()
                return host.prefill(window[0].tolist())

            kv_bits = {"kv_bits": manifest["kv_cache"]["bits_per_value"]}
            return logits, {**manifest["weights"], "program_bytes": manifest["files"]["model.pte"]["bytes"], **kv_bits}

        key = {"recipe": manifest["quantize"], "embedding": manifest["embedding"]}
        return self._row({**key, "program": manifest["files"]["model.pte"]["sha256"]}, build)

    def _package(self, artifact: Artifact) -> dict[str, Any]:
        """The weights of a Core ML package in the float model: activations are not rounded."""
        manifest = artifact.manifest

        def build() -> tuple[Logits, dict[str, Any]]:
            model = self._model()
            load_package_weights(model, artifact.program)
            count = sum(weight.numel() for weight in self.checkpoint.weights.values())
            about = {"bits_per_weight": 8 * file["bytes"] / count, "program_bytes": manifest["report"]["package_bytes"]}
            return _eager(model), about

        (file,) = (file for name, file in manifest["files"].items() if name.endswith("/weight.bin"))
        key = {"recipe": f"Core ML {manifest['weights']}", "embedding": "in the package"}
        return self._row({**key, "program": file["sha256"]}, build)

    def _model(self) -> Llama:
        c = self.checkpoint
        return build_model(c.config, c.weights, FloatCache(c.config, self.context), prescale_norm=False)

    @torch.no_grad()
    def _losses(self, key: dict[str, Any], logits: Logits) -> Tensor:
        """Loss of every prediction; each window's are kept as soon as they are known."""
        folder = cli.work_folder(self.work, **key)

        def score(window: Tensor) -> dict[str, Tensor]:
            prediction = logits(window[:-1].unsqueeze(0)).log_softmax(-1)
            return {"loss": -prediction.gather(1, window[1:].unsqueeze(1))[:, 0]}

        parts = [
            cli.resumable(folder / f"{i}.safetensors", functools.partial(score, window))["loss"]
            for i, window in cli.track(" ".join(key.values()), list(enumerate(self.windows)))
        ]
        return torch.cat(parts)

    @functools.cached_property
    def _float_losses(self) -> Tensor:
        return self._losses({"recipe": "float"}, _eager(self._model()))

    def _row(self, key: dict[str, Any], build: Callable[[], tuple[Logits, dict[str, Any]]]) -> dict[str, Any]:
        """Paired difference to float weights."""
        known = self._known(key)
        if known is not None:
            return known
        base = self._float_losses
        logits, about = build()
        loss = self._losses(key, logits)
        difference = (loss - base).double()
        row = {
            **key,
            "loss": float(loss.double().mean()),
            "ppl": float(loss.double().mean().exp()),
            "float_ppl": float(base.double().mean().exp()),
            "loss_diff": float(difference.mean()),
            "loss_diff_se": float(difference.std() / len(difference) ** 0.5),
            "n": len(difference),
            **about,
            **self.identity,
        }
        append_line(self.results, json.dumps(row), "pass another --results")
        return row

    def _known(self, key: dict[str, Any]) -> dict[str, Any] | None:
        if not self.results.is_file():
            return None
        wanted = json.loads(json.dumps({**key, **self.identity}))
        for line in reversed(self.results.read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            if all(row.get(name) == value for name, value in wanted.items()) and ("program" in row) == (
                "program" in key
            ):
                return row
        return None


def show(rows: list[dict[str, Any]], timings: list[dict[str, Any]]) -> None:
    console = make_console()
    if rows:
        first = rows[0]
        table = Table(title=f"{first['text']['name']}, {first['n']} tokens, float weights {first['float_ppl']:.2f}")
        for column in ("recipe", "embedding", "bits a weight", "perplexity", "against float", "loss difference"):
            table.add_column(column)
        for row in rows:
            table.add_row(
                row["recipe"] + (" (program)" if "program" in row else ""),
                row["embedding"],
                f"{row['bits_per_weight']:.2f}",
                f"{row['ppl']:.2f}",
                f"{100 * (row['ppl'] / row['float_ppl'] - 1):+.1f} %",
                f"{row['loss_diff']:+.4f} ± {row['loss_diff_se']:.4f}",
            )
        console.print(table)
    if timings:
        table = Table("artifact", "recipe", "program, MB", "decode, ms/token", "prefill, ms/token", title="minima")
        for timing in timings:
            table.add_row(*(str(timing[k]) for k in ("artifact", "recipe", "megabytes", "decode_ms", "prefill_ms")))
        console.print(table)


if __name__ == "__main__":
    app()
