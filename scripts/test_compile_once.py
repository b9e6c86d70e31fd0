"""compile_once.py: the object of a compilation is that of the compiler, and is compiled once for all folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_once.py")


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    """The script in a checkout of its own: its store is beside it."""
    (tmp_path / "scripts").mkdir()
    return Path(shutil.copy(SCRIPT, tmp_path / "scripts"))


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """c++, which notes each compilation."""
    path = tmp_path / "c++"
    log = tmp_path / "compiled"
    path.write_text(f'#!/bin/sh\ncase " $* " in *" -c "*) echo >> {log};; esac\nexec c++ "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def compile_in(folder: Path, launcher: Path, compiler: Path, source: str, *options: str) -> Path:
    """The object; source in the folder's a.cpp, which includes a.h."""
    folder.mkdir(exist_ok=True)
    (folder / "a.cpp").write_text(source, encoding="utf-8")
    words = [*options, "-MD", "-MT", "a.o", "-MF", "a.d", "-o", "a.o", "-c", "a.cpp"]
    done = subprocess.run(
        [sys.executable, str(launcher), str(compiler), *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "a.cpp" in (folder / "a.d").read_text(encoding="utf-8")
    (folder / "warnings").write_text(done.stderr, encoding="utf-8")
    return folder / "a.o"


def compilations(tmp_path: Path) -> int:
    return len((tmp_path / "compiled").read_text(encoding="utf-8").splitlines())


def test_equal_sources_are_compiled_once(tmp_path: Path, launcher: Path, compiler: Path) -> None:
    source = "int f() { return VALUE; }\n"
    one = compile_in(tmp_path / "one", launcher, compiler, source, "-O1", "-DVALUE=1")
    again = compile_in(tmp_path / "one", launcher, compiler, source, "-O1", "-DVALUE=1")
    assert compilations(tmp_path) == 1
    subprocess.run(["c++", "-O1", "-DVALUE=1", "-c", "a.cpp", "-o", "plain.o"], cwd=tmp_path / "one", check=True)
    assert again.read_bytes() == one.read_bytes() == (tmp_path / "one" / "plain.o").read_bytes()


@pytest.mark.parametrize("options", [("-O2", "-DVALUE=1"), ("-O1", "-DVALUE=2"), ("-O1", "-DVALUE=1", "-fPIC")])
def test_what_changes_the_object_is_compiled(
    tmp_path: Path, launcher: Path, compiler: Path, options: tuple[str, ...]
) -> None:
    source = "int x; int f() { return x + VALUE; }\n"
    compile_in(tmp_path / "one", launcher, compiler, source, "-O1", "-DVALUE=1")
    compile_in(tmp_path / "one", launcher, compiler, source, *options)
    assert compilations(tmp_path) == 2


def test_a_changed_header_is_compiled(tmp_path: Path, launcher: Path, compiler: Path) -> None:
    header = tmp_path / "a.h"
    for value in (1, 2):
        header.write_text(f"#define VALUE {value}\n", encoding="utf-8")
        compile_in(tmp_path / "one", launcher, compiler, '#include "../a.h"\nint f() { return VALUE; }\n')
    assert compilations(tmp_path) == 2


def test_a_warning_is_shown_every_time(tmp_path: Path, launcher: Path, compiler: Path) -> None:
    for _ in range(2):
        compile_in(tmp_path / "one", launcher, compiler, "static int f() { return 1; }\n", "-Wall")
        assert "unused" in (tmp_path / "one" / "warnings").read_text(encoding="utf-8")
    assert compilations(tmp_path) == 2


def test_an_error_is_the_compilers(tmp_path: Path, launcher: Path, compiler: Path) -> None:
    (tmp_path / "a.cpp").write_text("int f() { return x; }\n", encoding="utf-8")
    words = [str(compiler), "-o", "a.o", "-c", "a.cpp"]
    ours, plain = (
        subprocess.run([*start, *words], cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ)
        for start in ([sys.executable, str(launcher)], [])
    )
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr)
    assert ours.returncode != 0
    assert not (tmp_path / "a.o").exists()
