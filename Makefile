# The four words of CONTRIBUTING.md. Everything but results goes to stderr, so that the last line on stdout
# is the result's. A virtual environment that is already there is used as it is.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
ARGS ?= --target embedded

MAKEFLAGS += --no-print-directory
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip install --quiet --disable-pip-version-check
CODE := $(wildcard src tests benchmarks)

.PHONY: help demo test check bench

help:
	@echo "make demo | test | check | bench   (see CONTRIBUTING.md)"

demo: $(VENV)/.installed-bench
	@$(VENV)/bin/paceline bench --target embedded --sample 60 --out report.json --html report.html

bench: $(VENV)/.installed-bench
	@$(VENV)/bin/paceline bench $(ARGS)

test: $(VENV)/.installed-dev
	@$(RUN) pytest

check: $(VENV)/.installed-dev
	@$(RUN) ruff check --quiet $(CODE)
	@$(RUN) ruff format --check $(CODE)
	@$(RUN) mypy src

# Only its absence matters: it is a link to an interpreter that may be older or newer than anything here.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Paceline needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) 1>&2 || { rm -f $(VENV)/bin/python; exit 1; }

# Torch goes first and alone, because its version decides what everything after it may be.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "installing paceline[$*] and $(TORCH) into $(VENV)" 1>&2
	@$(PIP) '$(TORCH)' 1>&2
	@$(PIP) --editable '.[$*]' 1>&2
	@touch $@
