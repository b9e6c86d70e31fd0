"""evaluate.py on a checkpoint of a few thousand weights: keys, pairing, resuming, bad input."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from typer.testing import CliRunner

import evaluate
from adakv_model.budget import plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.corpus import read_tokens
from adakv_model.errors import UserError
from adakv_model.kv_cache import FloatCache
from adakv_model.model import build_model
from adakv_model.runtime.text import codec_for
from adakv_model.simulation.scoring import Scored
from evaluation import data, perplexity, results
from evaluation.choices import encode_items, encode_pair, score_items
from evaluation.policies import PolicySpec, load_tables
from evaluation.scorers import Scorer
from evaluation.store import ItemStore
from evaluation.testing import ITEMS, arguments


def run(checkpoint: Path, data_dir: Path, out: Path, **changes: Any) -> dict[str, Any]:
    done = CliRunner().invoke(evaluate.app, arguments(checkpoint, data_dir, out, **changes))
    assert done.exit_code == 0, done.output
    return json.loads((out / "out.json").read_text(encoding="utf-8"))


def test_a_task_reports_every_documented_key(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = run(tiny_folder, tiny_data, tmp_path, policy="adaptive", **{"kv-bits": 9.0}, against="naive-4")
    for key in ("loss", "ppl", "acc", "acc_norm", "acc_norm_diff", "acc_norm_diff_se", "loss_diff", "loss_diff_se"):
        assert isinstance(out[key], float), key
    for key in ("loss_diff_static", "loss_diff_static_se", "acc_norm_diff_static", "acc_norm_diff_static_se"):
        assert isinstance(out[key], float), key
    assert out["n"] == ITEMS
    assert 0 <= out["same_choice"] <= 1
    assert out["total_bits"] > 2
    assert set(out["against"]) == {"naive-4"}
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_the_text_reports_loss_and_perplexity(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = run(tiny_folder, tiny_data, tmp_path, task="wikitext2", policy="static-2")
    assert out["n"] == 4
    assert out["tokens"] == 4 * 63  # nothing predicts a window's first token
    assert out["ppl"] == pytest.approx(torch.tensor(out["loss"]).exp().item())
    assert out["loss_diff_se"] > 0
    assert "acc" not in out
    assert "loss_diff_static" not in out  # it is one


def test_fp16_differs_from_itself_by_nothing(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = run(tiny_folder, tiny_data, tmp_path, policy="fp16")
    assert out["loss_diff"] == 0
    assert out["same_choice"] == 1
    assert out["acc_norm_diff"] == 0


def test_the_fp16_loss_of_a_window_is_the_float_model_s(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = run(tiny_folder, tiny_data, tmp_path, task="wikitext2", policy="fp16", limit=1)
    checkpoint = load_checkpoint(path=tiny_folder)
    ids = codec_for(checkpoint).encode(data.load_text(tiny_data).text)[:64]
    assert out["loss"] == pytest.approx(-float_log_probs(checkpoint, ids).mean().item(), abs=2e-3)


def float_log_probs(checkpoint: Any, ids: list[int]) -> Tensor:
    """log p(token | before) of tokens 1 and later: float [len(ids) - 1]."""
    model = build_model(checkpoint.config, checkpoint.weights, FloatCache(checkpoint.config, len(ids)))
    tokens = torch.tensor([ids])
    log_probs = torch.log_softmax(model(tokens, torch.tensor([0]))[0, :-1], dim=-1)
    return log_probs.gather(1, tokens[0, 1:].unsqueeze(1)).squeeze(1)


def test_choices_score_as_each_would_alone(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Likelihood sums, accuracy and acc_norm, against a direct computation with the float model."""
    out = run(tiny_folder, tiny_data, tmp_path, policy="fp16")
    checkpoint = load_checkpoint(path=tiny_folder)
    codec = codec_for(checkpoint)
    acc, acc_norm, losses, counts = 0, 0, 0.0, 0
    for item in data.load_items("piqa", tiny_data).items:
        query = codec.encode(item.query)
        sums = []
        for index, choice in enumerate(item.choices):
            ids = codec.encode(f"{item.query} {choice}")
            scores = float_log_probs(checkpoint, ids)[len(query) - 1 :]
            sums.append(float(scores.sum()))
            if index == item.gold:
                losses, counts = losses - sums[-1], counts + len(scores)
        acc += max(range(4), key=lambda i: sums[i]) == item.gold
        acc_norm += max(range(4), key=lambda i: sums[i] / len(item.choices[i])) == item.gold
    assert (out["acc"] * ITEMS, out["acc_norm"] * ITEMS) == (pytest.approx(acc), pytest.approx(acc_norm))
    assert out["loss"] == pytest.approx(losses / counts, abs=2e-3)


def test_the_default_budget_is_an_export_s(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Where 3.5 bits are out of reach it is the least that leaves a choice, and a note says so."""
    wanted = arguments(tiny_folder, tiny_data, tmp_path, task="wikitext2", policy="adaptive", limit=1)
    done = CliRunner().invoke(evaluate.app, [*wanted, "--no-static"])
    assert done.exit_code == 0, done.output
    assert "note: adaptive: the default of 3.5 bits is out of reach at context 64" in done.stderr
    checkpoint = load_checkpoint(path=tiny_folder)
    exported = plan_cache(checkpoint.config, load_tables(checkpoint, None).tables, CacheOptions(64, 8)).plan
    out = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert out["allocated_bits"] == pytest.approx(exported.bits_per_value)


def test_a_budget_is_checked_before_weights_are_read(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-weights"
    folder.mkdir()
    shutil.copy(tiny_folder / "config.json", folder)
    changes: dict[str, Any] = {"task": "wikitext2", "policy": "adaptive", "kv-bits": 3.5}
    done = CliRunner().invoke(evaluate.app, arguments(folder, tiny_data, tmp_path, **changes))
    assert done.exit_code == 2
    assert "--kv-bits 3.5 is impossible at context 64" in done.stderr


class Interrupted(Exception):
    pass


class Counting:
    """A scorer that stops after some items, as a crash would."""

    def __init__(self, scorer: Scorer, allowed: int) -> None:
        self.scorer, self.allowed, self.calls = scorer, allowed, 0

    def score_continuations(
        self, prefix: Tensor, continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Scored]]:
        if self.calls == self.allowed:
            raise Interrupted
        self.calls += len(continuations)
        return self.scorer.score_continuations(prefix, continuations)

    def score(self, tokens: Tensor, lengths: Tensor | None = None) -> Scored:
        return self.scorer.score(tokens, lengths)


def test_an_interrupted_run_continues_to_the_same_result(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(path=tiny_folder)
    items = encode_items(data.load_items("piqa", tiny_data).items, codec_for(checkpoint), 64)
    simulator = PolicySpec("static-4", context=64, window=8).simulator(checkpoint, load_tables(checkpoint, None))

    whole = ItemStore(tmp_path, "whole", {})
    score_items(lambda: simulator, items, whole, batch=4)
    first = Counting(simulator, allowed=5)
    with pytest.raises(Interrupted):
        score_items(lambda: first, items, ItemStore(tmp_path, "parts", {}), batch=4)
    path = ItemStore(tmp_path, "parts", {}).path
    path.write_bytes(path.read_bytes()[:-9])  # the crash also cut the last line short
    rest = Counting(simulator, allowed=ITEMS)
    store = ItemStore(tmp_path, "parts", {})
    score_items(lambda: rest, items, store, batch=4)
    assert rest.calls == ITEMS - 4
    reopened = ItemStore(tmp_path, "parts", {})
    assert all(reopened[item.key] == whole[item.key] for item in items)


def test_a_larger_limit_scores_only_the_new_items(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    run(tiny_folder, tiny_data, tmp_path, limit=5)
    files = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "work").iterdir()}
    out = run(tiny_folder, tiny_data, tmp_path, limit=7)
    assert out["n"] == 7
    assert {path: path.read_text(encoding="utf-8")[: len(text)] for path, text in files.items()} == files
    assert len(list((tmp_path / "work").iterdir())) == len(files)


def test_other_options_have_stores_of_their_own(tmp_path: Path) -> None:
    paths = {ItemStore(tmp_path, "t", {"policy": name}).path for name in ("static-4", "static-3", "static-4")}
    assert len(paths) == 2


def test_spaces_at_the_end_of_a_context_move_to_the_continuation(tiny_folder: Path) -> None:
    codec = codec_for(load_checkpoint(path=tiny_folder))
    assert encode_pair(codec, "w1 w2 ", " w3") == encode_pair(codec, "w1 w2", " w3") == ([1, 2], [3])


def test_windows_are_spread_over_the_text_and_a_limit_keeps_the_first() -> None:
    windows = perplexity.cut(torch.arange(1000), context=10, tokens=35)
    assert [window.start for window in windows] == [0, 250, 500, 750]
    assert windows[1].tokens.tolist() == list(range(250, 260))
    assert perplexity.cut(torch.arange(1000), 10, 35, limit=2)[1].start == 250


def test_results_keep_the_newest_line_of_a_point(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    for loss in (1.0, float("nan")):
        results.append(path, {"task": "piqa", "policy": "fp16", "n": 5, "loss": loss})
    results.append(path, {"task": "piqa", "policy": "fp16", "n": 6, "loss": 2.0})
    assert [(row["n"], row["loss"]) for row in results.read(path)] == [(5, None), (6, 2.0)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "mmlu"}, "unknown --task 'mmlu'"),
        ({"policy": "wishful"}, "wishful"),
        ({"kv-bits": 3.0}, "drop --kv-bits"),
        ({"policy": "adaptive", "kv-bits": 0.5}, "0.5"),
        ({"data-dir": "/nowhere"}, "--data-dir"),
        ({"artifact": "/nowhere"}, "no artifact at /nowhere"),
        ({"reference-artifact": "/nowhere"}, "pass both"),
        ({"task": "wikitext2", "tokens": 100000}, "lower --tokens"),
        ({"context": 16}, "more than --context 16"),
        ({"against": "random@x"}, "not NAME or NAME@BITS"),
        ({"work-dir": "/proc/none"}, "--work-dir"),
    ],
)
def test_bad_input_is_one_line(
    changes: dict[str, Any], expected: str, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(evaluate.app, arguments(tiny_folder, tiny_data, tmp_path, **changes))
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


@pytest.mark.parametrize("line", ["{", "[]", '{"query": "w1"}', '{"query": "w1", "choices": ["w2", "w3"], "gold": 2}'])
def test_a_broken_item_is_named_by_its_line(line: str, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "piqa.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"query": "w1", "choices": ["w2", "w3"], "gold": 1}\n' + line)
    with pytest.raises(data.UserError, match=r"piqa.jsonl.gz line 2"):
        data.load_items("piqa", tmp_path)


def test_public_rows_become_the_items_of_the_files() -> None:
    """Rows in the published form; the expected prompts are those of the data files."""
    row = {"ind": 3, "activity_label": "Sailing", "ctx_a": "A man [step] sails.", "ctx_b": "the boat",
           "endings": ["is [title] fast.", "sinks."], "label": "1"}  # fmt: skip
    item = data.hellaswag_item(row)
    assert (item.query, item.choices, item.gold) == ("Sailing: A man sails. The boat", ("is. fast.", "sinks."), 1)
    choices = {"text": ["a", "b"], "label": ["A", "B"]}
    arc = data.arc_item({"id": "q", "question": "Why?", "choices": choices, "answerKey": "B"})
    assert (arc.query, arc.choices, arc.gold) == ("Question: Why?", ("a", "b"), 1)
    assert data.openbook_qa_item({"id": "q", "question_stem": "Fog:", "choices": choices, "answerKey": "A"}).gold == 0
    piqa = data.piqa_item({"goal": "dresser", "sol1": "x", "sol2": "y", "label": 0})
    assert (piqa.query, piqa.choices) == ("Question: dresser\n", ("x", "y"))


@pytest.mark.parametrize("record", [{"nll": [1.0, float("nan")]}, {"bits": float("inf")}, {"by": {"x": float("nan")}}])
def test_no_result_is_stored_that_is_no_number(tmp_path: Path, record: dict[str, Any]) -> None:
    """Nor read from a file that an earlier version wrote."""
    items = ItemStore(tmp_path, "t", {"data": 1})
    with pytest.raises(UserError, match="item 3 has a result that is no number"):
        items.add("3", record)
    with items.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": "4", **record}) + "\n")
    again = ItemStore(tmp_path, "t", {"data": 1})
    assert "3" not in again
    assert "4" not in again


def test_sequences_begin_with_bos_where_the_tokenizer_adds_it(
    tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Windows of text and items; also with a truncation that a training run stored."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "bos"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(24)
    tokenizer.post_processor = processors.TemplateProcessing(single="w7 $A", special_tokens=[("w7", 7)])
    tokenizer.save(str(folder / "tokenizer.json"))
    codec = codec_for(load_checkpoint(path=folder))
    ids = codec.encode_start(data.load_text(tiny_data).text)
    assert (len(ids), ids[0]) == (641, 7)
    assert read_tokens(folder / "text.txt", load_checkpoint(path=folder)).ids[0] == 7
    (item,) = encode_items([data.Item("1", "w1 w2", ("w3", "w4 w5"), 0)], codec, 64)
    assert (item.query, item.choices) == ((7, 1, 2), ((3,), (4, 5)))
