"""No speed without correctness: a few dozen tokens on the device against this machine, before anything is timed."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adakv_model.runtime.artifact import Artifact
from device_tests.bench.cores import Placement
from device_tests.bench.expected import expected_logits
from device_tests.bench.runner import RunFailed, force_args, parse_result
from device_tests.devices import Bundle, Device
from device_tests.devices.bundle import OUT
from device_tests.parity.bounds import DEVICE_MAX_KL, MIN_TOP1
from device_tests.parity.compare import Agreement

PROMPT, FORCED = 64, 32  # tokens: enough for some to leave the window and be stored in tiers
LOGITS = f"{OUT}/logits.f32"


@dataclass(frozen=True)
class Probe:
    """What a probe found. bounds: the largest mean KL in nats a token, the least share of equal top-1."""

    agreement: Agreement
    max_kl: float
    min_top1: float

    @property
    def passed(self) -> bool:
        # Not the negations: a NaN must fail.
        return self.agreement.mean_kl <= self.max_kl and self.agreement.top1 >= self.min_top1

    def to_json(self) -> dict[str, Any]:
        """Finite numbers only, so that it is JSON: a NaN is None."""
        values = {name: value if np.isfinite(value) else None for name, value in asdict(self.agreement).items()}
        return {
            "passed": self.passed,
            "agreement": values,
            "bounds": {"max_kl": self.max_kl, "min_top1": self.min_top1, "prompt": PROMPT, "forced": FORCED},
        }


def probe_length(artifact: Artifact) -> tuple[int, int]:
    """Tokens of the prompt and forced ones; fewer in a context that is too short."""
    forced = min(FORCED, artifact.plan.context // 4)
    return min(PROMPT, artifact.plan.context - forced), forced


def measure(
    device: Device, bundle: Bundle, artifact: Artifact, tokens: tuple[str, list[int]], place: Placement, timeout: float
) -> Probe:
    """tokens: the file's name on the device and its content. Raises RunFailed, DeviceLost, RunTimeout."""
    name, ids = tokens
    _, forced = probe_length(artifact)
    done = device.run(bundle, force_args(bundle.remote_artifact(artifact.folder), name, forced, LOGITS, place), timeout)
    parse_result(done)

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "logits"
        device.pull(LOGITS, local)
        got = np.fromfile(local, dtype="<f4")
    if got.size != (forced + 1) * artifact.plan.vocab_size:
        raise RunFailed(f"the runner wrote {got.size} logits, not {forced + 1} x {artifact.plan.vocab_size}")
    expected = expected_logits(artifact.folder, tuple(ids), forced)
    return judge(artifact, expected, got.reshape(expected.shape))


def judge(artifact: Artifact, expected: np.ndarray, got: np.ndarray) -> Probe:
    """Both float32 [forced + 1, V]; bounds of the artifact's weight recipe."""
    agreement = Agreement.between(torch.from_numpy(expected), torch.from_numpy(got))
    recipe = artifact.manifest.get("quantize", "")
    loosest = max(DEVICE_MAX_KL.values()), min(MIN_TOP1.values())  # for recipes of other targets
    return Probe(agreement, DEVICE_MAX_KL.get(recipe, loosest[0]), MIN_TOP1.get(recipe, loosest[1]))
