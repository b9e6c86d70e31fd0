"""Export a two-layer model with random weights as an Android artifact: seconds instead of minutes, for tests.

Input: none. Output: an artifact folder like export.py's, without a tokenizer.

    python scripts/make_tiny_artifact.py --out build/tiny
"""

from __future__ import annotations

if __name__ == "__main__":  # tests import it as scripts.make_tiny_artifact
    import needs_packages  # noqa: F401

import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import save_file

from adakv_model.checkpoints.weights import draw_weights
from adakv_model.config import get_model
from adakv_model.features import DEFAULT_FEATURES, FEATURE_SETS
from export.android import export_android
from export.options import DEFAULT_RECIPE, LOGITS, RECIPES, ExportOptions

CONTEXT = 256


def write_checkpoint(folder: Path) -> None:
    """A Hugging Face folder: SmolLM2-135M with 2 layers, hidden size 192, 320 tokens; fixed random weights."""
    config = replace(
        get_model("smollm2-135m").config,
        vocab_size=320,
        hidden_size=192,
        intermediate_size=384,
        n_layers=2,
        n_heads=3,
        n_kv_heads=1,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
    # Larger than initial weights usually are, so that the answer depends on the context.
    weights = {n: w * 4 if w.dim() == 2 else w for n, w in draw_weights(config, seed=0).items()}
    (folder / "config.json").write_text(json.dumps({**config.to_hf(), "model_type": "llama"}), encoding="utf-8")
    hf_names = {n if n.startswith("lm_head") else f"model.{n}": w for n, w in weights.items()}
    save_file(hf_names, folder / "model.safetensors")


def main(
    out: Annotated[Path, typer.Option(help="Artifact folder to write.")],
    quantize: Annotated[str, typer.Option(help=f"Weights: {', '.join(RECIPES)}.")] = DEFAULT_RECIPE,
    features: Annotated[str, typer.Option(help=f"Of the controller: {', '.join(FEATURE_SETS)}.")] = DEFAULT_FEATURES,
    logits: Annotated[str, typer.Option(help=f"Of a step: {', '.join(LOGITS)}.")] = LOGITS[0],
    policy: Annotated[str, typer.Option(help="Of the cache, as export.py's --kv.")] = "adaptive",
) -> None:
    """Write the artifact."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        options = ExportOptions(
            checkpoint=Path(folder),
            out=out,
            quantize=quantize,
            context=CONTEXT,
            window=16,
            prefill_chunk=8,
            kv=policy,
            kv_bits=6.0 if policy == "adaptive" else None,
            features=features,
            logits=logits,
        )
        export_android(options, sys.argv, lambda name: nullcontext())


if __name__ == "__main__":
    typer.run(main)
