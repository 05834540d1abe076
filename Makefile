# Everything a newcomer types. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := train,edge,report,dev
# A core for each worker; a file's tests share one. Those that start Ray have the machine to themselves.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long lint format surface constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## a virtual environment in .venv with everything pinned in constraints.txt

# pip fetches uv, uv fetches the rest: torch and torchvision must come from the same index.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "shifter needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	       "Choose another with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt \
	  --build-constraint constraints.txt --compile-bytecode --editable '.[$(EXTRAS)]'
	@touch $@

demo: install  ## the whole chain on real images: train, reduce, pack, serve, switch (minutes)
	$(BIN)/python -m jobs.demo

test: lint  ## linters, then every test that does not take minutes
	$(SIDE_BY_SIDE) -m "not long and not ray"
	$(BIN)/python -m pytest -m "ray and not long"

test-long: install  ## the tests that take minutes
	$(SIDE_BY_SIDE) -m "long and not ray"
	$(BIN)/python -m pytest -m "ray and long"

lint: install  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install  ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

surface: install  ## pin the public names, the command line and the HTTP interface as they are now
	$(BIN)/python tests/test_surface.py > tests/surface.tmp
	mv tests/surface.tmp tests/surface.txt
	$(BIN)/python -m serve_app.openapi > serve_app/openapi.tmp
	mv serve_app/openapi.tmp serve_app/openapi.json

constraints: install  ## pin the versions that are installed now
	$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable \
	  | grep -v '^pip==' | LC_ALL=C sort > constraints.tmp
	mv constraints.tmp constraints.txt

clean:  ## remove the environment, caches and builds; runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
