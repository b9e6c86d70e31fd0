"""What a user passes to generate text, checked before anything is loaded."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence

from adakv_model.errors import UserError

EMPTY_PROMPT = "the prompt is empty: pass some text with --prompt"


def argument_text(name: str, text: str) -> str:
    """A text of the command line, which Python decoded by the locale: UTF-8 if its bytes are, else as decoded.

    Raises UserError for bytes that neither can read.
    """
    try:
        return os.fsencode(text).decode()
    except UnicodeEncodeError:  # not from a command line of this locale
        return text
    except UnicodeDecodeError as error:
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise UserError(f"{name} is not UTF-8 text (byte {error.start}): convert it, e.g. with iconv") from error
        return text


def read_prompt(prompt: str) -> str:
    """The prompt; `-` reads standard input, UTF-8 whatever the locale. Raises UserError for other text and for none."""
    if prompt != "-":
        text = argument_text("--prompt", prompt)
    else:
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input is not UTF-8 text (byte {error.start}): convert it, e.g. with iconv"
            ) from error
    if not text:
        where = "standard input is empty: write the prompt to it" if prompt == "-" else EMPTY_PROMPT
        raise UserError(where)
    return text


def check_sampling(temperature: float, seed: int) -> None:
    """Raises UserError for a temperature or seed that the sampler cannot use."""
    if not 0 <= temperature < math.inf:
        raise UserError(f"--temperature {temperature} must be 0 or a positive number")
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"--seed {seed} does not fit 64 bits: choose a smaller one")


def check_threads(count: int, option: str = "--threads") -> None:
    """Raises UserError for more threads than this machine has cores: the runtime then fails, or only gets slower."""
    cores = os.cpu_count() or 1
    if not 1 <= count <= cores:
        raise UserError(f"{option} {count} must lie between 1 and {cores}, the cores of this machine")


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Raises UserError for ids that the model's embedding does not have, which a tokenizer may know."""
    wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise UserError(
            f"token id {wrong} is outside the model's vocabulary of {vocabulary}: its tokenizer has added tokens that"
            " the weights lack; leave that token out of the text"
        )


def check_prompt(prompt: Sequence[int], context: int, vocabulary: int) -> None:
    """Raises UserError for a prompt that is empty, longer than the artifact's context, or not of its vocabulary."""
    if not prompt:
        raise UserError(EMPTY_PROMPT)
    if len(prompt) > context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and the artifact holds {context}: shorten it, or export"
            " with a larger --context"
        )
    check_tokens(prompt, vocabulary)
