# Everything runs in the checkout's own .venv, which is made on first use and kept while pyproject.toml and the constraints stay as they are.
#   make demo    search a small data set within minutes and write a report      make test    the quick tests, on all cores
#   make lint    style, types, import contracts                                 make slow    the long tests
#   make docs    the manual, into site/                                         make clean   remove caches and built files (clean-venv: also .venv)

PYTHON ?= python3
VENV := .venv
CONSTRAINTS ?= constraints/ci.txt
BIN := $(VENV)/bin
SETUP := PYTHON="$(PYTHON)" VENV="$(VENV)" CONSTRAINTS="$(CONSTRAINTS)" sh .ci/setup
# One thread a process: several test processes with a thread pool each would fight for the cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

DEMO_OUT ?= runs/demo
DEMO_ARGS ?= digits --minutes 2 --models 10 --no-baselines --validation 0.4

.PHONY: help demo test slow lint types contracts docs clean clean-venv
.DEFAULT_GOAL := help

help:
	@sed -n '2,4p' Makefile | sed 's/^#  *//'

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) .ci/setup
	@$(SETUP)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) .ci/setup
	@$(SETUP) dev
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	@if [ -f $(DEMO_OUT)/config.json ]; then $(BIN)/python -m sartor.cli resume $(DEMO_OUT); \
	else $(BIN)/python -m sartor.cli search $(DEMO_ARGS) --out $(DEMO_OUT); fi

test: $(VENV)/.installed-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto --benchmark-disable -m "not slow"

slow: $(VENV)/.installed-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto --benchmark-disable -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check src tests
	$(BIN)/python -m ruff format --check src tests

types: $(VENV)/.installed-dev
	$(BIN)/python -m mypy

contracts: $(VENV)/.installed-dev
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-venv: clean
	rm -rf $(VENV)
