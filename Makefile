# Two commands set everything up on a fresh machine: `make android` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= smollm2-135m-instruct
ARTIFACT ?= artifacts/$(MODEL)-android
IOS_ARTIFACT ?= artifacts/$(MODEL)-ios
WORKERS ?= 2
# Each worker computes on one core; a module's tests stay together, as they share what they made.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Tests build the kernels several times over, in folders of their own.
test quick kernels: export CMAKE_CXX_COMPILER_LAUNCHER := $(abspath $(BIN))/python;$(CURDIR)/scripts/compile_once.py
PROMPT ?= Why is the sky blue? Answer in two sentences.

.PHONY: help venv peers android ios test quick lint parity kernels clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(VENV)/.installed  ## Virtual environment with pinned packages and the compiled operator library

# torch first and pinned: with none installed, other packages' ranges would pull a CUDA build. No build isolation:
# the operator is built against the ExecuTorch SDK inside the environment's own wheel.
$(VENV)/.installed: requirements.lock pyproject.toml CMakeLists.txt $(wildcard adakv_model/csrc/* adakv_model/csrc/*/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 is needed: install it, or name it with make PYTHON=/path/to/python3.11"; exit 1; }
	@command -v c++ >/dev/null && command -v cmake >/dev/null \
	  || { echo "a C++17 compiler and CMake 3.22 or later are needed: apt-get install g++ cmake"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "the venv module is needed: apt-get install python3.11-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check torch==$$(sed -n 's/^torch==//p' requirements.lock)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@
	@echo 'next: . $(VENV)/bin/activate, then adakv --help'

peers: venv  ## Virtual environment of the systems that scripts/bench_peers.py compares with
	$(BIN)/python scripts/bench_peers.py --setup

android: venv  ## Export the default model for Android and let it answer a prompt on this machine
	$(BIN)/python export.py --target android --model $(MODEL) --out $(ARTIFACT)
	$(BIN)/python -m adakv_model.generate --artifact $(ARTIFACT) --prompt "$(PROMPT)" --max-new-tokens 96
	@echo 'artifact: $(ARTIFACT)'
	@echo 'next: . $(VENV)/bin/activate, then adakv describe $(ARTIFACT)'

ios: venv  ## Export the Core ML package, report on it, and let it answer a prompt in the evaluator (no Mac needed)
	$(BIN)/python export.py --target ios --model $(MODEL) --out $(IOS_ARTIFACT)
	$(BIN)/python -m device_tests.coreml.evaluator.generate --artifact $(IOS_ARTIFACT) --prompt "$(PROMPT)" --max-new-tokens 64

test: venv  ## Everything CI runs: lint, types, C++ with sanitizers, arm64 under emulation, all Python tests
	$(MAKE) --no-print-directory -j2 -Otarget lint kernels
	$(PYTEST)

quick: venv lint  ## Lint, types and the quick tests: what to run while working
	$(PYTEST) -m "not slow"

kernels: venv  ## C++ tests: release, ASan + UBSan, arm64 under emulation
	PATH="$(abspath $(BIN)):$$PATH" scripts/test_cpp.sh

parity: venv  ## Parity of the exported artifact against the eager model
	$(BIN)/python -m pytest device_tests/parity --artifact $(ARTIFACT)

lint: venv  ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy adakv adakv_model export device_tests
	$(BIN)/mypy scripts
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h')

clean:  ## Remove what was built; the environment stays
	rm -rf build artifacts
