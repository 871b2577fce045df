# `make serve` and `make test` need nothing but Python 3.11+ and a network that reaches PyPI.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
ARGS   ?=

.PHONY: help serve test check format bench clean

help:            ## this text
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 12

serve: $(VENV)/.serve   ## run the bridge on 127.0.0.1 (ARGS="--port 9999" adds options)
	$(BIN)/kbridge $(ARGS)

test: $(VENV)/.dev      ## the whole suite (ARGS="-k wire" narrows it)
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(VENV)/.dev     ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(VENV)/.dev    ## put the code in the shape that `check` wants
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev     ## side by side with jupyter_server; prints ratios, plots into docs/
	$(BIN)/python -m benchmarks $(ARGS)

clean:                  ## remove the virtual environment and what tools left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q -e '.[kernel]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ $(VENV)/.serve
