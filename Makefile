# `make` or `make help` lists the targets. Everything is installed into .venv beside this file.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

# A GPU is there if its driver's tool or device is: NVIDIA, ROCm, or the AMD kernel driver.
GPU := $(shell if command -v nvidia-smi >/dev/null 2>&1 || command -v rocm-smi >/dev/null 2>&1 || [ -e /dev/kfd ]; \
	then echo yes; else echo no; fi)

# Without a GPU: a release with a CPU build on offer, and the Triton that kernels are measured with.
# With one: the newest torch, which brings its own Triton.
ifeq ($(GPU),yes)
TORCH  ?= torch
EXTRA  := tools
else
TORCH  ?= torch==2.13.0
EXTRA  := dev
endif

.DEFAULT_GOAL := help
FORCE:
.PHONY: FORCE help setup demo test test-all test-compile test-gpu test-gpu-whole check bench

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## build .venv (TORCH=... picks the torch, PYTHON=... the interpreter), fetch the demo model and prompts
	@for name in demo humaneval; do $(BIN)/draftwood pull $$name \
	  || echo "setup: $$name is missing (see above); the tests that need it will be skipped"; done

# A torch named on the command line is installed even where .venv is ready.
ifeq ($(origin TORCH),command line)
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "setup: $(PYTHON) is older than Python 3.11; name a newer one: make setup PYTHON=python3.12" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@# This pip resolves from metadata alone, so the check below downloads no wheel.
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=24.1'
	@if [ "$(GPU)" = no ]; then \
	  $(BIN)/python -m pip install --quiet --dry-run --report $(VENV)/plan.json '$(TORCH)' || exit 1; \
	  if grep -Eq '"name": *"nvidia-' $(VENV)/plan.json; then \
	    echo "setup: '$(TORCH)' would download gigabytes of nvidia-* packages, but this machine has no GPU; give pip a" \
	      "CPU build (its index in PIP_EXTRA_INDEX_URL, or TORCH=path/to/torch-cpu.whl) and run make setup again" >&2; \
	    exit 1; fi; fi
	$(BIN)/python -m pip install --quiet '$(TORCH)' -e '.[$(EXTRA)]'
	@touch $@

demo: setup  ## the demo model answers HumanEval prompts four ways, with identical tokens
	@$(BIN)/draftwood demo

# A process a core, each with one thread; files stay together, as what a file builds is kept in its process.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

test: setup  ## the tests for a machine without a GPU (four to ten minutes on two cores)
	$(PARALLEL) -m "not slow and not gpu"

test-all: setup  ## every case of every test that needs no GPU
	$(PARALLEL) -m "not gpu"

test-compile: setup  ## every kernel compiled for gfx1100, gfx1151, sm_86, sm_89 and sm_90, without a GPU
	$(PARALLEL) -m compile tests/kernels

# These import nothing but torch (with the jinja2 it brings), triton, numpy, gguf, safetensors, tokenizers and pytest.
GPU_TESTS := tests/kernels tests/cache tests/formats tests/models tests/decode tests/bench/test_kv.py \
	tests/engine/test_dflash_end_to_end.py tests/engine/test_from_disk.py tests/engine/test_memory.py \
	tests/engine/test_smollm2.py tests/engine/test_synthesis.py tests/engine/test_warm_start.py
GPU_WHOLE := tests/models/test_whole_pass.py tests/decode/test_committed_state.py tests/engine/test_from_disk.py

test-gpu:  ## model, draft and exactness tests on this machine's GPU, with plain python3 (or PYTHON=...) and no .venv
	$(PYTHON) -m pytest -q -m "gpu and not slow" $(GPU_TESTS)

test-gpu-whole:  ## the whole 27B shape, its file and 10,000 rounds on this GPU (five minutes on an H200; 24 GB of it, 17 GB of disk)
	$(PYTHON) -m pytest -q -rP -m "gpu and slow" $(GPU_WHOLE)

check: setup  ## ruff (lint and format) and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## plain decoding, chain and tree on the ten HumanEval prompts, with speed-ups
	$(BIN)/draftwood bench he --compare ar,chain,tree
