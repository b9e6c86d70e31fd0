"""One device from the first check to the last sample."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from device_tests.bench import probe, runner
from device_tests.bench.cooling import Cooling
from device_tests.bench.cores import Placement, place
from device_tests.bench.plan import Cell, Test, interleaved
from device_tests.bench.records import artifact_record, conditions_record, device_record, row
from device_tests.bench.rows import DEVICE, FAILURE, PROBE, SAMPLE, ResultsFile, Row, sample_key
from device_tests.devices import Bundle, Device, DeviceLost

SAME = ("model", "soc", "os_build")  # of a device, where a run goes on
GIVE_UP = 2  # failures of one artifact in a row, after which its other runs are left out


@dataclass(frozen=True)
class Options:
    """threads: 0 is the device's own choice (cores.place). delay: seconds between runs. timeout: seconds a run."""

    tests: Sequence[Test]
    reps: int = 5
    threads: Sequence[int] = (0,)
    cpu_mask: str | None = None
    delay: float = 0.0
    cooling: Cooling = field(default_factory=Cooling)
    timeout: float = 600.0


class Session:
    """Runs the plan on one device and appends rows.

    `say` gets a line for each step; `sleep` and `measure_probe` are for tests to replace.
    """

    def __init__(
        self,
        device: Device,
        artifacts: Mapping[str, Artifact],
        tokens: Mapping[str, list[int]],
        options: Options,
        results: ResultsFile,
        say: Callable[[str], None] = lambda line: None,
        sleep: Callable[[float], None] = time.sleep,
        measure_probe: Callable[..., probe.Probe] = probe.measure,
    ) -> None:
        """artifacts and tokens by name; tokens: the text that is fed, at least a probe long."""
        self.device, self.artifacts, self.tokens, self.options = device, artifacts, tokens, options
        self.results, self.say, self.sleep, self.measure_probe = results, say, sleep, measure_probe
        self.failed = 0

    def run(self) -> int:
        """Number of runs and probes that failed. Raises UserError where nothing can be measured at all, DeviceLost
        with what is left."""
        self.say("building the runner where its sources have changed: minutes the first time")
        bundle = self.device.bundle([artifact.folder for artifact in self.artifacts.values()])
        with tempfile.TemporaryDirectory() as folder:
            bundle = bundle.with_inputs(self._write_tokens(Path(folder)))
            try:
                self.device.check(bundle)
                self.say(f"push {bundle.size / 1e6:.0f} MB")
                self.device.push(bundle)
                self._measure(bundle)
            finally:
                self.device.clean()
        return self.failed

    def _write_tokens(self, folder: Path) -> dict[str, Path]:
        """in/<name> -> file, of every artifact's benchmark text and probe."""
        files: dict[str, Path] = {}
        for number, (name, artifact) in enumerate(self.artifacts.items()):
            prompt, forced = probe.probe_length(artifact)
            for kind, ids in (("tokens", self.tokens[name]), ("probe", self.tokens[name][: prompt + forced])):
                path = folder / f"{kind}-{number}"
                path.write_text(" ".join(map(str, ids)) + "\n", encoding="utf-8")
                files[path.name] = path
        return files

    def _measure(self, bundle: Bundle) -> None:
        start = self.device.conditions()
        cooling = self.options.cooling.starting_at(start)
        record = device_record(self.device, start)
        self._require_same_device(record)
        self.results.append(row(DEVICE, device=record))
        placements = [place(start, count or None, self.options.cpu_mask) for count in self.options.threads]
        by_threads = {placement.threads: placement for placement in placements}
        numbers = {name: str(number) for number, name in enumerate(self.artifacts)}
        records = {name: artifact_record(artifact, name, bundle) for name, artifact in self.artifacts.items()}
        sound = [n for n in self.artifacts if self._probe(bundle, n, records[n], numbers[n], placements[0])]
        done = {sample_key(sample) for sample in self.results.of(SAMPLE)}
        cells = list(interleaved(sound, self.options.tests, list(by_threads), self.options.reps)) if sound else []
        left = [c for c in cells if self._key(c, records, by_threads) not in done]
        if len(left) < len(cells):
            self.say(f"{len(cells) - len(left)} of {len(cells)} runs are in {self.results.path} already")
        in_a_row = dict.fromkeys(sound, 0)
        for number, cell in enumerate(left):
            if in_a_row[cell.artifact] >= GIVE_UP:
                continue
            self.say(
                f"{number + 1}/{len(left)} {cell.artifact} {cell.test.name}, {cell.threads} threads, rep {cell.rep}"
            )
            try:
                sample = self._sample(bundle, cell, numbers[cell.artifact], by_threads[cell.threads], cooling)
            except DeviceLost as lost:
                raise DeviceLost(
                    f"{lost}: {len(cells) - len(left) + number} of {len(cells)} runs are kept, --resume does the rest"
                ) from lost
            except UserError as error:
                self._fail(records[cell.artifact], error, cell.test, cell.rep)
                in_a_row[cell.artifact] += 1
                continue
            in_a_row[cell.artifact] = 0
            identity = {"run": self.results.run, "device": record, "artifact": records[cell.artifact]}
            self.results.append(row(SAMPLE, **identity, **sample))
            self.sleep(self.options.delay)

    def _require_same_device(self, record: Row) -> None:
        for before in self.results.of(DEVICE):
            if before["device"]["selector"] != record["selector"]:
                continue
            changed = [name for name in SAME if before["device"][name] != record[name]]
            if changed:
                raise UserError(
                    f"{self.results.path} was begun on a device at {record['selector']} with another"
                    f" {', '.join(changed)}: name another file"
                )

    def _key(self, cell: Cell, records: Mapping[str, Row], placements: Mapping[int, Placement]) -> tuple[object, ...]:
        return sample_key(
            {
                "device": {"selector": self.device.selector},
                "artifact": records[cell.artifact],
                "test": cell.test.to_json(),
                "threads": cell.threads,
                "cpu_mask": placements[cell.threads].mask,
                "rep": cell.rep,
            }
        )

    def _probe(self, bundle: Bundle, name: str, record: Row, number: str, placement: Placement) -> bool:
        """Whether the artifact computes the right thing here; asked again in every session, since it is cheap."""
        artifact = self.artifacts[name]
        prompt, forced = probe.probe_length(artifact)
        ids = self.tokens[name][: prompt + forced]
        self.say(f"parity probe of {name}")
        try:
            found = self.measure_probe(
                self.device, bundle, artifact, (f"in/probe-{number}", ids), placement, self.options.timeout
            )
        except DeviceLost:
            raise
        except UserError as error:
            self._fail(record, error, None, None)
            return False
        self.results.append(row(PROBE, device=self.device.selector, artifact=record, **found.to_json()))
        if not found.passed:
            self.failed += 1
            self.say(f"{name} fails its parity probe here (KL {found.agreement.mean_kl:.3g}): it is not timed")
        return found.passed

    def _sample(self, bundle: Bundle, cell: Cell, number: str, placement: Placement, cooling: Cooling) -> Row:
        waited, before = cooling.wait(self.device.conditions)
        artifact = bundle.remote_artifact(self.artifacts[cell.artifact].folder)
        args = runner.benchmark_args(artifact, f"in/tokens-{number}", cell.test, placement)
        result = runner.parse_result(self.device.run(bundle, args, self.options.timeout))
        if not runner.is_complete(result):
            raise runner.RunFailed(f"the run ended early ({result.get('finish_reason')})")
        after = self.device.conditions()
        return {
            "test": cell.test.to_json(),
            "threads": cell.threads,
            "cpu_mask": placement.mask,
            "slow_cores": placement.slow,
            "rep": cell.rep,
            "result": result,
            "conditions": {"before": conditions_record(before), "after": conditions_record(after)},
            "cooldown": waited.to_json(),
            "throttled": runner.throttled(result),
        }

    def _fail(self, record: Row, error: UserError, test: Test | None, rep: int | None) -> None:
        self.failed += 1
        self.say(f"{record['name']} failed: {error}")
        fields = {"device": self.device.selector, "artifact": record, "error": str(error)}
        self.results.append(row(FAILURE, **fields, test=test and test.to_json(), rep=rep))
