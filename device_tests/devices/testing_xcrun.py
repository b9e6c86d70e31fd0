"""A stand-in for Xcode's `xcrun` in tests: records every call and answers from a file.

    testing_xcrun.py FOLDER WORD...

FOLDER/answers.json: a list of {"words": [...], "stdout", "stderr", "status", "result", "sleep", "app"}; the first whose
words all occur in a call, in their order, answers it. "result" goes to the file named by --json-output. "app": files
that a launched app leaves in Documents/out; `$ID` in them is the run's id. FOLDER/container is the app's container.
FOLDER/calls.jsonl: the calls, one a line.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ADDED = ("ADAKV_", "SIMCTL_CHILD_")  # variables that are recorded with a call


def main(folder: Path, words: list[str]) -> int:
    environment = {name: value for name, value in os.environ.items() if name.startswith(ADDED)}
    with (folder / "calls.jsonl").open("a", encoding="utf-8") as calls:
        calls.write(json.dumps({"words": words, "env": environment}) + "\n")
    answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    answer: dict[str, Any] = next((a for a in answers if occurs(a["words"], words)), {})
    time.sleep(answer.get("sleep", 0))
    status = answer.get("status", 0) or copy(folder / "container", words)
    if "app" in answer:
        launch(folder / "container", words, answer["app"])
    if "--json-output" in words and not status:
        result = json.dumps({"result": answer.get("result", {})})
        Path(words[words.index("--json-output") + 1]).write_text(result, encoding="utf-8")
    sys.stdout.write(answer.get("stdout", ""))
    sys.stderr.write(answer.get("stderr", "no such file\n" if status else ""))
    return status


def occurs(wanted: list[str], words: list[str]) -> bool:
    rest = iter(words)
    return all(any(word == one for word in rest) for one in wanted)


def copy(container: Path, words: list[str]) -> int:
    """`devicectl device copy`, with its refusal to replace what is there on this side."""
    if not occurs(["device", "copy"], words):
        return 0
    source, target = (Path(words[words.index(f"--{name}") + 1]) for name in ("source", "destination"))
    if "from" in words:
        source = container / source
        if not source.exists() or target.exists():
            return 1
    else:
        target = container / target
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
    return 0


def launch(container: Path, words: list[str], files: dict[str, str]) -> None:
    run = json.loads(json.loads(words[words.index("--environment-variables") + 1])["ADAKV_RUN"])
    out = container / "Documents" / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, text in files.items():
        (out / name).write_text(text.replace("$ID", run["id"]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
