"""A compiler launcher for CMake: what any build folder compiled before is copied, not compiled again.

    CMAKE_CXX_COMPILER_LAUNCHER="python;scripts/compile_once.py" cmake -S ... -B ...

`make test` builds the same kernels for the C++ tests, the runner and the phone's runner. An object is kept in
build/objects under the hash of the compiler, its options and the preprocessed source; what was compiled with a
warning is not kept, so the warning is shown every time. Only the standard library is used: it runs for each file.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STORE = Path(__file__).parents[1] / "build" / "objects"
KEPT_DAYS = 14
WITH_VALUE = {"-o", "-MF", "-MT", "-MQ", "-I", "-isystem"}  # places: what was read from there is in the source
DEPENDENCIES = {"-MD", "-MMD"}


def options_of(command: list[str]) -> list[str]:
    """The command without the names of files and folders: what decides the object, beside the source."""
    kept, words = [], iter(command[1:])
    for word in words:
        if word in WITH_VALUE:
            next(words, None)
        elif word not in DEPENDENCIES and not word.startswith(("-I", "-D", "-U")) and Path(word).suffix != ".cpp":
            kept.append(word)
    return kept


def digest(command: list[str], output: Path) -> str | None:
    """Preprocesses, which also writes the file of dependencies. None where that fails or warns."""
    words = list(command)
    words[words.index("-o") + 1] = "-"
    words[words.index("-c")] = "-E"
    if "-MD" in words and "-MT" not in words:
        words += ["-MT", str(output)]
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode or done.stderr:
        return None
    compiler = Path(shutil.which(command[0]) or command[0]).resolve()
    about = compiler.stat()
    key = hashlib.sha256(repr((str(compiler), about.st_size, about.st_mtime_ns, options_of(command))).encode())
    key.update(done.stdout)
    return key.hexdigest()


def keep(output: Path, kept: Path) -> None:
    """A copy that is whole or absent, whoever else writes it; removes what nobody used for long."""
    STORE.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=STORE)
    os.close(descriptor)
    shutil.copyfile(output, name)
    os.replace(name, kept)
    for old in STORE.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_DAYS * 86400:
            old.unlink(missing_ok=True)


def main(command: list[str]) -> int:
    if "-c" not in command or "-o" not in command:
        return subprocess.run(command, check=False).returncode
    output = Path(command[command.index("-o") + 1])
    found = digest(command, output)
    kept = STORE / f"{found}.o"
    if found is not None and kept.exists():
        shutil.copyfile(kept, output)
        os.utime(kept)
        return 0
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    sys.stderr.buffer.write(done.stderr)
    if found is not None and done.returncode == 0 and not done.stderr:
        keep(output, kept)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
