"""The commands of `adakv`: a name, the module whose typer app it runs, and one line of help."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError

CHECKOUT = Path(__file__).parents[1]
SCRIPTS = CHECKOUT / "scripts"
FROM_CHECKOUT = ("device_tests", "scripts")  # not part of the installed package


@dataclass(frozen=True)
class Entry:
    """module: dotted; of `scripts.NAME` the script scripts/NAME.py, as it finds its neighbours when run by path."""

    name: str
    module: str
    help: str

    def load(self) -> Any:
        """The typer app. Raises UserError for a command that needs the checkout where there is none."""
        room, _, name = self.module.partition(".")
        if room not in FROM_CHECKOUT:
            return importlib.import_module(self.module).app
        if not (CHECKOUT / room).is_dir():
            raise UserError(f"adakv {self.name} runs from a checkout: clone the repository and run `make venv` there")
        for place in (CHECKOUT, SCRIPTS):  # as `python scripts/NAME.py` and `python -m device_tests...` have them
            if str(place) not in sys.path:
                sys.path.insert(0, str(place))
        return importlib.import_module(name if room == "scripts" else self.module).app


COMMANDS = (
    Entry("export", "export.cli", "Export a model for a phone: .pte for Android, Core ML package for iOS."),
    Entry("generate", "adakv_model.generate", "Generate text from an exported artifact on this machine."),
    Entry("describe", "adakv.describe", "Show what an artifact is: plan to scale, weights, hashes, versions."),
    Entry("doctor", "adakv.doctor.cli", "Check this machine: what is missing, how bad it is, what to do."),
    Entry("parity", "adakv.parity", "Compare an artifact with the eager model, step by step."),
    Entry("evaluate", "scripts.evaluate", "Perplexity or accuracy of a cache policy or an artifact."),
    Entry("calibrate", "scripts.calibrate", "Make the calibration tables of a checkpoint."),
    Entry("train", "scripts.train_controller", "Train the controller inside calibration tables."),
    Entry("bench", "device_tests.bench.cli", "Speed of artifacts on a phone, an emulator or this machine."),
)
