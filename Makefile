# `make demo` and `make test` do all the set-up on a machine with Python 3.11 and a C++ compiler.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

TEST_PROCESSES ?= 2
UNIT := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slow and not whole'

.PHONY: setup demo check unit-core unit-jobs test lint slow clean

setup: $(READY)

# Strict editable mode: type checkers then see the packages at their real names.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[train,s3,dev]' --config-settings editable_mode=strict
	$(BIN)/python -m promptmm.distributed.warm_up
	touch $(READY)

demo: setup
	$(BIN)/promptmm pipeline demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Two at a time, for two cores.
check: setup
	$(MAKE) --jobs 2 --output-sync=target lint unit-core unit-jobs

unit-core: setup
	$(UNIT) tests/core tests/cluster tests/graph_store

unit-jobs: setup
	$(UNIT) tests/jobs

# Most of the longer tests wait for processes that start one after the other: two files at a time take little more than half the time.
test: lint
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

slow: setup
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
