# make book   run the notebooks at the laptop size and build the site     make site   build it from the record alone
# make test   run the tests                                               make audit  look at every page of the site in a browser
# make lab    open the notebooks
# make test-faults   every planted fault; `make test` plants a few
# make test-oldest   the tests at the oldest versions that pyproject.toml allows; make test-newest, at the newest
# Everything is installed in .venv; a target that has nothing to do does nothing.

# Not compiled on installation: what is used compiles itself, and the rest, 0.4 GB, need not be.
VENV   := .venv
PIP    := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile
PG     := $(VENV)/bin/pg
PRESET ?= laptop
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
READY  := $(VENV)/ready
TOOLS  := $(VENV)/tools
# PyPI's torch for Linux brings 3 GB of CUDA. Without a GPU its CPU build is taken, if this index or pip's own offers it.
TORCH       := $(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' requirements.lock)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_TORCH   := $(shell test "$$(uname -s)" = Linux && ! command -v nvidia-smi >/dev/null && echo $(TORCH)+cpu)
PARALLEL := --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: python book site test audit test-faults test-oldest test-newest lab lint lock bench clean

book: $(READY)
	$(PG) run --preset $(PRESET) --executor local
	$(PG) site --preset $(PRESET)

site: $(READY)
	$(PG) site --preset $(PRESET)

test: $(TOOLS)
	$(VENV)/bin/ruff check src training tests notebooks benchmarks book/_ext
	$(VENV)/bin/ruff format --check src training tests benchmarks book/_ext
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(PARALLEL)

audit: $(TOOLS) site
	PG_SITE=_build/html $(VENV)/bin/python -m pytest tests/audit

test-faults: $(TOOLS)
	PG_FAULTS=full OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/test_planted_faults.py --durations=20 $(PARALLEL)

test-oldest test-newest: test-%: | python
	rm -rf $(VENV)-$* && $(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python tests/allowed.py $* > $(VENV)-$*/requirements.txt
	$(VENV)-$*/bin/python -m pip install --extra-index-url $(TORCH_INDEX) --requirement $(VENV)-$*/requirements.txt --editable ".[dev]"
	OMP_NUM_THREADS=1 $(VENV)-$*/bin/python -m pytest $(PARALLEL)

lint: $(TOOLS)
	$(VENV)/bin/ruff check --fix src training tests notebooks benchmarks book/_ext
	$(VENV)/bin/ruff format src training tests benchmarks book/_ext

lab: $(TOOLS)
	$(VENV)/bin/jupyter lab notebooks

bench: $(TOOLS)
	$(VENV)/bin/python benchmarks/extraction.py
	$(VENV)/bin/python benchmarks/geometry.py
	$(VENV)/bin/python benchmarks/cutting.py
	$(VENV)/bin/python benchmarks/tables.py

python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed: install it, or call make PYTHON=/path/to/python."; exit 1; }

# The locks pin everything, with hashes, for each Python and system: what readers need, and tools to change the book with.
$(READY): requirements.lock pyproject.toml | python
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@{ test -n "$(CPU_TORCH)" && echo "To download: 0.6 GB, a third of it torch for CPUs." && \
	  $(PIP) --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) torch==$(CPU_TORCH); } || { \
	  echo "To download: 0.6 GB, and on Linux 3 GB more for CUDA, as no index offers torch for CPUs or there is a GPU."; \
	  $(PIP) torch==$(TORCH); } || { \
	  echo "There is no torch $(TORCH) for this Python, system or processor: take another Python (make PYTHON=...)."; exit 1; }
	$(call locked,requirements.lock)
	$(PIP) --no-deps --editable .
	touch $(READY)

define locked
	@$(PIP) --no-deps --requirement $(1) || { \
	  echo "Once more without DADApy, which needs a C compiler and Python's headers: the book's own lines do its work."; \
	  sed '/^dadapy==/,/[^\\]$$/d' $(1) > $(VENV)/$(1) && $(PIP) --no-deps --requirement $(VENV)/$(1); }
endef

$(TOOLS): $(READY) requirements-dev.lock
	$(call locked,requirements-dev.lock)
	touch $(TOOLS)

# Resolved for all Pythons and systems at once, which pip cannot; installed by pip all the same.
lock: | python
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/python -m pip install uv
	$(VENV)-lock/bin/uv pip compile pyproject.toml $(LOCK) --extra site --extra dadapy -o requirements.lock
	$(VENV)-lock/bin/uv pip compile pyproject.toml $(LOCK) --extra dev -c requirements.lock -o requirements-dev.lock
	rm -rf $(VENV)-lock
lock: LOCK := --universal --python-version 3.11 --generate-hashes --no-annotate --no-header

clean:
	rm -rf $(VENV) $(VENV)-* .cache _build .pytest_cache .ruff_cache
