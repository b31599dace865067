# make demo: install and run the main job.   make test: install and run all tests.   make check: format, lint, types,
# layers and fast tests.   make adapters: what environments from elsewhere need.   make trackers: W&B, MLflow and
# trackio.   make docs: the documents as a site.   make lock: new pinned lists.   make clean: remove the environment.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
LIST := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps
TORCH_CPU := https://download.pytorch.org/whl/cpu
export OMP_NUM_THREADS := 1

.PHONY: demo test check adapters trackers docs lock clean install
install: $(VENV)/installed-$(LIST)

$(VENV)/installed-$(LIST): requirements/$(LIST).txt pyproject.toml
	@echo "installing the $(LIST) list into $(VENV) (a few minutes)"
	$(PYTHON) -m venv $(VENV)
ifeq ($(LIST),cpu)
	torch=$$(grep '^torch==' requirements/cpu.txt) && { $(PIP) $$torch 2>/dev/null || $(PIP) --index-url $(TORCH_CPU) $$torch; }
endif
	$(PIP) --ignore-requires-python -r requirements/$(LIST).txt
	$(PIP) --no-build-isolation --editable .
	touch $@

demo: install
	$(RUN) -m rl train experiments/quickstart.yaml

adapters: $(VENV)/adapters

# Optional: without a C compiler one of the packages cannot be built, and the tests of its adapter are skipped.
$(VENV)/adapters: requirements/adapters.txt requirements/foreign.txt | install
	-$(PIP) --ignore-requires-python --upgrade --target $(VENV)/foreign -r requirements/foreign.txt
	-$(PIP) -r requirements/adapters.txt && touch $@

trackers: $(VENV)/trackers

# Optional: where a package cannot be installed, the tests of its sink are skipped.
$(VENV)/trackers: requirements/trackers.txt | install
	-$(PIP) -r requirements/trackers.txt && touch $@

# A link that leads nowhere, and any other warning, fails.
docs: $(VENV)/docs
	$(RUN) -m rl explain --markdown > docs/keys.md
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs . build/site
	@echo "open build/site/docs/index.html"

# Optional: where they cannot be installed, the test of the site is skipped.
$(VENV)/docs: requirements/docs.txt | install
	-$(PIP) -r requirements/docs.txt && touch $@

# The slow tests start engines and clusters of their own, most of them with one busy thread. Those of a file share fixtures.
test: install adapters trackers $(VENV)/docs
	$(RUN) -m pytest -n auto --maxprocesses 4 -m "not slow and not gpu"
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 30 -m "slow or gpu"

check: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	{ $(VENV)/bin/lint-imports && $(VENV)/bin/basedpyright --level error; } & types=$$!; \
	$(RUN) -m pytest -n auto --maxprocesses 4 -m "not slow and not gpu" && wait $$types

lock: install
	$(RUN) requirements/lock.py

clean:
	rm -rf $(VENV)
