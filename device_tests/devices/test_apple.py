"""The transports to Apple devices, with a stand-in for xcrun: what they call, and what they say when it fails."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from pathlib import Path

import pytest

from adakv_model.errors import UserError
from adakv_model.runtime.manifest import FORMAT
from device_tests.devices import DeviceLost, RunTimeout, apple, find_one, ios, mac, simulator
from device_tests.devices.bundle import Bundle

SIMULATORS = {
    "devices": {
        "com.apple.CoreSimulator.SimRuntime.iOS-17-5": [{"name": "iPhone 14", "udid": "OLD", "state": "Shutdown"}],
        "com.apple.CoreSimulator.SimRuntime.iOS-18-2": [
            {"name": "iPad Air", "udid": "PAD", "state": "Shutdown"},
            {"name": "iPhone 16", "udid": "NEW", "state": "Shutdown"},
        ],
        "com.apple.CoreSimulator.SimRuntime.watchOS-11-2": [{"name": "Watch", "udid": "W", "state": "Shutdown"}],
    }
}
PHONES = {
    "devices": [
        {
            "identifier": "ID-1",
            "connectionProperties": {"pairingState": "paired", "tunnelState": "connected"},
            "deviceProperties": {"name": "My iPhone", "osVersionNumber": "18.4", "osBuildUpdate": "22E240"},
            "hardwareProperties": {
                "udid": "UDID-1",
                "platform": "iOS",
                "marketingName": "iPhone 15",
                "cpuType": {"name": "arm64e"},
            },
        },
        {"identifier": "WATCH", "hardwareProperties": {"platform": "watchOS"}},
    ]
}
#: What every manifest has; nothing here reads more of it.
SECTIONS = {
    "format": FORMAT,
    "command": ["export"],
    "model": {"vocab_size": 8, "eos_token_ids": [0]},
    "kv_cache": {"n": 1},
    "versions": {"n": "1"},
}
DESCRIBED = {"bytes": 1, "sha256": "0" * 64}  # of a file; nothing here compares it
LIST_SIMULATORS = {"words": ["simctl", "list"], "stdout": json.dumps(SIMULATORS)}
LIST_PHONES = {"words": ["devicectl", "list"], "result": PHONES}


class Tools:
    """The stand-in's folder: `answer` adds rules before the earlier ones, `calls` are the words of every call."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._answers = folder, list[dict]()
        self.answer()

    def answer(self, *answers: dict) -> None:
        self._answers = [*answers, *self._answers]
        (self.folder / "answers.json").write_text(json.dumps(self._answers), encoding="utf-8")

    @property
    def records(self) -> list[dict]:
        log = self.folder / "calls.jsonl"
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []

    @property
    def calls(self) -> list[str]:
        return [" ".join(record["words"]) for record in self.records]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    script = Path(__file__).with_name("testing_xcrun.py")
    words = shlex.join([sys.executable, str(script), str(tmp_path)])
    (binaries / "xcrun").write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
    (binaries / "xcrun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(apple, "BUILD", tmp_path / "build")
    return Tools(tmp_path)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "Small.mlpackage" / "Data").mkdir(parents=True)
    (folder / "Small.mlpackage" / "Manifest.json").write_text("{}", encoding="utf-8")
    (folder / "Small.mlpackage" / "Data" / "weights").write_text("w", encoding="utf-8")
    files = {"Small.mlpackage/Manifest.json": DESCRIBED}
    manifest = {**SECTIONS, "files": files, "program": "Small.mlpackage", "core_ml_states": {"n": 1}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def runner(tools: Tools) -> None:
    """swift build "makes" a runner that prints its words."""
    built = tools.folder / "release"
    built.mkdir()
    (built / apple.RUNNER).write_text('#!/bin/sh\necho "ran $*"\n', encoding="utf-8")
    (built / apple.RUNNER).chmod(0o755)
    tools.answer({"words": ["--show-bin-path"], "stdout": f"{built}\n"})


# Not a Mac, no Xcode


@pytest.mark.parametrize("selector", ["mac", "simulator", "ios"])
def test_off_a_mac_it_is_one_clear_line(selector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(UserError, match="use a Mac with Xcode 16"):
        find_one(selector)


def test_no_xcode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="xcrun is missing: install Xcode"):
        find_one("mac")


def test_another_artifact(tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_text("", encoding="utf-8")
    (tmp_path / "manifest.json").write_text(
        json.dumps({**SECTIONS, "files": {"model.pte": DESCRIBED}}), encoding="utf-8"
    )
    with pytest.raises(UserError, match="is no Core ML artifact"):
        apple.core_ml_bundle(Bundle({}, ()), [tmp_path])


# The Mac


def test_the_mac_builds_and_runs_on_files_of_its_own(tools: Tools, artifact: Path, tmp_path: Path) -> None:
    runner(tools)
    device = mac.MacDevice()
    bundle = device.bundle([artifact])
    remote = device.push(bundle)
    package = Path(remote) / bundle.remote_artifact(artifact) / "Small.mlpackage"
    assert (package / "Data" / "weights").read_text(encoding="utf-8") == "w"
    assert not (package / "Data" / "weights").is_symlink()
    assert device.run(bundle, ["--bench"], 30).stdout == "ran --bench\n"
    device.clean()
    assert (artifact / "Small.mlpackage" / "Data" / "weights").exists()
    assert tools.calls == [
        f"swift build --package-path {apple.PACKAGE} -c release --product adakv-run",
        f"swift build --package-path {apple.PACKAGE} -c release --product adakv-run --show-bin-path",
    ]


def test_the_compilers_last_line(tools: Tools, artifact: Path) -> None:
    tools.answer({"words": ["swift", "build"], "status": 1, "stderr": "...\nerror: no such module\n"})
    with pytest.raises(UserError, match=r"swift build failed \(error: no such module\): build .* by hand"):
        mac.MacDevice().bundle([artifact])


# The simulator


def test_the_newest_iphone_is_chosen_booted_and_shut_down(tools: Tools, artifact: Path) -> None:
    runner(tools)
    tools.answer(
        LIST_SIMULATORS,
        {"words": ["--show-sdk-path"], "stdout": "/sdk\n"},
        {"words": ["spawn"], "stdout": "out", "stderr": "err", "status": 2},
    )
    device = find_one("simulator")
    assert (device.selector, device.kind, device.emulated) == ("simulator:iPhone 16", "simulator", True)
    bundle = device.bundle([artifact])
    device.check(bundle)
    remote = device.push(bundle)
    done = device.run(bundle, ["--bench", "--pp", "8"], 30)
    assert (done.status, done.stdout, done.stderr) == (2, "out", "err")
    assert device.conditions().os_build == "iOS 18.2 simulator"
    device.clean()
    build = f"swift build --package-path {apple.PACKAGE} -c release --product adakv-run"
    target = "--triple arm64-apple-ios18.0-simulator --sdk /sdk"
    assert tools.calls == [
        "simctl list --json devices available",
        "--sdk iphonesimulator --show-sdk-path",
        f"{build} {target}",
        f"{build} {target} --show-bin-path",
        "simctl boot NEW",
        "simctl bootstatus NEW",
        f"simctl spawn NEW {remote}/adakv-run --bench --pp 8",
        "simctl shutdown NEW",
    ]
    assert tools.records[6]["env"] == {"SIMCTL_CHILD_ADAKV_FOLDER": remote}


def test_a_booted_simulator_is_preferred_and_left_running(tools: Tools) -> None:
    devices = SIMULATORS["devices"]["com.apple.CoreSimulator.SimRuntime.iOS-18-2"]
    booted = {
        "devices": {"com.apple.CoreSimulator.SimRuntime.iOS-18-2": [{**devices[0], "state": "Booted"}, devices[1]]}
    }
    tools.answer({"words": ["simctl", "list"], "stdout": json.dumps(booted)})
    device = find_one("simulator")
    assert device.selector == "simulator:iPad Air"
    device.push(Bundle({}, ("adakv-run",)))
    device.clean()
    assert tools.calls == ["simctl list --json devices available"]


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ({"devices": {}}, "no simulator with iOS 18 or later: install one with xcodebuild -downloadPlatform iOS"),
        (
            {"devices": {k: v for k, v in SIMULATORS["devices"].items() if "17" in k}},
            r"\(17.5 only\): install one",
        ),
    ],
)
def test_no_runtime(tools: Tools, listed: dict, reason: str) -> None:
    tools.answer({"words": ["simctl", "list"], "stdout": json.dumps(listed)})
    with pytest.raises(UserError, match=reason):
        find_one("simulator")


def test_an_unknown_simulator(tools: Tools) -> None:
    tools.answer(LIST_SIMULATORS)
    with pytest.raises(UserError, match="no simulator 'iPhone 3G': one of iPad Air, iPhone 16"):
        find_one("simulator:iPhone 3G")


def test_simctl_that_prints_no_json(tools: Tools) -> None:
    tools.answer({"words": ["simctl", "list"], "stdout": "usage"})
    with pytest.raises(UserError, match="printed no JSON: is Xcode 16"):
        find_one("simulator")


def test_a_boot_that_fails_and_one_that_hangs(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.answer(LIST_SIMULATORS, {"words": ["simctl", "boot", "NEW"], "status": 1, "stderr": "Unable to boot\n"})
    with pytest.raises(UserError, match=r"simctl boot failed \(Unable to boot\): start it once"):
        find_one("simulator").push(Bundle({}, ()))
    tools.answer({"words": ["simctl", "boot", "NEW"]}, {"words": ["simctl", "bootstatus"], "sleep": 30})
    monkeypatch.setattr(simulator, "BOOT_TIMEOUT", 0.5)
    with pytest.raises(UserError, match="did not boot within"):
        find_one("simulator").push(Bundle({}, ()))
    assert tools.calls[-1] == "simctl shutdown NEW"


def test_a_run_past_its_timeout(tools: Tools) -> None:
    tools.answer(LIST_SIMULATORS, {"words": ["spawn"], "sleep": 30})
    device = find_one("simulator")
    device.push(Bundle({}, ("adakv-run",)))
    with pytest.raises(RunTimeout):
        device.run(Bundle({}, ("adakv-run",)), [], 0.5)
    device.clean()


def test_int8_inputs_need_a_newer_system(tools: Tools, artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    (artifact / "manifest.json").write_text(json.dumps(manifest | {"core_ml_inputs": {"n": 1}}), encoding="utf-8")
    tools.answer(LIST_SIMULATORS)
    device = find_one("simulator")
    bundle = apple.core_ml_bundle(Bundle({}, ("adakv-run",), simulator.ABI), [artifact])
    with pytest.raises(UserError, match=r"int8 inputs and simulator:iPhone 16 has 18.2: it needs 26"):
        device.check(bundle)


# Phones


@pytest.fixture
def phone(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> ios.IosDevice:
    monkeypatch.setenv("ADAKV_TEAM", "TEAM")
    tools.answer(LIST_PHONES)
    device = find_one("ios")
    assert isinstance(device, ios.IosDevice)
    return device


def test_a_phone_from_the_build_to_the_logits(
    phone: ios.IosDevice, tools: Tools, artifact: Path, tmp_path: Path
) -> None:
    files = {"started": "$ID", "status": "$ID 0", "stdout": '{"schema": 1}\n', "stderr": "", "logits": "l"}
    tools.answer({"words": ["process", "launch"], "app": files})
    (tmp_path / "tokens").write_text("1 2", encoding="utf-8")
    bundle = phone.bundle([artifact]).with_inputs({"tokens": tmp_path / "tokens"})
    phone.check(bundle)
    assert phone.push(bundle) == "Documents"
    done = phone.run(bundle, ["--bench"], 30)
    assert (done.status, done.stdout) == (0, '{"schema": 1}\n')
    phone.pull("out/logits", tmp_path / "logits")
    assert (tmp_path / "logits").read_text(encoding="utf-8") == "l"
    phone.clean()

    documents = tools.folder / "container" / "Documents"
    assert (documents / bundle.remote_artifact(artifact) / "Small.mlpackage" / "Data" / "weights").read_text(
        encoding="utf-8"
    ) == "w"
    assert (documents / "in" / "tokens").read_text(encoding="utf-8") == "1 2"
    assert (phone.selector, phone.emulated) == ("ios:UDID-1", False)
    assert phone.conditions().model == "iPhone 15"
    build, check, install, *copies = tools.calls[1:]
    assert build.startswith("xcodebuild -scheme AdaKVChat -configuration Release -destination generic/platform=iOS")
    assert build.endswith("-allowProvisioningUpdates DEVELOPMENT_TEAM=TEAM build")
    assert check.startswith("devicectl device info lockState --device ID-1 --json-output ")
    app = tools.folder / "build/ios-app/Build/Products/Release-iphoneos/AdaKVChat.app"
    assert install.startswith(f"devicectl device install app {app} --device ID-1")
    container = "--domain-type appDataContainer --domain-identifier org.adakv.chat --source"
    assert all(
        f"devicectl device copy {way} {container}" in copies[n] for n, way in enumerate(["from", "to", "to", "to"])
    )
    launch = next(record["words"] for record in tools.records if "launch" in record["words"])
    assert launch[:7] == ["devicectl", "device", "process", "launch", "--device", "ID-1", "--console"]
    assert launch[-1] == "org.adakv.chat"
    request = json.loads(json.loads(launch[launch.index("--environment-variables") + 1])["ADAKV_RUN"])
    assert request["arguments"] == ["--bench"]


def test_a_second_push_copies_the_tokens_only(
    phone: ios.IosDevice, tools: Tools, artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("1 2", encoding="utf-8")
    bundle = phone.bundle([artifact]).with_inputs({"tokens": tmp_path / "tokens"})
    phone.push(bundle)
    before = len(tools.calls)
    phone.push(bundle)
    copied = [call for call in tools.calls[before:] if "copy to" in call]
    assert len(copied) == 1
    assert "Documents/in" in copied[0]


def test_an_app_that_was_killed(phone: ios.IosDevice, tools: Tools) -> None:
    tools.answer({"words": ["process", "launch"], "app": {"started": "$ID", "stdout": "", "stderr": "half a line"}})
    done = phone.run(Bundle({}, ("org.adakv.chat",)), [], 30)
    assert (done.status, done.stderr) == (137, "half a line")


def test_an_app_that_did_not_start_is_not_an_earlier_runs_answer(phone: ios.IosDevice, tools: Tools) -> None:
    bundle = Bundle({}, ("org.adakv.chat",))
    launched = {
        "words": ["process", "launch"],
        "app": {"started": "$ID", "status": "$ID 0", "stdout": "1", "stderr": ""},
    }
    tools.answer(launched)
    phone.run(bundle, [], 30)
    tools.answer({"words": ["process", "launch"], "status": 1, "stderr": "The device is locked\n"})
    with pytest.raises(DeviceLost, match=r"did not start the app \(The device is locked\): connect it"):
        phone.run(bundle, [], 30)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"words": ["lockState"], "result": {"passcodeRequired": True}}, "My iPhone is locked: unlock it"),
        (
            {"words": ["install"], "status": 1, "stderr": "No space left\n"},
            r"failed \(No space left\): free some room",
        ),
        (
            {"words": ["xcodebuild"], "status": 65, "stdout": "x\n/p: error: No profiles\n** FAILED **\n"},
            r"cannot be built \(/p: error: No profiles\): open",
        ),
    ],
)
def test_what_a_person_can_mend(phone: ios.IosDevice, tools: Tools, artifact: Path, answer: dict, reason: str) -> None:
    tools.answer(answer)

    def prepare() -> None:
        bundle = phone.bundle([artifact])
        phone.check(bundle)
        phone.push(bundle)

    with pytest.raises(UserError, match=reason):
        prepare()


def test_no_phone_and_no_team(tools: Tools, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.answer({"words": ["devicectl", "list"], "result": {"devices": []}})
    with pytest.raises(UserError, match="no iPhone or iPad is paired with this Mac: connect it"):
        find_one("ios")
    tools.answer(LIST_PHONES)
    with pytest.raises(UserError, match="no device 'X': one of UDID-1"):
        find_one("ios:X")
    monkeypatch.delenv("ADAKV_TEAM", raising=False)
    with pytest.raises(UserError, match="set ADAKV_TEAM"):
        find_one("ios").bundle([artifact])
