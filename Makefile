# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or newer, and this file.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MONITOR_BIN := .venv-monitor/bin
MONITOR_STAMP := .venv-monitor/.installed
ARGS ?=

.DEFAULT_GOAL := help
SEEDS ?= 300
FIRST ?= 0

.PHONY: help demo test test-monitor sim monitor docs lint image smoke clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## A swarm on this machine, one peer killed, one late (more options: make demo ARGS="--peers 3")
	@$(BIN)/atoll demo $(ARGS)

test: $(STAMP) ## Run the tests (a part of them: make test ARGS="tests/test_cli.py -k init")
	@$(BIN)/python -m pytest -q $(ARGS)

test-monitor: $(STAMP) ## Run the tests of watching too, a browser's among them (compiles: gcc, libgmp-dev; chromium)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,monitor,test-monitor]'
	@$(BIN)/python -m pytest -q tests/monitor tests/peers tests/net/test_observer.py tests/net/test_dashboard_live.py $(ARGS)

sim: $(STAMP) ## Run simulated swarms under many seeds (more of them: make sim SEEDS=20000 FIRST=300)
	@PYTHONPATH=. $(BIN)/python tests/seeds.py --seeds $(SEEDS) --first $(FIRST)

monitor: $(MONITOR_STAMP) ## Install what watching a run needs and no PyTorch, in .venv-monitor (compiles: gcc, libgmp-dev)

lint: $(STAMP) ## Check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(STAMP) ## Write docs/configuration.md anew, from runtime/config.py
	@$(BIN)/python -m runtime.config_reference docs/configuration.md

image: ## Build the images atoll and atoll:monitor (more for docker build: make image ARGS="--build-arg ...")
	@DOCKER_BUILDKIT=1 docker build -f docker/Dockerfile -t atoll $(ARGS) .
	@DOCKER_BUILDKIT=1 docker build -f docker/Dockerfile.monitor -t atoll:monitor $(ARGS) .

smoke: ## Start docker/compose.yaml, kill one peer, cut off another, stop a third, and look whether the run goes on
	@docker/smoke.sh

clean: ## Remove the virtual environment and every cache
	@rm -rf $(VENV) .venv-monitor build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment is as old as what it was made from: either file touched, and the next target installs again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Atoll needs Python 3.11 or newer, and '$(PYTHON)' is not: install one and say make PYTHON=python3.12" >&2; \
		exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing Atoll and its dependencies into $(VENV) (PyTorch is large: some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# hivemind and PyTorch are dependencies of the package, but not of watching: that is all in one extra, read from its file.
$(MONITOR_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Atoll needs Python 3.11 or newer, and '$(PYTHON)' is not: install one and say make PYTHON=python3.12" >&2; \
		exit 1; }
	@test -x $(MONITOR_BIN)/python || { echo "Creating .venv-monitor ..."; $(PYTHON) -m venv .venv-monitor; }
	@echo "Installing what watching needs into .venv-monitor ..."
	@$(MONITOR_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$$($(MONITOR_BIN)/python -c "import tomllib; \
		print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['monitor'])")
	@$(MONITOR_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps -e .
	@touch $@
