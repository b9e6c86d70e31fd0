"""The compiled kernels, called from Python: same functions as :mod:`adakv_model.reference`, same arguments.

Used by the kernel tests and by whoever needs the cache in eager mode at the kernels' speed. The library is the
operator library of the Android target; it also registers the ``adakv::`` operators with the ExecuTorch runtime.
"""

from __future__ import annotations

import ctypes
import functools
import os
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from adakv_model.digest import sha256_of
from adakv_model.errors import UserError
from adakv_model.features import FEATURES
from adakv_model.linear.blocks import GROUP, ROWS
from adakv_model.packing import Side, padded
from adakv_model.quantizer import ScaleMode, is_narrow, row_bytes
from adakv_model.reference import check_step

LIBRARY_NAME = "libadakv_ops.so"
THREADS = 2


def operator_library() -> Path:
    """The installed operator library; `$ADAKV_OPS_LIBRARY` overrides. Raises UserError if it was not built."""
    override = os.environ.get("ADAKV_OPS_LIBRARY")
    if override:
        if not Path(override).is_file():
            raise UserError(f"ADAKV_OPS_LIBRARY points to {override}, which does not exist")
        return Path(override)
    try:
        files = metadata.files("adakv") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == LIBRARY_NAME and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise UserError(f"the operator library {LIBRARY_NAME} is not built: run `make venv` (or pip install this package)")


_loaded: dict[str, ctypes.CDLL] = {}


def load_library(path: Path | None = None) -> ctypes.CDLL:
    """Load the operator library, which also registers the operators with ExecuTorch.

    Once per process, because registering an operator twice aborts: a second artifact's copy is not loaded but must
    have the same content, else UserError.
    """
    path = path or operator_library()
    digest = sha256_of(path)
    if digest in _loaded:
        return _loaded[digest]
    if _loaded:
        raise UserError(f"another version of the operator library is loaded: use {path} in a process of its own")
    # The runtime must be in the process first. Its extension module alone: portable_lib imports all of exir.
    from executorch.extension.pybindings import _C  # noqa: F401

    try:
        library = ctypes.CDLL(str(path))
    except OSError as e:
        raise UserError(f"cannot load the operator library {path}: {e}") from e
    library.adakv_attend_kernels.restype = ctypes.c_char_p
    library.adakv_attend_workspace.restype = ctypes.c_int64
    _loaded[digest] = library
    return library


@functools.cache
def _kernels() -> ctypes.CDLL:
    return load_library()


def _pointer(x: Tensor) -> ctypes.c_void_p:
    assert x.is_contiguous()
    return ctypes.c_void_p(x.data_ptr())


def _i64(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def quantize_rows(x: Tensor, bits: int, side: Side = Side.KEY) -> tuple[Tensor, Tensor]:
    """x float32 [n, D] -> packed uint8, whole blocks, and scales [n], uint8 (narrow rows) or float16."""
    n, dim = x.shape
    packed = torch.zeros(padded(n) * row_bytes(bits, dim), dtype=torch.uint8)
    scales = torch.zeros(padded(n), dtype=torch.uint8 if is_narrow(bits) else torch.float16)
    _kernels().adakv_quantize_rows(_pointer(x), n, bits, dim, int(side), _pointer(packed), _pointer(scales))
    return packed, scales


def dequantize_rows(
    packed: Tensor, scales: Tensor, rows: int, bits: int, dim: int, mode: ScaleMode, side: Side = Side.KEY
) -> Tensor:
    """The first rows of what :func:`quantize_rows` packed: float32 [rows, D]."""
    out = torch.empty(rows, dim)
    _kernels().adakv_dequantize_rows(
        _pointer(packed), _pointer(scales), rows, bits, int(mode), dim, int(side), _pointer(out)
    )
    return out


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal Hadamard transform of float32 [n, D]."""
    out = x.clone()
    _kernels().adakv_hadamard(_pointer(out), *out.shape)
    return out


def transform(x: Tensor, columns: Tensor) -> Tensor:
    """Rows x float32 [n, D] times columns float32 [D, D]."""
    out = torch.empty_like(x)
    _kernels().adakv_transform(_pointer(x), x.shape[0], _pointer(columns), x.shape[1], _pointer(out))
    return out


def score_rows(
    isa: str, packed: Tensor, scales: Tensor, rows: int, bits: int, mode: ScaleMode, queries: Tensor
) -> Tensor | None:
    """<query, row> float32 [n queries, rows] of K rows on one instruction set; None if this CPU lacks it."""
    n, dim = queries.shape
    out = torch.empty(n, padded(rows))
    status = _kernels().adakv_score_rows(
        isa.encode(), bits, int(mode), _pointer(packed), _pointer(scales), rows, _pointer(queries), n, dim,
        _pointer(out), _i64(out.shape[1]),
    )  # fmt: skip
    return None if status else out[:, :rows]


def accumulate_rows(
    isa: str, packed: Tensor, scales: Tensor, bits: int, mode: ScaleMode, weights: Tensor, dim: int
) -> Tensor | None:
    """weights float32 [n, rows] times V rows: float32 [n, D]; None if this CPU lacks the instruction set."""
    n, rows = weights.shape
    out = torch.zeros(n, dim)
    status = _kernels().adakv_accumulate_rows(
        isa.encode(), bits, int(mode), _pointer(packed), _pointer(scales), rows, _pointer(weights), n, dim,
        _pointer(out),
    )  # fmt: skip
    return None if status else out


def softmax_part(isa: str, x: Tensor) -> tuple[Tensor, float, float] | None:
    """exp(x - largest) of x [n], their sum, and the largest; None if this CPU lacks the instruction set."""
    out, sums = x.clone(), torch.empty(2)
    status = _kernels().adakv_softmax_part(isa.encode(), _pointer(out), _i64(x.numel()), _pointer(sums))
    return None if status else (out, float(sums[0]), float(sums[1]))


def depart(
    tokens: Tensor,
    input_pos: Tensor,
    token_log_frequency: Tensor,
    progress: Tensor,
    history: Tensor,
    observed: Tensor,
    attention: Tensor,
    n_attentions: int,
    lag: int,
    window: int,
    departure: int,
) -> Tensor:
    p, count, ring = int(input_pos), tokens.shape[-1], observed.shape[0]
    check_step(p, count, int(progress[0]), history.shape[0], window, departure)
    out = torch.empty(count + departure - 1, len(FEATURES))
    _kernels().adakv_depart(
        _pointer(tokens), count, _i64(p), _pointer(token_log_frequency), _pointer(history), _pointer(observed),
        _pointer(attention), ring, _i64(n_attentions), _i64(lag), _i64(window), _i64(departure), _pointer(out),
    )  # fmt: skip
    return out


def assign(
    logits: Tensor,
    input_pos: Tensor,
    capacities: Tensor,
    progress: Tensor,
    tiers: Tensor,
    window: int,
    departure: int,
) -> Tensor:
    p, count = int(input_pos), logits.shape[0] - departure + 1
    check_step(p, count, int(progress[0]), tiers.shape[0], window, departure)
    out = torch.empty(logits.shape[0], 2 + capacities.shape[0], dtype=torch.int32)
    status = _kernels().adakv_assign(
        _pointer(logits), count, _i64(p), _pointer(capacities), capacities.shape[0], _pointer(progress),
        _pointer(tiers), _i64(window), _i64(departure), _pointer(out),
    )  # fmt: skip
    if status:
        raise ValueError("every tier is full: the plan does not hold the context")
    return out


class _AttendArgs(ctypes.Structure):
    """adakv::AttendArgs of csrc/cache/cache.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("qkv", "cos", "sin", "plan", "k_mean", "v_mean")),
        *((name, ctypes.c_void_p) for name in ("k_columns", "q_columns", "layout", "cache", "attention", "workspace")),
        ("out", ctypes.c_void_p),
        ("p", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("count", "n_heads", "n_kv_heads", "head_dim", "n_tiers")),
        *((name, ctypes.c_int64) for name in ("window", "departure", "lag")),
    ]


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    plan: Tensor,
    input_pos: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    k_columns: Tensor,
    q_columns: Tensor,
    layout: Tensor,
    cache: Tensor,
    attention: Tensor,
    workspace: Tensor,
    lag: int,
    window: int,
    departure: int,
    threads: int = THREADS,
) -> Tensor:
    (kv_heads, dim), count = k_mean.shape, qkv.shape[1]
    heads = qkv.shape[2] // dim - 2 * kv_heads
    if (layout[..., -1] & int(ScaleMode.HALF)).any():
        raise ValueError("the kernels read scales of one byte only: a plan for Core ML stores fp16 ones")
    out = torch.empty(1, count, heads * dim)
    tensors = [qkv.contiguous(), cos, sin, plan, k_mean, v_mean, k_columns, q_columns]
    tensors += [layout, cache, attention, workspace, out]
    arguments = _AttendArgs(
        *(_pointer(t) for t in tensors), int(input_pos), count, heads, kv_heads, dim, plan.shape[1] - 2,
        window, departure, lag,
    )  # fmt: skip
    assert workspace.numel() >= _kernels().adakv_attend_workspace(ctypes.byref(arguments))
    _kernels().adakv_attend(ctypes.byref(arguments), threads)
    return out


def observe(logits: Tensor, tokens: Tensor, input_pos: Tensor, observed: Tensor, last_logits: Tensor) -> Tensor:
    count = tokens.shape[-1]
    out = torch.empty(count)
    _kernels().adakv_observe(
        _pointer(logits.contiguous()), _pointer(tokens), count, _i64(int(input_pos)), _i64(last_logits.numel()),
        _pointer(observed), observed.shape[0], _pointer(last_logits), _pointer(out), THREADS,
    )  # fmt: skip
    return out


def table_product(isa: str, x: Tensor, codes: Tensor, scales: Tensor, rows: int) -> Tensor | None:
    """x float32 [T, K] times the token table: float32 [T, rows]; None if this CPU lacks the instruction set."""
    out = torch.empty(x.shape[0], rows)
    status = _kernels().adakv_table_product(
        isa.encode(), _pointer(codes), _pointer(scales), _i64(rows), x.shape[1], _pointer(x), x.shape[0],
        _pointer(out), THREADS,
    )  # fmt: skip
    return None if status else out


def norm_linear(isa: str, x: Tensor, norm: Tensor, eps: float, blocks: Tensor, units: Tensor) -> Tensor | None:
    """:func:`adakv_model.linear.int4.norm_linear`, x [T, K] -> [T, N]; None if this CPU lacks the instruction set."""
    return _int4("norm", isa, blocks, units, x, _pointer(x), _pointer(norm), ctypes.c_float(eps))


def add_linear(isa: str, x: Tensor, residual: Tensor, blocks: Tensor, units: Tensor) -> Tensor | None:
    """:func:`adakv_model.linear.int4.add_linear`, likewise."""
    return _int4("add", isa, blocks, units, x, _pointer(x), _pointer(residual))


def swiglu_linear(isa: str, gate_up: Tensor, residual: Tensor, blocks: Tensor, units: Tensor) -> Tensor | None:
    """:func:`adakv_model.linear.int4.swiglu_linear`, likewise."""
    return _int4("swiglu", isa, blocks, units, gate_up, _pointer(gate_up), _pointer(residual))


def _int4(name: str, isa: str, blocks: Tensor, units: Tensor, x: Tensor, *inputs: object) -> Tensor | None:
    out = torch.empty(x.shape[0], blocks.shape[0] * ROWS)
    status = getattr(_kernels(), f"adakv_{name}_linear")(
        isa.encode(), _pointer(blocks), _pointer(units), _i64(out.shape[1]), blocks.shape[1] * GROUP, *inputs,
        x.shape[0], _pointer(out), THREADS,
    )  # fmt: skip
    return None if status else out


def table_lookup(tokens: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Rows of the token table: float32 [len(tokens), K]."""
    out = torch.empty(tokens.numel(), codes.shape[1] * GROUP)
    arguments = (_pointer(codes), _pointer(scales), _i64(ROWS * codes.shape[0]), out.shape[1])
    _kernels().adakv_table_lookup(*arguments, _pointer(tokens), tokens.numel(), _pointer(out))
    return out
