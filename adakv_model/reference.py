"""Torch reference of the four ``adakv::`` cache operators; ``csrc/`` is tested against these functions.

A step over a chunk of T tokens at positions p .. p + T - 1 calls, in this order,

    depart   features of the tokens that leave the window during the chunk              -> controller -> logits
    assign   tier and slot of each of them, and the rows of every tier once it has left   -> plan
    attend   (each layer) append the chunk, demote the leaving rows, attend
    observe  surprisal, entropy and confidence of the chunk's tokens

Tokens leave as a position that is a multiple of `departure` is appended (``plan.left``). Features of a token are
complete before any chunk in which it can leave begins, if chunks do not cross such a position (`departure` 1: in any
case); so every such chunking of a text gives the same tiers, the same packed bytes and, up to float rounding, the same
logits. All state tensors are updated in place. Positions: 0 is the sink, those from left(p) on are in the window, p
being the newest, others in tiers. A token in the window has row `position % ring` of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adakv_model.features import FEATURES
from adakv_model.plan import ATTENTION_SUMS, ATTENTION_UNIT, IN_SINK, IN_WINDOW, OBSERVATIONS
from adakv_model.window import largest_chunk, left

LOG_FREQUENCY, CONFIDENCE, ENTROPY, SURPRISAL, REPEATS = range(len(OBSERVATIONS))
OWN, OWN_SQUARED, RECEIVED = range(len(ATTENTION_SUMS))

VARIANCE_FLOOR, ATTENTION_FLOOR = 1e-6, 1e-5


def check_step(input_pos: int, tokens: int, length: int, context: int, window: int, departure: int) -> None:
    """Raise ValueError unless a chunk of `tokens` may start at `input_pos` of a cache that holds `length`."""
    most = largest_chunk(window, departure)
    if not 1 <= tokens <= most:
        raise ValueError(f"a chunk has 1 to {most} tokens, not {tokens}")
    if input_pos not in (0, length):
        raise ValueError(f"input_pos is {input_pos}: continue at {length} or reset at 0")
    if input_pos + tokens > context:
        raise ValueError(f"context full: position {input_pos + tokens} is past the capacity of {context}")


def depart(
    tokens: Tensor,
    input_pos: Tensor,
    token_log_frequency: Tensor,
    progress: Tensor,
    history: Tensor,
    observed: Tensor,
    attention: Tensor,
    n_attentions: int,
    lag: int,
    window: int,
    departure: int,
) -> Tensor:
    """Features float32 [E, 8] of the tokens that leave the window, and fresh observations of the new ones.

    tokens: int64 [1, T]; progress: int32 [1 + K]; history: int32 [N]; observed: float32 [R, 5]; attention:
    int64 [R, 3], R rows of the ring. E = T + departure - 1, the most that can leave; row j is token left(p - 1) + j,
    zeros past the last. A leaving token of the chunk itself has its frequency and repetition only.
    n_attentions: layers x heads, the number of attention rows summed into an observation.
    """
    p, count, ring = int(input_pos), tokens.shape[-1], observed.shape[0]
    check_step(p, count, int(progress[0]), history.shape[0], window, departure)
    first, end = left(p - 1, window, departure), left(p + count - 1, window, departure)
    held = _positions(first, min(end, p)) % ring
    raw, sums = observed[held], attention[held]  # before new tokens take these rows
    history[p : p + count] = tokens[0].to(torch.int32)
    slots = torch.arange(p, p + count) % ring
    observed[slots], attention[slots] = 0.0, 0
    observed[slots, LOG_FREQUENCY] = token_log_frequency[tokens[0]]
    for i in range(count):
        observed[slots[i], REPEATS] = float((history[: p + i] == history[p + i]).sum())
    fresh = _positions(max(first, p), end) % ring
    features = _features(torch.cat((raw, observed[fresh])), torch.cat((sums, attention[fresh])), n_attentions, lag)
    out = torch.zeros(count + departure - 1, len(FEATURES))
    out[: end - first] = features
    return out


def _positions(first: int, end: int) -> Tensor:
    """int64, first .. end - 1, none if end is not past first."""
    return torch.arange(first, max(first, end))


def _features(raw: Tensor, sums: Tensor, n_attentions: int, lag: int) -> Tensor:
    """float32 [n, 8] from rows of `observed` [n, 5] and of `attention` [n, 3]."""
    means = sums.double() * ATTENTION_UNIT / n_attentions
    own = means[:, OWN].float()
    variance = (means[:, OWN_SQUARED].float() - own * own).clamp(min=0)
    received = (means[:, RECEIVED] / max(lag, 1)).float()
    columns = [
        raw[:, LOG_FREQUENCY],
        raw[:, CONFIDENCE],
        torch.log(variance + VARIANCE_FLOOR),
        raw[:, ENTROPY],
        raw[:, SURPRISAL],
        torch.log(own + ATTENTION_FLOOR),
        torch.log1p(raw[:, REPEATS]),
        torch.log(received + ATTENTION_FLOOR),
    ]
    return torch.stack(columns, dim=1)


def spill_order(wanted: int, n_tiers: int) -> list[int]:
    """All tiers, nearest to the wanted one first, narrower before wider."""
    near = [tier for distance in range(n_tiers) for tier in (wanted - distance, wanted + distance)]
    return list(dict.fromkeys(tier for tier in near if 0 <= tier < n_tiers))


def nearest_tier_with_room(wanted: int, fill: list[int], capacities: list[int]) -> int:
    """The wanted tier, else the nearest one with a free slot, narrower before wider."""
    for tier in spill_order(wanted, len(capacities)):
        if fill[tier] < capacities[tier]:
            return tier
    raise ValueError("every tier is full: the plan does not hold the context")


def assign(
    logits: Tensor,
    input_pos: Tensor,
    capacities: Tensor,
    progress: Tensor,
    tiers: Tensor,
    window: int,
    departure: int,
) -> Tensor:
    """Give each departing token a tier and a slot.

    logits: float32 [E, K], E = T + departure - 1, row j for token left(p - 1) + j; capacities: int32 [K]; progress:
    int32 [1 + K] (length, then rows used in each tier); tiers: uint8 [N]. Returns plan int32 [E, 2 + K]: tier and
    slot of the token, then the rows of every tier once it has left; past the last, -1, -1 and the final counts.
    """
    p, count = int(input_pos), logits.shape[0] - departure + 1
    check_step(p, count, int(progress[0]), tiers.shape[0], window, departure)
    first, end = left(p - 1, window, departure), left(p + count - 1, window, departure)
    room = capacities.tolist()
    fill = [0] * len(room) if p == 0 else progress[1:].tolist()
    tiers[p : p + count] = IN_WINDOW
    if p == 0:
        tiers[0] = IN_SINK
    rows = []
    for j, wanted in enumerate(logits[: end - first].argmax(1).tolist()):
        tier = nearest_tier_with_room(wanted, fill, room)
        slot = fill[tier]
        fill[tier] += 1
        tiers[first + j] = tier
        rows.append([tier, slot, *fill])
    rows += [[-1, -1, *fill]] * (logits.shape[0] - len(rows))
    progress.copy_(torch.tensor([p + count, *fill], dtype=torch.int32))
    return torch.tensor(rows, dtype=torch.int32)


def observe(logits: Tensor, tokens: Tensor, input_pos: Tensor, observed: Tensor, last_logits: Tensor) -> Tensor:
    """Record how well each token of the chunk was predicted; keep the last logits for the next chunk.

    logits: float32 [1, T, V]; last_logits: float32 [V]. Returns surprisal float32 [T], 0 for position 0.
    """
    p, count, ring = int(input_pos), tokens.shape[-1], observed.shape[0]
    previous = torch.cat((last_logits.unsqueeze(0), logits[0, :-1]))
    log_p = previous.log_softmax(-1)
    surprisal = -log_p.gather(1, tokens[0].unsqueeze(1))[:, 0]
    values = torch.stack((log_p.amax(-1).exp(), -(log_p.exp() * log_p).sum(-1), surprisal), dim=1)
    if p == 0:
        values[0] = 0.0
    slots = torch.arange(p, p + count) % ring
    observed[slots, CONFIDENCE : SURPRISAL + 1] = values
    last_logits.copy_(logits[0, -1])
    return values[:, 2].clone()
