"""A Core ML artifact on this machine: the saved package in the evaluator, fed like `adakv_model.artifact.HostModel`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from adakv_model.artifact import Artifact
from adakv_model.errors import UserError
from device_tests.coreml_eval import Package, Precision
from export.coreml_control import Status
from export.coreml_convert import DECODE, PREFILL
from export.coreml_layout import STATE_PREFIX, StateLayout


class CoreMLModel:
    """One sequence at a time. `position` is the number of tokens held; `plans` int32 [position, 2 + K] the step plans.

    precision: of the evaluator, "fp16" (every result rounded) or "fp32" (nothing rounded).
    """

    def __init__(self, artifact: Artifact, precision: Precision = "fp16") -> None:
        """Raises UserError unless the artifact is a Core ML package."""
        if not artifact.program.is_dir():
            raise UserError(f"{artifact.program} is not a Core ML package: export with --target ios")
        self.plan = artifact.plan
        self.layout = StateLayout(self.plan)
        self.package, self.precision = Package(artifact.program), precision
        self._state = self.package.new_state(precision)
        self.reset()

    def reset(self) -> None:
        """Start a new sequence with the next step; the states keep what they hold, as they do on a device."""
        self.position = 0
        self.plans = np.zeros((0, 2 + self.plan.n_tiers), np.int32)

    def call(self, tokens: list[int], position: int) -> tuple[np.ndarray, np.ndarray, Status]:
        """Logits float32 [T, V], plan int32 [T, 2 + K] and status of one call; T is 1 or the prefill chunk."""
        function = self.package.function(DECODE if len(tokens) == 1 else PREFILL, precision=self.precision)
        inputs = {"tokens": np.array([tokens], np.int32), "input_pos": np.array([position], np.int32)}
        outputs = function.run(inputs, self._state)
        return outputs["logits"][0].astype(np.float32), outputs["plan"], Status(int(outputs["status"][0]))

    def step(self, tokens: list[int]) -> np.ndarray:
        """Append 1 token or a whole chunk; logits float32 [T, V]. Raises UserError past the context."""
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

    def state(self, name: str) -> np.ndarray:
        """A state by the layout's name, such as progress, sink_0 or tier1_3."""
        shared = "control_" if name in self.layout.shared_shapes else ""
        return self._state[STATE_PREFIX + shared + name]

    def snapshot(self) -> dict[str, np.ndarray]:
        return {name: self.state(name).copy() for name in self.layout.shapes}


def open_model(folder: Path, precision: Precision = "fp16") -> CoreMLModel:
    """The model of an artifact folder."""
    return CoreMLModel(Artifact(folder), precision)
