"""An exported Android artifact folder: what is in it, and a runner for its `.pte` on the host."""

from __future__ import annotations

import ctypes
import os
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from adakv_model.digest import known_sha256
from adakv_model.errors import UserError
from adakv_model.plan import CachePlan
from adakv_model.runtime import native
from adakv_model.runtime.inputs import check_threads, check_tokens
from adakv_model.runtime.log import RuntimeLog, why
from adakv_model.runtime.manifest import TEMPLATE, TOKENIZER, all_logits, damaged, read_manifest, require_all_logits
from adakv_model.runtime.text import TextCodec
from adakv_model.utf8_path import utf8_path

STATE_PREFIX = "cache."


class Artifact:
    """Read access to an artifact folder. Raises UserError if it is missing, partial or foreign."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)

    def check(self, *names: str) -> None:
        """Raise UserError for a file, or a folder's files, that differ from what was exported.

        A damaged program ends in a crash or in another answer, a cut library in a crash of this process.
        """
        for name, described in self.manifest["files"].items():
            if not any(name == wanted or name.startswith(f"{wanted}/") for wanted in names):
                continue
            path = self.folder / name
            try:
                same = path.stat().st_size == described["bytes"] and known_sha256(path) == described["sha256"]
            except OSError as e:
                raise UserError(f"cannot read {path} ({e.strerror or e}): export again") from e
            if not same:
                raise UserError(f"{path} is damaged or was replaced (its SHA-256 differs): export again")

    @property
    def program(self) -> Path:
        """The .pte, or the .mlpackage folder of a Core ML artifact."""
        return self.folder / self.manifest["program"]

    @property
    def operator_library(self) -> Path:
        """The host operator library inside the folder. Raises UserError if it was removed."""
        path = self.folder / native.LIBRARY_NAME
        if not path.is_file():
            raise UserError(f"the operator library {path} is missing: export again, or copy it back beside the program")
        self.check(path.name)
        return path

    @cached_property
    def plan(self) -> CachePlan:
        try:
            return CachePlan.from_manifest(self.manifest["kv_cache"])
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise damaged(self.folder, f"kv_cache: {type(e).__name__} {e}") from e

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the program takes."""
        return int(self.manifest["model"]["vocab_size"])

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text."""
        return tuple(self.manifest["model"]["eos_token_ids"])

    @property
    def all_logits(self) -> bool:
        """Whether a step returns the logits of each of its tokens, not of the last alone."""
        return all_logits(self.manifest)

    def require_all_logits(self) -> None:
        """Raises UserError for a program that returns the last token's alone."""
        require_all_logits(self.folder, self.manifest)

    @property
    def has_chat_template(self) -> bool:
        return (self.folder / TEMPLATE).is_file()

    @property
    def has_tokenizer(self) -> bool:
        """Not with random weights."""
        return (self.folder / TOKENIZER).is_file()

    @cached_property
    def codec(self) -> TextCodec:
        """Tokenizer and chat template. Raises UserError if the artifact was exported without a tokenizer."""
        path, template = self.folder / TOKENIZER, self.folder / TEMPLATE
        if not path.is_file():
            raise UserError(
                f"{self.folder} has no tokenizer: its checkpoint had none, so text needs an export of one that has"
            )
        self.check(TOKENIZER, TEMPLATE)
        model = self.manifest["model"]
        source = template.read_bytes().decode() if template.is_file() else None
        special = model.get("special_tokens")
        return TextCodec(path.read_bytes(), source, model["bos_token_id"], self.eos_ids, special)

    def load(self) -> HostModel:
        """The program, loaded into this process's ExecuTorch runtime. Raises UserError for a Core ML artifact."""
        if "core_ml_states" in self.manifest:
            raise UserError(
                f"{self.program} is a Core ML program: run it with python -m device_tests.coreml.evaluator.generate,"
                " or on a Mac with ios/"
            )
        return HostModel(self)


class HostModel:
    """A loaded program: one cache, fed in order. `position` is the number of tokens it holds."""

    def __init__(self, artifact: Artifact) -> None:
        artifact.check(artifact.program.name)
        self._log = RuntimeLog()
        with self._log.captured():  # the runtime probes the CPU when it is loaded, and says so
            native.load_library(artifact.operator_library)
            import executorch.kernels.quantized  # noqa: F401  (registers the quantized embedding kernels)
            from executorch.extension.pybindings import _C
        try:
            with self._log.captured(), utf8_path(artifact.program) as named:
                self._program = _C._load_program(os.fsencode(named).decode())  # whatever the locale made of it
                self._method = self._program.load_method("forward")
        except RuntimeError as e:
            raise UserError(f"ExecuTorch cannot load {artifact.program} ({why(self._log, e)}): export again") from e
        self.artifact, self.plan = artifact, artifact.plan
        self._vocabulary = artifact.vocabulary
        self.position = 0

    def reset(self) -> None:
        """Start a new sequence with the next step."""
        self.position = 0

    def step(self, tokens: list[int]) -> Tensor:
        """Append 1 to `plan.chunk` tokens; logits float32 [len(tokens), V], or [1, V], the last token's, of a program
        exported with --logits last. Raises UserError past the context."""
        if not 1 <= len(tokens) <= self.plan.chunk:
            raise UserError(f"a step takes 1 to {self.plan.chunk} tokens, not {len(tokens)}")
        check_tokens(tokens, self._vocabulary)
        if self.position + len(tokens) > self.plan.context:
            raise UserError(
                f"context full: {self.position + len(tokens)} tokens do not fit the artifact's"
                f" {self.plan.context}: shorten the prompt or export with a larger --context"
            )
        inputs = (torch.tensor([tokens]), torch.tensor([self.position]))
        try:
            with self._log.captured():
                output = self._method.call(inputs, clone_outputs=False)[0]
        except RuntimeError as e:
            raise UserError(f"the runtime failed at position {self.position} ({why(self._log, e)})") from e
        logits = _copy(output)
        self.position += len(tokens)
        return logits[0]

    def prefill(self, tokens: list[int], chunk: int | None = None) -> Tensor:
        """Append any number of tokens in chunks, of at most `chunk`; logits float32 [len(tokens), V].

        Raises UserError for a program that returns the last token's alone (for those, see generate.prefill).
        """
        self.artifact.require_all_logits()
        rest, rows = iter(tokens), []
        for count in self.plan.chunks(self.position, len(tokens), chunk):
            rows.append(self.step(list(islice(rest, count))))
        return torch.cat(rows)

    def state(self, name: str) -> Tensor:
        """A copy of one of the cache's buffers (progress, tiers, history, observed, cache_<layer>, ...)."""
        return self._method.get_attribute(STATE_PREFIX + name).clone()

    def tier_counts(self) -> list[int]:
        """Tokens in each tier."""
        return self.state("progress")[1:].tolist() if self.position else [0] * self.plan.n_tiers


def set_threads(count: int) -> None:
    """Size of the runtime's thread pool, for this process. Torch keeps to one: its workers would spin against it.

    Raises UserError for more than the cores of this machine.
    """
    check_threads(count)
    resize_pool(count)


def resize_pool(count: int) -> None:
    """The same without a limit: threads that take turns on a core compute the same, as tests show."""
    torch.set_num_threads(1)
    with RuntimeLog().captured():
        from executorch.extension.pybindings import _C

        _C._unsafe_reset_threadpool(count)


def _copy(output: Tensor) -> Tensor:
    """A copy of an output float32 [...], which the next call overwrites. The binding's own copy, as any of torch of
    this size, wakes a worker of another thread pool, which then takes a core from the runtime's."""
    copy = torch.empty(output.shape, dtype=output.dtype)
    ctypes.memmove(copy.data_ptr(), output.data_ptr(), copy.nbytes)
    return copy
