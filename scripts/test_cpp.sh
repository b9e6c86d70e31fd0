#!/usr/bin/env bash
# C++ kernel tests three times: optimised, under AddressSanitizer and UndefinedBehaviorSanitizer, and for arm64 under
# emulation: everything on a CPU with dot products, and what compares the sets also with plain NEON and with int8 matrix
# products. ADAKV_SKIP_ARM64=1 leaves arm64 out; ADAKV_JOBS is the number of compilers at a time (2).
set -euo pipefail
unset MAKEFLAGS  # make -j2 may run this beside lint; the compilers are counted below
cd "$(dirname "$0")/.."

build() {  # build NAME [cmake options]
  local name=$1
  shift
  cmake -S adakv_model/csrc/tests -B "build/cpp-$name" -DCMAKE_BUILD_TYPE=Release "$@" >/dev/null
  cmake --build "build/cpp-$name" --parallel "${ADAKV_JOBS:-2}" >"build/cpp-$name/build.log" ||
    { cat "build/cpp-$name/build.log"; exit 1; }
}

# A test runs beside the next build; its log is shown at the end, where it failed with every line.
started=() names=()
start() {  # start NAME COMMAND...
  local name=$1
  shift
  "$@" >"build/cpp-$name.log" 2>&1 &
  started+=($!) names+=("$name")
}
finish() {
  local failed=0
  for i in "${!started[@]}"; do
    echo "== ${names[i]}"
    if wait "${started[i]}"; then
      grep -v -e '^ok' -e '^golden' "build/cpp-${names[i]}.log"
    else
      cat "build/cpp-${names[i]}.log"
      failed=1
    fi
  done
  started=() names=()
  return $failed
}
trap '[[ ${#started[@]} == 0 ]] || kill "${started[@]}" 2>/dev/null || true' EXIT

if [[ ${ADAKV_SKIP_ARM64:-0} != 1 ]]; then
  for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do
    command -v "$tool" >/dev/null || {
      echo "$tool is missing: apt-get install g++-aarch64-linux-gnu qemu-user-static, or set ADAKV_SKIP_ARM64=1" >&2
      exit 1
    }
  done
  build arm64 -DCMAKE_TOOLCHAIN_FILE="$PWD/android/arm64-linux.cmake"
  emulated() { exec qemu-aarch64-static -cpu "$1" -L /usr/aarch64-linux-gnu build/cpp-arm64/kernel_tests "${@:2}"; }
  start arm64-cortex-a76 emulated cortex-a76  # the longest: a minute
fi
build sanitized -DADAKV_SANITIZE=ON
start sanitized build/cpp-sanitized/kernel_tests
build release
start release build/cpp-release/kernel_tests
if [[ ${ADAKV_SKIP_ARM64:-0} == 1 ]]; then
  finish
  echo "== arm64 left out (ADAKV_SKIP_ARM64=1)"
  exit 0
fi
start arm64-cortex-a53 emulated cortex-a53 every_set
start arm64-max emulated max every_set
finish
