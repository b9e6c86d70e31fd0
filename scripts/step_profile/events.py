"""The runtime's event trace of some steps: milliseconds by group and by operator."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adakv_model.errors import UserError
from export.quiet import quiet

WEIGHTS, ATTENTION, CONTROLLER = "weight products", "attention", "controller and bookkeeping"
OTHER, RUNTIME = "other operators", "runtime between operators"
GROUPS = (WEIGHTS, ATTENTION, CONTROLLER, OTHER, RUNTIME)
OPERATORS = {
    "adakv::norm_linear": WEIGHTS,
    "adakv::add_linear": WEIGHTS,
    "adakv::swiglu_linear": WEIGHTS,
    "adakv::table_product": WEIGHTS,
    "adakv::attend": ATTENTION,
    "adakv::depart": CONTROLLER,
    "adakv::assign": CONTROLLER,
    "adakv::observe": CONTROLLER,
}
NORM = "Reciprocal Square Root"  # in a delegate: the last norm, whose mean is a fully connected layer there
CALL, DELEGATE, EXECUTE = "OPERATOR_CALL", "DELEGATE_CALL", "Method::execute"


@dataclass(frozen=True)
class Event:
    """One operator of the program; ms: of every step."""

    name: str
    ms: list[float]


@dataclass(frozen=True)
class Operator:
    """All calls of an operator in a step; ms: median of the steps."""

    name: str
    group: str
    calls: int
    ms: float


def operators(events: Iterable[Event]) -> tuple[list[Operator], float]:
    """Operators by falling time, and the step's whole milliseconds as the runtime saw them (median).

    A delegate between depart and assign is the controller's; one elsewhere that has fully connected layers multiplies
    weights.
    """
    calls: dict[tuple[str, str], list[list[float]]] = {}
    total: list[float] = []
    inside_controller, inner, name = False, "", ""  # inner: names of a delegate's own events
    for event in events:
        if event.name == EXECUTE:
            total = event.ms
        elif event.name == DELEGATE:
            layers = "Fully Connected" in inner and NORM not in inner
            group = CONTROLLER if inside_controller else WEIGHTS if layers else OTHER
            calls.setdefault(("XNNPACK", group), []).append(event.ms)
            inner = ""
        elif event.name == CALL:  # comes after the operator's own event, and includes it
            base, inner = name.split(".")[0], ""
            inside_controller = {"adakv::depart": True, "adakv::assign": False}.get(base, inside_controller)
            calls.setdefault((base, OPERATORS.get(base, OTHER)), []).append(event.ms)
        else:
            name = event.name
            inner += name
    if not total or not calls:
        raise UserError("the runtime wrote no events: its build has no event tracer")
    found = [
        Operator(name, group, len(samples), statistics.median(map(sum, zip(*samples, strict=True))))
        for (name, group), samples in calls.items()
    ]
    return sorted(found, key=lambda o: -o.ms), statistics.median(total)


def read_events(dump: Path, steps: int) -> list[Event]:
    """Events of the last `steps` executions of a trace. Raises UserError if there are not as many."""
    with quiet():
        from executorch.devtools import Inspector

        inspector = Inspector(etdump_path=str(dump))
    blocks = [b for b in inspector.event_blocks if any(e.name == EXECUTE for e in b.events)]
    if not blocks or any(len(e.perf_data.raw) < steps for e in blocks[-1].events):
        raise UserError(f"the runtime traced fewer than {steps} equal steps: fewer --steps may do")
    return [Event(e.name, [float(ms) for ms in e.perf_data.raw[-steps:]]) for e in blocks[-1].events]


def groups(found: list[Operator], total: float) -> dict[str, float]:
    """Milliseconds of every group; the runtime has what no operator took."""
    sums = {g: sum(o.ms for o in found if o.group == g) for g in GROUPS}
    sums[RUNTIME] = max(total - sum(sums.values()), 0.0)
    return sums
