# Everything a developer does, by one word. Each target brings the tools it needs into .venv by itself;
# the machine needs Python 3.11 or newer, make and git, and for `make test` what tools/needs.py asks for.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.PHONY: help setup demo stack stack-down images pins test soak gpu tiny lint types proto numerics bench fmt clean

BIN := .venv/bin
STAMP := .venv/.complete
PYTEST := $(BIN)/python -m pytest
# Of a soak: how long, which sequence of kills (empty: another one each time, which is told), where it is recorded.
MINUTES ?= 10
SEED ?=
RECORD ?= .distroml/soak/$(shell date -u +%Y%m%dT%H%M%SZ).json
# What the kernels of gradient compression are compiled from, by the setup.
KERNELS := $(addprefix libs/runtime/distroml/runtime/compress/native/, \
	abi.cpp blocks.inc build.py kernels.h levels.cpp lowrank.inc)
# Small tensors: more threads than this only get into one another's way.
export OMP_NUM_THREADS ?= 1
# Tests start hundreds of interpreters. Without files of byte code each compiles all that it imports: with torch that is
# four seconds of computing instead of two. Some container images forbid to write such files.
unexport PYTHONDONTWRITEBYTECODE

help: ## what can be made (this)
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## bring all tools and dependencies into .venv; again only when what it depends on changes

$(STAMP): pyproject.toml tools/setup.sh $(KERNELS)
	@bash tools/setup.sh
	@touch $@

demo: setup ## train a small GPT, lose a worker to kill -9, recover, replay; under 4 minutes
	@$(BIN)/distroml demo

stack: setup ## install and start real servers on loopback, data in .distroml/stack (SERVERS="etcd minio" for some)
	@$(BIN)/python -m deploy.stack up $(SERVERS)

stack-down: setup ## end the real servers; their data stays
	@$(BIN)/python -m deploy.stack down $(SERVERS)

images: setup ## build our container images with this machine's Docker engine (IMAGES="agent relay" for some, ARGS="…")
	@$(BIN)/python -m deploy.docker images $(IMAGES) $(ARGS)

pins: setup ## write anew which version of every package images have, deploy/docker/constraints.txt
	@bash deploy/docker/pins.sh

test: setup ## the whole suite: end-to-end tests, services and servers, and what only computes, side by side
	@tools/suite

soak: setup ## kill servers and services at random under a job for MINUTES=10, as SEED says, and more; needs root
	@$(BIN)/python -m deploy.stack install etcd nats minio postgres elasticsearch jaeger prometheus
	SOAK_S=$$(( $(MINUTES) * 60 )) SOAK_SEED=$(SEED) SOAK_RECORD=$(RECORD) $(PYTEST) -m e2e -s \
		tests/robustness/test_control_plane_faults.py tests/robustness/test_silence.py

gpu: setup ## try on one GPU what no machine without one can; at most 8 minutes (CHECKS="training memory" for some)
	@$(BIN)/python -m tools.gpu_check $(CHECKS)

tiny: setup ## what is pure or quick, in under a minute; run it before each commit
	$(PYTEST) -q -n 2 -m "not e2e" $(TINY)

lint: setup ## style, dependency rules, and the contract: fresh and unbroken
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/python tools/contract.py fresh
	$(BIN)/python tools/contract.py breaking

types: setup ## pyright, strict
	$(BIN)/pyright

proto: setup ## generate libs/api from proto/
	$(BIN)/python tools/contract.py generate

numerics: setup ## compare every architecture under every plan with one process, and write docs/numerics.md; about an hour
	$(BIN)/python -m tests.numerics.table

bench: setup ## list the benchmarks and run each with short settings (ONLY=name for one, FULL=1 for real figures)
	@$(BIN)/python tools/bench.py $(if $(FULL),--full) $(ONLY)

fmt: setup ## format the code and sort its imports
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove .venv, caches and build output; data folders stay
	rm -rf .venv .tools .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	rm -f libs/runtime/distroml/runtime/compress/native/kernels.so
	find libs services tests tools benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Rules, contracts, pure libraries and pure domains; tests/tiny tries each part's imports in a process of its own.
TINY := tests/tiny tests/architecture tests/tools tests/replay tests/contract/test_golden.py $(wildcard \
	libs/bundle/tests libs/manifest/tests libs/observability/tests libs/rpc/tests libs/workerlink/tests \
	services/*/tests/domain services/*/tests/test_decide.py services/*/tests/test_generations.py \
	services/*/tests/test_policies.py)
