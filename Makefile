# Everything is made with the environment in $(VENV). To use one that is already active
# (conda, or your own): make VENV=$CONDA_PREFIX lab   or   make VENV=$VIRTUAL_ENV repro
VENV   ?= .venv
PYTHON ?= python3
J      ?= 2
OF     := $(if $(STUDY),--study $(STUDY))
READY  := .venv/.ready
SHELL  := /bin/bash
export PATH := $(abspath $(VENV))/bin:$(PATH)
.DEFAULT_GOAL := help
.SILENT:

ifeq ($(VENV),.venv)
ENV := $(READY)
endif

help:  ## this list
	grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/|/' | awk -F'|' '{printf "  make %-10s%s\n", $$1, $$2}'

setup: $(ENV)  ## the environment: .venv from requirements.lock (any Python from 3.11 on)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("svite needs Python 3.11 or newer: make PYTHON=python3.11 setup")'
	echo "Making .venv from requirements.lock (a few minutes, once) ..."
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --no-warn-script-location -r requirements.lock
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

repro: $(ENV)  ## data, training, figures and report, as far as something changed; J runs at a time (J=2); STUDY=name: of studies/name
	svite repro --jobs $(J) $(OF)

figures: $(ENV)  ## every figure, table and the report again, from the results in git: seconds
	svite figures $(OF)

lab: $(ENV) data  ## JupyterLab on the notebooks; they write to scratch/, never over results
	jupyter lab notebooks

smoke: $(ENV)  ## the whole pipeline at toy size in a scratch copy: at most 3 minutes
	svite smoke --jobs $(J)

lint: $(ENV)  ## ruff, notebooks too
	ruff check
	ruff format --check

data: data.dvc | $(ENV)  ## the bundled images alone
	dvc pull --quiet --remote bundled data.dvc
	touch data

test: lint data  ## lint and the tests: at most 10 minutes on two cores
	pytest -q -n 2 --dist loadgroup -m "not slow"

test-all: data  ## the tests that take minutes: at most 40 minutes on two cores
	pytest -q -n 2 --dist loadgroup -m slow

bench: $(ENV)  ## speed and memory, as ratios measured in one run
	python -m benchmarks
	python -m benchmarks.plan

# soupsieve 3 needs Python 3.11.5; Debian 12 has 3.11.2. Without a floor for aiobotocore pip tries each of its versions.
lock:  ## requirements.lock again, from a fresh environment with the newest versions
	rm -rf .scratch/lock && $(PYTHON) -m venv .scratch/lock
	.scratch/lock/bin/pip install --quiet torch==2.13.0 torchvision==0.28.0 'soupsieve<3' 'aiobotocore>=3.10' -e '.[test]'
	.scratch/lock/bin/pip freeze --all --exclude-editable --exclude pip | grep -vE '^(nvidia|cuda|triton)' | sed 's/+.*//' > requirements.lock
	rm -rf .scratch/lock

clean:  ## remove what can be made again: copies, scratch, caches (not .venv, not results)
	rm -rf .nb .scratch scratch .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: help setup repro figures lab smoke lint test test-all bench lock clean
