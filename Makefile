# `make test` and `make up` do everything on a fresh machine; ARGS passes options on: make test ARGS="-k limits -x".
# All tests are run by WORKERS processes side by side, three for two cores because tests wait for much; with ARGS, one
# process does what they say.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup up test lint types bench

# Packages come without bytecode. Where Python is told to keep none, each process would compile all that it imports:
# six seconds more at every start of the engine.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
WORKERS ?= 3

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: ## Make .venv and install everything into it
	@PYTHON="$(PYTHON)" scripts/setup.sh

up: setup ## Start everything on this machine
	@exec $(BIN)/descant up $(ARGS)

test: setup ## Run the tests
	@exec $(BIN)/python -m pytest $(or $(ARGS),--numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder)

lint: setup ## Check style, format and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup ## Check the types
	$(BIN)/mypy --num-workers 2

bench: setup ## Measure the CPU; ARGS="--help" shows what else
	@exec $(BIN)/descant bench $(or $(ARGS),cpu-speed)
