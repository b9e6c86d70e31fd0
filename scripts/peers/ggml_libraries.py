"""The C interfaces of llama.cpp and ik_llama.cpp inside their wheels, through ctypes.

The wheels' own Python interfaces have no timing of single steps, and xllamacpp's none for the cache's type. Only
functions that both libraries share are used here; they differ in two structures.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "q8_KV": 151}  # ggml_type; the last is ik_llama.cpp's own
V_TYPES = {"q8_KV": "q8_0"}  # of caches whose V needs another type than K: ik_llama.cpp aborts on V in q8_KV

#: llama_context_params of the pinned xllamacpp as int32 words: which word is what, and its default, checked on load.
WORDS = {
    "n_ctx": (0, 512),
    "n_batch": (1, 2048),
    "n_ubatch": (2, 512),
    "n_seq_max": (3, 1),
    "n_threads": (7, 4),
    "n_threads_batch": (8, 4),
    "flash_attn_type": (13, -1),
    "type_k": (26, 1),
    "type_v": (27, 1),
}


class Parameters(ctypes.Structure):
    """Room for any version's parameter structure: passed by value, the callee reads only its own part."""

    _fields_ = [("words", ctypes.c_int32 * 128)]


class Batch(ctypes.Structure):
    """llama_batch; ik_llama.cpp appends three words that are read only where `pos` is null."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class IkBatch(ctypes.Structure):
    _fields_ = [*Batch._fields_, ("all", ctypes.c_int32 * 3)]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class LlamaCpp:
    """llama.cpp inside xllamacpp."""

    batch_type: type[ctypes.Structure] = Batch

    def __init__(self) -> None:
        import xllamacpp

        self.version = f"xllamacpp {xllamacpp.__version__}"
        self.lib = self.ggml = ctypes.CDLL(str(next(Path(xllamacpp.__path__[0]).glob("*.so"))))
        self._declare()

    def _declare(self) -> None:
        lib, pointer = self.lib, ctypes.c_void_p
        lib.llama_model_get_vocab.argtypes, lib.llama_model_get_vocab.restype = [pointer], pointer
        lib.llama_vocab_n_tokens.argtypes = [pointer]
        lib.llama_print_system_info.restype = ctypes.c_char_p
        lib.llama_decode.argtypes = [pointer, self.batch_type]
        lib.llama_get_logits_ith.argtypes = [pointer, ctypes.c_int32]
        lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
        lib.llama_synchronize.argtypes = [pointer]
        for name in ("llama_n_batch", "llama_n_ubatch"):
            getattr(lib, name).argtypes = [pointer]
        self._log = LOG(lambda level, text, data: None)
        lib.llama_log_set(self._log, None)

    def open(self, path: str, context: int, cache: str, threads: int, batch: int) -> tuple[Any, Any]:
        """(model, context) handles."""
        lib = self.lib
        lib.llama_model_default_params.restype = lib.llama_context_default_params.restype = Parameters
        lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Parameters]
        lib.llama_init_from_model.argtypes = [ctypes.c_void_p, Parameters]
        lib.llama_model_load_from_file.restype = lib.llama_init_from_model.restype = ctypes.c_void_p
        lib.llama_backend_init()
        model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        if any(params.words[at] != default for at, default in WORDS.values()):
            raise RuntimeError("llama_context_params has another layout: use the pinned xllamacpp")
        values = {
            "n_ctx": context,
            "n_batch": batch,
            "n_ubatch": batch,
            "n_threads": threads,
            "n_threads_batch": threads,
            "flash_attn_type": 1,
            "type_k": TYPES[cache],
            "type_v": TYPES[V_TYPES.get(cache, cache)],
        }
        for name, value in values.items():
            params.words[WORDS[name][0]] = value
        return model, lib.llama_init_from_model(model, params)

    def row_bytes(self, cache: str, values: int) -> int:
        """Bytes of a K row and a V row of so many values each."""
        size = self.ggml.ggml_row_size
        size.argtypes, size.restype = [ctypes.c_int, ctypes.c_int64], ctypes.c_size_t
        return size(TYPES[cache], values) + size(TYPES[V_TYPES.get(cache, cache)], values)

    def clear(self, context: Any) -> None:
        lib = self.lib
        lib.llama_get_memory.argtypes, lib.llama_get_memory.restype = [ctypes.c_void_p], ctypes.c_void_p
        lib.llama_memory_clear.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        lib.llama_memory_clear(lib.llama_get_memory(context), True)


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp inside ik-llama-cpp-python."""

    batch_type = IkBatch

    def __init__(self) -> None:
        from importlib.metadata import version

        from ik_llama_cpp import _ctypes_api as api

        self.version = f"ik-llama-cpp-python {version('ik-llama-cpp-python')}"
        self.api, self.lib = api, api._lib
        self.ggml = self.lib  # a symbol of libggml is found through what libllama was linked with
        self._declare()

    def open(self, path: str, context: int, cache: str, threads: int, batch: int) -> tuple[Any, Any]:
        api = self.api
        api.llama_decode.argtypes = [ctypes.c_void_p, IkBatch]
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.flash_attn = True
        model = api.llama_model_load_from_file(path.encode(), params)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, batch, batch
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn = True
        params.type_k = TYPES[cache]
        params.type_v = TYPES[V_TYPES.get(cache, cache)]
        return model, api.llama_init_from_model(model, params)

    def clear(self, context: Any) -> None:
        self.api.llama_kv_cache_clear(context)
