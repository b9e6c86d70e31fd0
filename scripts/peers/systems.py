"""The systems that are compared, and how --systems names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adakv_model.errors import UserError

#: Caches of every system, the default ones first; None stands for the budgets of --kv-bits.
CACHES: dict[str, tuple[str | None, ...]] = {
    "adakv": (None, "static-4", "fp16"),
    "llama.cpp": ("f16", "q8_0", "q4_0"),
    "ik_llama.cpp": ("f16", "q8_0", "q8_KV"),
    "transformers": ("fp32",),
    "mnn": ("fp32", "int8"),
    "onnxruntime-genai": ("fp32",),
    "executorch": ("fp32", "int8"),
}
BY_NAME_ONLY = {"executorch"}  # its export takes a quarter of an hour
EXTRA = {"executorch": {"int8"}}  # caches that run only when named with their system
GGML = ("llama.cpp", "ik_llama.cpp")
PEERS = (*GGML, "mnn", "onnxruntime-genai")  # they run in the peers' own environment

#: Caches in full or half precision over weights that equal the checkpoint's: the first that ran is the reference.
REFERENCES = (("llama.cpp", "f16"), ("transformers", "fp32"), ("ik_llama.cpp", "f16"), ("adakv", "fp16"))

#: What an --isa does to each system besides ADAKV_ISA: variables of the child, or why there are none.
ISA_VARIABLES = {"adakv": ("ADAKV_ISA",), "transformers": ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")}
ISA_NOTES = {
    "adakv": "its own kernels only, not XNNPACK's, which has no switch",
    "transformers": "torch's loops and oneDNN, not MKL",
    "llama.cpp": "no switch; the wheel's build is fixed, see its row",
    "ik_llama.cpp": "no switch; the wheel's build is fixed, see its row",
    "mnn": "no switch",
    "onnxruntime-genai": "no switch",
    "executorch": "no switch",
}


@dataclass(frozen=True, order=True)
class Variant:
    """One system with one cache. batch: its prefill chunk where it has to be chosen, else 0; flawed: chosen although
    its loss is wrong, to show what it would take; such a variant runs in the first round only."""

    system: str
    cache: str
    batch: int = 0
    flawed: bool = False

    @property
    def label(self) -> str:
        return f"{self.cache}, batch {self.batch}" if self.flawed else self.cache

    def with_batch(self, batch: int, flawed: bool = False) -> Variant:
        return replace(self, batch=batch, flawed=flawed)


def parse_systems(text: str, kv_bits: Sequence[float]) -> list[Variant]:
    """`system` or `system:cache`, comma-separated; "" means all that need no long preparation. Raises UserError."""
    names = text.split(",") if text else [name for name in CACHES if name not in BY_NAME_ONLY]
    variants: list[Variant] = []
    for name in names:
        system, _, cache = name.partition(":")
        if system not in CACHES:
            raise UserError(f"unknown system {system!r}: one of {', '.join(CACHES)}")
        variants += [Variant(system, c) for c in _caches(system, cache, kv_bits)]
    return list(dict.fromkeys(variants))


def _caches(system: str, cache: str, kv_bits: Sequence[float]) -> list[str]:
    budgets = [f"adaptive-{bits:g}" for bits in kv_bits]
    known = [c for entry in CACHES[system] for c in (budgets if entry is None else [entry])]
    if not cache:
        return [c for c in known if c not in EXTRA.get(system, ())]
    if system == "adakv" and cache.startswith(("adaptive-", "static-")) and _is_number(cache.partition("-")[2]):
        return [cache]
    if cache not in known:
        raise UserError(f"{system} has no cache {cache!r} here: one of {', '.join(known)}")
    return [cache]


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def isa_environment(system: str, isa: str | None) -> dict[str, str]:
    """Variables that limit a child to an instruction set."""
    if isa is None:
        return {}
    return {name: isa.upper() if name.startswith("ONEDNN") else isa for name in ISA_VARIABLES.get(system, ())}
