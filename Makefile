# make setup | demo | test | lint | lock: each sets up what it needs; a second call does no work again
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# the first interpreter that really runs and is new enough (a pyenv shim may exist and not run)
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell $(p) -c \
  'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
OUT ?= demo
# test processes, one thread each; files in order, as their slow ones would come last otherwise
WORKERS ?= 2
export MUJOCO_GL ?= egl
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: setup demo test lint lock
setup: $(VENV)/.system $(VENV)/.package

demo: setup
	$(BIN)/orrery demo --out $(OUT)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# pins what pip chooses from pyproject.toml's ranges; the torch line names no build, so that pip takes the machine's
lock: setup
	$(BIN)/pip install -qq --dry-run --ignore-installed --report $(VENV)/report.json \
	  '.[recon3d,dev]' torch==2.13.0 torchvision==0.28.0
	$(BIN)/python .ci/lock.py $(VENV)/report.json > requirements.lock

$(BIN)/python:
	@bash .ci/venv "$(PYTHON)" $(VENV)

$(VENV)/.system: .ci/system-libraries | $(BIN)/python
	@bash .ci/system-libraries
	@touch $@

$(VENV)/.requirements: requirements.lock | $(BIN)/python
	@echo "installing the pinned packages into $(VENV): about 4 minutes"
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.requirements
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@
