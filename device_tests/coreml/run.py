"""A Core ML artifact on this machine: the saved package in the evaluator, fed like `HostModel`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.inputs import check_tokens
from device_tests.coreml.evaluator.package import Package
from device_tests.coreml.evaluator.precision import Precision
from device_tests.coreml.host import HostCache
from export.coreml.control import Status
from export.coreml.convert import DECODE, PREFILL
from export.coreml.inputs import InputLayout
from export.coreml.layout import STATE_PREFIX, StateLayout
from export.coreml.storage import FP16, INT8, STORAGES


class CoreMLModel:
    """One sequence at a time. `position` is the number of tokens held; `plans` int32 [position, 2 + K] the step plans.

    precision: of the evaluator, "fp16" (every result rounded) or "fp32" (nothing rounded).
    """

    def __init__(self, artifact: Artifact, precision: Precision = "fp16") -> None:
        """Raises UserError unless the artifact is a Core ML package."""
        if not artifact.program.is_dir():
            raise UserError(f"{artifact.program} is not a Core ML package: export with --target ios")
        artifact.check(artifact.program.name)
        self.plan, self.vocabulary = artifact.plan, artifact.vocabulary
        form = artifact.manifest.get("core_ml_states", {}).get("cache_io", FP16.name)
        self.layout = StateLayout(self.plan, STORAGES[form])
        self.package, self.precision = Package(artifact.program), precision
        self._state = self.package.new_state(precision)
        self.host = HostCache(InputLayout(self.layout), precision) if form == INT8.name else None
        self.reset()

    def reset(self) -> None:
        """Start a new sequence with the next step; states and arrays keep what they hold, as they do on a device."""
        self.position = 0
        self.plans = np.zeros((0, 2 + self.plan.n_tiers), np.int32)

    def call(self, tokens: list[int], position: int) -> tuple[np.ndarray, np.ndarray, Status]:
        """Logits float32 [T, V], plan int32 [T, 2 + K] and status of one call; T is 1 or the prefill chunk.

        Stores the new rows of a cache that the host keeps, if the status is OK.
        """
        function = self.package.function(DECODE if len(tokens) == 1 else PREFILL, precision=self.precision)
        inputs = {"tokens": np.array([tokens], np.int32), "input_pos": np.array([position], np.int32)}
        outputs = function.run(inputs | (self.host.inputs() if self.host else {}), self._state)
        status = Status(int(outputs["status"][0]))
        if self.host is not None and status == Status.OK:
            self.host.write_step(position, outputs["plan"], outputs)
        return outputs["logits"][0].astype(np.float32), outputs["plan"], status

    def step(self, tokens: list[int]) -> np.ndarray:
        """Append 1 token or a whole chunk; logits float32 [T, V]. Raises UserError past the context or vocabulary."""
        check_tokens(tokens, self.vocabulary)
        logits, plan, status = self.call(tokens, self.position)
        if status == Status.CONTEXT_FULL:
            raise UserError(
                f"context full: {self.position + len(tokens)} tokens do not fit the package's {self.plan.context}:"
                " shorten the prompt or export with a larger --context"
            )
        if status != Status.OK:
            raise UserError(f"the package refused position {self.position}: reset before a new sequence")
        self.plans = np.concatenate((self.plans, plan))
        self.position += len(tokens)
        return logits

    def prefill(
        self, tokens: list[int], chunk: int | None = None, progress: Callable[[int], None] = lambda n: None
    ) -> np.ndarray:
        """Append any number of tokens, in chunks and the rest one by one; logits float32 [len(tokens), V]."""
        size, done, rows = chunk or self.plan.chunk, 0, []
        while done < len(tokens):
            count = size if done + size <= len(tokens) else 1
            rows.append(self.step(tokens[done : done + count]))
            done += count
            progress(count)
        return np.concatenate(rows)

    def tier_counts(self) -> list[int]:
        """Tokens in each tier."""
        return [int(n) for n in self.plans[-1, 2:]] if self.position else [0] * self.plan.n_tiers

    @property
    def cache_bytes(self) -> int:
        """States and the arrays that the host keeps, on a device."""
        return sum(array.nbytes for array in self.package.new_state().values()) + (self.host.bytes if self.host else 0)

    def state(self, name: str) -> np.ndarray:
        """A state or array by the layout's name, such as progress, sink_0 or tier1_3; a pool with its scales."""
        if self.host is not None and name not in self.layout.shared_shapes:
            return self.host.state(name)
        shared = "control_" if name in self.layout.shared_shapes else ""
        return self._state[STATE_PREFIX + shared + name]

    def snapshot(self) -> dict[str, np.ndarray]:
        """Copies of all states, and of the host's arrays under their own names."""
        arrays = self.host.arrays if self.host is not None else {}
        return {name: value.copy() for name, value in ({n: self.state(n) for n in self.layout.shapes} | arrays).items()}
