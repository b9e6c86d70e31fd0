"""Packages with several functions and states: sharing, precision, checks and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from adakv_model.errors import UserError
from device_tests.coreml.evaluator.package import Package
from device_tests.coreml.evaluator.testing import ct, save_functions, save_program
from export.quiet import quiet

F16 = np.float16
WEIGHT = np.random.default_rng(5).normal(size=(32, 64)).astype(F16)


def counter(tokens: int) -> tuple[dict[str, Any], Any]:
    """A function that adds a row of 1 / 3 to a state at every call, and reads the state before and after."""

    def build(given: dict[str, Any]) -> list[Any]:
        before = mb.read_state(input=given["total"])
        grown = mb.add(x=before, y=mb.reduce_sum(x=given["x"], axes=[0], keep_dims=True))
        after = mb.coreml_update_state(state=given["total"], value=grown)
        product = mb.linear(x=after, weight=WEIGHT, name="product")
        return [product, mb.identity(x=before, name="before")]

    inputs = {
        "x": mb.placeholder((tokens, 64), dtype=types.fp16),
        "total": mb.state_tensor_placeholder((1, 64), dtype=types.fp16),
    }
    return inputs, build


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("functions")
    return save_functions(folder / "two.mlpackage", {"decode": counter(1), "prefill": counter(4)}, default="decode")


def test_describes_itself(package: Package) -> None:
    assert package.functions == ["decode", "prefill"]
    prefill = package.function("prefill")
    assert package.function().name == "decode"
    assert {name: str(spec) for name, spec in prefill.inputs.items()} == {"x": "float16[4, 64]"}
    assert {name: str(spec) for name, spec in prefill.outputs.items()} == {
        "product": "float16[1, 32]",
        "before": "float16[1, 64]",
    }
    assert {name: (spec.shape, spec.dtype) for name, spec in prefill.states.items()} == {"total": ((1, 64), F16)}
    assert package.operation_counts("prefill")["reduce_sum"] == 1


def test_functions_share_state_which_is_updated_in_place(package: Package) -> None:
    state = package.new_state()
    total = state["total"]
    first = package.function("prefill").run({"x": np.ones((4, 64))}, state)
    second = package.function("decode").run({"x": np.ones((1, 64))}, state)
    assert state["total"] is total
    assert np.all(total == 5)
    assert np.all(first["before"] == 0)
    assert np.all(second["before"] == 4)
    expected = (np.full((1, 64), 5, np.float32) @ WEIGHT.T.astype(np.float32)).astype(F16)
    np.testing.assert_allclose(second["product"], expected, rtol=1e-3)


def test_functions_share_weights_in_memory(package: Package) -> None:
    programs = [package.function(name) for name in package.functions]
    large = [
        {id(w) for w in program.constants if torch.is_tensor(w) and w.numel() == WEIGHT.size} for program in programs
    ]
    assert len(large[0]) == 1
    assert large[0] == large[1]


def test_half_precision_rounds_every_result_and_single_precision_none(package: Package) -> None:
    third = np.full((1, 64), 1 / 3, np.float32)
    half, single = package.new_state("fp16"), package.new_state("fp32")
    assert (half["total"].dtype, single["total"].dtype) == (F16, np.float32)
    expected = F16(0)
    for _ in range(50):
        package.function("decode").run({"x": third}, half)
        outputs = package.function("decode", "fp32").run({"x": third}, single)
        expected = F16(expected + F16(1 / 3))  # numpy's half arithmetic
    assert np.all(half["total"] == expected)
    np.testing.assert_allclose(single["total"], 50 / 3, rtol=1e-6)
    assert outputs["product"].dtype == np.float32
    assert expected != F16(50 / 3)


def test_a_failed_run_leaves_the_state_alone(package: Package) -> None:
    state = package.new_state()
    state["total"][:] = 7
    with pytest.raises(UserError, match=r"lacks x"):
        package.function("decode").run({}, state)
    assert np.all(state["total"] == 7)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": np.zeros((1, 64))}, r"lacks x and has no y: its inputs are x float16\[1, 64\]"),
        ({"x": np.zeros((2, 64))}, r"input 'x' of function 'decode' is float16\[1, 64\], not an array of \(2, 64\)"),
        ({"x": np.zeros((1, 64), complex)}, "complex128 does not fit"),
    ],
)
def test_wrong_inputs_are_named(package: Package, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message):
        package.function("decode").run(inputs, package.new_state())


def test_a_missing_state_is_named(package: Package) -> None:
    with pytest.raises(UserError, match="lacks total: its states are total"):
        package.function("decode").run({"x": np.zeros((1, 64))})


def test_all_unsupported_operations_are_named_at_once(tmp_path: Path) -> None:
    def build(given: dict[str, Any]) -> list[Any]:
        x = given["x"]
        y = mb.local_response_norm(x=x, size=2)
        z = mb.space_to_depth(x=mb.local_response_norm(x=y, size=2), block_size=2)
        return [z]

    inputs = {"x": mb.placeholder((1, 4, 4, 4), dtype=types.fp16)}
    package = save_program(tmp_path / "strange.mlpackage", inputs, build)
    with pytest.raises(UserError, match=r"lacks: local_response_norm \(2 times\), space_to_depth; add kernels"):
        package.function()


def test_wrong_names_and_files_are_user_errors(package: Package, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no function 'main': it has decode, prefill"):
        package.function("main")
    with pytest.raises(UserError, match="no package at"):
        Package(tmp_path / "absent.mlpackage")
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(UserError, match="not a Core ML package"):
        Package(tmp_path / "empty.mlpackage")


class Ring(torch.nn.Module):
    """A cache of four rows, written at a computed place, and attention over it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.key = torch.nn.Linear(16, 16)
        self.rows: torch.Tensor
        self.register_buffer("rows", torch.zeros(1, 1, 4, 16))

    def forward(self, x: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        self.rows[:, :, slot] = self.key(x)[None, None]
        weights = torch.softmax(x @ self.rows[0, 0].T, dim=-1)
        return weights @ self.rows[0, 0]


def test_a_converted_torch_module_gives_torch_results(tmp_path: Path) -> None:
    module, example = Ring().eval(), (torch.zeros(1, 16), torch.zeros(1, dtype=torch.int32))
    traced = torch.export.export(module, example, strict=False).run_decompositions({})
    with quiet():
        model = ct.convert(
            traced,
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT16,
            skip_model_load=True,
        )
        model.save(str(tmp_path / "ring.mlpackage"))
    program = Package(tmp_path / "ring.mlpackage").function()
    state = program.new_state()
    (output,) = program.outputs
    for step in range(6):
        x, slot = torch.randn(1, 16), torch.tensor([step % 4], dtype=torch.int32)
        with torch.no_grad():
            expected = module(x, slot).numpy()
        got = program.run({"x": x.numpy(), "slot": slot.numpy()}, state)[output]
        np.testing.assert_allclose(got, expected, atol=2e-3)
    np.testing.assert_allclose(state["rows"], module.rows.numpy(), atol=2e-3)
