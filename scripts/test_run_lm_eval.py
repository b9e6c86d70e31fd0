"""The lm-eval model: its command line on local files, and its three request types."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors
from typer.testing import CliRunner

import evaluate
from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.errors import UserError
from adakv_model.kv_cache import FloatCache
from adakv_model.model import build_model
from evaluation.lm_eval_model import AdaKV
from evaluation.testing import arguments

SCRIPTS = Path(__file__).parent


def lm_eval(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "run_lm_eval.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_its_command_line_agrees_with_evaluate(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Same items, same policy, same accuracies."""
    out = tmp_path / "lm"
    done = lm_eval(
        *("--model", "adakv", "--tasks", "adakv_piqa,adakv_wikitext2", "--output_path", str(out)),
        *("--model_args", f"pretrained={tiny_folder},policy=static-4,max_length=64,window=8,threads=1"),
        *("--metadata", f"data_dir={tiny_data}"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(next(out.rglob("results_*.json")).read_text(encoding="utf-8"))["results"]
    ran = CliRunner().invoke(evaluate.app, arguments(tiny_folder, tiny_data, tmp_path))
    assert ran.exit_code == 0, ran.output
    ours = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    for metric in ("acc", "acc_norm"):
        assert report["adakv_piqa"][f"{metric},none"] == pytest.approx(ours[metric])
        assert report["adakv_piqa"][f"{metric}_stderr,none"] == pytest.approx(ours[f"{metric}_se"])
    assert report["adakv_wikitext2"]["word_perplexity,none"] > 1


def test_its_errors_are_one_line(tiny_folder: Path) -> None:
    done = lm_eval(
        "--model",
        "adakv",
        "--tasks",
        "adakv_piqa",
        "--model_args",
        f"pretrained={tiny_folder},policy=fp16,max_length=64",
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: local tasks read the files of a folder")


@dataclass
class Request:
    """What of lm_eval.api.instance.Instance a model reads."""

    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> AdaKV:
    return AdaKV(pretrained=str(tiny_folder), policy="fp16", max_length=32, window=8)


def float_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    checkpoint = load_checkpoint(path=folder)
    twin = build_model(checkpoint.config, checkpoint.weights, FloatCache(checkpoint.config, 64))
    return twin(torch.tensor([ids]), torch.tensor([0]))[0]


def test_loglikelihood_of_shared_and_empty_contexts(model: AdaKV, tiny_folder: Path) -> None:
    pairs = [("w1 w2", " w3 w4"), ("w1 w2", " w5"), ("", "w7 w8"), (" ".join(["w9"] * 60), " w1")]
    results = model.loglikelihood([Request(pair) for pair in pairs], disable_tqdm=True)
    for ids, start, (total, greedy) in (
        ([1, 2, 3, 4], 2, results[0]),
        ([1, 2, 5], 2, results[1]),
        ([0, 7, 8], 1, results[2]),  # id 0 stands before a text without context
        ([9] * 31 + [1], 31, results[3]),  # the newest 31 of 60, and the continuation, fill max_length
    ):
        log_probs = torch.log_softmax(float_logits(tiny_folder, ids)[start - 1 : -1], -1)
        targets = torch.tensor(ids[start:])
        assert total == pytest.approx(float(log_probs.gather(1, targets.unsqueeze(1)).sum()), abs=5e-3)
        assert greedy == bool((log_probs.argmax(1) == targets).all())


def test_rolling_predicts_every_token_once(model: AdaKV, tiny_folder: Path) -> None:
    """40 tokens in a cache of 32: 31 after one token of context, then 9 that see the 22 before them too."""
    ids = [i % 31 for i in range(40)]
    (total,) = model.loglikelihood_rolling([Request((" ".join(f"w{i}" for i in ids),))], disable_tqdm=True)
    expected = 0.0
    for window, scored in (([0, *ids[:31]], 31), (ids[8:], 9)):
        log_probs = torch.log_softmax(float_logits(tiny_folder, window)[:-1], -1)
        chosen = log_probs.gather(1, torch.tensor(window[1:]).unsqueeze(1)).squeeze(1)
        expected += float(chosen[-scored:].sum())
    assert total == pytest.approx(expected, abs=5e-2)


def test_bos_is_where_the_tokenizer_puts_it(tiny_folder: Path, tmp_path: Path) -> None:
    """Before a context, once, and not before a continuation; before a text without context it is the prefix."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "bos"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="w7 $A", special_tokens=[("w7", 7)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"bos_token_id": 7}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = AdaKV(pretrained=str(folder), policy="fp16", max_length=32, window=8)
    assert model.tok_encode("w3 w1") == model.tok_encode("w7 w3 w1") == [7, 3, 1]
    assert model.tok_encode("w3 w1", add_special_tokens=False) == [3, 1]
    requests = [Request(("w3 w1", " w4")), Request(("", "w4 w5"))]
    ((shared, _), (alone, _)) = model.loglikelihood(requests, disable_tqdm=True)  # type: ignore[arg-type]
    (rolling,) = model.loglikelihood_rolling([Request(("w4 w5",))], disable_tqdm=True)
    for got, ids, start in ((shared, [7, 3, 1, 4], 3), (alone, [7, 4, 5], 1), (rolling, [7, 4, 5], 1)):
        log_probs = torch.log_softmax(float_logits(folder, ids)[start - 1 : -1], -1)
        expected = float(log_probs.gather(1, torch.tensor(ids[start:]).unsqueeze(1)).sum())
        assert got == pytest.approx(expected, abs=5e-2)


def test_generation_is_greedy_and_stops(model: AdaKV, tiny_folder: Path) -> None:
    ids = [3, 1, 4]
    for _ in range(6):
        ids.append(int(float_logits(tiny_folder, ids)[-1].argmax()))
    words = [f"w{i}" if i < 32 else "?" for i in ids[3:]]
    options = {"until": [], "max_gen_toks": 6, "do_sample": False}
    (text,) = model.generate_until([Request(("w3 w1 w4", options))], disable_tqdm=True)
    assert text.split() == words
    until = {"until": [words[3]], "max_gen_toks": 6}
    (text,) = model.generate_until([Request(("w3 w1 w4", until))], disable_tqdm=True)
    assert text.split() == words[: words.index(words[3])]


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_every_spelling_of_the_limit_counts(model: AdaKV, name: str) -> None:
    answers = model.generate_until([Request(("w3 w1 w4", {name: limit})) for limit in (2, 6)], disable_tqdm=True)
    assert answers[1].startswith(answers[0])
    assert [len(model.tok_encode(answer)) for answer in answers] == [2, 6]
    (total,) = model.generate_until([Request(("w3 w1 w4", {name: 6, "max_length": 5}))], disable_tqdm=True)
    assert total == answers[0]
    with pytest.raises(UserError, match="max_gen_toks=32 must lie between 1 and 31"):
        model.generate_until([Request(("w1 w2", {name: 32}))], disable_tqdm=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "max_gen_toks=256 must lie between 1 and 31"),  # lm-eval's default
        ({"max_gen_toks": 0}, "max_gen_toks=0"),
        ({"max_gen_toks": -1}, "max_gen_toks=-1"),
        ({"max_gen_toks": "many"}, "cannot be read"),
        ({"max_gen_toks": float("inf")}, "cannot be read"),
        ({"max_gen_toks": 4, "temperature": 0.7}, "greedily"),
        ({"max_gen_toks": 4, "temperature": float("nan"), "do_sample": True}, "greedily"),
        ({"max_gen_toks": 4, "num_beams": 4}, "num_beams"),
        ({"max_gen_toks": 4, "repetition_penalty": 1.2}, "repetition_penalty"),
        ({"max_gen_toks": 4, "until": [3]}, "until"),
        ({"max_gen_toks": 4, "max_length": 2}, "max_length=2 leaves no room"),
    ],
)
def test_options_it_cannot_follow_are_refused(model: AdaKV, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        model.generate_until([Request(("w1 w2", options))], disable_tqdm=True)


@pytest.mark.parametrize("options", [{"temperature": 0.7, "do_sample": False}, {"do_sample": True, "temperature": 0.0}])
def test_spellings_of_greedy(model: AdaKV, options: dict[str, Any]) -> None:
    greedy, other = model.generate_until(
        [Request(("w3 w1", {"max_gen_toks": 4})), Request(("w3 w1", {"max_gen_toks": 4, "top_p": 0.9, **options}))],
        disable_tqdm=True,
    )
    assert greedy == other


def test_what_it_cannot_do_is_an_error(model: AdaKV, tiny_folder: Path) -> None:
    with pytest.raises(UserError, match="greedily"):
        model.generate_until([Request(("w1", {"do_sample": True}))], disable_tqdm=True)
    with pytest.raises(UserError, match="unknown --model_args colour"):
        AdaKV(pretrained=str(tiny_folder), colour="blue")
