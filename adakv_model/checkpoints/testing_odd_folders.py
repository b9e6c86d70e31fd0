"""Odd but legal Hugging Face folders, drawn by hypothesis: what people change in the files of a checkpoint."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors

from adakv_model.checkpoints.testing_checkpoints import SMALL, small_tokenizer, write_folder, write_tokenizer
from adakv_model.checkpoints.weights import draw_weights

WEIGHTS = draw_weights(SMALL, seed=1)
TEXTS = ("", "Hello world", "höflich 12", "<|im_start|>user\nHi<|im_end|>\n", " <extra> x", "word " * 40)
MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "ö <|im_end|>"}]
CHAT = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
TEMPLATES = (
    CHAT + "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}",
    "{% if tools is not none %}TOOLS{% endif %}{% if documents is not none %}DOCS{% endif %}hi",
    CHAT + "{% generation %}answer {{ eos_token }}{% endgeneration %}{% if add_generation_prompt %}A:{% endif %}",
    "{{ messages | tojson(sort_keys=true, separators=(',', ':')) }}{{ bos_token is defined }}",
    "{%- set ns = namespace(n=0) %}\n  {% for m in messages %}\n{% set ns.n = ns.n + 1 %}{% endfor %}ö{{ ns.n }}\n",
)


@dataclass(frozen=True)
class OddFolder:
    """tokenizer: its tokenizer.json; config: its tokenizer_config.json; stops: eos_token_id of generation_config.json,
    {} for no such file; model: changes of config.json, where KeyError leaves a key out."""

    tokenizer: Tokenizer
    config: dict[str, Any]
    stops: Any
    model: dict[str, Any]

    @contextmanager
    def written(self) -> Iterator[Path]:
        """The folder, with `WEIGHTS`, until the block ends."""
        with tempfile.TemporaryDirectory() as name:
            folder = write_folder(Path(name), WEIGHTS)
            stored = json.loads((folder / "config.json").read_text(encoding="utf-8")) | self.model
            if self.model.get("num_key_value_heads", 2) is None:  # as many as heads: other weights
                stored |= {"num_key_value_heads": 2}
            kept = {key: value for key, value in stored.items() if value is not KeyError}
            (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
            write_tokenizer(folder, self.tokenizer, **self.config)
            if self.stops != {}:
                stops = json.dumps({"eos_token_id": self.stops})
                (folder / "generation_config.json").write_text(stops, encoding="utf-8")
            yield folder


def odd_folders() -> st.SearchStrategy[OddFolder]:
    stops: st.SearchStrategy[Any] = stop_ids() | st.just({})
    return st.builds(OddFolder, tokenizers_json(), tokenizer_configs(), stops, model_configs())


def token(text: str) -> st.SearchStrategy[Any]:
    """A special token of tokenizer_config.json in each of its forms; None stands for null."""
    added = {"__type": "AddedToken", "content": text, "lstrip": False, "rstrip": False, "normalized": False}
    return st.sampled_from([None, text, {**added, "single_word": False, "special": True}])


@st.composite
def tokenizers_json(draw: st.DrawFn) -> Tokenizer:
    tokenizer = small_tokenizer()
    if draw(st.booleans()):
        tokenizer.enable_truncation(24, stride=draw(st.sampled_from([0, 2])))
    if draw(st.booleans()):
        tokenizer.enable_padding(length=draw(st.sampled_from([None, 128])), pad_id=2, pad_token="<|im_end|>")
    if draw(st.booleans()):
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    single = draw(st.sampled_from([None, "<|im_start|> $A", "<|im_start|> $A <|endoftext|>"]))
    if single is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<|im_start|>", 1), ("<|endoftext|>", 0)]
        )
    elif draw(st.booleans()):
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


@st.composite
def tokenizer_configs(draw: st.DrawFn) -> dict[str, Any]:
    keys = {
        "bos_token": token("<|im_start|>"),
        "eos_token": token("<|im_end|>") | token("<|endoftext|>"),
        "unk_token": token("<|endoftext|>"),
        "pad_token": token("<|im_end|>"),
        "add_bos_token": st.booleans(),
        "add_eos_token": st.booleans(),
        "extra_special_tokens": st.sampled_from([[], ["<extra>"]]),
        "model_max_length": st.sampled_from([16, 2048]),
        "chat_template": st.sampled_from(TEMPLATES)
        | st.sampled_from(TEMPLATES).map(
            lambda t: [{"name": "rag", "template": "X"}, {"name": "default", "template": t}]
        ),
    }
    config = draw(st.fixed_dictionaries({"tokenizer_class": st.just("PreTrainedTokenizerFast")}, optional=keys))
    return {**config, "clean_up_tokenization_spaces": False}


def stop_ids() -> st.SearchStrategy[Any]:
    return st.sampled_from([None, 0, 2, [2, 0], [0]])


@st.composite
def model_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Changes of config.json; a key that maps to KeyError is left out."""
    theta = st.sampled_from([5000.0, 10000, 130000.0])
    changes: dict[str, Any] = {"rope_parameters": KeyError, "eos_token_id": draw(stop_ids() | st.just(KeyError))}
    changes["bos_token_id"] = draw(st.sampled_from([None, 0, 1, KeyError]))
    if draw(st.booleans()):
        changes["rope_theta"] = draw(theta)
    for key in ("rope_parameters", "rope_scaling"):
        kind = draw(st.sampled_from(["rope_type", "type", None]))
        value = {"rope_theta": draw(theta)} if draw(st.booleans()) else {}
        if kind is not None:
            changes[key] = draw(st.sampled_from([None, value | {kind: "default"}]))
    if draw(st.booleans()):
        changes |= {"head_dim": None, "num_key_value_heads": None}
    return changes
