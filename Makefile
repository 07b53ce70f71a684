# make demo   train a recommender on the Adult census data in this repository and show how good it is
# make test   every check: lint, types, import order, formatting, native tests, Python tests
# make chaos  servers killed and stopped at random for CHAOS_S seconds (60), from CHAOS_SEED (0): the ledger stays exact;
#             then as long all processes of whole runs: the model stays the same
# make fuzz   FUZZ_INPUTS (1,000,000) broken files and messages, from FUZZ_SEED (0), for every reader of bytes
# make lint   the checks that run no tests
# make docs   the documentation site, in build/site
# make wheel  a wheel, in dist/
# make clean  remove what these commands have made, except runs/
#
# The commands make a virtual environment, .venv, on first use; torch is the large download in it.
# Tests run against the installed package, native module included, as a user has it: no editable install.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# When one of these changes, the package is built and installed again.
PACKAGE := pyproject.toml README.md CMakeLists.txt \
           $(shell find src native -type f ! -name '*.so' ! -name '*.pyc' ! -path 'native/tests/*')
CXX     := $(shell find native -name '*.h' -o -name '*.cc')

CHAOS_S    ?= 60
CHAOS_SEED ?= 0
FUZZ_INPUTS ?= 1000000
FUZZ_SEED ?= 0

# What is on the path of the person who calls must not reach the tests.
unexport PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test lint native-test native-plain native-sanitize pytest chaos fuzz docs wheel clean build-tools installed-dev
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/installed
	@echo "==> training on the Adult census data: who earns more than 50,000 dollars a year?"
	$(BIN)/satrap train examples/adult/job.yaml

# Side by side, see there; `make lint native-test pytest` does the same one after the other.
test:
	tests/all.sh

lint: $(VENV)/installed-dev
	$(BIN)/ruff check src tests benchmarks conftest.py
	$(BIN)/ruff format --check src tests benchmarks conftest.py
	$(BIN)/mypy --python-executable $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(CXX)

# Twice: as shipped, in the folder that the package was built in, and with the address and undefined-behaviour sanitizers.
native-test: native-plain native-sanitize

native-plain: $(VENV)/installed-dev
	PATH="$(abspath $(BIN)):$$PATH" native/tests/run.sh plain

native-sanitize: $(VENV)/build-tools
	PATH="$(abspath $(BIN)):$$PATH" native/tests/run.sh sanitize

# The doctests are those of the installed modules, so `satrap` here is the package, not the folder. conftest.py says
# which tests share a process; PYTEST_ARGS="-n 0" runs all in one.
pytest: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests --pyargs satrap -n 2 --no-loadscope-reorder $(PYTEST_ARGS)

chaos: $(VENV)/installed-dev
	$(BIN)/python tests/ps/chaos.py --seconds $(CHAOS_S) --seed $(CHAOS_SEED)
	$(BIN)/python tests/launch/chaos_of_runs.py --seconds $(CHAOS_S) --seed $(CHAOS_SEED)

fuzz: $(VENV)/installed-dev
	$(BIN)/python tests/fuzz.py --inputs $(FUZZ_INPUTS) --seed $(FUZZ_SEED)

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "==> build/site/index.html"

wheel: $(VENV)/installed-dev
	$(BIN)/python -m build --wheel

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("satrap needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 …")'
	@echo "==> making the virtual environment $(VENV)"
	$(PYTHON) -m venv $(VENV)
	rm -rf build/native-tests-plain  # if it is there, it may be of another Python

$(VENV)/installed: $(BIN)/python $(PACKAGE)
	@echo "==> installing satrap and what it needs; the first time this downloads torch and compiles the native store"
	$(BIN)/python -m pip install --quiet .
	@touch $@

# Without build isolation, so that a second build starts where the first one ended; in the folder of the plain native
# tests, so that they compile nothing of the package again.
$(VENV)/build-tools: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet 'cmake>=3.24' ninja \
	  $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	@touch $@

$(VENV)/installed-dev: $(VENV)/build-tools $(PACKAGE)
	@echo "==> installing satrap with its test tools; the first time this downloads torch and compiles the native store"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation \
	  -C build-dir=build/native-tests-plain '.[dev]'
	@touch $(VENV)/installed $@

build-tools: $(VENV)/build-tools
installed-dev: $(VENV)/installed-dev

$(VENV)/installed-docs: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
