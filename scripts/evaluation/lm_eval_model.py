"""The cache policies, and exported artifacts, as an lm-eval model: `--model adakv`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
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
        return self._codec.encode(string)

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
                        results[index] = float(one.log_probs.double().sum()), bool(one.greedy.all())
                for index in members:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
                bar.update(len(members))
        return results

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Windows of max_length - 1 predicted tokens after one of context, each token predicted once."""
        totals = []
        for request in tqdm(requests, desc="loglikelihood_rolling", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length - 1, 1)
            total = 0.0
            for context, continuation in map(make_disjoint_window, windows):
                ((one,),) = self._scorer.score_continuations(torch.tensor([context]), [[continuation]])
                total += float(one.log_probs.double().sum())
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            totals.append(total)
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Greedy, token by token. Raises UserError for sampling."""
        answers = []
        for request in tqdm(requests, desc="generate_until", disable=disable_tqdm):
            context, options = request.args
            answer = self._generate(context, options)
            self.cache_hook.add_partial("generate_until", request.args, answer)
            answers.append(answer)
        return answers

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise UserError("adakv generates greedily: pass --gen_kwargs do_sample=False")
        until = options.get("until") or []
        stops = [s for s in ([until] if isinstance(until, str) else until) if s]
        limit = min(int(options.get("max_gen_toks", MAX_NEW_TOKENS)), self.max_length - 1)
        prompt = self.tok_encode(context)[-(self.max_length - limit) :] or [self.prefix_token_id]

        def stop(new: list[int]) -> bool:
            return new[-1] in self._codec.eos_ids or any(s in self._codec.decode(new) for s in stops)

        new = self._scorer.greedy(prompt, limit, stop)
        text = self._codec.decode([token for token in new if token not in self._codec.eos_ids])
        for ending in stops:
            text = text.split(ending)[0]
        return text
