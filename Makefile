# Everything from a fresh checkout: Python 3.11 or later and make are enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FLOWS := $(VENV)/.flows

.DEFAULT_GOAL := help
.PHONY: help venv demo flows test lint doctest bench chaos clean

help:  ## say what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

venv: $(READY)  ## .venv with the project and all that it needs

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test,fast]'
	touch $@

demo: $(READY)  ## the main job on real data: out/demo/report.html
	$(BIN)/python -m flows.demo

$(FLOWS): $(READY)
	$(BIN)/python -m pip install --quiet -e '.[test,fast,flows]'
	touch $@

flows: $(FLOWS)  ## serve the flows of conf/flows on their schedules; their page is http://127.0.0.1:4200
	$(BIN)/python -m flows serve conf/flows

test: $(READY)  ## the whole suite, the slow tests too
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)  ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

doctest: $(READY)  ## the examples in the docstrings
	$(BIN)/python -m pytest --doctest-modules pipeline

bench: $(READY)  ## side by side with the peers, in minutes; SIZE=full for hours
	$(BIN)/python -m pip install --quiet -e '.[test,fast,bench]'
	$(BIN)/python -m benchmarks --size $(or $(SIZE),small)

chaos: $(READY)  ## faults by the hundred, in minutes; prints the figures of docs/reliability.md
	CHAOS_EXAMPLES=20 $(BIN)/python -m pytest -q tests/test_store_machine.py tests/test_hostile.py tests/test_invariance.py tests/test_history.py \
		-k "TestStore or hostile or any_relation or lost or moves or reading_while or who_reads"
	$(BIN)/python -m tests.chaos

clean:  ## remove .venv, caches and products
	rm -rf $(VENV) out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
