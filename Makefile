# Two commands do all of it on a fresh machine: `make demo` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-system test-live test-deploy soak lab export readme docs bench lock clean
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete

help:  ## explain every target
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create the environment .venv from the lock (wheels only), and fetch the embedded models

$(STAMP): requirements/dev.lock pyproject.toml settings.ini
	$(PYTHON) -c 'import sys; sys.exit("ssr_nb needs Python 3.11 or later: make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/ssr models pull gemma-3-270m
	@touch $@

demo: setup  ## three concepts, a panel, an embedded model: a table and a report, no key needed
	$(BIN)/ssr demo

test: setup  ## everything that needs wheels only: clean notebooks, export in sync, notebooks' tests, pytest
	$(BIN)/python tests/check_sources.py
	$(BIN)/ruff check nbs tests benchmarks
	$(BIN)/nbdev_test --path nbs --skip_folder_re '^(surveys|templates|images)$$' --n_workers 2 --do_print
	$(BIN)/pytest -q -n 2 -m 'not system and not soak and not live'

test-system: setup  ## what needs system packages (a browser) or a second environment
	sh tests/system_packages.sh
	$(BIN)/pytest -q -m system

test-live: setup  ## ask the paid APIs whose keys are set, for some cents; skips the others
	$(BIN)/pytest -q -m live

test-deploy: setup  ## the service's deployment (none yet)
	@echo "nothing to deploy yet"

soak: setup  ## the long form of the fault tests; SOAK=0.1 runs a tenth
	$(BIN)/pytest -q -m soak

lab: setup  ## open JupyterLab on its start page; LAB="--no-browser --port 8900" passes options on
	$(BIN)/python -c 'import sys; from ssr_nb.lab import launch; launch("nbs", more=sys.argv[1:])' $(LAB)

export: setup  ## notebooks -> package and README, notebooks cleaned
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tests/check_sources.py --write-readme

docs: setup  ## guide, surveys and modules as a site in _docs: search, no address outside
	$(BIN)/python -c 'from ssr_nb.documentation import build_docs; print(build_docs())'

bench: setup  ## ratios against other ways of doing the same
	$(BIN)/python benchmarks/rating.py
	$(BIN)/python benchmarks/elicitation.py

lock: setup  ## resolve the locks anew (needs a package index)
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --extra dev pyproject.toml -o requirements/dev.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 pyproject.toml -o requirements/base.lock

clean:  ## remove the environment and everything made from sources (runs are kept)
	rm -rf .venv build dist _docs _proc *.egg-info .pytest_cache .hypothesis .ruff_cache
