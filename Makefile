# Podium's commands. `make` alone lists them. Everything runs in .venv of this checkout.

PYTHON  ?= python3
STORE   ?= runs
PROFILE ?= full
DATA    ?=
ENGINE  ?= docker
CORES   ?= $(shell nproc 2> /dev/null || echo 2)

VENV    := .venv
READY   := $(VENV)/.ready
PODIUM  := $(VENV)/bin/podium
SWEEP   := $(PODIUM) run param-allocation --profile $(PROFILE) --store $(STORE) $(if $(DATA),--data $(DATA)) --stages ranking
PYTEST  := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test smoke test-cluster cluster cluster-build cluster-down lint lock images data train-embedding-sweep train-glu-sweep aggregate plots reports clean

help: ## List the commands
	@echo "make COMMAND [STORE=runs] [PROFILE=full|smoke] [DATA=builtin|wikitext-2|PATH|s3://…] [PYTHON=python3]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | awk -F '\t' '{printf "  %-24s%s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with exactly what the lock says, and .venv/bin/podium

$(READY): locks/requirements.txt locks/uv.txt locks/install.py pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "setup: no $(PYTHON) here: install Python 3.11 to 3.13, or name it: make setup PYTHON=…" >&2; exit 1; }
	@echo "setup: installing the lock into $(VENV)"
	@$(PYTHON) locks/install.py $(VENV)
	@touch $@

demo: setup ## The smoke study from data to registered champion, in runs/demo (about 4 minutes on 2 cores)
	$(PODIUM) run param-allocation --profile smoke --store runs/demo

test: lint ## Lint, types, layers and every quick test (under 10 minutes on 2 cores)
	$(PYTEST) -n $(CORES) --dist worksteal -m "not slow and not cluster"

smoke: setup ## Every study's smoke profile, and runs killed at random instants (about 30 minutes on 2 cores)
	$(PYTEST) -m "slow and not cluster" -n $(CORES) --maxschedchunk 1 $(TESTS)

test-cluster: setup ## Every test on a Kubernetes cluster, which is started if none runs (root, Debian 12)
	$(VENV)/bin/python tests/cluster/setup/session.py $(TESTS)

cluster: setup ## A one-node Kubernetes with S3 and the images, built once: then source .cluster/env
	$(VENV)/bin/python tests/cluster/setup/cluster.py up

cluster-build: ## What `make cluster` builds, without starting it
	$(PYTHON) tests/cluster/setup/cluster.py build

cluster-down: ## Stop that cluster; it leaves nothing behind but its cache
	$(PYTHON) tests/cluster/setup/cluster.py down

lint: setup ## ruff, mypy --strict and the import layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

lock: setup ## Resolve pyproject.toml and locks/pins.in anew into locks/requirements.txt
	cd locks && UV_CUSTOM_COMPILE_COMMAND="make lock" ../$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 \
		--extra dev --extra server --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --upgrade \
		../pyproject.toml pins.in --output-file requirements.txt
	$(VENV)/bin/python locks/images.py

images: ## Build the two images with ENGINE=docker [PYTHON_IMAGE=python:3.11-slim] [TORCH=torch.txt] [APT_SOURCES=] [NETWORK=]
	$(PYTHON) images/build.py --engine "$(ENGINE)" $(if $(PYTHON_IMAGE),--python-image $(PYTHON_IMAGE)) \
		$(if $(TORCH),--torch $(TORCH)) $(if $(APT_SOURCES),--apt-sources $(APT_SOURCES)) $(if $(NETWORK),--network $(NETWORK))

data: setup ## Prepare the study's data in STORE: corpus, tokenizer, shards
	$(PODIUM) run param-allocation --profile $(PROFILE) --store $(STORE) $(if $(DATA),--data $(DATA)) --stages data

train-embedding-sweep: setup ## Train the ranking's embedding axis (25, 35, 45 %)
	$(SWEEP) --axis embedding || [ $$? -eq 5 ]

train-glu-sweep: setup ## Train the ranking's GLU axis (2.0, 2.66, 3.0, 4.0 ×)
	$(SWEEP) --axis glu || [ $$? -eq 5 ]

aggregate: setup ## One CSV table of all trials of all runs in STORE: all_runs.csv
	$(PODIUM) export $(STORE) --layout table --to $(STORE)

plots: aggregate ## The figures of that table, in STORE/plots
	$(PODIUM) export $(STORE)/all_runs.csv --layout plots --to $(STORE)/plots

reports: setup ## Build the report of every run in STORE anew
	$(PODIUM) report $(STORE) --all

clean: ## Remove caches and build folders; runs/ and .venv stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info src/*.egg-info
	find trainer components pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +
