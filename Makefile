# make demo     the whole path on a small real data set
# make test     every test a laptop can run in ten minutes
# make chaos    the longer ones: several processes as one run, killed, restarted and moved
# make mutants  breaks the code in two dozen ways, one at a time, and says which tests saw it
# All make a virtual environment with pinned versions first, the first time they are called.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test chaos mutants lint lock clean

demo: $(VENV)/.ready
	$(BIN)/nepa-jax demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

chaos: $(VENV)/.ready
	$(BIN)/python -m pytest -m chaos

mutants: $(VENV)/.ready
	$(BIN)/python tests/mutants.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); \
	  sys.exit(None if ok else f"$(PYTHON) is Python {sys.version.split()[0]}; nepa_jax needs 3.11 to 3.13: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

# Pins for all supported Pythons at once; needs uv.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --no-annotate --no-header --no-emit-index-url --upgrade --output-file requirements.lock

clean:
	rm -rf $(VENV) runs build dist
