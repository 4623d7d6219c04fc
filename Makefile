# `make run` segments the bundled clip and scores the result; `make test` tests; `make lint` checks style and types; `make docs` builds site/.
# Another interpreter gets an environment of its own: make test PYTHON=python3.12 uses .venv-python3.12.
PYTHON ?= python3
VENV ?= $(if $(filter python3 python,$(notdir $(PYTHON))),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
JOBS ?= 2
PYTEST_ARGS ?=
OUT ?= adnet-output

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test lint docs clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,2s/^# //p' Makefile

run: $(BIN)/installed-video
	$(BIN)/adnet segment --overwrite -o $(OUT)

# In order of names: xdist's own puts the files of few and long tests last, where one process waits for the other.
test: $(BIN)/installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(BIN)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(BIN)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# One stamp for each extra, so that `make run` need not fetch what only the tests use.
$(BIN)/installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf .venv .venv-* $(OUT) build dist site .pytest_cache .mypy_cache .ruff_cache
