"""Tests of bench_peers.py: choices, statistics, resumption, table and plot; and one real run of our driver."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

import bench_peers
from adakv_model.config import get_model
from adakv_model.errors import UserError
from adakv_model.terminal import make_console
from make_tiny_artifact import main as make_tiny_artifact
from peers import bench, children, prepare, probe, random_gguf, rows, show, stock, systems
from peers.measure import measure, nll
from peers.store import Store


def make_cell(system: str, cache: str, context: int = 512, turn: int = 0, **changes: object) -> dict:
    """A finished cell of 4 steps."""
    cell = {
        "system": system,
        "cache": cache,
        "batch": 0,
        "flawed": False,
        "context": context,
        "threads": 2,
        "round": turn,
        "decode_ms": [1.0, 2.0, 3.0, 4.0],
        "prefill_s": 0.5,
        "prefill_tokens": 500,
        "load_s": 0.25,
        "peak_rss_mb": 100.0,
        "nll": 3.0,
        "build": "b",
        "cpu": "c",
        "kv_bytes": 2**20,
        "file_bytes": 10**6,
    }
    return cell | changes


CELLS = [
    make_cell("llama.cpp", "f16"),
    make_cell("llama.cpp", "f16", context=2048),
    make_cell("adakv", "adaptive-3.25", nll=3.1),
    make_cell("adakv", "adaptive-3.25", turn=1, nll=3.1, decode_ms=[0.5, 9.0, 9.0, 9.0], prefill_s=0.4),
    make_cell("ik_llama.cpp", "f16", batch=512, flawed=True, nll=3.5),
    make_cell("mnn", "fp32") | {"error": "exit status 1"},
]


def test_names_select_systems_and_caches() -> None:
    every = systems.parse_systems("", [3.25])
    assert {v.system for v in every} == set(systems.CACHES) - systems.BY_NAME_ONLY
    assert [v.cache for v in every if v.system == "adakv"] == ["adaptive-3.25", "static-4", "fp16"]
    named = systems.parse_systems("executorch,llama.cpp:q8_0,adakv:adaptive-2.5,executorch:int8,llama.cpp:q8_0", [4])
    assert [(v.system, v.cache) for v in named] == [
        ("executorch", "fp32"),
        ("llama.cpp", "q8_0"),
        ("adakv", "adaptive-2.5"),
        ("executorch", "int8"),
    ]


@pytest.mark.parametrize("text", ["vllm", "llama.cpp:q3", "adakv:adaptive-x"])
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        systems.parse_systems(text, [3.25])


def test_isa_reaches_only_systems_with_a_switch() -> None:
    assert systems.isa_environment("adakv", "avx2") == {"ADAKV_ISA": "avx2"}
    assert systems.isa_environment("llama.cpp", "avx2") == {}
    assert systems.isa_environment("adakv", None) == {}
    assert children.environment("adakv", 2, "avx2")["OMP_NUM_THREADS"] == "2"
    assert set(systems.ISA_NOTES) == set(systems.CACHES)


def test_rows_join_rounds_and_mark_wrong_losses() -> None:
    made = rows.make_rows(CELLS, tolerance=0.25)
    assert [(r["system"], r["cache"], r["context"]) for r in made] == [
        ("llama.cpp", "f16", 512),
        ("adakv", "adaptive-3.25", 512),
        ("ik_llama.cpp", "f16, batch 512", 512),
        ("llama.cpp", "f16", 2048),
    ]
    ours = made[1]
    assert (ours["decode_ms_min"], ours["decode_ms_median"], ours["rounds"]) == (0.5, 3.5, 2)
    assert ours["decode_ms_p90"] == pytest.approx(np.percentile([1, 2, 3, 4, 0.5, 9, 9, 9], 90))
    assert ours["prefill_ms_per_token"] == pytest.approx(0.8)
    assert [r["wrong"] for r in made] == [False, False, True, False]
    assert set(rows.COLUMNS) <= set(ours)


def test_rows_without_a_loss_are_not_judged() -> None:
    (row,) = rows.make_rows([make_cell("llama.cpp", "f16", nll=None)], tolerance=0.1)
    assert row["nll"] is None
    assert row["wrong"] is None


def test_table_and_plot_show_the_mark(tmp_path: Path) -> None:
    made = rows.make_rows(CELLS, tolerance=0.25)
    console = make_console(stderr=False, width=200, record=True, file=(tmp_path / "table").open("w", encoding="utf-8"))
    console.print(show.table(made))
    text = console.export_text()
    assert text.count(show.WRONG) == 1
    assert "adaptive-3.25" in text
    show.plot(made, tmp_path / "plot.png", "title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_resumed_store_keeps_results_and_drops_failures(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    first = Store(path, {"steps": 4}, resume=False)
    first.probes["llama.cpp"] = {"8": {"prefill_s": 1.0, "nll": 3.0}}
    for cell in CELLS:
        first.add(cell)
    again = Store(path, {"steps": 4}, resume=True)
    assert again.cells == [cell for cell in CELLS if "error" not in cell]
    assert again.probes == first.probes
    variant = systems.Variant("adakv", "adaptive-3.25")
    assert again.has(**bench._key(variant, 512, 2, 1))
    assert not again.has(**bench._key(variant, 512, 2, 2))
    assert Store(path, {"steps": 4}, resume=False).cells == []


@pytest.mark.parametrize("content", ["{", "[]", '{"cells": [], "options": {"steps": 5}}'])
def test_foreign_results_are_not_resumed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"results\.json"):
        Store(path, {"steps": 4}, resume=True)


def test_probe_takes_the_fastest_batch_with_the_right_loss() -> None:
    results = {8: (3.0, 3.5), 16: (2.0, 3.51), 31: (2.5, 3.5), 64: (1.0, 4.0), 128: (0.9, 4.0), 512: (0.8, 4.0)}
    details = probe.probe(lambda batch: dict(zip(("prefill_s", "nll"), results[batch], strict=True)))
    assert not isinstance(details, str)
    assert probe.choose(details) == (16, 512)
    assert probe.probe(lambda batch: {"error": "no"}) == "no"


def test_rounds_interleave_the_systems() -> None:
    a, b = systems.Variant("adakv", "fp16"), systems.Variant("ik_llama.cpp", "f16", 512, flawed=True)
    settings = bench.Settings(
        "m", [], [64, 128], [1], 2, 4, Path(), Path(), Path(), isa=None, timeout=1.0, tolerance=0.1
    )
    made = object.__new__(bench.Bench)
    made.settings = settings
    assert list(made._cells([a, b])) == [
        (a, 64, 1, 0),
        (b, 64, 1, 0),
        (a, 128, 1, 0),
        (b, 128, 1, 0),
        (a, 64, 1, 1),
        (a, 128, 1, 1),
    ]


def test_a_failing_child_is_an_error_not_an_exception(tmp_path: Path) -> None:
    job = {"engine": "adakv", "threads": 1, "model": str(tmp_path), "tokens": list(range(20)), "steps": 4}
    assert "no artifact" in children.run_child(job, tmp_path, 100)["error"]
    assert "make peers" in children.run_child(job | {"engine": "mnn"}, tmp_path, 100)["error"]


def test_loss_is_that_of_the_targets() -> None:
    logits = [np.log(np.array([0.5, 0.25, 0.25])), np.log(np.array([0.1, 0.1, 0.8]))]
    assert nll(logits, [0, 2]) == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)


def test_protocol_feeds_prompt_then_forced_tokens() -> None:
    fed: list[list[int]] = []

    class Recorder:
        def __init__(self, job: dict) -> None:
            fed.clear()

        def reset(self) -> None:
            fed.clear()

        def prefill(self, tokens: list[int]) -> None:
            fed.append(tokens)

        def step(self, token: int) -> None:
            fed.append([token])

        def logits(self) -> np.ndarray:
            return np.zeros(100, np.float32)

        def facts(self) -> dict:
            return {}

    result = measure(Recorder, {"tokens": list(range(65)), "steps": 4, "threads": 1})
    assert fed == [list(range(60)), [60], [61], [62], [63]]
    assert result["prefill_tokens"] == 60
    assert len(result["decode_ms"]) == 4
    assert result["nll"] == pytest.approx(np.log(100), abs=1e-4)


def test_names_of_the_stock_export() -> None:
    assert stock.meta_name("layers.3.self_attn.q_proj.weight") == "layers.3.attention.wq.weight"
    assert stock.meta_name("layers.3.input_layernorm.weight") == "layers.3.attention_norm.weight"
    assert stock.meta_name("layers.3.post_attention_layernorm.weight") == "layers.3.ffn_norm.weight"
    assert stock.meta_name("embed_tokens.weight") == "tok_embeddings.weight"
    assert stock.meta_name("norm.weight") == "norm.weight"
    assert "--quantize_kv_cache" in stock.export_command(Path("f"), 64, int8_cache=True)


def test_random_gguf_has_the_shape_and_the_tokenizer(tmp_path: Path) -> None:
    template = tmp_path / "template.gguf"
    writer = gguf.GGUFWriter(template, "llama")
    writer.add_block_count(30)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config = get_model("smollm2-360m").config
    small = replace(config, n_layers=1, head_dim=32, hidden_size=64, intermediate_size=96, n_heads=2, n_kv_heads=1)
    small = replace(small, vocab_size=64)
    random_gguf.write_random_gguf(template, small, tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["llama.block_count"].contents() == 1
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    shapes = {t.name: tuple(reversed(t.shape.tolist())) for t in reader.tensors}
    assert shapes["blk.0.ffn_down.weight"] == (64, 96)
    values = gguf.quants.dequantize(reader.tensors[-1].data, reader.tensors[-1].tensor_type)
    assert np.abs(values).max() <= random_gguf.SCALE * 1.01


def test_sources_decide_about_a_new_export(tmp_path: Path) -> None:
    for name in prepare.SOURCE_FILES:
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "a.py").write_text("a", encoding="utf-8")
    before = prepare.source_hash(tmp_path)
    (tmp_path / "export" / "test_a.py").write_text("tests do not matter", encoding="utf-8")
    assert prepare.source_hash(tmp_path) == before
    (tmp_path / "export" / "a.py").write_text("b", encoding="utf-8")
    assert prepare.source_hash(tmp_path) != before


def test_command_says_what_is_missing() -> None:
    result = CliRunner().invoke(bench_peers.app, ["--contexts", "128"])
    assert result.exit_code == 2
    assert "--json" in result.output


def test_our_driver_measures_the_tiny_artifact(tmp_path: Path) -> None:
    make_tiny_artifact(tmp_path / "tiny")
    job = {"engine": "adakv", "model": str(tmp_path / "tiny"), "tokens": [i % 300 for i in range(97)], "steps": 8}
    result = children.run_child(job | {"threads": 1, "isa": "avx2"}, tmp_path, 300)
    assert "error" not in result, result
    assert len(result["decode_ms"]) == 8
    assert min(result["decode_ms"]) > 0
    assert 3 < result["nll"] < 12
    manifest = json.loads((tmp_path / "tiny" / "manifest.json").read_text(encoding="utf-8"))
    assert result["kv_bytes"] == manifest["kv_cache"]["bytes_allocated"]
    assert "avx2" in result["build"]
