"""Registers the ``adakv::`` operators with torch: schema, shapes for export, and the reference kernels.

Each operator has its ``.out`` form, which ExecuTorch calls; ``csrc/register*.cpp`` register the C++ kernels
under the same names. Importing this module is enough; it is safe to import twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library

from adakv_model import attention, reference
from adakv_model.features import FEATURES
from adakv_model.linear import blocks, int4, table

SCHEMAS = {
    "depart": (
        "Tensor tokens, Tensor input_pos, Tensor token_log_frequency, Tensor progress, Tensor(a!) history,"
        " Tensor(b!) observed, Tensor(c!) attention, int n_attentions, int lag, int window, int departure"
    ),
    "assign": (
        "Tensor logits, Tensor input_pos, Tensor capacities, Tensor(a!) progress, Tensor(b!) tiers, int window,"
        " int departure"
    ),
    "attend": (
        "Tensor qkv, Tensor cos, Tensor sin, Tensor plan, Tensor input_pos, Tensor k_mean, Tensor v_mean,"
        " Tensor k_columns, Tensor q_columns, Tensor layout, Tensor(a!) cache, Tensor(b!) attention,"
        " Tensor(c!) workspace, int lag, int window, int departure"
    ),
    "observe": "Tensor logits, Tensor tokens, Tensor input_pos, Tensor(a!) observed, Tensor(b!) last_logits",
    "table_lookup": "Tensor tokens, Tensor codes, Tensor scales",
    "table_product": "Tensor x, Tensor codes, Tensor scales, int rows",
    "norm_linear": "Tensor x, Tensor norm, float eps, Tensor blocks, Tensor units",
    "add_linear": "Tensor x, Tensor residual, Tensor blocks, Tensor units",
    "swiglu_linear": "Tensor gate_up, Tensor residual, Tensor blocks, Tensor units",
}

_KERNELS: dict[str, Callable[..., Tensor]] = {
    "depart": reference.depart,
    "assign": reference.assign,
    "attend": attention.attend,
    "observe": reference.observe,
    "table_lookup": table.lookup,
    "table_product": table.product,
    "norm_linear": int4.norm_linear,
    "add_linear": int4.add_linear,
    "swiglu_linear": int4.swiglu_linear,
}


def _depart_shape(tokens: Tensor, *args: object) -> Tensor:
    departure = args[-1]
    assert isinstance(departure, int)
    return tokens.new_empty((tokens.shape[1] + departure - 1, len(FEATURES)), dtype=torch.float32)


def _assign_shape(logits: Tensor, input_pos: Tensor, capacities: Tensor, *_: object) -> Tensor:
    return logits.new_empty((logits.shape[0], 2 + capacities.shape[0]), dtype=torch.int32)


def _attend_shape(qkv: Tensor, *args: object) -> Tensor:
    k_mean = args[4]
    assert isinstance(k_mean, Tensor)
    return qkv.new_empty((1, qkv.shape[1], qkv.shape[2] - 2 * k_mean.numel()))


def _observe_shape(logits: Tensor, *_: object) -> Tensor:
    return logits.new_empty((logits.shape[1],))


def _table_lookup_shape(tokens: Tensor, codes: Tensor, _: Tensor) -> Tensor:
    return codes.new_empty((1, tokens.shape[1], codes.shape[1] * blocks.GROUP), dtype=torch.float32)


def _table_product_shape(x: Tensor, codes: Tensor, scales: Tensor, rows: int) -> Tensor:
    return x.new_empty((1, x.shape[1], rows))


def _norm_linear_shape(x: Tensor, norm: Tensor, eps: float, weight: Tensor, units: Tensor) -> Tensor:
    return x.new_empty((1, x.shape[1], weight.shape[0] * blocks.ROWS))


def _residual_shape(x: Tensor, residual: Tensor, weight: Tensor, units: Tensor) -> Tensor:
    return x.new_empty((1, x.shape[1], residual.shape[2]))


_SHAPES: dict[str, Callable[..., Tensor]] = {
    "depart": _depart_shape,
    "assign": _assign_shape,
    "attend": _attend_shape,
    "observe": _observe_shape,
    "table_lookup": _table_lookup_shape,
    "table_product": _table_product_shape,
    "norm_linear": _norm_linear_shape,
    "add_linear": _residual_shape,
    "swiglu_linear": _residual_shape,
}


def _out_variant(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: object, out: Tensor) -> Tensor:
        result = kernel(*args)
        out.resize_(result.shape)
        return out.copy_(result)

    return call


def _register() -> Library:
    library = Library("adakv", "DEF")
    for name, arguments in SCHEMAS.items():
        library.define(f"{name}({arguments}) -> Tensor")
        library.define(f"{name}.out({arguments}, *, Tensor(z!) out) -> Tensor(z!)")
        library.impl(name, _KERNELS[name], "CompositeExplicitAutograd")
        library.impl(f"{name}.out", _out_variant(_KERNELS[name]), "CompositeExplicitAutograd")
        library._register_fake(name, _SHAPES[name])
    return library


LIBRARY = _register()
