"""An artifact that was exported whole and is damaged or odd afterwards, and checkpoints with odd text files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from typer.testing import CliRunner

from adakv_model.checkpoints.testing_checkpoints import SMALL, SPECIAL, small_tokenizer, write_folder, write_tokenizer
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.digest import sha256_of
from adakv_model.errors import UserError
from adakv_model.generate import app
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.generate import encode_prompt
from device_tests.exporting import ROOT, run_export

TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}höflich{{ eos_token }}"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An artifact whose tokenizer knows one token more than the model, and what the export said."""
    folder = write_folder(tmp_path_factory.mktemp("odd"), draw_weights(SMALL, 0), eos_token_id=0)
    tokenizer = small_tokenizer()
    tokenizer.add_tokens([AddedToken("<extra>", special=True)])
    tokenizer.enable_truncation(24)
    config: dict[str, Any] = {"eos_token": SPECIAL[2], "chat_template": TEMPLATE}
    write_tokenizer(folder, tokenizer, **config)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}', encoding="utf-8")
    out = tmp_path_factory.mktemp("artifacts") / "odd"
    options = ("--context", "64", "--window", "8", "--kv-bits", "10")
    done = run_export("--checkpoint", str(folder), *options, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stderr


@pytest.fixture
def copy(exported: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported[0], tmp_path / "copy"))


def generate(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "adakv_model.generate", "--artifact", str(folder), "--max-new-tokens", "2"]
    environment = {**os.environ, **environment}
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, check=False, env=environment)


def error(folder: Path, *options: str, stdin: bytes = b"") -> str:
    """The one line that a command ends with."""
    done = CliRunner().invoke(app, ["--artifact", str(folder), "--max-new-tokens", "2", *options], input=stdin)
    lines = done.stderr.splitlines()
    assert (done.exit_code, len(lines)) == (2, 1), done.output
    return lines[0]


def test_stop_ids_special_tokens_and_template_arrive(exported: tuple[Path, str]) -> None:
    artifact = Artifact(exported[0])
    assert artifact.eos_ids == (2, 0)
    assert artifact.load()._program.load_method("get_eos_ids").call(()) == [2, 0]
    codec = artifact.codec
    assert codec.render_chat([{"role": "user", "content": "x"}]) == "user:x;höflich<|im_end|>"
    assert codec.encode(codec.render_chat([{"role": "user", "content": "x" * 59}]))[-1] == 2
    assert json.loads((exported[0] / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"] == SPECIAL[2]


def test_a_system_message_may_be_empty(exported: tuple[Path, str]) -> None:
    artifact = Artifact(exported[0])
    with_empty, without = (encode_prompt(artifact, "x", system, None) for system in ("", None))
    assert artifact.codec.decode(with_empty).startswith("system:;user:x;")
    assert artifact.codec.decode(without).startswith("user:x;")


def test_an_added_token_is_noted_at_export_and_refused_in_a_prompt(exported: tuple[Path, str]) -> None:
    out, said = exported
    assert "note: the tokenizer has ids up to 256, the weights only 256: texts with those are refused" in said
    assert "token id 256 is outside the model's vocabulary of 256" in error(out, "--prompt", "a <extra>")
    with pytest.raises(UserError, match="token id 256"):
        Artifact(out).load().step([256])


def test_the_locale_changes_nothing(exported: tuple[Path, str]) -> None:
    """Template, prompt and answer are UTF-8. Without UTF-8 mode, Python takes the C locale for ASCII."""
    answers = [
        generate(exported[0], "--prompt", "ö", "--json", LC_ALL=name, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
        for name in ("C.UTF-8", "C")
    ]
    assert [done.returncode for done in answers] == [0, 0], answers
    first, second = (json.loads(done.stdout) for done in answers)
    assert first["token_ids"] == second["token_ids"]
    assert first["prompt_tokens"] == second["prompt_tokens"]


def zero(path: Path, start: int, count: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(count))


@pytest.mark.parametrize("name", ["model.pte", "libadakv_ops.so", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("how", ["zeros", "cut", "swapped"])
def test_a_damaged_file_is_one_line(copy: Path, exported: tuple[Path, str], name: str, how: str) -> None:
    path = copy / name
    if how == "zeros":
        zero(path, path.stat().st_size // 2, 16)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes((copy / "manifest.json").read_bytes())
    message = error(copy, "--prompt", "x")
    assert message == f"error: {path} is damaged or was replaced (its SHA-256 differs): export again"


@pytest.mark.parametrize(
    "content",
    [
        "{}", "[]", "", "3", "\xff", '{"format": 2}',
        '{"format": 2, "model": [], "kv_cache": {}, "files": {}}',
        '{"format": 2, "model": {}, "kv_cache": {}, "files": {}}',
        '{"format": 2, "model": {"vocab_size": 3, "bos_token_id": 1, "eos_token_ids": []}, "kv_cache": {},'
        ' "files": {"../x": {"bytes": 1, "sha256": ""}}}',
        '{"format": 2, "model": {"vocab_size": 3, "bos_token_id": 1, "eos_token_ids": []}, "kv_cache": {},'
        ' "files": {}, "program": "../model.pte"}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_a_user_error(copy: Path, content: str) -> None:
    (copy / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"is damaged \(.*export again|has format None"):
        Artifact(copy)


@pytest.mark.parametrize("change", [{"tiers": 3}, {"window": "8"}, {"unit_bits": []}, None])
def test_a_damaged_plan_is_a_user_error(copy: Path, change: dict[str, Any] | None) -> None:
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["kv_cache"] = {} if change is None else manifest["kv_cache"] | change
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest.json is damaged \((kv_cache|it lacks kv_cache)"):
        print(Artifact(copy).plan)


def test_input_that_is_not_text(exported: tuple[Path, str]) -> None:
    message = error(exported[0], "--prompt", "-", stdin=b"caf\xe9")
    assert message == "error: standard input is not UTF-8 text (byte 3): convert it, e.g. with iconv"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", "inf"), "--temperature inf must be a number, of at most 1,000,000"),
        (("--threads", "100000"), "--threads 100000 must lie between 1 and"),
        (("--seed", str(2**70)), "does not fit 64 bits"),
    ],
)
def test_numbers_no_program_can_use(exported: tuple[Path, str], options: tuple[str, ...], message: str) -> None:
    assert message in error(exported[0], "--prompt", "x", *options)


def test_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    assert f"no artifact at {tmp_path}/a[/b][red]:x:" in error(tmp_path / "a[/b][red]:x:", "--prompt", "x")


@pytest.fixture(scope="module")
def with_bos(exported: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same artifact with a tokenizer that puts <|im_start|> (id 1) before a text, as that of Llama does."""
    out = Path(shutil.copytree(exported[0], tmp_path_factory.mktemp("bos") / "copy"))
    tokenizer = small_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    (out / "tokenizer.json").write_bytes(tokenizer.to_str().encode())
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    path = out / "tokenizer.json"
    manifest["files"]["tokenizer.json"] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return out


def test_a_plain_text_begins_with_the_tokenizers_bos(exported: tuple[Path, str], with_bos: Path) -> None:
    """--no-chat adds it; a rendered chat has what its template wrote."""

    def tokens(folder: Path, *options: str) -> int:
        done = CliRunner().invoke(app, ["--artifact", str(folder), "--prompt", "Hi", "--max-new-tokens", "1", *options])
        assert done.exit_code == 0, done.output
        return int(json.loads(done.stdout)["prompt_tokens"])

    plain, chat = ("--no-chat", "--json"), ("--chat", "--json")
    assert tokens(with_bos, *plain) == 3 == tokens(exported[0], *plain) + 1
    assert tokens(with_bos, *chat) == tokens(exported[0], *chat)
    assert encode_prompt(Artifact(with_bos), "Hi", None, False)[0] == 1
