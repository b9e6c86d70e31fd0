"""Tokenizer, streaming and chat: round trips, and equality with transformers and ExecuTorch's tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from adakv_model.checkpoints.load import Checkpoint
from adakv_model.errors import UserError
from adakv_model.runtime.text import TextCodec, codec_for

STRINGS = [
    "",
    "The capital of France is Paris.",
    "abc 12345 x 3.14 1,000",
    "  leading,  double   and trailing  ",
    "def f(x):\n\treturn x\n\n\n",
    "\r\n\r\n\t\t end",
    "don't we'll I'M 'tis",
    "Hé 日本語 🙂 👨\u200d👩\u200d👧 Год 2024: 5€",
    "\u00a0no-break\u2003em",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<|endoftext|>b <repo_name>x",
]
# Numbers that only the Digits step of the pre-tokenizer splits.
NON_ASCII_NUMBERS = ["x²½¾ y", "٣٤٥ ⅷⅸ ①②"]


@pytest.fixture(scope="module")
def codec(default_checkpoint: Checkpoint) -> TextCodec:
    return codec_for(default_checkpoint)


@pytest.fixture(scope="module")
def tokenizer_file(default_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert default_checkpoint.tokenizer is not None
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(default_checkpoint.tokenizer)
    return path


@pytest.fixture(scope="module")
def byte_codec() -> TextCodec:
    """Every byte is its own token: any id sequence is possible, so most of them are broken UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextCodec(tokenizer.to_str().encode())


@pytest.mark.parametrize("text", STRINGS + NON_ASCII_NUMBERS)
def test_text_round_trips(codec: TextCodec, text: str) -> None:
    assert codec.decode(codec.encode(text)) == text


# The vocabulary lacks the bytes of these control characters, and 0xF1 and 0xF2 (U+40000 to U+BFFFF).
NO_TOKEN = "\x04\x06\x13\x14\x16\x1d"


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", max_codepoint=0x3FFFF, exclude_characters=NO_TOKEN)))
def test_any_text_round_trips(codec: TextCodec, text: str) -> None:
    assert codec.decode(codec.encode(text)) == text


def test_text_that_is_not_unicode_is_a_user_error(codec: TextCodec) -> None:
    with pytest.raises(UserError, match="UTF-8"):
        codec.encode("caf\udce9")


def test_digits_are_single_tokens_and_chat_tokens_single_ids(codec: TextCodec) -> None:
    assert [codec.decode([token]) for token in codec.encode("12345")] == list("12345")
    assert codec.encode("<|im_start|>") == [1]
    assert codec.encode("<|im_end|>") == [2]
    assert codec.vocab_size == 49152


@pytest.mark.parametrize("text", STRINGS + NON_ASCII_NUMBERS)
def test_executorch_gives_the_same_ids(codec: TextCodec, tokenizer_file: Path, text: str) -> None:
    """`CppHFTokenizer` is the tokenizer of ExecuTorch's runners, `get_tokenizer` that of its Python tools."""
    cpp = pytest.importorskip("pytorch_tokenizers").CppHFTokenizer()
    cpp.load(str(tokenizer_file))
    python = pytest.importorskip("pytorch_tokenizers").get_tokenizer(str(tokenizer_file))
    expected = codec.encode(text)
    assert cpp.encode(text, bos=0, eos=0) == expected
    assert python.encode(text, bos=False, eos=False) == expected


def test_transformers_reads_the_same_vocabulary_merges_and_special_tokens(
    default_checkpoint: Checkpoint, transformers_tokenizer: Any
) -> None:
    ours = json.loads(default_checkpoint.tokenizer or b"")
    theirs = json.loads(transformers_tokenizer.backend_tokenizer.to_str())
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert ours["model"]["merges"] == theirs["model"]["merges"]
    assert [(t["id"], t["content"]) for t in ours["added_tokens"] if t["special"]] == [
        (t["id"], t["content"]) for t in theirs["added_tokens"]
    ]


@pytest.mark.parametrize("text", STRINGS)
def test_transformers_gives_the_same_ids(codec: TextCodec, transformers_tokenizer: Any, text: str) -> None:
    """Except for non-ASCII numbers: its GGUF conversion has no Digits step; ours and llama.cpp's have."""
    assert codec.encode(text) == transformers_tokenizer(text)["input_ids"]


@pytest.fixture(scope="module")
def transformers_tokenizer(default_gguf: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(default_gguf.parent, gguf_file=default_gguf.name)


@pytest.mark.parametrize("text", STRINGS)
def test_streamed_pieces_are_whole_characters_and_join_to_the_text(codec: TextCodec, text: str) -> None:
    decoder = codec.stream(skip_special_tokens=False)
    pieces = [decoder.push(token) for token in codec.encode(text)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + decoder.flush() == text


def test_streaming_shows_text_as_early_as_possible(codec: TextCodec) -> None:
    decoder = codec.stream()
    pieces = [decoder.push(token) for token in codec.encode("Hello world 🙂!")]
    assert pieces[:2] == ["Hello", " world"]
    assert pieces[-1] == "!"


@settings(max_examples=200, deadline=None)
@given(data=st.lists(st.integers(0, 255), max_size=40))
def test_streaming_equals_decoding_for_any_bytes(byte_codec: TextCodec, data: list[int]) -> None:
    decoder = byte_codec.stream()
    assert "".join(map(decoder.push, data)) + decoder.flush() == byte_codec.decode(data)


def test_special_tokens_are_skipped_in_a_stream_on_request(codec: TextCodec) -> None:
    ids = codec.encode("Hi<|im_end|>")
    decoder = codec.stream(skip_special_tokens=True)
    assert "".join(map(decoder.push, ids)) + decoder.flush() == "Hi"
    assert codec.decode(ids, skip_special_tokens=True) == "Hi"


def test_chat_gets_the_default_system_message(codec: TextCodec) -> None:
    assert codec.render_chat([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_keeps_a_given_system_message(codec: TextCodec) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert codec.render_chat(messages, add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_chat_equals_transformers(codec: TextCodec, transformers_tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "a <b> & 'c'\n"},
        {"role": "assistant", "content": "12"},
        {"role": "user", "content": "?"},
    ]
    theirs = transformers_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert codec.render_chat(messages) == theirs


def _with_template(codec: TextCodec, template: str | None) -> TextCodec:
    return TextCodec(codec._tokenizer.to_str().encode(), template, bos_id=0, eos_ids=(1, 2))


@pytest.mark.parametrize(
    ("template", "messages", "named"),
    [
        (None, [{"role": "user", "content": "x"}], "no chat template"),
        ("{{ messages }}", [{"role": "user"}], "content"),
        ("{{ messages }}", [{"role": "user", "content": 3}], "content"),
        ("{{ raise_exception('roles must alternate') }}", [], "roles must alternate"),
        ("{% for %}", [], "chat template"),
        ("{{ messages.__class__.__mro__ }}", [], "chat template"),
        ("{{ messages[0].content + 1 }}", [{"role": "user", "content": "x"}], "chat template refused"),
        ("{{ 1 // 0 }}", [], "chat template refused"),
    ],
)
def test_chat_problems_are_user_errors(
    byte_codec: TextCodec, template: str | None, messages: list[dict[str, str]], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        _with_template(byte_codec, template).render_chat(messages)


def test_templates_get_what_transformers_gives_them(byte_codec: TextCodec) -> None:
    template = "{{ bos_token }}{{ eos_token }}{{ messages | tojson }}{{ strftime_now('%%') }}"
    bos, eos = byte_codec.decode([0]), byte_codec.decode([1])
    rendered = _with_template(byte_codec, template).render_chat([{"role": "r", "content": "<é>"}])
    assert rendered == f'{bos}{eos}[{{"role": "r", "content": "<é>"}}]%'


@pytest.mark.parametrize(("single", "start"), [("B $A", [0]), ("B $A E", [0]), ("$A E", []), ("B B $A", [0, 0])])
def test_a_sequence_starts_as_the_tokenizer_says(single: str, start: list[int]) -> None:
    """encode_start: once, although the text may begin with it already, and without what comes after a text."""
    tokenizer = Tokenizer(models.WordLevel({"B": 0, "E": 1, "Hello": 2, "world": 3}, unk_token="E"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["B", "E"])
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("B", 0), ("E", 1)])
    codec = TextCodec(tokenizer.to_str().encode())
    assert codec.encode_start("Hello world") == [*start, 2, 3]
    assert codec.encode_start("") == start
    assert codec.encode("Hello world") == [2, 3]
    if start:
        assert codec.encode_start(single.split(" $A")[0] + " Hello") == [*start, 2]


def test_stored_truncation_and_padding_are_switched_off(byte_codec: TextCodec) -> None:
    tokenizer = Tokenizer.from_str(byte_codec._tokenizer.to_str())
    tokenizer.enable_truncation(24)
    tokenizer.enable_padding(length=128, pad_id=2)
    assert TextCodec(tokenizer.to_str().encode()).encode("x" * 59) == byte_codec.encode("x" * 59)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "none"}}'])
def test_a_malformed_tokenizer_is_a_user_error(content: bytes) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        TextCodec(content)
