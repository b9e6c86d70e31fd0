"""Predicted sizes are those of the finished model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from adakv_model.checkpoints.testing_checkpoints import SMALL
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.model import build_model
from export.options import EMBEDDINGS, RECIPES
from export.sizes import program_bits
from export.weights import quantize_weights, stored_bits

# Widths are multiples of 64 (groups of g64); the vocabulary is no multiple of the table's rows.
SHAPE = replace(SMALL, hidden_size=128, intermediate_size=192, n_heads=8, n_kv_heads=2, vocab_size=264)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_predicted_bits_are_those_that_are_stored(recipe: str, embedding: str, tied: bool) -> None:
    config = replace(SHAPE, tie_word_embeddings=tied)
    cache = nn.Module()
    model = build_model(config, draw_weights(config, 0), cache, prescale_norm=False)  # type: ignore[arg-type]
    quantize_weights(model, recipe, embedding)
    assert program_bits(config, recipe, embedding) == stored_bits(model, config)
