# Two commands from a fresh machine: `make demo` and `make test`. Needs CPython 3.11+ with venv, and pip.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# What is in the environment: the package alone, which is enough to use it, or the extras as well.
PLAIN  := $(VENV)/.plain
DEV    := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long lint bench clean
.NOTPARALLEL:

help:  ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(DEV)  ## Make .venv for development: featpipe, its extras, the tools that test it

demo: $(PLAIN)  ## Run the demo (offline) and write its report
	$(BIN)/featpipe demo

test: $(DEV)  ## Lint, types, and the test suite (under ten minutes)
	$(MAKE) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not long' -n auto --maxprocesses 4 --dist loadfile

test-long: $(DEV)  ## The long proofs
	$(BIN)/python -m pytest -q -m long

lint: $(DEV)  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEV)  ## Measure on this machine what the documentation claims
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:  ## Remove the environment and caches; data and reports stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "featpipe needs Python 3.11 or newer; say which: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)

# uv installs the same packages as pip in a fifth of the time; where it cannot, pip does it.
define install
$(BIN)/python -m pip install --quiet -c constraints.txt uv || true
$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '$(1)' \
  || $(BIN)/python -m pip install -c constraints.txt -e '$(1)'
endef

$(PLAIN): pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(call install,.)
	touch $@

$(DEV): pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(call install,.[dev])
	touch $(PLAIN) $@
