"""Starting the child that measures one system once, and reading its result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.measure import RESULT
from peers.systems import GGML, PEERS, isa_environment

SCRIPTS = Path(__file__).resolve().parent.parent
MODULES = dict.fromkeys(GGML, "run_ggml")


def module_of(system: str) -> str:
    return "peers." + MODULES.get(system, "run_" + system.replace("-", "_"))


def interpreter(system: str, peers_venv: Path) -> Path:
    return peers_venv / "bin" / "python" if system in PEERS else Path(sys.executable)


def environment(system: str, threads: int, isa: str | None) -> dict[str, str]:
    """Variables of a child: threads of OpenMP and BLAS, and no debugger when a library aborts."""
    return os.environ | {
        "PYTHONPATH": str(SCRIPTS),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "GGML_NO_BACKTRACE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **isa_environment(system, isa),
    }


def run_child(job: dict[str, Any], peers_venv: Path, timeout: float) -> dict[str, Any]:
    """The samples of one run, or {"error": why there are none}."""
    system = job["engine"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [str(interpreter(system, peers_venv)), "-m", module_of(system), str(file)]
        variables = environment(system, job["threads"], job.get("isa"))
        try:
            done = subprocess.run(
                command, cwd=folder, env=variables, capture_output=True, text=True, errors="replace", timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no result within {timeout:.0f} s"}
        except OSError as error:
            return {"error": f"{command[0]}: {error.strerror}; run `make peers`"}
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if results:
        return json.loads(results[-1][len(RESULT) :])
    lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
    return {"error": f"exit status {done.returncode}: {lines[-1].strip() if lines else 'no output'}"}
