"""Weights that a target's number format cannot hold are refused: as infinity, or cut, they would be another model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from torch import Tensor

from adakv_model.checkpoints.load import Checkpoint
from adakv_model.errors import UserError
from adakv_model.linear.table import LARGEST as TABLE_LARGEST
from export.coreml.cache import CoreMLProgram
from export.coreml.weights import LARGEST as CORE_ML_LARGEST
from export.options import DEFAULT_RECIPE

# Fits of asymmetric grids sum squares of differences over groups of 32 in float32.
ASYMMETRIC_LARGEST = 1e18


def check_range(tensors: Iterable[tuple[str, Tensor]], largest: float, holder: str, remedy: str) -> None:
    """Raises UserError for the first float tensor with an absolute value above `largest`, which is what `holder` can
    hold."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            peak = max(abs(float(extreme)) for extreme in tensor.aminmax())
            if peak > largest:
                raise UserError(f"{name} holds {peak:.7g}, and {holder} end at {largest:.7g}: {remedy}")


def check_core_ml(checkpoint: Checkpoint, program: CoreMLProgram) -> None:
    """Everything in the program becomes fp16. The checkpoint's tensors come first: their names are the file's."""
    own = chain(program.named_parameters(), program.named_buffers())
    remedy = "use --target android (or --backend xnnpack) with --quantize 8da8w --embedding 8, whose scales are float32"
    check_range(chain(checkpoint.weights.items(), own), CORE_ML_LARGEST, "the fp16 numbers of Core ML", remedy)


def check_android(checkpoint: Checkpoint, recipe: str, embedding: str) -> None:
    """The token table has fp16 scales; the other formats have scales of float32's or bfloat16's range."""
    weights = checkpoint.weights
    if embedding == "table":
        tables = [(name, weights[name]) for name in ("embed_tokens.weight", "lm_head.weight") if name in weights]
        check_range(tables, TABLE_LARGEST, "the rows of --embedding table", "use --quantize 8da8w --embedding 8")
    if recipe == DEFAULT_RECIPE:
        check_range(weights.items(), ASYMMETRIC_LARGEST, "weights of 4 bits", "use --quantize 8da8w --embedding 8")
