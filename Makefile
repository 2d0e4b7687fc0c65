# Each target sets up what it needs in .venv and is quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Stamps of what is installed: all of it, or the worker and the embedded Redis alone, which is what the demo needs.
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
# The CPU build of torch where pip finds one under that very version; a later one would bring gigabytes of CUDA.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export UV_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# uv knows where the builds of torch are, and takes the one for this machine's GPU, or for none.
UV := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python --torch-backend auto,$(BIN)/python -m pip install)
comma := ,

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-models test-processes check format test-faults test-slow test-soak test-compose bench bench-peers up clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hugqueue needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) -V`. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# By a path file (editable_mode=compat): behind setuptools' import hook, the folder of this clone, which may be named hugqueue,
# would be taken for the package by a program beside it.
define install
@if ls $(VENV)/.installed* >/dev/null 2>&1; then echo "Bringing $(VENV) up to date."; \
elif nvidia-smi -L >/dev/null 2>&1; then echo "Installing into $(VENV): about 6 GB, with CUDA for the GPU."; \
elif test -n "$(UV)"; then echo "Installing into $(VENV): about 1.7 GB, with torch for CPUs, as no GPU is found."; \
else echo "Installing into $(VENV): about 1.7 GB where pip's index has torch for CPUs, else 6 GB with CUDA,"; \
  echo "for which no GPU is found. With uv on PATH (pip install uv) it is always the build for CPUs."; fi
@$(INSTALL) --config-settings editable_mode=compat --editable '.[$(1)]' || \
  { test -z "$(UV)" || echo "To install with pip instead: make UV= $(MAKECMDGOALS)" >&2; exit 1; }
@touch $@
endef

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,dev)

$(DEMO_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,worker$(comma)embedded)

demo: $(if $(wildcard $(STAMP)),$(STAMP),$(DEMO_STAMP)) ## Fill in masks with the demo model, through a queue
	@$(BIN)/producer submit --task fill-mask examples/capitals.txt --model examples/models/demo-fill-mask -p top_k=1

check: $(STAMP) ## ruff, mypy and deptry
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/deptry --no-ansi .

# Each file on one process: its tests share models and queues. Files in the order of tests/conftest.py: xdist would start
# those with few but long tests last.
PYTEST := $(BIN)/pytest --dist loadfile --no-loadscope-reorder

test: check test-unit test-models test-processes ## All checks and tests that CI runs

test-unit: $(STAMP) ## The tests that start no process and load no model
	@$(PYTEST) -n 2 -m "unit and not slow"

test-models: $(STAMP) ## The tests that load models, most of them tiny
	@$(PYTEST) -n 2 -m "models and not faults and not slow"

# More test processes than cores: most of them wait for processes of their own.
test-processes: $(STAMP) ## The tests with servers, workers and commands
	@$(PYTEST) -n 4 -m "processes and not faults and not slow and not compose"

test-faults: $(STAMP) ## All faults, those that take minutes too; run nothing else meanwhile
	@$(BIN)/pytest -n 2 --durations=15 tests/faults tests/e2e/test_finetune_jobs.py tests/e2e/test_finetune_places.py \
	  tests/e2e/test_finetune_uploads.py

test-slow: $(STAMP) ## Sweeps over many models, and installs into fresh environments
	@$(BIN)/pytest -n 2 -m slow

test-soak: $(STAMP) ## Kill workers at random for a quarter of an hour, and count the outcomes
	@$(BIN)/python -m tests.faults.soak --minutes 15

test-compose: $(STAMP) ## The containers; needs a container engine
	@$(BIN)/pytest -m compose

format: $(STAMP) ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## Measure against other ways to do the same
	@$(BIN)/python -m benchmarks

PEERS := .venv-peers
$(PEERS)/.installed: benchmarks/ray_data/requirements.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@echo "installing Ray into $(PEERS) (a few minutes the first time) ..."
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check torch
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/ray_data/requirements.txt
	@touch $@

bench-peers: $(STAMP) $(PEERS)/.installed ## Measure against Ray Data, in an environment of its own
	@$(BIN)/python -m benchmarks.ray_data --python $(PEERS)/bin/python

up: $(STAMP) ## Start Redis, workers and Flower here
	@$(BIN)/producer up

clean: ## Remove .venv and caches
	@rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
