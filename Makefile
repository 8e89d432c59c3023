# Two commands from a fresh machine: `make demo` and `make test`. Needs CPython 3.11+, pip, venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long lint bench clean

help:  ## Say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(SETUP)  ## Make .venv and install featpipe with versions known to work

# uv installs the same packages as pip in a fifth of the time; where it cannot, pip does it.
$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "featpipe needs Python 3.11 or newer; say which: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt uv || true
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || $(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

demo: $(SETUP)  ## Run the main job on the embedded default and name the report
	$(BIN)/featpipe demo

test: $(SETUP)  ## Lint, types, and the test suite (under ten minutes)
	$(MAKE) lint
	$(BIN)/python -m pytest -q -m 'not long'

test-long: $(SETUP)  ## The long proofs
	$(BIN)/python -m pytest -q -m long

lint: $(SETUP)  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(SETUP)  ## Measure on this machine what the documentation claims
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:  ## Remove the environment and caches; data and reports stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
