# Every job has one target; `make help` lists them. Set-up is done by whichever target needs it first.
SHELL := /bin/bash
PYTHON ?= python3
DATA ?=

VENV := .venv
# Once set up, the choice stays: cuda13 unless CUDA=cuda12 was asked for.
CUDA ?= $(or $(patsubst $(VENV)/ready-%,%,$(firstword $(wildcard $(VENV)/ready-*))),cuda13)
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(CUDA)
TYPING := build/typing/alexshard
OTHER_DALI := $(if $(filter cuda12,$(CUDA)),nvidia-dali-cuda130,nvidia-dali-cuda120)
C_SOURCES := tools/packing/_square.c pipeline/_kernels.c pipeline/_crc.h pipeline/_pixels.h trainer/_chains.c
PILLOW_SIMD := pillow-simd==12.1.1.post0

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: setup
setup: $(READY) ## make .venv with everything (CUDA=cuda12 for DALI's older build)

$(READY): pyproject.toml setup.cfg constraints.txt $(C_SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "alexshard needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# DALI's two builds hold the same files: the other one goes, with its mark, before this one comes.
	@rm -f $(VENV)/ready-*; $(BIN)/pip uninstall --quiet --yes $(OTHER_DALI) 2> /dev/null || true
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[$(CUDA),tensorboard,export,dev]'
	@ls tools/packing/_square.*.so pipeline/_kernels.*.so trainer/_chains.*.so > /dev/null 2>&1 \
	|| echo "not all loops in C were built (is there a C compiler?): packing may take half as long again, and on the CPU DALI finishes the batches and torch normalises: slower"
	@echo "compiling $(PILLOW_SIMD)"
	@flags=$$(grep -qsw avx2 /proc/cpuinfo && echo ' -mavx2'); \
	CC="cc$$flags" $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall \
		--no-binary pillow-simd $(PILLOW_SIMD) > $(VENV)/pillow-simd.log 2>&1 \
	|| echo "pillow-simd could not be built (reason in $(VENV)/pillow-simd.log); Pillow serves, resizing is slower"
	@touch $@

.PHONY: demo
demo: setup ## the main job: draw a sample set (or DATA=/data/ilsvrc2010), build, verify, train, eval, export, bench
	@PATH="$(CURDIR)/$(BIN):$$PATH" tools/demo $(if $(DATA),"$(DATA)")

.PHONY: test
test: lint types ## rules, types and every test but the slow ones
	$(BIN)/pytest -m "not slow"

.PHONY: test-slow
test-slow: setup ## the tests that take minutes each
	$(BIN)/pytest -m slow

.PHONY: lint
lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: setup ## let ruff mend and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy does not follow the map of setup.cfg, so it is given a folder of links.
.PHONY: types
types: setup ## mypy --strict
	@rm -rf $(TYPING) && mkdir -p $(TYPING)
	@for part in __init__.py shards pipeline trainer tools; do ln -s $(CURDIR)/$$part $(TYPING)/$$part; done
	MYPYPATH=build/typing $(BIN)/mypy -p alexshard

.PHONY: bench
bench: setup ## where the loader's time goes (on shards/), and packing's where DATA is given
	tools/bench_loader
	$(if $(DATA),tools/bench_build "$(DATA)")

.PHONY: gpu
gpu: setup ## everything that is asked of a card, in one table (on DATA's images where it is a folder per class)
	@mkdir -p build
	tools/gpu_check $(if $(DATA),--images "$(DATA)") --out build/gpu.md --json build/gpu.json

.PHONY: clean
clean: ## remove what make made (not shards, runs or data)
	rm -rf $(VENV) build demo *.egg-info pipeline/*.so tools/packing/*.so trainer/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
