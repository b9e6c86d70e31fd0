"""Text to token ids and back: encoding, streaming decoding, chat templates."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adakv_model.checkpoints.tokenizer import open_tokenizer
from adakv_model.checkpoints.weights import Checkpoint
from adakv_model.errors import UserError

_INCOMPLETE = "\ufffd"


class TextCodec:
    """Encodes and decodes with the content of a tokenizer.json.

    Special tokens written in the text, such as `<|im_start|>`, become their single ids. Truncation and padding
    stored in the file are switched off.
    """

    def __init__(
        self,
        tokenizer_json: bytes,
        chat_template: str | None = None,
        bos_id: int | None = None,
        eos_ids: Sequence[int] = (),
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """special_tokens: name -> text for chat templates; None: those of `bos_id` and the first of `eos_ids`.

        Raises UserError where `tokenizer_json` is not the content of a tokenizer.json.
        """
        self._tokenizer = open_tokenizer(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._template = chat_template
        self.bos_id = bos_id
        self.eos_ids = tuple(eos_ids)
        if special_tokens is None:
            special_tokens = {"bos_token": self._token(bos_id), "eos_token": self._token(next(iter(eos_ids), None))}
        self._special_tokens = dict(special_tokens)
        self._beginning = self._before_a_text()

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; bytes that the vocabulary lacks vanish.

        add_special_tokens: with the BOS (and EOS) that the tokenizer puts around a text, for text that is a sequence
        of its own; a rendered chat has its own. SmolLM's tokenizer adds none.
        Raises UserError for lone surrogates, which is how a command line passes bytes that are not UTF-8.
        """
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise UserError("the text is not valid Unicode: pass it as UTF-8")
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_start(self, text: str) -> list[int]:
        """Token ids of a text that a sequence begins with and that goes on: with the tokenizer's BOS, without its EOS.

        A text that already begins with the BOS, as a rendered chat may, gets no second one.
        """
        before = self._beginning
        ids = self.encode(text)
        return ids if ids[: len(before)] == before else [*before, *ids]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool = True) -> "StreamDecoder":
        """A decoder for one generated text."""
        return StreamDecoder(self, skip_special_tokens=skip_special_tokens)

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Renders `{"role": ..., "content": ...}` messages with the checkpoint's own chat template.

        SmolLM2's template puts a default system message first where there is none. With
        `add_generation_prompt` the text ends where the assistant's answer begins. Encode it with `encode`.
        Raises UserError without a template, for a message without role or content, or if it is refused.
        """
        if self._template is None:
            raise UserError("this checkpoint has no chat template: use an instruct model, or a plain text prompt")
        for message in messages:
            if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise UserError('every chat message needs a string "role" and a string "content"')
        try:
            return (
                _environment()
                .from_string(self._template)
                .render(
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self._special_tokens,
                )
            )
        except Exception as error:  # a template is a program: it may also divide by zero or add text to a number
            raise UserError(f"the chat template refused these messages ({error}): correct them") from error

    def _before_a_text(self) -> list[int]:
        """What the post-processor puts before a text. A text that has a token tells it from what comes after."""
        if self._tokenizer.post_processor is None:
            return []
        for probe in ("a", *itertools.islice(self._tokenizer.get_vocab(), 100)):
            encoded = self._tokenizer.encode(probe, add_special_tokens=True)
            if 0 in encoded.special_tokens_mask:
                return list(encoded.ids[: encoded.special_tokens_mask.index(0)])
        return []

    def _token(self, index: int | None) -> str:
        return "" if index is None else self._tokenizer.id_to_token(index) or ""


class StreamDecoder:
    """Turns ids into text one by one; a character that spans several tokens appears when it is complete.

    The pieces of `push` and a last `flush` join to exactly `codec.decode(all ids)`.
    """

    def __init__(self, codec: TextCodec, *, skip_special_tokens: bool = True) -> None:
        self._codec = codec
        self._skip = skip_special_tokens
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        self._pending.append(token)
        text = self._pending_text()
        # A decoder writes U+FFFD for an unfinished character, so text that does not end with it is final.
        if text.endswith(_INCOMPLETE):
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """What is left at the end of generation: U+FFFD for bytes that never became a character."""
        return self._emit(self._pending_text())

    def _pending_text(self) -> str:
        # Decoded after the piece before: some decoders drop a space at the start of a text.
        return self._decode(self._context + self._pending)[len(self._decode(self._context)) :]

    def _emit(self, text: str) -> str:
        if text:
            self._context, self._pending = self._pending, []
        return text

    def _decode(self, ids: list[int]) -> str:
        return self._codec.decode(ids, skip_special_tokens=self._skip)


def codec_for(checkpoint: Checkpoint) -> TextCodec:
    """The codec of a checkpoint. Raises UserError where it has no tokenizer."""
    if checkpoint.tokenizer is None:
        raise UserError(
            f"checkpoint '{checkpoint.name}' has no tokenizer: put tokenizer.json beside its weights; for "
            "random weights, load the default model once, whose tokenizer they then use"
        )
    config = checkpoint.config
    return TextCodec(
        checkpoint.tokenizer,
        checkpoint.chat_template,
        config.bos_token_id,
        config.eos_token_ids,
        checkpoint.special_tokens,
    )


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}` marks an assistant's words for training; here it is its content."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> jinja2.Environment:
    """Renders chat templates as transformers does; sandboxed, because templates come with weights."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
