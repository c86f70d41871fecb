# What a newcomer needs: make demo | build | test | check | bench. Each does its own set-up.
SHELL := /bin/bash
PY := .venv/bin/python
ROUNDS ?= 20
SEED ?=
PART ?=
QUICK ?=

.PHONY: build build-asan demo test check bench crash fault fuzz attack docs clean
.DEFAULT_GOAL := build

# The stamp is younger than everything that the build reads.
STAMP := build/stamp
NATIVE := $(wildcard _native/*.pyx _native/*.pxd _native/kernel/*)

build: $(STAMP)

$(STAMP): pyproject.toml setup.py scripts/bootstrap $(NATIVE)
	@scripts/bootstrap
	@mkdir -p build && touch $@

test: build
	$(PY) -m pytest -q

check: build
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache
	$(PY) -m mypy.stubtest _native --allowlist _native/stubtest.allow --ignore-unused-allowlist
	$(PY) scripts/generate_docs.py --check

docs: build
	$(PY) scripts/generate_docs.py

clean:
	rm -rf build .venv _native/*.so *.egg-info
