"""The front door as a user meets it: quick help, lazy commands, one line for every error, exit codes, completion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adakv.commands import COMMANDS
from adakv.front import EPILOG
from adakv_model.command_line import Exit
from adakv_model.config import MODELS
from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.manifest import read_manifest
from device_tests.exporting import ROOT
from export.cli import command_line
from export.presets import gather

SMALL_CACHE = ("--context", "64", "--window", "8")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adakv", *words]
    changed = os.environ | {"COLUMNS": "200"} | environment
    return subprocess.run(command, env=changed, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [(), *((entry.name,) for entry in COMMANDS)])
def test_help_loads_no_torch(words: tuple[str, ...]) -> None:
    program = (
        "import sys; from adakv.front import app\n"
        "try: app(sys.argv[1:], prog_name='adakv')\n"
        "finally: print({'torch', 'numpy', 'transformers'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "set()"
    assert "Usage" in done.stdout


def test_every_command_is_listed_with_the_exit_codes() -> None:
    done = run("--help")
    assert all(f" {entry.name} " in done.stdout for entry in COMMANDS)
    assert all(f"{int(code)} " in EPILOG for code in Exit)
    assert "Exit codes: 0 done" in done.stdout


@pytest.mark.parametrize("name", [entry.name for entry in COMMANDS])
def test_every_command_has_help_of_its_own(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"adakv {name} [OPTIONS]" in done.stdout
    assert "--debug" in done.stdout
    _, text = done.stdout.split(f"adakv {name} [OPTIONS]")
    assert f"adakv {name} " in text or "DIR" in text, "an example"


def test_a_wrong_option_is_refused_before_torch_is_loaded() -> None:
    program = (
        "import sys; from adakv.front import app\n"
        "try: app(['export', '--kv', 'static-5'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "False")
    assert done.stderr.startswith("error: unknown --kv 'static-5'")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED), (signal.SIGHUP, Exit.HANGUP)],
)
def test_signals_end_a_command_with_at_most_a_word(number: int, code: Exit, artifact: Path) -> None:
    """While it reads a prompt that never ends: more than a pipe holds has been written, so it is reading."""
    words = [sys.executable, "-m", "adakv", "generate", "--artifact", str(artifact), "--prompt", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        process.stdin.write(b"a" * (1 << 22))
        time.sleep(0.5)  # it has taken all and waits: a signal just before the wait would not end it
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == b""
        assert process.stderr.read() == (b"" if number == signal.SIGHUP else b"interrupted\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_says_that_nothing_was_written(
    number: int, code: int, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "adakv", "export", "--checkpoint", str(folder), *SMALL_CACHE, "--out", str(out)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = next(line for line in process.stderr if "load checkpoint" in line)
        assert seen, "it works on the artifact"
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait(timeout=60) == code, said
        assert said.splitlines()[-1] == f"interrupted: nothing was written to {out}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_answer_says_where_it_ends(number: int, code: int, artifact: Path) -> None:
    """The signal comes from within, after the second token, so that it cannot come too late."""
    program = (
        "import os, sys; from adakv_model.runtime.artifact import HostModel; from adakv.front import app\n"
        "step, number, steps = HostModel.step, int(sys.argv.pop(1)), []\n"
        "def counted(*args):\n"
        "    steps.append(1)\n"
        "    if len(steps) == 3: os.kill(os.getpid(), number)\n"
        "    return step(*args)\n"
        "HostModel.step = counted; app(prog_name='adakv')"
    )
    words = ["generate", "--artifact", str(artifact), "--prompt", "x", "--no-chat", "--max-new-tokens", "40"]
    command = [sys.executable, "-c", program, str(number), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("\n")
    assert done.stderr == "interrupted: the answer ends at token 2\n"


def test_no_command_is_a_request_for_help() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("--help").stdout


def test_a_completion_that_cannot_be_installed_is_one_line(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("", encoding="utf-8")
    home.chmod(0o600)
    # Bash stays the parent, whatever runs the tests: the completion is for the shell that is found there.
    script = f'"{sys.executable}" -m adakv --install-completion; exit $?'
    environment = os.environ | {"COLUMNS": "200", "HOME": str(home)}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.USER
    assert done.stderr.startswith(f"error: cannot write to {home}: set HOME")
    assert len(done.stderr.splitlines()) == 1


SCRIPTS = [p.name for p in sorted((ROOT / "scripts").glob("*.py")) if "__main__" in p.read_text(encoding="utf-8")]
STARTED = [
    ["export.py"],
    ["-m", "adakv"],
    ["-m", "adakv_model.generate"],
    ["-m", "device_tests.bench"],
    ["-m", "device_tests.compare"],
    ["-m", "device_tests.coreml.evaluator.generate"],
    ["-m", "device_tests.coreml.compute_plan"],
    ["-m", "device_tests.devices.emulated"],
    *([f"scripts/{name}"] for name in SCRIPTS if not name.startswith(("test_", "compile_once"))),  # that one: CMake's
]


@pytest.mark.parametrize("words", STARTED, ids=" ".join)
def test_a_python_without_the_packages_is_one_line(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-S", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == Exit.USER
    (line,) = done.stderr.splitlines()
    assert "run `make venv`, then `. .venv/bin/activate`" in line


def test_the_manifest_names_the_program_without_its_folder(artifact: Path) -> None:
    assert Artifact(artifact).manifest["command"][:3] == ["optimum-cli", "export", "adakv"]
    assert command_line(["/a/b/adakv", "export", "--out", "/c"]) == ["adakv", "export", "--out", "/c"]
    assert command_line(["/a/adakv/__main__.py", "export"]) == ["adakv", "export"]


def test_a_wrong_folder_is_answered_with_the_right_one(artifact: Path, tmp_path: Path) -> None:
    def answer(folder: Path) -> str:
        with pytest.raises(UserError) as raised:
            read_manifest(folder)
        return str(raised.value)

    assert answer(artifact.parent).endswith("it holds artifacts, name one of them: tiny")
    assert answer(artifact / "model.pte").endswith(f"name the folder, {artifact}")
    assert "--out" not in answer(tmp_path)
    assert answer(tmp_path / "new").endswith(f"--out {tmp_path / 'new'}`")


def test_parity_of_a_program_without_all_logits_is_one_line(artifact: Path) -> None:
    done = run("parity", "--artifact", str(artifact))
    assert done.returncode == Exit.USER
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "adakv export --logits all" in line


@pytest.mark.parametrize("width", ["40", "80"])
def test_names_in_lists_are_whole(width: str) -> None:
    shown = run("export", "--list-models", COLUMNS=width).stdout
    for name, spec in MODELS.items():
        assert any(line.startswith(f"{name} ") for line in shown.splitlines())
        assert spec.bundled or spec.hub_id in shown
    if width == "80":
        assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(
    "words", [("export", "--checkpoint", ""), ("export", "--out="), ("generate", "--artifact", "")]
)
def test_an_empty_path_is_not_the_folder_here(words: tuple[str, ...], tmp_path: Path) -> None:
    more = ("--prompt", "x") if words[0] == "generate" else ("--dry-run",)
    done = run(*words, *more)
    assert done.returncode == Exit.USER
    assert done.stderr == f"error: {words[1].rstrip('=')} is empty: name a file or folder\n"
    (tmp_path / "a.toml").write_text('checkpoint = ""', encoding="utf-8")
    with pytest.raises(UserError, match=r"^checkpoint in .* must be a path, not ''"):
        gather(None, tmp_path / "a.toml", {})


@pytest.mark.parametrize("module", ["adakv_model.generate", "device_tests.coreml.evaluator.generate"])
def test_a_wrong_artifact_is_refused_before_torch_is_loaded(module: str) -> None:
    program = (
        "import importlib, sys; app = importlib.import_module(sys.argv.pop(1)).app\n"
        "try: app(['--artifact', 'none', '--prompt', 'x'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, module], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (2, "False")
    assert done.stderr.startswith("error: no artifact at none")


def test_unknown_commands_are_answered_with_the_nearest() -> None:
    done = run("exprt")
    assert done.returncode == 2
    assert "Did you mean 'export'" in done.stderr


def test_a_fault_is_one_line_and_a_traceback_with_debug(tmp_path: Path) -> None:
    """A manifest whose parts have other types than any export writes."""
    parts: dict[str, Any] = {"format": 2, "command": ["x"], "kv_cache": {"bytes": 3}, "versions": {"a": "1"}}
    (tmp_path / "a").write_text("", encoding="utf-8")
    parts["model"] = {"name": 1, "vocab_size": 1, "eos_token_ids": []}
    manifest = parts | {"files": {"a": {"bytes": 0, "sha256": ""}}, "program": "a"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    done = run("describe", str(tmp_path))
    assert done.returncode == Exit.FAULT
    assert len(done.stderr.splitlines()) == 1
    assert "--debug shows where" in done.stderr
    assert "Traceback" in run("describe", str(tmp_path), "--debug").stderr


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 2}'])
def test_damaged_manifests_are_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    for words in (("describe", str(tmp_path)), ("generate", "--artifact", str(tmp_path), "--prompt", "x")):
        done = run(*words)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_describe_verifies_files(artifact: Path, tmp_path: Path) -> None:
    done = run("describe", str(artifact))
    assert done.returncode == 0, done.stderr
    for text in ("sink", "window", "tier 0", "bookkeeping", "intact", "8da4w-asym", "made with"):
        assert text in done.stdout
    described = json.loads(run("describe", str(artifact), "--json").stdout)
    assert described["bytes_allocated"] == Artifact(artifact).plan.bytes_allocated
    assert set(described["files"].values()) == {"intact"}
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in artifact.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    program = copy / "model.pte"
    program.write_bytes(program.read_bytes()[:-1] + b"?")
    changed = run("describe", str(copy), "--json")
    assert changed.returncode == Exit.CHECK
    assert "another content" in json.loads(changed.stdout)["files"]["model.pte"]


def test_dry_run_predicts_the_artifact(artifact: Path, folder: Path) -> None:
    done = run("export", "--checkpoint", str(folder), *SMALL_CACHE, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    planned, made = json.loads(done.stdout), Artifact(artifact).manifest
    assert planned["kv_cache"] == made["kv_cache"]
    assert {k: planned["weights"][k] for k in made["weights"]} == made["weights"]


def test_optimum_lists_our_options() -> None:
    words = [str(Path(sys.executable).parent / "optimum-cli"), "export", "adakv", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--kv-bits" in done.stdout
    planned = subprocess.run([*words[:3], "--dry-run", "--json"], capture_output=True, text=True, check=False)
    assert json.loads(planned.stdout)["target"] == "android", planned.stderr
    listed = subprocess.run([*words[:3], "--list-models", "--json"], capture_output=True, text=True, check=False)
    assert json.loads(listed.stdout).keys() == MODELS.keys(), listed.stderr
    wrong = subprocess.run([*words[:3], "--kv", "fp16", "--kv-bits", "3"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: --kv-bits is the budget of --kv adaptive")


@pytest.mark.parametrize(("words", "expected"), [("adakv ex", "export"), ("adakv export --kv st", "static-4")])
def test_shells_can_complete(words: str, expected: str) -> None:
    script = Path(sys.executable).parent / "adakv"
    environment = {"_ADAKV_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([script], env=os.environ | environment, capture_output=True, text=True, check=False)
    assert expected in done.stdout.split()


def test_a_step_that_the_runtime_refuses_is_one_line(artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Artifact(artifact).load()
    model.plan = replace(model.plan, context=80, capacities=(32, *model.plan.capacities[1:]))
    model.position = 64
    with pytest.raises(UserError, match=r"the runtime failed at position 64 \(.*--debug shows the runtime's log\)"):
        model.step([1])
    assert capfd.readouterr().err == ""
