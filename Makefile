# make setup | demo | test | test-long | test-scale | test-fast | conformance | lint | types | clean — nothing is needed before them but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-long test-scale test-fast conformance lint types clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "alignlab needs Python 3.11 or newer; try: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/alignlab run -m experiment=sentiment_demo seed=0,1 launch=local

test: setup lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=25 -m "not scale and not long"

test-long: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=25 -m long

test-scale: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=25 -m scale

test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not long and not scale"

conformance: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "conformance or difference" \
	  --conformance-page=experiments/conformance/README.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis dist build
