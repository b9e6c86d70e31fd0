"""The runner on a device against this machine's own runtime: logits, tiers, packed bytes, text.

`--device host` (the default) is the same machine twice, so everything is equal to the last bit. Another CPU rounds
float sums differently; there logits are held to the bounds of bounds.py, decisions and bytes to those below.
What needs no tolerance anywhere is asked without one: the device's cache does not depend on how a text was cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact, HostModel
from device_tests.bench.cores import place
from device_tests.bench.probe import probe_length
from device_tests.bench.runner import force_args, parse_result, placement_args
from device_tests.devices import Bundle, Device, find_one
from device_tests.parity.bounds import DEVICE_MAX_KL, MIN_TOP1
from device_tests.parity.compare import Agreement, run_program, snapshot

TIMEOUT = 900.0  # seconds a run; emulation is slow
NEW_TOKENS = 16
#: On another CPU: shares of equal tiers and of equal bytes of the stored rows. Measured between AVX-512 and emulated
#: arm64 with the real model: 1 and 1, and a KL of 1e-8; float layers of XNNPACK round by CPU.
MIN_TIERS = MIN_BYTES = 0.97
TIE = 0.5  # logits, between the device's choice and this machine's


@dataclass
class Runs:
    """A device with an artifact pushed to it. tokens: the probe's; forced: how many of them are fed one by one."""

    device: Device
    bundle: Bundle
    artifact: Artifact
    tokens: list[int]
    forced: int

    @property
    def exact(self) -> bool:
        return self.device.kind == "host"

    def force(self, folder: Path, *options: str) -> tuple[np.ndarray, dict[str, bytes], dict[str, Any]]:
        """Logits float32 [forced + 1, V], the cache's buffers, and the runner's object."""
        placement = place(self.device.conditions(), None, None)
        args = force_args(self._remote, "in/probe", self.forced, "out/logits", placement)
        result = parse_result(self.device.run(self.bundle, [*args, "--states", "out/states", *options], TIMEOUT))
        self.device.pull("out/logits", folder / "logits")
        self.device.pull("out/states", folder / "states")
        logits = np.fromfile(folder / "logits", dtype="<f4").reshape(self.forced + 1, -1)
        return logits, {path.name: path.read_bytes() for path in (folder / "states").iterdir()}, result

    def answer(self, new_tokens: int) -> list[int]:
        """Greedy token ids after the probe's tokens."""
        args = ["--artifact", self._remote, "--tokens-file", "in/probe", "--json", "--ignore-eos"]
        args += ["--max-new-tokens", str(new_tokens), *placement_args(place(self.device.conditions(), None, None))]
        done = self.device.run(self.bundle, args, TIMEOUT)
        assert done.status == 0, done.stderr
        ids: list[int] = json.loads(done.stdout)["token_ids"]
        return ids

    @property
    def _remote(self) -> str:
        return self.bundle.remote_artifact(self.artifact.folder)


@pytest.fixture(scope="module")
def runs(artifact: Artifact, tokens: list[int], pytestconfig: pytest.Config, tmp_path_factory) -> Iterator[Runs]:  # type: ignore[no-untyped-def]
    prompt, forced = probe_length(artifact)
    ids = tokens[: prompt + forced]
    path = tmp_path_factory.mktemp("in") / "probe"
    path.write_text(" ".join(map(str, ids)), encoding="utf-8")
    try:
        device = find_one(pytestconfig.getoption("--device") or "host")
        bundle = device.bundle([artifact.folder]).with_inputs({"probe": path})
        device.check(bundle)
    except UserError as error:
        pytest.exit(f"error: {error}", returncode=2)
    try:
        device.push(bundle)
        yield Runs(device, bundle, artifact, ids, forced)
    finally:
        device.clean()


@pytest.fixture(scope="module")
def on_device(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, dict[str, bytes], dict]:
    return runs.force(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="module")
def here(runs: Runs, model: HostModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same of this machine's runtime, through Python."""
    model.reset()
    return run_program(model, runs.tokens, runs.forced), snapshot(model)


def test_logits(runs: Runs, on_device: tuple, here: tuple) -> None:
    recipe = runs.artifact.manifest["quantize"]
    agreement = Agreement.between(here[0], torch.from_numpy(on_device[0]))
    print(runs.device.selector, agreement)
    if runs.exact:
        assert agreement.max_difference == 0
    assert agreement.mean_kl < DEVICE_MAX_KL[recipe]
    assert agreement.top1 > MIN_TOP1[recipe]


def test_tiers(runs: Runs, on_device: tuple, here: tuple) -> None:
    states, result = on_device[1], on_device[2]
    expected = here[1]["tiers"].numpy()[: len(runs.tokens)]
    got = np.frombuffer(states["tiers"], np.uint8)[: len(runs.tokens)]
    equal = float((expected == got).mean())
    print(f"{runs.device.selector}: {100 * equal:.1f} % of {len(got)} positions in the same tier")
    assert equal >= (1.0 if runs.exact else MIN_TIERS)
    progress = np.frombuffer(states["progress"], np.int32)
    assert progress[0] == len(runs.tokens) == result["cache"]["position"]
    assert progress[1:].tolist() == result["cache"]["tokens_by_tier"]
    assert sum(result["cache"]["tokens_by_tier"]) == runs.artifact.plan.left(len(runs.tokens) - 1) - 1


def test_packed_bytes(runs: Runs, on_device: tuple, here: tuple) -> None:
    states, expected = on_device[1], here[1]
    assert sum(map(len, states.values())) == runs.artifact.plan.bytes_allocated == on_device[2]["cache"]["bytes"]
    assert states.keys() == expected.keys()
    same = total = 0
    for name, tensor in expected.items():
        a, b = np.frombuffer(states[name], np.uint8), np.frombuffer(tensor.numpy().tobytes(), np.uint8)
        assert len(a) == len(b), name
        if runs.exact:
            assert np.array_equal(a, b), name
        if name.startswith("cache_"):
            written = (a != 0) | (b != 0)  # most of a cache that holds few tokens is empty on both sides
            same, total = same + int((a == b)[written].sum()), total + int(written.sum())
    print(f"{runs.device.selector}: {100 * same / total:.2f} % of {total} written bytes equal")
    assert same / total >= (1.0 if runs.exact else MIN_BYTES)


def test_the_cache_does_not_depend_on_how_a_text_is_cut(runs: Runs, on_device: tuple, tmp_path: Path) -> None:
    logits, states, _ = runs.force(tmp_path, "--chunk", str(min(7, runs.artifact.plan.chunk)))
    assert np.array_equal(logits, on_device[0])
    assert states == on_device[1]


def test_text(runs: Runs, model: HostModel) -> None:
    """Greedy: each token of the device is this machine's own choice on the same prefix, or nearly tied with it."""
    new = runs.answer(NEW_TOKENS)
    assert len(new) == NEW_TOKENS
    model.reset()
    rest, gaps = iter(runs.tokens), []
    for count in runs.artifact.plan.chunks(0, len(runs.tokens)):
        logits = model.step(list(islice(rest, count)))[-1]
    for token in new:
        gaps.append(float(logits.max() - logits[token]))
        logits = model.step([token])[-1]
    print(f"{runs.device.selector}: {sum(gap > 0 for gap in gaps)} of {len(new)} differ, largest gap {max(gaps):.3f}")
    assert max(gaps) == 0 if runs.exact else max(gaps) < TIE
