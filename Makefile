# Each target makes .venv when it must (10 to 60 s, once) and then does its work. Nothing here asks a question.
#
#   make demo     record two versions of networkx under their own tests, and compare them
#   make test     the tests (PYTEST_ARGS="-x -k compare" goes to pytest)
#   make check    lint, format and types
#   make fresh    demo and test in a clone with an empty home, empty caches and Python alone on the PATH
#   make prove    the long proofs: kills, full disks, damage, real suites (KILLS= FLIPS= RUNS= PAIRS= SEED=; PROVE_ARGS names some)
#   make simulate the whole runtime over misbehaving stores, by seeds (SEEDS=500 FIRST=0)
#   make mutants  faults planted in a copy of the tree, each to be found by the simulator (MUTANTS= names some)
#   make bench    the benchmarks' tour of five minutes, to bench/results/ (BENCH_ARGS="run ask" runs something else)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test check fresh prove simulate mutants bench clean

VENV := .venv
STAMP := $(VENV)/.made-from-lock
BIN := $(VENV)/bin

# Where compiled modules are not kept, each process that a test or a proof starts compiles 200 of them: 0.5 s.
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -n 's/^#   //p' Makefile

# The first Python of 3.11 or later. A name on the PATH may be a shim that only fails, so each is asked to run.
$(BIN)/python:
	@for candidate in python3.11 python3.12 python3.13 python3; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$("$$candidate" -V) ($$candidate)" >&2; \
	    "$$candidate" -m venv $(VENV) || { \
	      echo "$$candidate cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }; \
	    exit 0; \
	  fi; \
	done; \
	echo "no Python of 3.11 or later on the PATH (tried python3.11 python3.12 python3.13 python3); install one" >&2; \
	exit 1

# What is not in the lock goes; the project itself is built by the hatchling of the lock and needs no network.
$(STAMP): requirements.lock pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/pytest -q -n 2 $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fresh:
	@.ci/fresh

prove: $(STAMP)
	$(BIN)/python -m tests.prove $(PROVE_ARGS)

# Both need the same hash seed at every run: a replay is alike to the last step.
simulate: $(STAMP)
	PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),500) --first $(or $(FIRST),0)

mutants: $(STAMP)
	PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation.mutants $(MUTANTS)

bench: $(STAMP)
	$(BIN)/python -m bench $(or $(BENCH_ARGS),tour)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
