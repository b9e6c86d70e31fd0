"""A static report on a saved Core ML package: what it computes, where it can run, how much it moves.

Nothing here was measured on Apple hardware. The Neural Engine computes in fp16 only, so operations on integers,
booleans and fp32 leave it by type; the other entries of `REPORTED` are operations whose Core ML compute plans are
reported to prefer another unit. Bytes are counted from the program: weights, states read and written, and, as an
upper bound, every intermediate result written and read once (compilers fuse most of them away).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from export.coreml.storage import ALIGNMENT, FP16

REPORTED = {
    "gather": "indexed by a value that is known only at run time",
    "gather_along_axis": "indexed by a value that is known only at run time",
    "reduce_argmax": "returns an index",
    "slice_update": "its position is known only at run time",
}
NOT_COMPUTED = {"const", "read_state", "write_state"}
WEIGHT_FREE = {"gather"}  # reads one row of its table, not the table


def package_report(package: Path) -> dict[str, Any]:
    """The report as JSON-ready data. package: a saved .mlpackage."""
    model = _specification(package)
    functions = {name: _function_report(f) for name, f in model.mlProgram.functions.items()}
    return {
        "specification_version": model.specificationVersion,
        "package_bytes": sum(f.stat().st_size for f in package.rglob("*") if f.is_file()),
        "states": _states(model),
        "functions": functions,
    }


def _specification(package: Path) -> Any:
    from export.coreml.convert import import_coremltools

    import_coremltools()
    from coremltools.libmodelpackage import ModelPackage
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString(Path(ModelPackage(str(package)).getRootModel().path()).read_bytes())
    return model


def _shape(tensor: Any) -> list[int]:
    return [int(d.constant.size) for d in tensor.dimensions]


def _bytes(tensor: Any) -> int:
    """Bytes of a MIL tensor type."""
    return int(np.prod(_shape(tensor), dtype=np.int64)) * _bits(tensor) // 8


def _bits(tensor: Any) -> int:
    return _BITS[_type_name(tensor)]


def _type_name(tensor: Any) -> str:
    from coremltools.proto import MIL_pb2

    return str(MIL_pb2.DataType.Name(tensor.dataType))


_BITS = {"FLOAT16": 16, "FLOAT32": 32, "BOOL": 8, "STRING": 8}
_BITS |= {f"{sign}INT{n}": n for sign in ("", "U") for n in (1, 2, 3, 4, 6, 8, 16, 32, 64)}


def _states(model: Any) -> dict[str, Any]:
    """Count, bytes and alignment of the states of the first function (all functions share them)."""
    function = next(iter(model.mlProgram.functions.values()))
    tensors = {
        i.name: i.type.stateType.wrappedType.tensorType
        for i in function.inputs
        if i.type.WhichOneof("type") == "stateType"
    }
    shapes = {name: _shape(t) for name, t in tensors.items()}
    return {
        "count": len(shapes),
        "bytes": sum(_bytes(t) for t in tensors.values()),
        "last_axis_unaligned": sorted(n for n, s in shapes.items() if s[-1] % ALIGNMENT),
        "other_axis_unaligned": sorted(n for n, s in shapes.items() if any(d > 1 and d % ALIGNMENT for d in s[:-1])),
    }


def _function_report(function: Any) -> dict[str, Any]:
    block = function.block_specializations[function.opset]
    histogram: Counter[str] = Counter()
    leaving: Counter[str] = Counter()
    constants: dict[str, int] = {}  # bytes in the weight file, by the constant's name
    gathered: set[str] = set()
    used: set[str] = set()
    read = written = intermediate = 0
    sliced = {
        op.outputs[0].name: op.inputs["update"].arguments[0].name
        for op in block.operations
        if op.type == "slice_update"
    }  # of these, a state update moves the new rows only
    sizes: dict[str, int] = {}
    for op in block.operations:
        for output in op.outputs:
            if output.type.WhichOneof("type") == "tensorType":
                sizes[output.name] = _bytes(output.type.tensorType)
        if op.type == "const" or op.type.startswith("constexpr"):
            constants[op.outputs[0].name] = _blob_bytes(op)
        if op.type == "const":
            continue
        histogram[op.type] += 1
        names = [a.name for argument in op.inputs.values() for a in argument.arguments if a.name]
        (gathered if op.type in WEIGHT_FREE else used).update(names)
        if op.type == "read_state":
            read += sizes[op.outputs[0].name]
        elif op.type == "write_state":
            value = op.inputs["data"].arguments[0].name
            written += sizes.get(sliced.get(value, value), 0)
        elif not op.type.startswith("constexpr"):
            intermediate += sum(sizes.get(o.name, 0) for o in op.outputs)
            reason = _reason(op)
            if reason:
                leaving[f"{op.type} ({reason})"] += 1
    inputs = [v.type.tensorType for v in function.inputs if v.type.WhichOneof("type") == "tensorType"]
    weights = sum(size for name, size in constants.items() if name in used)
    return {
        "operations": sum(histogram.values()),
        "histogram": dict(histogram.most_common()),
        "leaving_the_neural_engine": dict(leaving.most_common()),
        "bytes_per_call": {
            "weights": weights,
            "states_read": read,
            "states_written": written,
            "inputs": sum(_bytes(tensor) for tensor in inputs),
            "outputs": sum(sizes[name] for name in block.outputs),
            "intermediates_if_nothing_is_fused": 2 * intermediate,
        },
    }


def _blob_bytes(op: Any) -> int:
    """Bytes that a constant keeps in the package's weight file."""
    arguments = [a.value for i in op.inputs.values() for a in i.arguments if a.WhichOneof("binding") == "value"]
    values = [*op.attributes.values(), *arguments]
    return sum(_bytes(v.type.tensorType) for v in values if v.WhichOneof("value") == "blobFileValue")


def _reason(op: Any) -> str | None:
    """Why an operation leaves the Neural Engine, or None."""
    if op.type in NOT_COMPUTED:
        return None
    types = {_type_name(o.type.tensorType) for o in op.outputs if o.type.WhichOneof("type") == "tensorType"}
    if types - {"FLOAT16"}:
        return "result is " + ", ".join(sorted(t.lower() for t in types - {"FLOAT16"}))
    return REPORTED.get(op.type)


def print_report(manifest: dict[str, Any], console: Console) -> None:
    """What a user wants to know of an exported package."""
    report = manifest["report"]
    table = Table(show_header=False)
    size = report["package_bytes"] / 1e6
    target = f"{manifest['deployment_target']} (specification {report['specification_version']})"
    table.add_row("package", f"{manifest['program']}, {size:.1f} MB, weights {manifest['weights']}, {target}")
    for row in core_ml_cache(manifest):
        table.add_row(*row)
    for name, f in report["functions"].items():
        moved = f["bytes_per_call"]
        table.add_row(
            name,
            f"{f['operations']} operations, {sum(f['leaving_the_neural_engine'].values())} leave the Neural Engine;"
            f" reads {moved['weights'] / 1e6:.1f} MB of weights, {moved['states_read'] / 1e6:.2f} MB of states and"
            f" {moved['inputs'] / 1e6:.2f} MB of inputs",
        )
    console.print(table)
    console.print(forms_table(manifest))


def core_ml_cache(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """What the cache takes in Core ML's own storage, and what each tier does; label and text."""
    cache, states = manifest["kv_cache"], manifest["core_ml_states"]
    inputs = "" if states["cache_io"] == FP16.name else f"{len(manifest['core_ml_inputs']['arrays'])} inputs and "
    size = (
        f"{inputs}{len(states['states'])} states, {states['bytes_allocated'] / 2**20:.2f} MiB for"
        f" {cache['context']} tokens, {states['bits_per_value']:.2f} bits a value,"
        f" {100 * states['share_of_fp16']:.1f} % of fp16"
    )
    stored = states["row_bits_per_value"]
    tiers = [f"{t['capacity']} at {stored[str(t['bits'])]:.2f}" for t in cache["tiers"] if t["capacity"]]
    return [
        ("KV cache", size),
        ("tokens by bits, padded", ", ".join([f"window {cache['window']}", *tiers])),
    ]


def forms_table(manifest: dict[str, Any]) -> Table:
    """Bytes of the exported plan's cache in both forms: fp16 states, and int8 inputs with the rows that come back."""
    forms = manifest["cache_forms"]
    table = Table(title="bytes of this cache in either form (--cache-io)", title_justify="left")
    table.add_column("")
    for name in forms:
        table.add_column(
            name + (" (exported)" if name == manifest["core_ml_states"]["cache_io"] else ""), justify="right"
        )
    rows = {name: name.replace("tier_", "tier of bits ") for name in forms[FP16.name]["bytes"]}
    for name, label in rows.items():
        table.add_row(label, *(f"{form['bytes'][name]:,}" for form in forms.values()))
    table.add_row("total", *(f"{form['bytes_allocated']:,}" for form in forms.values()), end_section=True)
    table.add_row("bits a value", *(f"{form['bits_per_value']:.2f}" for form in forms.values()))
    table.add_row("share of fp16", *(f"{100 * form['share_of_fp16']:.1f} %" for form in forms.values()))
    sizes = [form.get("output_bytes", {}) for form in forms.values()]
    for tokens in sorted({int(n) for size in sizes for n in size}):
        table.add_row(f"new rows returned, {tokens} token(s)", *(f"{s.get(str(tokens), 0):,}" for s in sizes))
    return table


__all__ = ["core_ml_cache", "forms_table", "package_report", "print_report"]
