"""Imported first by every script: under a Python without the pinned packages it ends with one line. No package here."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("adakv_model") is None:  # not the environment it is installed in
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from adakv_model.environment import require_packages

require_packages()
