"""What a user asks of the cache: defaults and checks. Light: a command line reads it before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from adakv_model.config import LlamaConfig
from adakv_model.errors import UserError
from adakv_model.features import DEFAULT_FEATURES, FEATURE_SETS
from adakv_model.window import largest_chunk

POLICIES = ("adaptive", "tables", "static-2", "static-3", "static-4", "static-8", "fp16")
BUDGETED = ("adaptive", "tables")  # policies that take a bit budget

DEFAULT_CONTEXT, DEFAULT_WINDOW, DEFAULT_BITS = 2048, 16, 3.5
DEFAULT_WINDOW_BITS = 8
DEFAULT_BITS_SHOWN = f"{DEFAULT_BITS}, more where bookkeeping weighs more"  # in help: budget.default_budget
DEFAULT_CHUNK = 32  # tokens a prefill step; contexts too short for it take a smaller power of two


@dataclass(frozen=True)
class CacheOptions:
    """What a user asks of the cache. kv_bits: allocated bits per value, everything included (policies `adaptive`
    and `tables`). departure: see ``plan.left``; None: blocks of a chunk. 1 leaves one by one (Core ML). features: of
    the controller of policy `adaptive`, see ``features.FEATURE_SETS``."""

    context: int = DEFAULT_CONTEXT
    window: int = DEFAULT_WINDOW
    policy: str = "adaptive"
    kv_bits: float | None = None
    window_bits: int | None = None
    chunk: int | None = None
    departure: int | None = None
    features: str = DEFAULT_FEATURES

    @property
    def chunk_size(self) -> int:
        """Largest chunk, where `chunk` leaves it open."""
        if self.chunk is not None:
            return self.chunk
        if self.departure == 1:
            return max(1, self.window // 2) if self.policy == "adaptive" else self.window
        fitting = min(DEFAULT_CHUNK, max(1, self.context // 4))
        size = 1 << (fitting.bit_length() - 1)
        return size if self.departure is None else min(size, self.departure)

    @property
    def block(self) -> int:
        """Departure, where it is left open."""
        return self.chunk_size if self.departure is None else self.departure

    def check(self, config: LlamaConfig | None = None) -> None:
        """Raise UserError for options no cache can satisfy, of this model if it is known."""
        if self.policy not in POLICIES:
            raise UserError(f"unknown --kv {self.policy!r}: one of {', '.join(POLICIES)}")
        if self.policy not in BUDGETED and self.kv_bits is not None:
            raise UserError(f"--kv-bits is the budget of --kv adaptive or tables; --kv {self.policy} has a fixed width")
        if self.kv_bits is not None and self.kv_bits <= 0:
            raise UserError(f"--kv-bits {self.kv_bits:g} must be above 0, e.g. {DEFAULT_BITS}")
        if self.features not in FEATURE_SETS:
            raise UserError(f"unknown --features {self.features!r}: one of {', '.join(FEATURE_SETS)}")
        if self.window < 1:
            raise UserError(f"--window {self.window} must be at least 1")
        if self.window_bits not in (None, 8, 16):
            raise UserError(f"--window-bits {self.window_bits} must be 8 or 16")
        if self.chunk is not None and self.chunk < 1:
            raise UserError(f"--prefill-chunk {self.chunk} must be at least 1")
        least = self.window + self.block + 1  # from here on a token leaves the window
        if self.context < least:
            room = self.context - self.block - 1
            if room > 0 and config is not None and least > config.max_position_embeddings:
                raise UserError(
                    f"--window {self.window} must be at most {room} with --context {self.context}"
                    f" and --prefill-chunk {self.chunk_size}"
                )
            raise UserError(
                f"--context {self.context} must be at least {least} with --window {self.window}"
                f" and --prefill-chunk {self.chunk_size}" + (f", or --window at most {room}" if room > 0 else "")
            )
        if config is not None and self.context > config.max_position_embeddings:
            raise UserError(
                f"--context {self.context} is more than the {config.max_position_embeddings} positions the model"
                " was trained for: choose a smaller one"
            )
        most = largest_chunk(self.window, self.block)
        if self.chunk_size > most:
            limit = f"--window ({most})" if self.block == 1 else f"{most}, as tokens leave the window in blocks of it"
            raise UserError(f"--prefill-chunk {self.chunk} must lie between 1 and {limit}")
