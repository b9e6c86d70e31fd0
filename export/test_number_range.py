"""Weights at the ends of the number formats: held, or refused with the tensor's name; never infinity, NaN or zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from adakv_model.checkpoints.testing_checkpoints import SMALL, write_folder
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.linear import table
from export.asymmetric import fit_groups
from export.cli import app
from export.coreml import weights as core_ml
from export.number_range import ASYMMETRIC_LARGEST
from export.options import WEIGHTS

Q_PROJ, EMBEDDING = "layers.1.self_attn.q_proj.weight", "embed_tokens.weight"


def extreme(largest: float) -> torch.Tensor:
    """[64, 512] of every size up to `largest`, with signs, zero and flat groups."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(64, 512, generator=generator) * 2 - 1
    weight *= torch.logspace(-3, 0, 64).unsqueeze(1)
    weight[3, :32], weight[4, :32], weight[5, 7], weight[6, 8], weight[7, :3] = 0, 1, 1, -1, 1
    weight[8, :32] = torch.linspace(-1, 1, 32)
    return weight * largest


@pytest.mark.parametrize("recipe", WEIGHTS)
@pytest.mark.parametrize("largest", [core_ml.LARGEST, 1e-3, 1e-5, 2**-20, 2**-24], ids=str)
def test_core_ml_weights_stay_finite_and_near(recipe: str, largest: float) -> None:
    weight = extreme(largest)
    with np.errstate(all="raise", under="ignore"):
        back = core_ml.rounded(weight, recipe, vocab_size=0)
    assert bool(back.isfinite().all())
    step = {"fp16": 2**-11, "int8": 1 / 127, "int4": 2 / 15}[recipe] * largest
    assert float((back - weight).abs().max()) <= step + 64 * 2**-24, "a scale below 2^-14 rounds by 2^-25"


@pytest.mark.parametrize("largest", [table.LARGEST, 1e3])
def test_the_table_holds_its_largest_weight(largest: float) -> None:
    weight = extreme(largest)
    back = table.dequantize_table(*table.quantize_table(weight))[:64]
    assert bool(back.isfinite().all())
    assert float((back - weight).abs().max()) <= 0.31 * largest
    assert torch.equal(back[3, :32], torch.zeros(32))


def test_four_bit_fits_hold_their_largest_weight() -> None:
    weight = extreme(ASYMMETRIC_LARGEST)
    codes, step, low = fit_groups(weight)
    assert float(((codes * step + low).flatten(1) - weight).abs().max()) <= 0.1 * ASYMMETRIC_LARGEST


@pytest.mark.parametrize(
    ("options", "name", "value", "message"),
    [
        (("--target", "ios"), Q_PROJ, -7e4, "the fp16 numbers of Core ML end at 65376: use --target android"),
        (("--target", "ios", "--weights", "fp16"), "norm.weight", 1e5, "the fp16 numbers of Core ML end at 65376"),
        (("--target", "ios", "--backend", "executorch"), EMBEDDING, 1e6, "the fp16 numbers of Core ML end at 65376"),
        ((), EMBEDDING, 3e6, "the rows of --embedding table end at 2030624: use --quantize 8da8w --embedding 8"),
        ((), Q_PROJ, 1e20, "weights of 4 bits end at 1e+18: use --quantize 8da8w"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    options: tuple[str, ...], name: str, value: float, message: str, tmp_path: Path
) -> None:
    weights = draw_weights(SMALL, 0)
    weights[name].view(-1)[5] = value
    folder = write_folder(tmp_path / "checkpoint", weights)
    cache = ("--context", "64", "--window", "8", "--kv", "static-8")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [*options, "--checkpoint", str(folder), *cache, "--out", str(out)])
    assert done.exit_code == 2, done.output
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert line.startswith(f"error: {name} holds {abs(value):.7g}, and {message}")
    assert not out.exists()
