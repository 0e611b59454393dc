# A fresh machine needs python3 (3.11 or newer) and make; everything else is made here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCKS := infra/lock
PEERS := .venv-bench
# Test files that run at a time. Each such process has a Ray and an S3 server of its own.
AT_ONCE ?= 2

.PHONY: help env demo test test-slow check format bench peers lock
.DEFAULT_GOAL := help

help:  ## what can be made
	@grep -E '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## */  make \1\t/' | expand -t 20

env: $(READY)  ## the environment in .venv (about 6 GB; 1 to 4 minutes)

$(READY): $(LOCKS)/bootstrap.txt $(LOCKS)/dev.txt infra/make-env pyproject.toml
	@PYTHON="$(PYTHON)" infra/make-env "$(VENV)"

demo: $(READY)  ## ingest, train, label and explain, ending in demo/report.html
	@$(BIN)/afinar demo demo

test: $(READY)  ## all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

check: $(READY)  ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) $(PEERS)/.ready  ## measure everything; see tests/bench/README.md
	$(BIN)/python -m tests.bench

bench-%: $(READY) $(PEERS)/.ready  ## measure one thing, such as bench-peers
	$(BIN)/python -m tests.bench $*

peers: $(PEERS)/.ready  ## the environment of what the benchmarks compare with (7 GB, torch shared with .venv's)

$(PEERS)/.ready: $(READY) $(LOCKS)/peers.txt
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(PEERS)
	$(BIN)/uv pip install -q --python $(PEERS)/bin/python --require-hashes -r $(LOCKS)/peers.txt
	@touch $@

lock: $(READY)  ## resolve the dependencies anew
	infra/lock/relock "$(BIN)/uv"
