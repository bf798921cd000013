# Two commands for a fresh machine: `make quickstart` and `make test`. `make` alone lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 5000
PYTEST_ARGS ?=
# Two more than there are cores: many tests wait for servers and processes of their own.
TEST_WORKERS ?= $(shell $(PYTHON) -c 'import os; print(2 + (os.cpu_count() or 1))')

# uv takes the system's certificates, so that a laboratory's own registry mirror works as it does for other programs.
export UV_NATIVE_TLS ?= 1
export UV_COMPILE_BYTECODE ?= 1
export PYTHONUNBUFFERED ?= 1
export PIP_ROOT_USER_ACTION ?= ignore

.PHONY: help
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

.PHONY: quickstart
quickstart: $(STAMP)  ## Install, run the smoke ablation on the generated corpus, build its report
	@$(BIN)/python experiments/launch.py ablation_hierarchical --smoke --yes
	@$(BIN)/hicmae report --if-changed
	@echo
	@echo "MLflow UI:  make ui      (then open http://127.0.0.1:$(PORT))"

.PHONY: test
test: $(STAMP) system-packages-if-root  ## Run all tests (the slow ones too); adds system programs where that is possible
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup --cov --cov-report=term:skip-covered --cov-fail-under=85 $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMP)  ## Check formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: env
env: $(STAMP)  ## Create the environment in .venv from requirements.lock

.PHONY: ui
ui: $(STAMP)  ## Serve the MLflow UI of the recorded runs on 127.0.0.1
	@$(BIN)/hicmae ui --port $(PORT)

.PHONY: mlflow-server
mlflow-server: $(STAMP)  ## Serve MLflow for a group from PostgreSQL: MLFLOW_BACKEND=postgresql://USER:PASSWORD@HOST/NAME
	@$(BIN)/hicmae mlflow-server --port $(PORT)

.PHONY: report
report: $(STAMP)  ## Build tables, figures and the report from the recorded runs, or FROM=archive.zip
	@$(BIN)/hicmae report $(if $(FROM),--from "$(FROM)")

.PHONY: slurm-up
slurm-up: $(STAMP)  ## Start a real SLURM on this machine, for trying things out (root)
	@$(BIN)/python -m slurm.testbed up

.PHONY: slurm-down
slurm-down: $(STAMP)  ## Stop that SLURM
	@$(BIN)/python -m slurm.testbed down

.PHONY: lock
lock:  ## Resolve the dependencies of setup.cfg again into requirements.lock
	@$(MAKE) --no-print-directory .uv/bin/uv
	@$(UV) pip compile setup.cfg --extra dev --universal --python-version 3.10 --generate-hashes \
	    --no-emit-index-url --no-annotate --no-header --quiet --upgrade --output-file requirements.lock

.PHONY: system-packages
system-packages:  ## Install SLURM, LaTeX, Chromium, PostgreSQL and ffmpeg (Debian or Ubuntu, as root)
	@.ci/system-packages

.PHONY: system-packages-if-root
system-packages-if-root:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then .ci/system-packages; \
	else echo "system programs: not root on Debian or Ubuntu; tests that need a missing one will be skipped"; fi

.PHONY: clean
clean:  ## Remove the environment and built files; recorded runs and data stay
	rm -rf $(VENV) .uv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage* reports/build

# --- the environment --------------------------------------------------------------------------------------------------
UV = $(shell command -v uv || echo .uv/bin/uv)

.uv/bin/uv:
	@command -v uv >/dev/null || $(PYTHON) -m pip install --quiet --target .uv uv \
	    || { echo "error: uv is absent and pip cannot fetch it; install pip (python3-pip) or uv, then run make again" >&2; exit 1; }

$(STAMP): requirements.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "error: $(PYTHON) is older than 3.10; name a newer one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(MAKE) --no-print-directory .uv/bin/uv
	@echo "installing the environment into $(VENV) (about 6 GB; the CUDA build of torch runs on a CPU too)"
	@test -x $(BIN)/python || $(UV) venv --quiet --python $$($(PYTHON) -c 'import sys; print(sys.executable)') $(VENV)
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
