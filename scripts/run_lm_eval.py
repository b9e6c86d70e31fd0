"""lm-eval's command line with `--model adakv` and the local-file tasks of scripts/lm_eval_tasks.

    python scripts/run_lm_eval.py --model adakv --model_args policy=adaptive,kv_bits=3.25 \
        --tasks hellaswag --limit 200
    python scripts/run_lm_eval.py --model adakv --model_args policy=fp16 --tasks adakv_piqa --metadata data_dir=DATA

lm-eval has no plugin mechanism for models, hence this wrapper: it registers the model, adds --include_path unless it is
given, and hands everything else to lm-eval. Tasks named `adakv_*` read local files and need no network. Install it with
`pip install '.[eval]'`.
"""

from __future__ import annotations

import needs_packages  # noqa: F401

import logging
import os
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent

# lm-eval imports the package `evaluate`, which must not be scripts/evaluate.py: this folder goes last.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != SCRIPTS] + [str(SCRIPTS)]


def main() -> None:
    """Register and run. A UserError becomes one line and exit status 2."""
    from adakv_model.errors import UserError

    try:
        import lm_eval.models  # noqa: F401  (its own models, which a non-empty registry would not load any more)
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        sys.exit("error: lm-eval is not installed: pip install '.[eval]'")
    import evaluation.lm_eval_model  # noqa: F401  (registers adakv)

    os.environ.setdefault("LMEVAL_LOG_LEVEL", "WARNING")
    logging.getLogger("datasets").setLevel(logging.ERROR)
    running = len(sys.argv) > 1 and sys.argv[1] not in ("ls", "validate", "-h", "--help")
    if running and not any(word.startswith("--include_path") for word in sys.argv):
        sys.argv += ["--include_path", str(SCRIPTS / "lm_eval_tasks")]
    try:
        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
