"""Odd Hugging Face folders through `export --target ios`: read as transformers reads them, or refused with one line.

Everything but coremltools' conversion, which sees neither text nor configuration; one folder goes all the way.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from tokenizers import processors
from typer.testing import CliRunner

from adakv_model.checkpoints.testing_checkpoints import SMALL, SPECIAL, small_tokenizer, write_folder, write_tokenizer
from adakv_model.checkpoints.testing_odd_folders import MESSAGES, TEXTS, OddFolder, odd_folders
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.runtime.artifact import Artifact
from export import artifact as files
from export.cli import app
from export.coreml.control import Status
from export.ios import prepare
from export.options import ExportOptions

CACHE = ("--context", "64", "--window", "8", "--kv", "fp16")
TOKENS = [(37 * i) % SMALL.vocab_size for i in range(8)]


def compare_text(artifact: Artifact, folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert artifact.codec.encode(text, add_special_tokens=True) == theirs(text)["input_ids"], text
    if theirs.chat_template is not None:
        rendered = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        assert artifact.codec.render_chat(MESSAGES) == rendered


@torch.no_grad()
def compare_logits(program: torch.nn.Module, folder: Path) -> None:
    logits, _, status = program(torch.tensor([TOKENS], dtype=torch.int32), torch.tensor([0], dtype=torch.int32))
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([TOKENS])).logits
    assert int(status) == Status.OK
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@settings(max_examples=10, deadline=None)
@given(odd=odd_folders())
def test_odd_folders_arrive_as_transformers_reads_them(odd: OddFolder) -> None:
    with odd.written() as folder, tempfile.TemporaryDirectory() as out:
        options = ExportOptions(target="ios", checkpoint=folder, context=64, window=8, kv="fp16")
        checkpoint, _, planned, program = prepare(options)
        compare_logits(program, folder)
        files.write_tokenizer(checkpoint, Path(out))
        (Path(out) / "x.mlpackage").mkdir()
        sections: dict[str, Any] = {"target": "ios", "program": "x.mlpackage"}
        files.write_manifest(Path(out), checkpoint=checkpoint, plan=planned.plan, sections=sections, command=["export"])
        artifact = Artifact(Path(out))
        assert artifact.eos_ids == checkpoint.config.eos_token_ids
        compare_text(artifact, folder)


def test_an_odd_folder_becomes_a_package(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "odd", draw_weights(SMALL, 0), eos_token_id=0, rope_theta=5000.0)
    tokenizer = small_tokenizer()
    tokenizer.enable_truncation(24)
    tokenizer.enable_padding(length=128)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    template = "{% for m in messages %}{{ m.content }}{% endfor %}höflich{{ eos_token }}"
    write_tokenizer(folder, tokenizer, tokenizer_class="PreTrainedTokenizerFast", eos_token=SPECIAL[2])
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}', encoding="utf-8")
    out = tmp_path / "out"
    options = ["--target", "ios", "--checkpoint", str(folder), *CACHE, "--out", str(out)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.stderr
    artifact = Artifact(out)
    assert artifact.eos_ids == (2, 0)
    compare_text(artifact, folder)


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8")) | values
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return edit


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content, encoding="utf-8")

    return write


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def not_a_number(folder: Path) -> None:
    weights = draw_weights(SMALL, 0)
    weights["layers.0.mlp.up_proj.weight"][3, 5] = torch.nan
    write_folder(folder, weights)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (not_a_number, "tensor layers.0.mlp.up_proj.weight in"),
        (cut, "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (text("config.json", "{"), "config.json"),
        (change("config.json", rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope"),
        (change("config.json", hidden_size=96), "has shape"),
        (change("config.json", eos_token_id=SMALL.vocab_size), "eos_token_id"),
        (change("config.json", attention_bias=True), "bias"),
        (text("generation_config.json", "{"), "not valid JSON"),
        (text("tokenizer.json", ""), "tokenizer.json"),
        (text("tokenizer.json", '{"version": "1.0"}'), "tokenizer.json"),
        (text("tokenizer_config.json", '{"eos_token": 3}'), "eos_token"),
    ],
)
def test_damaged_folders_are_one_line(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "checkpoint", draw_weights(SMALL, 0))
    write_tokenizer(folder)
    damage(folder)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["--target", "ios", "--checkpoint", str(folder), *CACHE, "--out", str(out)])
    assert done.exit_code == 2, done.output
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
