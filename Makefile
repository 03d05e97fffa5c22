# The recipes of a day. `make help` lists them. Python 3.11 or newer and make are all that must be there before.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PEERS := .venv-peers
ARGS ?=

# Bytecode is wanted: with it Ray starts in half the time.
unexport PYTHONDONTWRITEBYTECODE
# Compiled kernels, shared by every process of this checkout.
export NUMBA_CACHE_DIR ?= $(CURDIR)/$(VENV)/numba-cache

.PHONY: help setup peers demo up down test lint format bench lock lock-peers nightly faults clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.warm  ## virtual environment, pinned dependencies, bytecode, compiled kernels

peers: $(PEERS)/.ready  ## other people's engines in an environment of their own, for parity tests and benchmarks

demo: setup  ## the whole desk once; stays up until Ctrl-C (ARGS=--exit ends by itself)
	$(RUN)/desk demo $(ARGS)

up: setup  ## start the embedded desk
	$(RUN)/desk up

down: setup  ## stop it
	$(RUN)/desk down

test: setup  ## every test
	$(RUN)/python -m pytest $(ARGS)

faults: setup  ## every fault test with five seeds; writes TEST_REPORT.md (about two hours)
	$(RUN)/python -m tests.faults $(ARGS)

nightly: setup  ## the long tier as well
	$(RUN)/python -m pytest --nightly $(ARGS)

lint: setup  ## ruff and mypy --strict
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: setup  ## format the code
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

bench: setup  ## every benchmark under tests/bench, as JSON
	@for file in tests/bench/bench_*.py; do $(RUN)/python -m tests.bench.$$(basename $$file .py) $(ARGS) || exit 1; done

lock: $(VENV)/.ready  ## resolve the dependencies anew (hashes only, no address)
	$(RUN)/python -m pip install -q uv
	$(RUN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --custom-compile-command "make lock" -q -o requirements.lock
	$(RUN)/uv pip compile pyproject.toml --group dev -c requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" -q -o requirements-dev.lock

lock-peers: $(VENV)/.ready  ## the same for the other people's engines (tests/peers/requirements.in)
	$(RUN)/python -m pip install -q uv
	$(RUN)/uv pip compile tests/peers/requirements.in --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock-peers" -q -o requirements-peers.lock

clean:  ## remove the environment and caches (the desk's state in .desk stays)
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

$(VENV)/.ready: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11 to 3.13; name one: make PYTHON=/path/to/python3.11 …" >&2; exit 2; }
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(RUN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(RUN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true
	@touch $@

$(VENV)/.warm: $(VENV)/.ready $(wildcard strategies/*.py)
	$(RUN)/python -c 'from strategies.backtest import warm; warm()'
	@touch $@

# Nothing of ours goes in there and nothing of it is imported by us: it is only ever run, as processes.
$(PEERS)/.ready: requirements-peers.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11 to 3.13; name one: make PYTHON=/path/to/python3.11 …" >&2; exit 2; }
	$(PEERS)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-peers.lock
	$(PEERS)/bin/python -m compileall -q -j 0 $(PEERS)/lib > /dev/null || true
	@touch $@
