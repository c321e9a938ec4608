# longtake: every task of a checkout. `make` alone lists them.
#
# PYTHON   interpreter the environment is made with (3.11 or newer)
# TORCH    cpu   the CPU build: from PyTorch's own CPU index when it answers, else the default index
#          cuda  whatever build the default index has for this platform (on Linux: CUDA)
#          URL   an index to take torch from, for a certain CUDA version: TORCH=https://download.pytorch.org/whl/cu130
#          Default: what the environment has, at first cpu. Another choice replaces the build.
# SECONDS  length of the demo's video
# TESTERS  processes that share the tests; with more, tests that depend on time may fail on a small machine

PYTHON  ?= python3
SECONDS ?= 60
TESTERS ?= 2
PROMPT  ?= a red ball bouncing past a green square over a meadow by day

VENV := .venv
INSTALLED_TORCH := $(shell cat .venv/torch-build 2>/dev/null)
TORCH ?= $(or $(INSTALLED_TORCH),cpu)
BIN  := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install another-torch demo up test test-all bench lint format types vendor clean

help:  ## list the tasks
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## make .venv with everything for this checkout

$(VENV)/.installed: pyproject.toml constraints.txt tests/conformance/openai-2.txt deploy/install.sh
	@PYTHON='$(PYTHON)' TORCH='$(TORCH)' deploy/install.sh $(VENV)
	@touch $@
ifneq ($(TORCH),$(INSTALLED_TORCH))
$(VENV)/.installed: another-torch
endif

demo: install  ## generate a video through the whole service on embedded defaults, leave demo.mp4
	@$(BIN)/longtake generate "$(PROMPT)" --seconds $(SECONDS) --output demo.mp4

up: install  ## run the service with embedded defaults on http://127.0.0.1:8000
	@$(BIN)/longtake up

test: install  ## the test suite
	$(BIN)/pytest -m "not slow" --numprocesses $(TESTERS) --dist loadfile

test-all: test  ## the test suite, and then the long tests one by one (faults, soak, quality)
	$(BIN)/pytest -m slow

bench: install  ## the figures of the README
	$(BIN)/python -m benchmarks

lint: install  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## static types
	$(BIN)/mypy

format: install  ## rewrite files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

vendor:  ## fetch the page's player library again, as package-lock.json pins it
	cd app/page && npm ci --ignore-scripts && npm run vendor

clean:  ## remove what the tasks made (data folders stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
