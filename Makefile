# `make demo` and `make test` need nothing else done first; a second call skips what is done.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test lint format types floors bench registry clean

demo: $(INSTALLED)
	$(BIN)/lorary quickstart --output demo

test: lint types floors
	$(BIN)/pytest -n 2 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

floors: $(INSTALLED)
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/loader.py

registry: $(INSTALLED)
	$(BIN)/python tools/make_registry.py

clean:
	rm -rf $(VENV) demo runs .mypy_cache .ruff_cache .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt tools/develop.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/develop.py dev
	touch $@
