# The ways to run, test and check Lictor; `make` alone lists them. The work is done by scripts/.
#   make test ARGS="-k digest -x"         passes arguments on to pytest; -n0 runs one test at a time
#   make soak STEPS=5000 SEED=1           plays as many steps, from this seed on
#   make test PYTHON=python3.12           makes the environment with another interpreter

.DEFAULT_GOAL := help
SHELL := bash
export PYTHON
# Python 3.11 parses the line of each traceback to mark the place in it, and ends a parse that is under way
# with a SystemError: pytest's of a test module, where a finalizer's fault is told in the midst of it.
export PYTHONNODEBUGRANGES := 1
ARGS ?=
python := .venv/bin/python

.PHONY: help setup venv demo test soak check lint types format wheel-test successor-test docker-test demo-test image sbom pins clean

help:            ## List these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

setup: venv      ## Get what the tests need: .venv, Consul, PostgreSQL, promtool, HAProxy (`make test` does it itself)
	@scripts/get-consul >/dev/null
	@scripts/postgres-server >/dev/null
	@scripts/get-promtool >/dev/null
	@command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || scripts/debian-packages haproxy

venv:
	@scripts/venv

demo: venv       ## Start a Consul, Lictor and three sample modules; Ctrl-C ends them all
	@scripts/get-consul --binary >/dev/null
	@$(python) scripts/demo.py $(ARGS)

test: setup      ## Run the tests, but for those of wheel-test, docker-test and demo-test
	@$(python) -m pytest -n 4 --dist worksteal -m "not wheel and not docker and not demo" $(ARGS)

soak: setup      ## Play Lictor under faults on random seeds; STEPS=2000 SEED=N
	@$(python) -m tests.faults.soak $(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: test lint types  ## Run the loop of CI: test, lint, types

lint: venv       ## Look for faults of style and substance, in Python and in the scripts
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@.venv/bin/shellcheck .ci/run $$(grep -lE '^#!.*bash' scripts/*)

types: venv      ## Check the types, strictly
	@$(python) -m mypy --explicit-package-bases discovery manifest_cache web scripts examples benchmarks tests

format: venv     ## Put the code into its form
	@$(python) -m ruff check --fix .
	@$(python) -m ruff format .

wheel-test: venv ## Install the wheel into an empty environment and use it there
	@$(python) -m pytest -m wheel tests/test_wheel.py $(ARGS)

successor-test: venv ## Run the Consul tests on py-consul, the kept successor of python-consul2
	@scripts/get-consul >/dev/null
	@scripts/test-on-successor $(ARGS)

docker-test: venv ## Run the tests in containers; starts a Docker engine for them if none runs
	@scripts/test-in-docker $(ARGS)

demo-test: venv  ## Start the demo, wait for its modules, press Ctrl-C, look for what is left behind
	@$(python) -m pytest -m demo tests/test_demo.py $(ARGS)

image: venv      ## Build the image lictor:VERSION; BASE_IMAGE=python:3.13-slim PYTHON=python3.13
	@scripts/image

sbom: venv       ## List the image's Python packages in a CycloneDX file, after `make image`
	@scripts/sbom

pins:            ## Move constraints.txt to the newest versions that setup.cfg allows
	@scripts/pin

clean:           ## Remove what setup, tests and builds made in this folder
	@rm -rf .venv .tools build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
