"""long_context.py: prompts hold what they ask for, positions add up, retention by hand, and the whole command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import long_context
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.runtime.text import TextCodec, codec_for
from evaluation import needles, positions
from evaluation.choices import score_items
from evaluation.data import UserError
from evaluation.needles import Needle
from evaluation.perplexity import Window
from evaluation.policies import PolicySpec, load_tables
from evaluation.store import ItemStore
from evaluation.testing import ITEMS

TEXT = " The old harbour town lies north of the river, and its market opens before dawn on most days of the year."


@pytest.fixture(scope="module")
def codec(default_checkpoint: Checkpoint) -> TextCodec:
    return codec_for(default_checkpoint)


def test_a_passkey_prompt_hides_the_fact_at_its_depth(codec: TextCodec) -> None:
    text = codec.encode(TEXT * 60)
    for needle in needles.build(codec, text, "passkey", 400, (0.0, 0.25, 1.0), trials=2):
        prompt = codec.decode(needle.prompt)
        answer, *others = (codec.decode(candidate) for candidate in needle.candidates)
        fact = f"is{answer}."
        assert prompt.count(fact) == 1
        assert not any(other in prompt for other in others)
        assert len(needle.prompt) == 400 - needles.ANSWER
        assert max(map(len, needle.candidates)) <= needles.ANSWER
        before = len(codec.encode(prompt[: prompt.index(fact)]))
        low, high = {0.0: (0.0, 0.05), 0.25: (0.2, 0.3), 1.0: (0.85, 0.95)}[needle.depth]
        assert low <= before / 400 <= high


def test_a_key_value_prompt_asks_for_one_of_its_facts(codec: TextCodec) -> None:
    for needle in needles.build(codec, codec.encode(TEXT), "key-value", 400, (0.5,), trials=3):
        prompt = codec.decode(needle.prompt)
        name = prompt.rsplit("number of ", 1)[1].removesuffix(" is")
        answers = [codec.decode(candidate) for candidate in needle.candidates]
        assert f"The secret number of {name} is{answers[0]}." in prompt
        assert all(f"is{answer}." in prompt for answer in answers)
        assert len(needle.prompt) == 400 - needles.ANSWER


def test_prompts_repeat_by_seed(codec: TextCodec) -> None:
    text = codec.encode(TEXT * 60)
    one, same, other = (needles.build(codec, text, "passkey", 300, (0.5,), 2, seed) for seed in (0, 0, 1))
    assert one == same
    assert one[0].prompt != one[1].prompt != other[1].prompt


def test_prompts_that_do_not_fit_are_refused(codec: TextCodec) -> None:
    with pytest.raises(UserError, match="--lengths"):
        needles.build(codec, [1] * 100, "passkey", 400, (0.5,), 1)
    with pytest.raises(UserError, match="--lengths"):
        needles.build(codec, [], "key-value", 60, (0.5,), 1)


def test_the_default_model_finds_a_passkey(default_checkpoint: Checkpoint, codec: TextCodec, tmp_path: Path) -> None:
    prompts = needles.build(codec, codec.encode(TEXT * 30), "passkey", 160, (0.3,), trials=1)
    tables = load_tables(default_checkpoint, None)
    simulator = PolicySpec("fp16", context=160).simulator(default_checkpoint, tables)
    store = ItemStore(tmp_path, "n", {})
    score_items(lambda: simulator, [prompt.item for prompt in prompts], store, batch=needles.CANDIDATES)
    assert positions.retention(prompts, store, store)["greedy"]["retention"] == 1.0
    assert positions.retention(prompts, store, store)["rank"]["retention"] == 1.0


def test_prompts_score_alike_alone_and_together(
    default_checkpoint: Checkpoint, codec: TextCodec, tmp_path: Path
) -> None:
    prompts = needles.build(codec, codec.encode(TEXT), "key-value", 160, (0.2, 0.8), trials=1)
    tables = load_tables(default_checkpoint, None)
    simulator = PolicySpec("static-4", context=160).simulator(default_checkpoint, tables)
    alone, together = (ItemStore(tmp_path, name, {}) for name in ("alone", "together"))
    for store, batch in ((alone, needles.CANDIDATES), (together, 2 * needles.CANDIDATES)):
        score_items(lambda: simulator, [prompt.item for prompt in prompts], store, batch)
    for prompt in prompts:
        assert together[prompt.key]["log_likelihood"] == pytest.approx(alone[prompt.key]["log_likelihood"], abs=0.05)
        assert together[prompt.key]["bits"] == alone[prompt.key]["bits"]


def test_buckets_cover_every_predicted_position_once() -> None:
    assert positions.buckets(1000) == [(1, 128), (128, 256), (256, 512), (512, 1000)]
    assert positions.buckets(64) == [(1, 64)]


def test_differences_by_position_by_hand(tmp_path: Path) -> None:
    """Windows of 200: the policy loses .1 and .3 after position 128, nothing before it."""
    windows = [Window(start, torch.zeros(200, dtype=torch.int64)) for start in (0, 200)]
    policy, fp16 = ItemStore(tmp_path, "p", {}), ItemStore(tmp_path, "f", {})
    for window, more in zip(windows, (0.1, 0.3), strict=True):
        fp16.add(window.key, {"nll": [2.0] * 199})
        policy.add(window.key, {"nll": [2.0] * 127 + [2.0 + more] * 72})
    first, second = positions.by_position(windows, policy, fp16)
    assert (first["loss_diff"], first["tokens"]) == (0.0, 2 * 127)
    assert second["loss_diff"] == pytest.approx(0.2)
    assert second["loss_diff_se"] == pytest.approx(0.1)  # half the distance between two windows
    assert second["ppl_fp16"] == pytest.approx(math.exp(2.0))


def test_retention_counts_only_what_fp16_finds(tmp_path: Path) -> None:
    prompts = [Needle("passkey", 10, 0.5, trial, (1,), ((2,), (3,))) for trial in range(4)]
    policy, fp16 = ItemStore(tmp_path, "p", {}), ItemStore(tmp_path, "f", {})
    for needle, theirs, mine in zip(prompts, (True, True, True, False), (True, False, True, True), strict=True):
        fp16.add(needle.key, {"greedy": [theirs, False], "log_likelihood": [-1.0, -2.0]})
        policy.add(needle.key, {"greedy": [mine, False], "log_likelihood": [-1.0, -2.0 if mine else -0.5]})
    overall, at_depth = positions.retrieval(prompts, policy, fp16)
    assert (overall["depth"], at_depth["depth"]) == (None, 0.5)
    greedy, rank = overall["greedy"], overall["rank"]
    assert (greedy["fp16"], greedy["policy"], greedy["both"], greedy["retention"]) == (3, 3, 2, 2 / 3)
    assert (rank["fp16"], rank["both"], rank["retention"]) == (4, 3, 0.75)
    assert 0 < greedy["low"] < 2 / 3 < greedy["high"] < 1


def command(checkpoint: Path, data: Path, out: Path) -> list[str]:
    return [
        *("--checkpoint", str(checkpoint), "--data-dir", str(data), "--out", str(out / "long"), "--policy", "static-2"),
        *("--context", "256", "--tokens", "512", "--window", "8", "--kinds", "passkey", "--lengths", "60,90"),
        *("--depths", "0.2,0.8", "--trials", "2", "--work-dir", str(out / "work")),
    ]


def test_the_command_writes_plot_and_numbers(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(long_context.app, command(tiny_folder, tiny_data, tmp_path))
    assert done.exit_code == 0, done.output
    out = json.loads((tmp_path / "long.json").read_text(encoding="utf-8"))
    assert [row["begin"] for row in out["positions"]] == [1, 128]
    assert [(row["length"], row["depth"], row["prompts"]) for row in out["retrieval"]][:3] == [
        (60, None, 4), (60, 0.2, 2), (60, 0.8, 2),
    ]  # fmt: skip
    assert (tmp_path / "long.png").stat().st_size > ITEMS
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    again = CliRunner().invoke(long_context.app, command(tiny_folder, tiny_data, tmp_path))
    assert again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in stored} == stored  # nothing is scored twice
    assert json.loads((tmp_path / "long.json").read_text(encoding="utf-8")) == out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--depths", "0.5,2"), "between 0 and 1"),
        (("--lengths", "many"), "takes whole numbers separated by commas"),
        (("--kinds", "haystack"), "unknown kind of retrieval"),
        (("--out", "/nowhere/long"), "does not exist"),
        (("--policy", "wishful"), "wishful"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, str], expected: str, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(long_context.app, [*command(tiny_folder, tiny_data, tmp_path), "--tokens", "0", *options])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
