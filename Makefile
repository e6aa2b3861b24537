# make book   run the notebooks at the laptop size and build the site     make site   build it from the record alone
# make test   run the tests                                               make audit  look at every page of the site in a browser
# make lab    open the notebooks
# make test-faults   every planted fault; `make test` plants a few
# make test-oldest   the tests at the oldest versions that pyproject.toml allows; make test-newest, at the newest
# Everything is installed in .venv; a target that has nothing to do does nothing.

VENV   := .venv
PG     := $(VENV)/bin/pg
PRESET ?= laptop
# The first Python that DADApy and the lock can be installed on.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11, 5) <= sys.version_info[:3] < (3, 13))' 2>/dev/null && echo $$p && break; done)
READY  := $(VENV)/ready
PARALLEL := --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: book site test audit test-faults test-oldest test-newest lab lint lock bench clean

book: $(READY)
	$(PG) run --preset $(PRESET) --executor local
	$(PG) site --preset $(PRESET)

site: $(READY)
	$(PG) site --preset $(PRESET)

test: $(READY)
	$(VENV)/bin/ruff check src training tests notebooks benchmarks book/_ext
	$(VENV)/bin/ruff format --check src training tests benchmarks book/_ext
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(PARALLEL)

audit: site
	PG_SITE=_build/html $(VENV)/bin/python -m pytest tests/audit

test-faults: $(READY)
	PG_FAULTS=full OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/test_planted_faults.py --durations=20 $(PARALLEL)

test-oldest test-newest: test-%:
	rm -rf $(VENV)-$* && $(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python tests/allowed.py $* > $(VENV)-$*/requirements.txt
	$(VENV)-$*/bin/python -m pip install --quiet --requirement $(VENV)-$*/requirements.txt --editable ".[dev]"
	OMP_NUM_THREADS=1 $(VENV)-$*/bin/python -m pytest $(PARALLEL)

lint: $(READY)
	$(VENV)/bin/ruff check --fix src training tests notebooks benchmarks book/_ext
	$(VENV)/bin/ruff format src training tests benchmarks book/_ext

lab: $(READY)
	$(VENV)/bin/jupyter lab notebooks

bench: $(READY)
	$(VENV)/bin/python benchmarks/extraction.py
	$(VENV)/bin/python benchmarks/geometry.py
	$(VENV)/bin/python benchmarks/cutting.py
	$(VENV)/bin/python benchmarks/tables.py

# The lock pins everything; the project itself is installed on top without touching it. On Linux the CPU build of
# torch is enough for the laptop preset; pip takes whichever build of the pinned version its index offers.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 (from 3.11.5) or 3.12 is needed: install it, or call make PYTHON=/path/to/python."; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $(READY)

# A fresh environment, resolved from pyproject.toml, written down. Local build tags (+cpu) are not part of a version.
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --editable ".[dev]"
	{ echo "# Exact versions, made by 'make lock' on Python 3.11; do not edit."; \
	  $(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-* .cache _build .pytest_cache .ruff_cache
