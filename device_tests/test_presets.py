"""android/CMakePresets.json: every preset configures; the NDK's against stubs of the NDK and of ExecuTorch's install.

The stubs have the names that the real ones have (toolchain file, package configuration, targets) over Debian's cross
compiler and the libraries of ExecuTorch's arm64 wheel. So the NDK branch of android/CMakeLists.txt is configured,
compiled and linked; the NDK's own compiler and C library are not tried.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from device_tests.devices.emulated.testing import require_tools
from device_tests.devices.host import executorch_sdk
from export.device_bundle import ROOT, loader_package

ANDROID = ROOT / "android"

TOOLCHAIN = """
foreach(name ANDROID_ABI ANDROID_PLATFORM)
  if(NOT DEFINED ${name} AND NOT DEFINED ENV{${name}})
    message(FATAL_ERROR "the preset does not set ${name}")
  endif()
endforeach()
set(ENV{ANDROID_ABI} "${ANDROID_ABI}")  # compiler checks run this file again, without the cache
set(ENV{ANDROID_PLATFORM} "${ANDROID_PLATFORM}")
set(ANDROID TRUE)
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
"""

CONFIG = """
get_filename_component(_root "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
foreach(name extension_module_static extension_tensor extension_threadpool optimized_native_cpu_ops_lib
        quantized_ops_lib xnnpack_backend)
  add_library(${name} STATIC IMPORTED)
  set_target_properties(${name} PROPERTIES IMPORTED_LOCATION "${_root}/lib/libempty.a")
endforeach()
add_library(executorch INTERFACE IMPORTED)
target_include_directories(executorch SYSTEM INTERFACE "@SDK@/include"
                           "@SDK@/include/executorch/runtime/core/portable_type/c10")
target_compile_definitions(executorch INTERFACE C10_USING_CUSTOM_GENERATED_MACROS ET_EVENT_TRACER_ENABLED)
target_link_options(executorch INTERFACE -Wl,--no-as-needed)
foreach(name kernels_optimized kernels_quantized backend_xnnpack threadpool)
  target_link_libraries(executorch INTERFACE "@SDK@/lib/libexecutorch_${name}.so")
endforeach()
target_link_libraries(executorch INTERFACE "@SDK@/lib/libexecutorch.so")
"""


def cmake(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cmake", *map(str, words)],
        cwd=ANDROID,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_the_presets_are_the_documented_ones() -> None:
    done = cmake("--list-presets")
    assert done.returncode == 0, done.stderr
    names = [
        preset["name"]
        for preset in json.loads((ANDROID / "CMakePresets.json").read_text(encoding="utf-8"))["buildPresets"]
    ]
    assert names == ["host", "arm64-linux", "ndk"]
    assert all(f'"{name}"' in done.stdout for name in names)


def test_host(tmp_path: Path) -> None:
    done = cmake("--preset", "host", "-B", tmp_path, f"-DEXECUTORCH_ROOT={executorch_sdk()}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    require_tools()
    sdk = loader_package().with_name(f"sdk-{version('executorch')}") / "executorch"  # fetched for that package
    folder = tmp_path_factory.mktemp("stubs")
    toolchain = folder / "ndk" / "build" / "cmake" / "android.toolchain.cmake"
    package = folder / "executorch" / "lib" / "cmake" / "ExecuTorch" / "executorch-config.cmake"
    for path, text in ((toolchain, TOOLCHAIN), (package, CONFIG.replace("@SDK@", str(sdk)))):
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    subprocess.run(["ar", "cr", folder / "executorch" / "lib" / "libempty.a"], check=True)
    return {"ANDROID_NDK": str(folder / "ndk"), "EXECUTORCH_ANDROID": str(folder / "executorch")}


def test_ndk_branch_links_and_has_16_kib_pages(stubs: dict[str, str], tmp_path: Path) -> None:
    done = cmake("--preset", "ndk", "-B", tmp_path, **stubs)
    assert done.returncode == 0, done.stderr
    done = cmake("--build", tmp_path, "--parallel", "2", **stubs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    done = cmake("--install", tmp_path, "--prefix", tmp_path / "out", **stubs)
    assert done.returncode == 0, done.stderr
    runner = tmp_path / "out" / "adakv_runner"
    headers = subprocess.run(["readelf", "-lW", runner], capture_output=True, text=True, check=True).stdout
    alignments = [int(line.split()[-1], 16) for line in headers.splitlines() if line.split()[:1] == ["LOAD"]]
    assert alignments
    assert all(alignment >= 16384 for alignment in alignments)


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross compiler")
def test_without_an_install_the_message_names_it(stubs: dict[str, str], tmp_path: Path) -> None:
    done = cmake("--preset", "ndk", "-B", tmp_path, **{**stubs, "EXECUTORCH_ANDROID": str(tmp_path / "nothing")})
    assert done.returncode != 0
    assert "executorch" in done.stderr.lower()
