#!/usr/bin/env bash
# C++ kernel tests three times: optimised, under AddressSanitizer and UndefinedBehaviorSanitizer, and for arm64 under
# emulation, there on CPUs with plain NEON, with dot products, and with int8 matrix products. ADAKV_SKIP_ARM64=1 leaves the last out; ADAKV_JOBS is the number of compilers at a time (2).
set -euo pipefail
unset MAKEFLAGS  # make -j2 may run this beside lint; the compilers are counted below
cd "$(dirname "$0")/.."

run() {  # run NAME [cmake options]
  local name=$1
  shift
  echo "== $name"
  cmake -S adakv_model/csrc/tests -B "build/cpp-$name" -DCMAKE_BUILD_TYPE=Release "$@" >/dev/null
  cmake --build "build/cpp-$name" --parallel "${ADAKV_JOBS:-2}" >"build/cpp-$name/build.log" ||
    { cat "build/cpp-$name/build.log"; exit 1; }
  ctest --test-dir "build/cpp-$name" --output-on-failure | tail -n +3
}

run release
run sanitized -DADAKV_SANITIZE=ON
if [[ ${ADAKV_SKIP_ARM64:-0} == 1 ]]; then
  echo "== arm64 left out (ADAKV_SKIP_ARM64=1)"
  exit 0
fi
for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v "$tool" >/dev/null || {
    echo "$tool is missing: apt-get install g++-aarch64-linux-gnu qemu-user-static, or set ADAKV_SKIP_ARM64=1" >&2
    exit 1
  }
done
run arm64 -DCMAKE_TOOLCHAIN_FILE="$PWD/android/arm64-linux.cmake"
for cpu in cortex-a53 cortex-a76 max; do
  echo "== arm64, $cpu"
  qemu-aarch64-static -cpu "$cpu" -L /usr/aarch64-linux-gnu build/cpp-arm64/kernel_tests every_set | grep -v '^ok'
done
