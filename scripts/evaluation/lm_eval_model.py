"""The cache policies, and exported artifacts, as an lm-eval model: `--model adakv`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from adakv_model.cache_options import DEFAULT_CONTEXT, DEFAULT_WINDOW
from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.config import DEFAULT_MODEL, MODELS
from adakv_model.errors import UserError
from adakv_model.runtime.text import codec_for
from evaluation.policies import PolicySpec, load_tables
from evaluation.scorers import ArtifactScorer, Generator, open_artifact

MAX_NEW_TOKENS = 256  # lm-eval's own default for max_gen_toks

# The last four change nothing in a greedy answer.
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "max_length", "top_p", "top_k", "min_p", "seed"}

Pair = tuple[tuple[str, str], list[int], list[int]]


@register_model("adakv")
class AdaKV(TemplateLM):
    """`--model_args pretrained=NAME_OR_PATH,policy=adaptive,kv_bits=3.25`; see the arguments of __init__.

    Every sequence is scored alone in a cache of `max_length` tokens; contexts too long for it lose their start.
    """

    def __init__(
        self,
        pretrained: str = DEFAULT_MODEL,
        policy: str = "adaptive",
        kv_bits: float | None = None,
        max_length: int = DEFAULT_CONTEXT,
        window: int = DEFAULT_WINDOW,
        window_bits: int | None = None,
        tables: str | None = None,
        artifact: str | None = None,
        threads: int = 0,
        **ignored: Any,
    ) -> None:
        """pretrained: a registered name, a hub id, a folder or a .gguf file. artifact: score its program instead of
        a simulated policy. ignored: batch_size, max_batch_size and device, which lm-eval always passes.

        Raises UserError for bad values.
        """
        super().__init__()
        unknown = set(ignored) - {"batch_size", "max_batch_size", "device"}
        if unknown:
            raise UserError(f"unknown --model_args {', '.join(sorted(unknown))} of adakv")
        if threads:
            torch.set_num_threads(threads)
        known = pretrained in MODELS
        checkpoint = load_checkpoint(pretrained if known else DEFAULT_MODEL, path=None if known else Path(pretrained))
        self._name, self._codec = checkpoint.name, codec_for(checkpoint)
        self._scorer: Generator
        if artifact is not None:
            self._scorer = ArtifactScorer(open_artifact(Path(artifact), checkpoint))
            self.max_length = self._scorer.plan.context
        else:
            spec = PolicySpec(policy, kv_bits, max_length, window, window_bits)
            path = None if tables is None else Path(tables)
            self._scorer = spec.simulator(checkpoint, load_tables(checkpoint, path))
            self.max_length = max_length

    @property
    def eot_token_id(self) -> int:
        """The token before a text without context: BOS, else the first end token, else 0."""
        bos, eos = self._codec.bos_id, self._codec.eos_ids
        return bos if bos is not None else eos[0] if eos else 0

    @property
    def tokenizer_name(self) -> str:
        return self._name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """As lm-eval's own Hugging Face model: BOS where the tokenizer puts it, unless it is there or unwanted."""
        return self._codec.encode(string) if add_special_tokens is False else self._codec.encode_start(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._codec.render_chat(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The checkpoint has one template; its source only identifies cached requests."""
        return self._name if chat_template else None

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Requests that share a context are scored together."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (_, context, continuation) in enumerate(requests):
            if len(continuation) >= self.max_length:
                raise UserError(f"a continuation of {len(continuation)} tokens does not fit max_length")
            groups[tuple(context[-(self.max_length - len(continuation)) :])].append(index)
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        with tqdm(total=len(requests), desc="loglikelihood", disable=disable_tqdm) as bar:
            for shared, members in sorted(groups.items(), key=lambda group: -len(group[0])):
                scored_members = [index for index in members if requests[index][2]]
                continuations = [requests[index][2] for index in scored_members]
                if continuations:
                    (scored,) = self._scorer.score_continuations(torch.tensor([shared]), [continuations])
                    for index, one in zip(scored_members, scored, strict=True):
                        results[index] = _finite(float(one.log_probs.double().sum())), bool(one.greedy.all())
                for index in members:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
                bar.update(len(members))
        return results

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Windows of max_length - 1 predicted tokens after one of context, each token predicted once."""
        totals = []
        for request in tqdm(requests, desc="loglikelihood_rolling", disable=disable_tqdm):
            (text,) = request.args
            ids = self._codec.encode(text)  # the prefix token is its BOS
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1)
            total = 0.0
            for context, continuation in map(make_disjoint_window, windows):
                ((one,),) = self._scorer.score_continuations(torch.tensor([context]), [[continuation]])
                total += _finite(float(one.log_probs.double().sum()))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            totals.append(total)
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Greedy, token by token. Raises UserError for sampling, and for a limit that leaves no room for a prompt."""
        answers = []
        for request in tqdm(requests, desc="generate_until", disable=disable_tqdm):
            context, options = request.args
            answer = self._generate(context, options)
            self.cache_hook.add_partial("generate_until", request.args, answer)
            answers.append(answer)
        return answers

    def _generate(self, context: str, options: Mapping[str, Any]) -> str:
        stops, limit = generation_limits(options, self.max_length)
        prompt = self.tok_encode(context)[-(self.max_length - limit) :] or [self.prefix_token_id]
        if (total := options.get("max_length")) is not None:  # of transformers: prompt and answer
            limit = min(limit, int(total) - len(prompt))
            if limit < 1:
                raise UserError(f"max_length={total} leaves no room after {len(prompt)} tokens: pass max_gen_toks")

        def stop(new: list[int]) -> bool:
            return new[-1] in self._codec.eos_ids or any(s in self._codec.decode(new) for s in stops)

        new = self._scorer.greedy(prompt, limit, stop)
        text = self._codec.decode([token for token in new if token not in self._codec.eos_ids])
        for ending in stops:
            text = text.split(ending)[0]
        return text


def generation_limits(options: Mapping[str, Any], max_length: int) -> tuple[list[str], int]:
    """Texts that end an answer, and its most tokens, in all of lm-eval's spellings and by its own rules.

    Raises UserError for sampling, for options that would change a greedy answer, and for limits that leave no room.
    """
    try:
        normal = dict(normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS))
        temperature = float(normal.get("temperature") or 0.0)
        limit = int(normal["max_gen_toks"])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"--gen_kwargs {dict(options)} cannot be read ({error})") from error
    if normal.get("do_sample") and ("temperature" not in options or temperature != 0):
        raise UserError("adakv generates greedily: pass --gen_kwargs do_sample=False")
    if unknown := sorted(set(normal) - _KNOWN):
        raise UserError(f"adakv does not know --gen_kwargs {', '.join(unknown)}: drop it")
    if not 1 <= limit < max_length:
        raise UserError(
            f"max_gen_toks={limit} must lie between 1 and {max_length - 1}, less than max_length={max_length}"
        )
    until = normal.get("until") or []
    if not all(isinstance(text, str) for text in until if text is not None):
        raise UserError(f"until={until!r} must be texts")
    return [text for text in until if text], limit


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UserError(f"a log-likelihood is {value}: the weights or the program are damaged")
    return value
