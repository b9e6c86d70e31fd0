"""The app's native build, configured against a stand-in for an ExecuTorch checkout: no NDK and no checkout are here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from device_tests.exporting import ROOT

JNI = ROOT / "android" / "jni"

#: The names that ExecuTorch's build gives its targets, and what its JNI library does with the custom one.
CHECKOUT = """
cmake_minimum_required(VERSION 3.24)
project(executorch LANGUAGES CXX)
include("${EXECUTORCH_BUILD_PRESET_FILE}")
foreach(_option LLAMA_JNI EXTENSION_ASR_RUNNER)
  if(NOT EXECUTORCH_BUILD_${_option})
    message(FATAL_ERROR "EXECUTORCH_BUILD_${_option} is off")
  endif()
endforeach()
file(WRITE "${CMAKE_BINARY_DIR}/empty.cpp" "")
add_library(executorch_core STATIC "${CMAKE_BINARY_DIR}/empty.cpp")
add_library(extension_threadpool STATIC "${CMAKE_BINARY_DIR}/empty.cpp")
add_library(executorch_jni SHARED "${CMAKE_BINARY_DIR}/empty.cpp")
target_link_libraries(executorch_jni -Wl,--whole-archive ${EXECUTORCH_JNI_CUSTOM_LIBRARY} -Wl,--no-whole-archive)
"""


def configure(source: Path, build: Path) -> subprocess.CompletedProcess[str]:
    words = ["cmake", "-S", str(JNI), "-B", str(build), f"-DEXECUTORCH_SOURCE={source}"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def link_command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """How libexecutorch.so is linked."""
    source, build = tmp_path_factory.mktemp("executorch"), tmp_path_factory.mktemp("build")
    (source / "extension" / "android").mkdir(parents=True)
    (source / "extension" / "android" / "CMakeLists.txt").touch()
    preset = source / "tools" / "cmake" / "preset"
    preset.mkdir(parents=True)
    (preset / "android.cmake").touch()
    (source / "CMakeLists.txt").write_text(CHECKOUT, encoding="utf-8")
    done = configure(source, build)
    assert done.returncode == 0, done.stderr
    return (build / "executorch" / "CMakeFiles" / "executorch_jni.dir" / "link.txt").read_text(encoding="utf-8")


def test_the_operators_are_linked_whole_into_the_library_that_is_loaded(link_command: str) -> None:
    assert re.search(r"-o \S*libexecutorch\.so", link_command)
    assert re.search(r"--whole-archive \S*libadakv_ops\.a .*--no-whole-archive", link_command)
    assert "libadakv_kernels.a" in link_command


def test_segments_are_aligned_to_pages_of_16_kb(link_command: str) -> None:
    assert "-Wl,-z,max-page-size=16384" in link_command


def test_no_checkout_is_one_clear_line(tmp_path: Path) -> None:
    done = configure(tmp_path / "none", tmp_path / "build")
    assert done.returncode != 0
    assert "set executorch.dir in android/gradle.properties" in " ".join(done.stderr.split())


def test_every_operator_is_asked_for_by_name() -> None:
    """The library's list, which turns "missing operator" into a clear line, against what the sources register."""
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "adakv_model" / "csrc").glob("register*.cpp")
    )
    registered = set(re.findall(r'EXECUTORCH_LIBRARY\(adakv, "(\w+)\.out"', sources))
    kotlin = (ROOT / "android/adakv/src/main/kotlin/org/adakv/Operators.kt").read_text(encoding="utf-8")
    listed = kotlin.partition("listOf(")[2].partition(")")[0]
    assert set(re.findall(r'"(\w+)"', listed)) == registered
