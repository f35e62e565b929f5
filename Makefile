# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or newer, and this file.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
SEEDS ?= 300
FIRST ?= 0

.PHONY: help demo test sim lint clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## A swarm on this machine, one peer killed, one late (more options: make demo ARGS="--peers 3")
	@$(BIN)/atoll demo $(ARGS)

test: $(STAMP) ## Run the tests (a part of them: make test ARGS="tests/test_cli.py -k init")
	@$(BIN)/python -m pytest -q $(ARGS)

sim: $(STAMP) ## Run simulated swarms under many seeds (more of them: make sim SEEDS=20000 FIRST=300)
	@PYTHONPATH=. $(BIN)/python tests/seeds.py --seeds $(SEEDS) --first $(FIRST)

lint: $(STAMP) ## Check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: ## Remove the virtual environment and every cache
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
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
