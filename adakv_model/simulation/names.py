"""Names of the policies that the simulator knows: what command lines list and check. Light: no torch.

    fp16                      unquantized
    static-8, -4, -3, -2      our rows, sink and window, every older token at one width (the plain age rule)
    tables                    the same, with widths per unit and band from the calibration, at any budget
    adaptive                  tables, and the learned controller chooses each token's tier
    adaptive-fast, -paper, -all   the same with this set of features (``features.FEATURE_SETS``)
    random, rarity, entropy   adaptive with another score in the controller's place, at equal bits
    recency                   tables at 2 bits, and the window as long as the budget allows
    naive-8, -4, -3, -2       symmetric, one scale a token for all heads; no sink, no window (a common straw man)
    kivi-8, -4, -3, -2        asymmetric per token and head; no sink, no window (KIVI without its residual)
    paper                     naive rows of {2, 4, 8, 16} bits a token, chosen from the paper's four features
                              (arXiv 2604.04722), 16 bits while in the window

Those in `BUDGETED` take a bit budget.
"""

from __future__ import annotations

from adakv_model import cache_options
from adakv_model.features import FEATURE_SETS

#: Scores that stand in for the learned one: feature and sign.
RULES = {"rarity": ("log_frequency", -1.0), "entropy": ("entropy", 1.0)}
PAPER_TIERS = (2, 4, 8, 16)
ADAPTIVE = {f"adaptive-{features}": features for features in FEATURE_SETS}
BUDGETED = (*cache_options.BUDGETED, *ADAPTIVE, "random", *RULES, "recency", "paper")
WIDTHS = (8, 4, 3, 2)
NAMES = (
    "fp16",
    *(f"static-{b}" for b in WIDTHS),
    "tables",
    "adaptive",
    *ADAPTIVE,
    "random",
    *RULES,
    "recency",
    *(f"{family}-{b}" for family in ("naive", "kivi") for b in WIDTHS),
    "paper",
)
