# `make help` lists the targets. Each target sets up .venv by itself; only Python >= 3.11 and make are
# required.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
# A separate environment, because only mutation testing needs mutmut and its dependencies.
MUTATION := $(VENV)/mutation
# Programs of others, on node and on Python, that only the lane of the page needs.
BROWSER := $(VENV)/browser
# Dask and Ray, larger than all the rest together.
CLUSTERS := $(VENV)/clusters
# DuckDB, Arrow and splink: a quarter of a gigabyte that only entity resolution needs.
RESOLUTION := $(VENV)/resolution
# No messages about newer releases of pyright and the documentation's theme: constraints.txt decides.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export NO_MKDOCS_2_WARNING := 1
# Many tests start interpreters, each of which would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

# ---- which Python -----------------------------------------------------------------------------------------
# A virtual environment depends on its folder (its scripts contain the path) and its interpreter. For another
# folder, when the repository was copied, or another PYTHON it is recreated. .made-for records both.
MADE_FOR := $(shell cat $(VENV)/.made-for 2>/dev/null)

# The Python of .venv, or else the newest suitable one. Each candidate is run, because one on the PATH may not
# work: version managers put shims there that only print an error. `make PYTHON=...` overrides the choice.
VENV_PYTHON := $(if $(findstring folder=$(CURDIR) python=,$(MADE_FOR)),$(BIN)/python)
SUITABLE := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in $(VENV_PYTHON) python3.14 python3.13 python3.12 python3.11 python3; do \
	if "$$python" -c '$(SUITABLE)' >/dev/null 2>&1; then echo "$$python"; break; fi; done)
# Expanded once: a conditional assignment would otherwise start an interpreter at each mention.
PYTHON := $(PYTHON)

WANTED_FOR := folder=$(CURDIR) python=$(shell "$(PYTHON)" -c 'import sys; print(sys.implementation.cache_tag)' \
	2>/dev/null)

# ---- what there is to check -------------------------------------------------------------------------------
CODE := $(wildcard src tests examples benchmarks conftest.py)
ARGS ?=

# The number of test processes. A process that has finished its share takes over tests from others.
JOBS ?= 2
PYTEST = $(BIN)/pytest -q -n $(JOBS) --dist worksteal
# One more where tests wait for servers, processes and locks half of their time, and not for a processor.
stores processes: JOBS := 3
# Continues after a failed lane, and prints each lane's time at the end.
LANES := MAKE='$(MAKE)' $(BIN)/python tests/lanes/run.py

.PHONY: help demo test all-lanes lint types unit stores processes wheel docs soak matrix browser browser-possible clusters resolution steady coverage \
	mutation bench typescript format clean distclean

help:  ## Show this list
	@echo 'Usage: make TARGET [PYTHON=python3.12] [ARGS="..."]'
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## / \1 /p' Makefile | while read -r target text; do \
		printf '  %-10s %s\n' "$$target" "$$text"; done

demo: $(VENV)/.installed-demo  ## Run the demonstration; options for it in ARGS
	@$(BIN)/durable-batches demo $(ARGS)

# ---- lanes ------------------------------------------------------------------------------------------------
# Each test is in exactly one lane, which tests/lanes/plugin.py determines.

test: $(VENV)/.installed-dev  ## Run every check; print each lane's time
	@$(LANES) lint types unit stores processes wheel docs --where-possible browser

all-lanes: $(VENV)/.installed-dev  ## Run every check, and the lanes that `make test` leaves out
	@$(LANES) lint types unit stores processes wheel docs matrix browser clusters resolution soak

lint: $(VENV)/.installed-dev  ## Check format, style and the imports between the layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.installed-dev  ## Check types with mypy and pyright, and what both make of user code
	$(BIN)/mypy $(CODE)
	$(BIN)/pyright
	@# With PYTHONPATH, because --verifytypes does not see editable installations. Its report is long, and of
	@# interest only where it fails, below 100 %.
	@report=$$(PYTHONPATH=src $(BIN)/pyright --pythonpath $(BIN)/python \
		--verifytypes durable_batches --ignoreexternal) \
		|| { echo "$$report"; exit 1; }; echo "$$report" | grep score
	@# A file's tests stay together: all of one ask the same language server.
	$(PYTEST) -m types --dist loadfile $(ARGS) tests/typing

unit: $(VENV)/.installed-dev  ## Run the tests in one process, on memory and SQLite; options for pytest in ARGS
	$(PYTEST) -m unit $(ARGS)

stores: $(VENV)/.installed-dev  ## Run the tests on Postgres; options for pytest in ARGS
	$(PYTEST) -m stores $(ARGS)

processes: $(VENV)/.installed-dev  ## Run the tests that start and kill processes; options for pytest in ARGS
	$(PYTEST) -m processes $(ARGS)

wheel: $(VENV)/.installed-dev  ## Build the wheel; run it with the lowest and the newest versions
	$(BIN)/python tests/wheel/environments.py wheel
	$(PYTEST) -m wheel $(ARGS) tests/wheel

docs: $(VENV)/.installed-dev  ## Build the documentation into site/ and run what it shows
	$(BIN)/mkdocs build --strict --quiet
	DURABLE_BATCHES_SITE=$(CURDIR)/site $(PYTEST) -m docs $(ARGS)

soak: $(VENV)/.installed-dev  ## Run the long and the random tests; options for pytest in ARGS
	$(PYTEST) -m soak --timeout 0 $(ARGS)
	@# Where ARGS name files without properties, pytest has nothing to run, and says so with a 5.
	HYPOTHESIS_SCALE=4 $(PYTEST) -m hypothesis --timeout 0 $(ARGS) || test $$? = 5

matrix: $(VENV)/.installed-dev  ## Run the wheel on every Python that there is, and with each extra alone
	$(BIN)/python tests/wheel/environments.py matrix
	$(PYTEST) -m matrix $(ARGS) tests/wheel

browser: $(VENV)/.installed-dev $(BROWSER)/.installed  ## Run the page in a real Chromium; screenshots into build/browser
	$(PYTEST) -m browser $(ARGS)

# Chromium is looked for, and never installed here; the programs are those of package-lock.json and requirements.txt.
browser-possible: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.browser.chromium
	@$(MAKE) --no-print-directory $(BROWSER)/.installed || { \
		echo 'The programs of `make browser` could not be installed.'; exit 1; }

# One test at a time: each has the processors for its cluster, and every test of Ray the same one.
clusters: $(CLUSTERS)/.installed  ## Run activities on a real Dask and a real Ray; options for pytest in ARGS
	$(PYTEST) -m clusters $(ARGS) tests/clusters
clusters: PYTEST = $(CLUSTERS)/bin/pytest -q

resolution: $(RESOLUTION)/.installed  ## Resolve entities with splink; options for pytest in ARGS
	$(PYTEST) -m resolution $(ARGS) tests/resolution
resolution: PYTEST = $(RESOLUTION)/bin/pytest -q

steady: $(VENV)/.installed-dev  ## Run unit, stores and processes ten times beside two busy loops
	@MAKE='$(MAKE)' $(BIN)/python tests/lanes/steady.py --times 10 unit stores processes

# ---- more than checks -------------------------------------------------------------------------------------

# The files in which the tests must take every branch; separated by commas.
COVERED := src/durable_batches/lifecycle/*,src/durable_batches/codec/*,src/durable_batches/runtime/*

coverage: $(VENV)/.installed-dev  ## Run unit and stores; report the branches that none takes
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -n $(JOBS) --dist worksteal -m "unit or stores" $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage report --include='$(COVERED)' --fail-under=100

mutation: $(MUTATION)/.installed  ## Look for changes of lifecycle/ that no test notices; modules in ARGS
	$(MUTATION)/bin/python tests/mutation/run.py $(ARGS)

bench: $(VENV)/.installed-dev  ## Run the benchmarks; options for them in ARGS
	@for benchmark in $(patsubst benchmarks/%.py,benchmarks.%,$(wildcard benchmarks/*.py)); do \
		echo "== $$benchmark"; $(BIN)/python -m "$$benchmark" $(ARGS) || exit 1; done

typescript: $(VENV)/.installed-dev $(BROWSER)/.installed  ## Generate the TypeScript types from the web's schemas
	$(BIN)/python -m tests.web.typescript

format: $(VENV)/.installed-dev  ## Format the code and mend what can be mended by machine
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## Remove what the checks and builds left
	rm -rf build dist site htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache .ruff_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## Remove .venv as well
	rm -rf $(VENV) .steady

# ---- set-up -----------------------------------------------------------------------------------------------
# Two stages in one environment: the demonstration needs a few packages, the checks need all of them.

PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

$(VENV)/.installed-demo: $(VENV)/.made-for pyproject.toml constraints.txt
	@echo 'Installing what the demonstration needs ...'
	@$(PIP_INSTALL) --editable '.[cli,extraction,web]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made-for pyproject.toml requirements-dev.txt constraints.txt
	@echo 'Installing what the checks need ...'
	@$(PIP_INSTALL) --requirement requirements-dev.txt
	@touch $(VENV)/.installed-demo $@

$(MUTATION)/.installed: $(VENV)/.made-for tests/mutation/requirements.txt constraints.txt
	@echo 'Installing what mutation testing needs ...'
	@"$(BIN)/python" -m venv --clear $(MUTATION)
	@$(MUTATION)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
		--requirement tests/mutation/requirements.txt
	@touch $@

$(CLUSTERS)/.installed: $(VENV)/.made-for pyproject.toml tests/clusters/requirements.txt constraints.txt
	@echo 'Installing Dask and Ray ...'
	@"$(BIN)/python" -m venv --clear $(CLUSTERS)
	@$(CLUSTERS)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
		--requirement tests/clusters/requirements.txt
	@touch $@

$(RESOLUTION)/.installed: $(VENV)/.made-for pyproject.toml tests/resolution/requirements.txt constraints.txt
	@echo 'Installing splink ...'
	@"$(BIN)/python" -m venv --clear $(RESOLUTION)
	@$(RESOLUTION)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
		--requirement tests/resolution/requirements.txt
	@touch $@

$(BROWSER)/.installed: $(VENV)/.installed-dev constraints.txt $(addprefix tests/browser/,node.py npmrc \
		package.json package-lock.json requirements.txt)
	@echo 'Installing what the browser lane needs ...'
	@$(BIN)/python -m tests.browser.node
	@touch $@

ifneq ($(MADE_FOR),$(WANTED_FOR))
.PHONY: $(VENV)/.made-for
endif
$(VENV)/.made-for:
ifeq ($(PYTHON),)
	@echo 'No Python 3.11 or newer was found. Install one, or name it: make PYTHON=/path/to/python3' >&2; exit 1
else
	@"$(PYTHON)" -c '$(SUITABLE)' || { \
		echo 'PYTHON=$(PYTHON) cannot be run or is older than Python 3.11.' >&2; exit 1; }
	@echo "Making $(VENV) with $$("$(PYTHON)" --version) ..."
	@rm -rf $(VENV)
	@"$(PYTHON)" -m venv $(VENV)
	@echo '$(WANTED_FOR)' > $@
endif
