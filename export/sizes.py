"""Bits that a model's weights will take, from its shape alone. `export.weights.stored_bits` counts the same in a
finished model; a test compares the two for every recipe."""

from __future__ import annotations

import math

from adakv_model.checkpoints.weights import weight_shapes
from adakv_model.config import LlamaConfig
from export.options import DEFAULT_RECIPE

GROUP = 32  # weights that share a scale; of recipes that end in g64: 64
ROWS = 8  # a table is padded to a multiple of it
FLOAT = 32


def program_bits(config: LlamaConfig, recipe: str, embedding: str) -> dict[str, float]:
    """Of a program of --target android, as stored_bits: {"bits_per_weight", "weight_bytes", "weights"}."""
    fused = recipe == DEFAULT_RECIPE  # its layers read their norms themselves and keep no averaging vector
    norm = config.hidden_size * FLOAT * (1 if fused else 2)
    layers = config.n_layers * (sum(_matrix(n, k, recipe) for n, k in _layer(config)) + 2 * norm)
    table = _table(config, embedding)
    shared = config.tie_word_embeddings and (embedding == "table" or recipe == embedding == "none")
    if shared:
        head = 0.0
    elif embedding == "table":
        head = table
    else:
        head = _matrix(config.vocab_size, config.hidden_size, recipe)
    last_norm = config.hidden_size * FLOAT * (1 if fused and embedding != "table" else 2)
    return _summary(config, layers + table + head + last_norm)


def package_bits(config: LlamaConfig, weights: str) -> dict[str, float]:
    """Of a Core ML package: fp16, int8 with a scale a row, int4 with scale and offset a group and an int8 table."""
    layers = config.n_layers * sum(_constant(n, k, weights) for n, k in _layer(config))
    tables = 1 if config.tie_word_embeddings else 2
    table = tables * _constant(config.vocab_size, config.hidden_size, "int8" if weights == "int4" else weights)
    norms = (2 * config.n_layers + 1) * config.hidden_size * 16
    return _summary(config, layers + table + norms)


def _summary(config: LlamaConfig, bits: float) -> dict[str, float]:
    count = sum(math.prod(shape) for shape in weight_shapes(config).values())
    return {"bits_per_weight": round(bits / count, 4), "weight_bytes": int(bits / 8), "weights": count}


def _layer(c: LlamaConfig) -> list[tuple[int, int]]:
    """[outputs, inputs] of a layer's matrices: q, k and v as one, output, gate and up, down."""
    attention = c.n_heads * c.head_dim
    return [
        (attention + 2 * c.n_kv_heads * c.head_dim, c.hidden_size),
        (c.hidden_size, attention),
        (c.intermediate_size, c.hidden_size),
        (c.intermediate_size, c.hidden_size),
        (c.hidden_size, c.intermediate_size),
    ]


def _matrix(n: int, k: int, recipe: str) -> float:
    """Bits of [n, k]: codes with their scales (adakv_model/linear/int4.py; bfloat16 a group, float32 a row)."""
    if recipe == DEFAULT_RECIPE:
        return n * k * (4 + 16 / GROUP) + 2 * FLOAT * n
    if recipe == "8da8w":
        return n * k * 8 + FLOAT * n
    if recipe == "none":
        return n * k * FLOAT
    return n * k * (4 + 16 / (64 if recipe.endswith("g64") else GROUP))


def _table(c: LlamaConfig, embedding: str) -> float:
    """Bits of the token embedding (`table`: adakv_model/linear/table.py)."""
    n, k = c.vocab_size, c.hidden_size
    if embedding == "table":
        return -(-n // ROWS) * ROWS * k * (6 + 16 / GROUP)
    return {"8": n * k * 8 + FLOAT * n, "4": n * k * (4 + FLOAT / GROUP), "none": n * k * FLOAT}[embedding]


def _constant(n: int, k: int, weights: str) -> float:
    return {"fp16": n * k * 16, "int8": n * k * 8 + 16 * n, "int4": n * k * (4 + 32 / GROUP)}[weights]
