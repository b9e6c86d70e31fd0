"""Child of scripts/bench_peers.py: one run of llama.cpp or ik_llama.cpp. Job: engine, model, cache, batch."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np

from peers.ggml_libraries import IkLlamaCpp, LlamaCpp
from peers.measure import child_main

PADDING = 256  # both libraries round the context up to it


class Ggml:
    """An Engine on either library."""

    def __init__(self, job: dict) -> None:
        self.library = IkLlamaCpp() if job["engine"] == "ik_llama.cpp" else LlamaCpp()
        self.lib, self.batch = self.library.lib, job["batch"]
        self.job, self.position = job, 0
        self.size = -(-(len(job["tokens"]) - 1) // PADDING) * PADDING
        self.model, self.context = self.library.open(job["model"], self.size, job["cache"], job["threads"], self.batch)
        if not self.model or not self.context:
            raise RuntimeError(f"{job['engine']} refuses the model or a {job['cache']} cache")
        if self.lib.llama_n_ubatch(self.context) != self.batch:
            raise RuntimeError("the library did not take the parameters")
        self.vocab = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        self._one = self._batch([0])
        self._last = 0

    def _batch(self, tokens: list[int]) -> ctypes.Structure:
        """A batch at the current position; logits of its last token only."""
        n = len(tokens)
        sequence = (ctypes.c_int32 * 1)(0)
        fields: dict[str, Any] = {
            "token": (ctypes.c_int32 * n)(*tokens),
            "pos": (ctypes.c_int32 * n)(*range(self.position, self.position + n)),
            "n_seq_id": (ctypes.c_int32 * n)(*[1] * n),
            "seq_id": (ctypes.POINTER(ctypes.c_int32) * n)(
                *[ctypes.cast(sequence, ctypes.POINTER(ctypes.c_int32))] * n
            ),
            "logits": (ctypes.c_int8 * n)(*[0] * (n - 1), 1),
        }
        batch = self.library.batch_type(n_tokens=n)
        types: dict[str, Any] = {field[0]: field[1] for field in self.library.batch_type._fields_}
        for name, array in fields.items():
            setattr(batch, name, ctypes.cast(array, types[name]))
        batch.kept = (sequence, fields)  # the arrays live as long as the batch
        return batch

    def _decode(self, batch: ctypes.Structure) -> None:
        if status := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode failed with {status} at position {self.position}")
        self.lib.llama_synchronize(self.context)
        self.position += batch.n_tokens
        self._last = batch.n_tokens - 1

    def reset(self) -> None:
        self.library.clear(self.context)
        self.position = 0

    def prefill(self, tokens: list[int]) -> None:
        for start in range(0, len(tokens), self.batch):
            self._decode(self._batch(tokens[start : start + self.batch]))

    def step(self, token: int) -> None:
        self._one.token[0], self._one.pos[0] = token, self.position
        self._decode(self._one)
        self.lib.llama_get_logits_ith(self.context, 0)

    def logits(self) -> np.ndarray:
        row = self.lib.llama_get_logits_ith(self.context, self._last)
        return np.ctypeslib.as_array(row, (self.vocab,)).copy()

    def facts(self) -> dict[str, Any]:
        rows = self.size * self.job["n_layers"] * self.job["n_kv_heads"]
        return {
            "build": self.library.version + ", " + _instructions(self.lib.llama_print_system_info().decode()),
            "kv_bytes": rows * self.library.row_bytes(self.job["cache"], self.job["head_dim"]),
            "file_bytes": os.path.getsize(self.job["model"]),
        }


def _instructions(info: str) -> str:
    """The widest instruction set in llama_print_system_info."""
    on = [part.split("=")[0].replace("CPU :", "").strip() for part in info.split("|") if part.strip().endswith("= 1")]
    wide = [name for name in on if name.startswith("AVX512") or name in ("AVX2", "NEON", "DOTPROD", "AVX_VNNI")]
    return "+".join(wide) or "baseline"


if __name__ == "__main__":
    child_main(Ggml)
