"""What train_controller.py does once its options are known: fits, ablations, on-policy training, the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from adakv_model.checkpoints.load import Checkpoint
from adakv_model.controller import ImportanceScorer
from adakv_model.features import FEATURE_SETS, FEATURES
from adakv_model.tables import CalibrationTables
from adakv_model.terminal import make_console
from training import cli, fit
from training.collect import WindowRecord
from training.on_policy import Judge, OnPolicy, Trainer
from training.settings import Settings, has_second_sample

FIT_SEEDS = 3  # fits of every ablation; the first is kept, the others show the noise
JUDGED = 4  # windows on which the tuned score is compared with the fitted one
#: What a token's score stands for: its share of every unit's damage, summed over units. "damage" weighs units by
#: their measured sensitivity: right where all units of a tier are equally wide. "equalised" weighs them alike: right
#: where the widths have made all units equally bad. Real plans lie between.
LABELS = ("damage", "equalised")


class Split:
    """Tokens of some windows, pooled. features [n, 8]; labels, other_sample: [n] by label name."""

    def __init__(
        self, records: list[WindowRecord], settings: Settings, sensitivity: Tensor, mean_damage: Tensor
    ) -> None:
        self.features = torch.cat([r.features[settings.departing] for r in records])
        weights = {
            "damage": sensitivity / mean_damage.clamp(min=1e-12),
            "equalised": 1.0 / mean_damage.clamp(min=1e-12),
        }
        pooled = torch.cat([r.damage[..., settings.departing] for r in records], dim=-1)
        both = {name: torch.einsum("slhkt,lhk->st", pooled, weight) for name, weight in weights.items()}
        self.labels = {name: value[0] for name, value in both.items()}
        self.other_sample = {name: value[1] for name, value in both.items()}


def train(records: list[WindowRecord], settings: Settings, tables: CalibrationTables, steps: int) -> dict:
    """Choose loss and label on the selection windows, fit on all but the held-out ones, and put the scorers
    and their quantiles into `tables`. Of every four windows two fit, one selects and one is held out."""
    parts = {
        "fit": [r for i, r in enumerate(records) if i % 4 < 2],
        "select": [r for i, r in enumerate(records) if i % 4 == 2],
        "train": [r for i, r in enumerate(records) if not has_second_sample(i)],
        "held_out": [r for i, r in enumerate(records) if has_second_sample(i)],
    }
    mean_damage = torch.stack([r.damage[0][..., settings.departing].mean(-1) for r in parts["train"]]).mean(0)
    sensitivity = tables.at(settings.context).sensitivity.sum(-1)
    split = {name: Split(part, settings, sensitivity, mean_damage) for name, part in parts.items()}
    candidates = [(loss, label) for label in LABELS for loss in fit.LOSSES]
    selection = {}
    for loss, label in cli.track("candidates", candidates):
        scorer = fit.fit_scorer(
            split["fit"].features,
            split["fit"].labels[label],
            fit.Recipe(loss, steps=steps, seed=settings.seed),
        )
        score = scorer(split["select"].features)[:, 0]
        ratios = {name: _on(split["select"], score, label=name)["score_over_static"] for name in LABELS}
        selection[f"{loss} of {label}"] = {**ratios, "mean": sum(ratios.values()) / len(ratios)}
    best = min(candidates, key=lambda c: selection[f"{c[0]} of {c[1]}"]["mean"])
    fits: dict[str, list[ImportanceScorer]] = {}
    held, held_windows = split["held_out"], len(parts["held_out"])
    for name, columns in cli.track("ablations", list(ablations().items())):
        recipes = [fit.Recipe(best[0], columns, steps, seed=settings.seed + i) for i in range(FIT_SEEDS)]
        fits[name] = [fit.fit_scorer(split["train"].features, split["train"].labels[best[1]], r) for r in recipes]
    scores = {name: [scorer(held.features)[:, 0] for scorer in scorers] for name, scorers in fits.items()}
    everything = torch.cat([split["train"].features, held.features])
    tables.scorers = {name: fits[name][0] for name in FEATURE_SETS}
    tables.score_quantiles = {name: fit.quantiles(s(everything)[:, 0]) for name, s in tables.scorers.items()}
    tables.feature_quantiles = torch.stack([fit.quantiles(column) for column in everything.T])
    singles = {name: fit.spearman(held.features[:, i], held.labels["damage"]) for i, name in enumerate(FEATURES)}
    return {
        "chosen": {"loss": best[0], "label": best[1]},
        "tokens_in": {name: len(s.features) for name, s in split.items()},
        "selection": selection,
        "held_out": {name: _on(held, by_seed[0]) for name, by_seed in scores.items()},
        "held_out_by_seed": {
            name: [_on(held, score)["score_over_static"] for score in by_seed] for name, by_seed in scores.items()
        },
        "held_out_by_window": {
            name: fit.by_window(by_seed[0], held.labels[LABELS[0]], held_windows) for name, by_seed in scores.items()
        },
        "held_out_equalised": {name: _on(held, by_seed[0], label=LABELS[1]) for name, by_seed in scores.items()},
        "held_out_by_mean_bits": {
            name: {str(b): _on(held, scores[name][0], b) for b in (2.25, 2.5, 3.0, 3.5, 4.0)} for name in FEATURE_SETS
        },
        "feature_spearman": singles,
    }


def tune(
    checkpoint: Checkpoint,
    tables: CalibrationTables,
    windows: Tensor,
    records: list[WindowRecord],
    settings: Settings,
    policy: OnPolicy,
    work: Path,
) -> dict:
    """Train the scorer of all features further on the loss itself; keep it if better on the selection windows by two
    standard errors.

    Divergences are in nats a token, by budget, of the fitted, the fast, the paper's and the tuned score.
    """
    judges = {
        name: Judge(checkpoint, tables, windows[rest::4][:JUDGED, : policy.tokens])
        for name, rest in (("select", 2), ("held_out", 3))
    }
    judged_at = policy.budgets[1:3]
    pool = torch.cat([r.features[settings.departing] for r in records])
    candidates = {"fitted": tables} | {name: with_scorer_of(name, tables) for name in ("fast", "paper")}
    tuned = replace(tables, scorers=dict(tables.scorers), score_quantiles=dict(tables.score_quantiles))
    log = Trainer(checkpoint, tuned, windows[[i for i in range(len(windows)) if i % 4 < 2]], pool, policy, work).run()
    candidates["tuned"] = tuned
    kl = {
        part: {
            name: {str(b): judge.of(one, policy.options(b)) for b in judged_at}
            for name, one in cli.track(part, list(candidates.items()))
        }
        for part, judge in judges.items()
    }
    gain = {part: {b: summary(rows["tuned"][b], rows["fitted"][b]) for b in rows["tuned"]} for part, rows in kl.items()}
    kept = sum(row["log_ratio"] + 2 * row["standard_error"] for row in gain["select"].values()) < 0
    if kept:
        tables.scorers, tables.score_quantiles = tuned.scorers, tuned.score_quantiles
    return {"kept": kept, "tuned_over_fitted": gain, "divergence": kl, "log": log, **asdict(policy)}


def with_scorer_of(features: str, tables: CalibrationTables) -> CalibrationTables:
    """The tables with one set's scorer in the place of that of all features."""
    scorers = tables.scorers | {"all": tables.scorers[features]}
    return replace(
        tables, scorers=scorers, score_quantiles=tables.score_quantiles | {"all": tables.score_quantiles[features]}
    )


def summary(mine: list[float], other: list[float]) -> dict[str, float]:
    """Mean over windows of log(mine / other), and its standard error."""
    ratios = (torch.tensor(mine) / torch.tensor(other)).log()
    error = ratios.std() / len(ratios) ** 0.5 if len(ratios) > 1 else torch.tensor(float("nan"))
    return {"log_ratio": round(float(ratios.mean()), 5), "standard_error": round(float(error), 5)}


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _on(split: Split, score: Tensor, mean_bits: float = 3.0, label: str = LABELS[0]) -> dict[str, float]:
    return fit.judge(score, split.labels[label], split.other_sample[label], mean_bits)


def ablations() -> dict[str, tuple[int, ...]]:
    columns = {name: fit.only(features) for name, features in FEATURE_SETS.items()}
    return columns | {f"without {name}": fit.without(name) for name in FEATURES}


def show(results: dict) -> None:
    """Print the held-out table."""
    table = Table(title="held-out damage at 3.0 bits on average, static 3 bits = 1")
    for heading in ("controller", "damage", "by seed", "captured", "Spearman"):
        table.add_column(heading, justify="left" if heading == "controller" else "right")
    for name, row in results["held_out"].items():
        by_seed = results["held_out_by_seed"][name]
        columns = [f"{row[key]:.3f}" for key in ("score_over_static", "captured", "spearman")]
        table.add_row(name, columns[0], f"{min(by_seed):.3f} .. {max(by_seed):.3f}", *columns[1:])
    full = results["held_out"]["all"]
    for name in ("random", "oracle_other_sample", "oracle"):
        table.add_row(name.replace("_", ", ", 1).replace("_", " "), f"{full[f'{name}_over_static']:.3f}", "", "", "")
    make_console(stderr=False).print(table)
