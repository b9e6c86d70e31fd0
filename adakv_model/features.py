"""What a controller may know of a token that leaves the window: names only, so that a command line can list them."""

#: Features of a departing token as the controller sees them (columns of depart's output).
FEATURES = (
    "log_frequency",
    "confidence",
    "attention_variance",
    "entropy",
    "surprisal",
    "own_attention",
    "repetition",
    "received_attention",
)

#: By the name of the set. Those of the model's predictions need the logits of every token, in prefill too.
FEATURE_SETS = {
    "fast": ("log_frequency", "attention_variance", "own_attention", "repetition", "received_attention"),
    "paper": ("log_frequency", "confidence", "attention_variance", "entropy"),  # of arXiv 2604.04722
    "all": FEATURES,
}
DEFAULT_FEATURES = "fast"
PREDICTIONS = ("confidence", "entropy", "surprisal")


def needs_predictions(features: str) -> bool:
    """Whether the feature set of this name needs the model's predictions (operator `observe`)."""
    return not set(PREDICTIONS).isdisjoint(FEATURE_SETS[features])
