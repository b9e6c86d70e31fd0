#!/usr/bin/env bash
# Cross-builds the runner for arm64 Linux against the ExecuTorch wheel of that machine, and gathers everything it
# needs to start into one folder, $1 (default build/arm64/package). Needs g++-aarch64-linux-gnu; PYTHON names a
# Python with pip. The wheel is downloaded once and checked against the hash below.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/arm64/package}
version=1.5.1
sha256=8ee02348a3ea80ddf770822911ebf78da616b73afce0fbaaa79f23311c88c66a
cache=build/arm64/sdk-$version

command -v aarch64-linux-gnu-g++ >/dev/null ||
  { echo "aarch64-linux-gnu-g++ is missing: apt-get install g++-aarch64-linux-gnu qemu-user-static" >&2; exit 1; }

# One build at a time: two phones measured at once ask for the runner at once.
mkdir -p build/arm64
exec 9>build/arm64/.lock
flock 9

if [[ ! -f $cache/.complete ]]; then
  rm -rf "$cache"
  mkdir -p "$cache"
  "${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --python-version 3.11 --dest "$cache" "executorch==$version" ||
    { echo "the arm64 wheel of executorch $version cannot be downloaded: check the connection to PyPI" >&2; exit 1; }
  wheel=$(echo "$cache"/*.whl)
  echo "$sha256  $wheel" | sha256sum --check --quiet || { rm -rf "$cache"; exit 1; }
  "${PYTHON:-python3}" -m zipfile -e "$wheel" "$cache"
  rm "$wheel"
  touch "$cache/.complete"
fi

mkdir -p build/arm64/runner
cmake -S android -B build/arm64/runner -DCMAKE_BUILD_TYPE=Release -DEXECUTORCH_ROOT="$PWD/$cache/executorch" \
  -DCMAKE_TOOLCHAIN_FILE="$PWD/android/arm64-linux.cmake" >/dev/null
cmake --build build/arm64/runner --parallel "${ADAKV_JOBS:-2}" >build/arm64/build.log ||
  { cat build/arm64/build.log >&2; exit 1; }
new=$out.new
rm -rf "$new"
cmake --install build/arm64/runner --prefix "$new" --strip >/dev/null
# The C and C++ runtime: with them the folder starts on any arm64 Linux kernel, whatever its libraries (README).
for library in ld-linux-aarch64.so.1 libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 libstdc++.so.6 libgcc_s.so.1; do
  cp -L "$(aarch64-linux-gnu-g++ -print-file-name=$library)" "$new/"
done
# A folder that has not changed stays: somebody may be sending it to a device.
if diff -rq "$new" "$out" >/dev/null 2>&1; then rm -rf "$new"; else rm -rf "$out" && mv "$new" "$out"; fi
echo "$out"
