"""What the weight recipes of `export.py --quantize` cost: perplexity, bits a weight, file size, decode speed.

in:  a checkpoint, wikitext2_test.txt.gz in --data-dir, and with --speed artifact folders of the recipes
out: a table on the terminal, --json, and one line for every result appended to --results (JSONL)

    python scripts/weight_recipes.py --data-dir DATA
    python scripts/weight_recipes.py --data-dir DATA --artifact artifacts/a      # through the exported program
    python scripts/weight_recipes.py --speed artifacts/a --speed artifacts/b     # alternating, no perplexity

Losses are teacher-forced over an unquantized cache in windows spread over the text, with torchao's quantized modules
(int8 activations simulated), as a paired difference to the float weights of the same checkpoint. A recipe whose
result for the same checkpoint, text and windows is in --results already is not computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from adakv_model.artifact import Artifact, set_threads
from adakv_model.checkpoint_sources import default_cache_dir
from adakv_model.checkpoints import Checkpoint, load_checkpoint
from adakv_model.config import DEFAULT_MODEL
from adakv_model.errors import UserError
from adakv_model.kv_cache import FloatCache
from adakv_model.model import Llama, build_model
from export.weights import RECIPES, default_embedding, quantize_weights, stored_bits
from training import cli, text
from weights.shuffled import shuffled_channels
from weights.speed import alternate

TEXT = "wikitext2_test.txt.gz"
app = typer.Typer(add_completion=False)


@app.command()
@cli.one_line_errors
def main(
    data_dir: Annotated[Path | None, typer.Option(help=f"Folder of {TEXT}.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to score, in whole windows spread over the text.", min=2)] = 4096,
    context: Annotated[int, typer.Option(help="Tokens of one window.", min=2)] = 1024,
    recipes: Annotated[
        str, typer.Option(help="Comma-separated recipe or recipe/embedding. [default: all]", show_default=False)
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
        rows += [scorer.artifact(Artifact(folder)) for folder in artifact]
    timings = []
    if speed:
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


class Scorer:
    """Losses of one checkpoint's recipes on the same windows; see the module's docstring."""

    def __init__(
        self, checkpoint: Checkpoint, file: Path, tokens: int, context: int, shuffle: bool, results: Path | None
    ) -> None:
        source = text.read_tokens(file, checkpoint)
        self.windows = text.cut_windows(source.ids, tokens, context)
        self.checkpoint, self.context = checkpoint, context
        if shuffle:
            self.checkpoint = replace(checkpoint, weights=shuffled_channels(checkpoint))
        self.identity = {
            "checkpoint": checkpoint.source,
            "shuffled": shuffle,
            "text": {"name": source.name, "sha256": source.sha256},
            "windows": list(self.windows.shape),
        }
        self.results = results or default_cache_dir() / "weight_recipes.jsonl"
        self.work = cli.work_folder(default_cache_dir() / "weights", **self.identity)

    def recipe(self, recipe: str, embedding: str) -> dict[str, Any]:
        bits: dict[str, float] = {}

        def score() -> Tensor:
            model = self._model()
            quantize_weights(model, recipe, embedding)
            bits.update(stored_bits(model, self.checkpoint.config))
            return self._losses(f"{recipe}, {embedding}", lambda window: model(window, torch.tensor([0]))[0])

        return self._row({"recipe": recipe, "embedding": embedding}, score, bits)

    def artifact(self, artifact: Artifact) -> dict[str, Any]:
        """The same text through an exported program, which must hold a whole window."""
        if artifact.plan.context < self.context:
            raise UserError(
                f"the artifact holds {artifact.plan.context} tokens: pass --context {artifact.plan.context}"
            )
        manifest = artifact.manifest
        digest = manifest["files"]["model.pte"]["sha256"]

        def score() -> Tensor:
            host = artifact.load()

            def logits(window: Tensor) -> Tensor:
                host.reset()
                return host.prefill(window[0].tolist())

            return self._losses("artifact", logits)

        key = {"recipe": manifest["quantize"], "embedding": manifest["embedding"], "program": digest}
        size = {
            "program_bytes": manifest["files"]["model.pte"]["bytes"],
            "kv_bits": manifest["kv_cache"]["bits_per_value"],
        }
        return self._row(key, score, {**manifest["weights"], **size})

    def _model(self) -> Llama:
        c = self.checkpoint
        return build_model(c.config, c.weights, FloatCache(c.config, self.context), prescale_norm=False)

    @torch.no_grad()
    def _losses(self, title: str, logits: Callable[[Tensor], Tensor]) -> Tensor:
        parts = []
        for window in cli.track(title, list(self.windows)):
            prediction = logits(window[:-1].unsqueeze(0)).log_softmax(-1)
            parts.append(-prediction.gather(1, window[1:].unsqueeze(1))[:, 0])
        return torch.cat(parts)

    def _row(self, key: dict[str, Any], score: Callable[[], Tensor], about: dict[str, Any]) -> dict[str, Any]:
        """Paired difference to float weights; both losses are kept and reused."""
        known = self._known(key)
        if known is not None:
            return known
        base = self._kept({"recipe": "float"}, lambda: self._float())
        loss = self._kept(key, score)
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
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def _float(self) -> Tensor:
        model = self._model()
        return self._losses("float weights", lambda window: model(window, torch.tensor([0]))[0])

    def _kept(self, key: dict[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return cli.resumable(self.work / f"{digest}.safetensors", lambda: {"loss": compute()})["loss"]

    def _known(self, key: dict[str, Any]) -> dict[str, Any] | None:
        if not self.results.is_file():
            return None
        wanted = json.loads(json.dumps({**key, **self.identity}))
        for line in reversed(self.results.read_text().splitlines()):
            row = json.loads(line)
            if all(row.get(name) == value for name, value in wanted.items()) and ("program" in row) == (
                "program" in key
            ):
                return row
        return None


def show(rows: list[dict[str, Any]], timings: list[dict[str, Any]]) -> None:
    console = Console(stderr=True, highlight=False)
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
