# Everything starts here: `make help`. Needs Python 3.11, make, gcc and git; no Docker, no root.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
KERNELS := setup.py aggregation/native/build.py $(sort $(wildcard aggregation/native/*.[ch]))
# The environment is up to date when it holds the stamp of these files' content.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt $(KERNELS) | git hash-object --stdin)
TEST_WORKERS ?= 3
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help install kernels lint types imports unit test demo bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv hold exactly what constraints.txt says (nothing to do when it does)

$(STAMP):
	@python="$(PYTHON)"; \
	for found in python3.11 python3 python; do \
	    test -z "$$python" && command -v $$found >/dev/null && \
	    $$found -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && python=$$found; \
	done; \
	test -n "$$python" || { echo "make install: needs Python 3.11; set PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	test -x $(BIN)/python || $$python -m venv $(VENV); \
	echo "installing into $(VENV); takes a minute or two …"
	@PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install -qq --no-compile \
	    --disable-pip-version-check -c constraints.txt -e '.[local,dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # as pip would, on all cores
	@$(BIN)/python -m aggregation.native.build || echo "going on with numpy alone"
	@rm -f $(VENV)/.installed-* && touch $@

kernels:  ## build the C kernels in place; without a compiler numpy does the same, slower
	@python=$(BIN)/python; test -x $$python || python=python3; $$python -m aggregation.native.build

lint: install  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy --strict over every room and the feature repo
	$(BIN)/mypy
	cd feature_repo && MYPYPATH=.. ../$(BIN)/mypy --config-file=../pyproject.toml \
	    --cache-dir=../.mypy_cache *.py

imports: install  ## the layers of ARCHITECTURE.md and the home of each library
	$(BIN)/lint-imports --no-logo

unit: install  ## pytest alone
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile \
	    --no-loadscope-reorder

test: lint imports  ## the whole suite; mypy beside pytest, which waits half of its time
	@$(MAKE) --no-print-directory --jobs=2 types unit

demo: install  ## the main job, end to end, on real data
	$(BIN)/encore demo

bench: install  ## list the benchmarks, or run one: make bench BENCH="format --quick"
	@$(BIN)/python -c 'import msgpack, sklearn' 2>/dev/null || PYTHONWARNINGS="ignore:Editable installation" \
	    $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python -m bench $(BENCH)

clean:  ## remove what was made here, except .venv
	rm -rf .encore .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
