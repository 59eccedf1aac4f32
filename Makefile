# `make demo` and `make test` do all the set-up on a machine with Python 3.11 and a C++ compiler.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

TEST_PROCESSES ?= 2
RUNS ?= runs/accuracy
BOTH := lfm2k movielens
of_catalog = catalogs.$(1).source.path=$(DATA)/$(1)
UNIT := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slow and not whole'

.PHONY: setup demo check unit-core unit-jobs test lint slow accuracy clean

ifneq ($(filter accuracy,$(MAKECMDGOALS)),)
ifndef DATA
$(error accuracy needs the folder of the data sets: make accuracy DATA=DIR)
endif
endif

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

# The experiments over catalogs, many hours of two cores, then their reports in docs/experiments and tables in docs/accuracy.md. DATA has the
# folders tiktok, lfm2k, sports and movielens (benchmarks/movielens.py writes the last). Goes on where it stopped.
accuracy: setup
	$(BIN)/promptmm experiment catalogs run.dir=$(RUNS)/catalogs $(foreach name,tiktok sports $(BOTH),$(call of_catalog,$(name)))
	$(BIN)/promptmm experiment budgets run.dir=$(RUNS)/budgets $(foreach name,$(BOTH),$(call of_catalog,$(name)))
	$(BIN)/python benchmarks/accuracy.py $(RUNS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
