# make demo   the whole loop on this machine        make test   the tests
# make lint   ruff and mypy                         make serve  serve the demo's model again
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
CAIKIT := .venv-caikit
TORCH := torch==2.13.0
RECIPE ?= recipes/smollm2-demo.yaml
ARGS ?=

# pip as the machine has it set up, quiet, without compiling thousands of files that are never imported.
PIP_INSTALL := -m pip install --quiet --no-compile --disable-pip-version-check

.PHONY: demo test test-slow lint serve install clean

demo: install
	$(VENV)/bin/python -m pipelines run --recipe $(RECIPE) $(ARGS)

test: install
	$(VENV)/bin/python -m pytest -m "not slow and not gpu and not cluster and not soak" $(ARGS)

test-slow: install
	$(VENV)/bin/python -m pytest -m "slow" $(ARGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pipelines compile --check

serve: install
	$(VENV)/bin/llm-detox serve $(ARGS)

install: $(VENV)/.installed $(CAIKIT)/.installed

$(VENV)/.installed: requirements/workbench.txt requirements/test.txt requirements/demo.txt pyproject.toml
	@echo "installing the workbench into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) $(TORCH)
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps -r requirements/workbench.txt -r requirements/test.txt -r requirements/demo.txt
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

$(CAIKIT)/.installed: requirements/caikit.txt
	@echo "installing the Caikit runtime into $(CAIKIT)"
	$(PYTHON) -m venv $(CAIKIT)
	$(CAIKIT)/bin/python $(PIP_INSTALL) $(TORCH)
	$(CAIKIT)/bin/python $(PIP_INSTALL) --no-deps -r requirements/caikit.txt
	touch $@

clean:
	rm -rf $(VENV) $(CAIKIT) runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
