# Everything runs in .venv, which the first call makes. Needed: make and Python >= 3.11.
#     make demo PYTHON=python3.12     takes another Python

PYTHON ?= python3
BIN := .venv/bin
MADE := .venv/.made
RUNTIME := .venv/.installed
DEV := .venv/.installed-dev
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: help demo test check lint test-slow test-gpu clean

help:
	@echo "make demo       train on handwritten digits, score the samples, write a report"
	@echo "make test       the fast tests"
	@echo "make check      format, lint, types and the fast tests"
	@echo "make lint       format, lint and types only"
	@echo "make test-slow  tests that train for minutes"
	@echo "make test-gpu   tests that need a CUDA device"
	@echo "make clean      remove the virtual environment and all caches; runs/ stays"

demo: $(RUNTIME)
	$(BIN)/python examples/digits.py --run runs/demo --budget 270s

test: $(DEV)
	$(BIN)/python -m pytest -n auto

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

test-slow: $(DEV)
	$(BIN)/python -m pytest -m slow

test-gpu: $(DEV)
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Found:      $$($(PYTHON) --version 2>/dev/null || echo no $(PYTHON))"; \
		echo "Expected:   Python 3.11 or newer"; \
		echo "What to do: install one, or name it: make PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -m venv .venv || { \
		echo "What to do: give $(PYTHON) its venv module; on Debian and Ubuntu it is the package" \
		"python3-venv" >&2; exit 1; }
	@touch $@

# Installed again only when what is installed could differ.
$(RUNTIME): $(MADE) pyproject.toml constraints.txt
	@echo "Installing Poise into .venv; the first time this takes a few minutes."
	@$(INSTALL) -e .
	@touch $@

$(DEV): $(MADE) pyproject.toml constraints.txt
	@echo "Installing Poise and its test tools into .venv; the first time this takes a few minutes."
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(RUNTIME)
