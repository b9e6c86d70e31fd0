"""python -m device_tests.coreml.swift_fixtures: test vectors of the Swift core, made by the Python implementation.

Output: JSON files in ios/Tests/AdaKVCoreTests/Fixtures, read by `swift test` and compared with this code by
test_swift.py. Two files among them are input: `tokenizer.json`, a small one of the same kind as SmolLM's, and SmolLM2's
`chat_template.jinja`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from adakv_model.budget import plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.testing_checkpoints import SMALL
from adakv_model.plan import CachePlan
from adakv_model.runtime.text import TextCodec
from adakv_model.tables import neutral_tables
from device_tests.coreml.host import HostCache
from export.coreml.inputs import InputLayout
from export.coreml.layout import StateLayout
from export.coreml.plan import coarse_plan
from export.coreml.storage import INT8
from export.options import FEATURES_USED

FOLDER = Path(__file__).parents[2] / "ios" / "Tests" / "AdaKVCoreTests" / "Fixtures"
CONFIG = replace(SMALL, n_layers=1, head_dim=32, hidden_size=128)
OPTIONS = CacheOptions(context=60, window=8, kv_bits=9.0, departure=1, features=FEATURES_USED)
CAPACITIES = (19, 16, 12, 4, 0)
TEXTS = (
    "The sky is blue because of 1024 molecules.",
    "  two  spaces, a\ttab\nand\n\n new lines  ",
    "it's we've I'll don't 'quoted' naïve café 東京 🙂 e\u0301",
    "a byte \x04 that the vocabulary lacks, as SmolLM's does",
    "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
    "",
)
CHATS = (
    [{"role": "user", "content": "Hi!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}],
    [*({"role": role, "content": role} for role in ("user", "assistant", "user"))],
)


def layout() -> InputLayout:
    """A cache of one layer with narrow tiers, one as wide as the window, and one that is never used."""
    tables = neutral_tables(CONFIG)
    plan = coarse_plan(plan_cache(CONFIG, tables, OPTIONS), tables).plan
    return InputLayout(StateLayout(replace(plan, capacities=CAPACITIES), INT8))


def manifest() -> dict[str, Any]:
    """What a runner reads of a manifest, as export/ios.py writes it."""
    inputs = layout()
    plan = inputs.states.plan
    return {
        "format": 2,
        "program": "Small.mlpackage",
        "model": {"name": "small", "vocab_size": plan.vocab_size, "eos_token_ids": list(CONFIG.eos_token_ids)},
        "kv_cache": plan.to_manifest(),
        "core_ml_states": inputs.states.to_manifest(),
        "core_ml_inputs": inputs.to_manifest(),
    }


def leaving(plan: CachePlan) -> np.ndarray:
    """A step plan int32 [context, 2 + K] that uses every tier in turn, as the controller never would."""
    used, rows = [0] * plan.n_tiers, []
    for position in range(plan.context):
        tier = slot = -1
        if position - plan.window >= 1:
            free = [k for k in range(plan.n_tiers) if used[k] < plan.capacities[k]]
            tier = free[position % len(free)]
            slot, used[tier] = used[tier], used[tier] + 1
        rows.append([tier, slot, *used])
    return np.array(rows, np.int32)


def new_bytes(array: int, position: int, count: int) -> np.ndarray:
    """What the test vectors let a step return for a token: uint8 [count], any distinct values."""
    return ((31 * array + 7 * position + 3 * np.arange(count) + 1) % 251).astype(np.uint8)


def step_outputs(inputs: InputLayout, position: int, tokens: int) -> Mapping[str, np.ndarray]:
    """The `new_` outputs of a step: columns of `new_bytes`; of the sink, one for each of its columns."""
    outputs = {}
    for i, (name, array) in enumerate(sorted(inputs.outputs(tokens).items())):
        size = array.channels * np.dtype(array.dtype).itemsize
        columns = [new_bytes(i, position + column, size) for column in range(array.columns)]
        values = np.stack([column.view(array.dtype) for column in columns], axis=1)
        outputs[f"new_{name}"] = values[None, :, None, :]
    return outputs


def host_cache() -> dict[str, Any]:
    """The arrays after a chunk of prefill and then single tokens, by the procedure of coreml/host.py."""
    inputs = layout()
    plan, rows = inputs.states.plan, leaving(inputs.states.plan)
    cache = HostCache(inputs, "fp16")
    sizes, position = [plan.chunk, plan.chunk] + [1] * (plan.context - 2 * plan.chunk), 0
    for size in sizes:
        cache.write_step(position, rows[position : position + size], step_outputs(inputs, position, size))
        position += size
    arrays = {f"cache_{name}": base64.b64encode(a.tobytes()).decode() for name, a in cache.arrays.items()}
    return {"steps": sizes, "plan": rows.tolist(), "bytes": cache.bytes, "arrays": arrays}


def sampling() -> list[dict[str, Any]]:
    """Token for logits, a temperature and a number in [0, 1): by the cumulated softmax."""
    random, cases = np.random.default_rng(1), []
    for temperature in (0.5, 1.0, 2.0):
        for unit in (0.0, 0.25, 0.5, 0.9, 0.999):
            logits = np.round(random.normal(0, 2, 12), 3)
            weights = np.exp((logits - logits.max()) / temperature)
            token = int(np.searchsorted(np.cumsum(weights / weights.sum()), unit, side="right"))
            cases.append({"logits": logits.tolist(), "temperature": temperature, "unit": unit, "token": token})
    return cases


def statistics() -> list[dict[str, Any]]:
    random, cases = np.random.default_rng(2), []
    for count in (1, 2, 5, 10, 11):
        samples = np.round(random.gamma(4, 2, count), 3)
        low, median, high = np.quantile(samples, (0.1, 0.5, 0.9))
        cases.append(
            {
                "samples": samples.tolist(),
                "minimum": float(samples.min()),
                "low": float(low),
                "median": float(median),
                "high": float(high),
            }
        )
    return cases


def texts() -> list[dict[str, Any]]:
    codec = TextCodec((FOLDER / "tokenizer.json").read_bytes())
    return [{"text": text, "ids": (ids := codec.encode(text)), "decoded": codec.decode(ids)} for text in TEXTS]


def chats() -> list[dict[str, Any]]:
    codec = TextCodec(
        (FOLDER / "tokenizer.json").read_bytes(), (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    )
    return [{"messages": messages, "prompt": codec.render_chat(messages)} for messages in CHATS]


def fixtures() -> dict[str, Any]:
    """File name to content."""
    return {
        "manifest.json": manifest(),
        "host_cache.json": host_cache(),
        "sampling.json": sampling(),
        "statistics.json": statistics(),
        "texts.json": texts(),
        "chats.json": chats(),
    }


def main() -> None:
    """Write the fixtures."""
    for name, content in fixtures().items():
        (FOLDER / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
