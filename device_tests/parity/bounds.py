"""How far apart the logits of two implementations may be, by weight recipe; test_parity.py says where from."""

from __future__ import annotations

#: Mean KL divergence, nats a token.
MAX_KL = {"none": 2.5e-3, "8da4w-asym": 0.06, "8da8w": 0.06, "8da4w": 0.15, "8da4w-g64": 0.15}
#: The same between two machines that run the same program. The kernels of 8da4w-asym give equal bits on every
#: instruction set, so only XNNPACK's float layers are left to differ (1e-8 was measured).
DEVICE_MAX_KL = {**MAX_KL, "8da4w-asym": 2.5e-3}
#: Share of tokens with the same likeliest next token.
MIN_TOP1 = {"none": 0.96, "8da4w-asym": 0.86, "8da8w": 0.86, "8da4w": 0.80, "8da4w-g64": 0.80}
