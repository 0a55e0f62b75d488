# The common tasks. All targets use .venv, which the first of them makes from requirements.lock.
PYTHON ?= python3
CORES  ?= all
VENV   := .venv
BIN    := $(VENV)/bin
# uv, where it is on the PATH, takes the place of venv and pip
UV     := $(shell command -v uv 2>/dev/null)
# cpu leaves out CUDA's libraries, 4.8 GB; uv finds PyTorch's builds without them
DEVICE ?= cuda
ifeq ($(DEVICE),cpu)
export UV_TORCH_BACKEND := cpu
LOCKED := grep -Ev '^(cuda|nvidia)-|^triton=' requirements.lock
else
LOCKED := cat requirements.lock
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo current claims paper test test-fast test-slurm fuzz soak-slurm bench bench-long bench-gpu docs lint format clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "attngrid needs Python 3.11 or 3.12, found $$($(PYTHON) --version). Name one: make PYTHON=python3.11 ..."; exit 1; }
ifdef UV
	$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV)
	$(LOCKED) | $(UV) pip install --quiet --python $(BIN)/python -r -
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
else
	@test $(DEVICE) != cpu || { echo "DEVICE=cpu needs uv on the PATH: pip install uv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
endif
	@touch $@

venv: $(VENV)/.installed  ## make the environment in .venv (the other targets do so, too)

demo: venv  ## train the demo grid on the digits; tables, figures and a report
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores $(CORES)
	@echo "The demo's tables, figures and report:"
	@$(BIN)/attngrid outputs config/config.yaml

current: venv  ## render the existing records; train nothing
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake current --cores $(CORES)

claims: venv  ## compute the verdicts on the papers' claims from the existing records
	$(BIN)/attngrid claims

paper: claims  ## build paper/main.pdf from the generated tables, figures and numbers (needs latexmk and TeX)
	latexmk -pdf -cd -halt-on-error -interaction=nonstopmode -silent paper/main.tex

# each process has one thread and runs a whole file of tests, the longest files first (tests/conftest.py)
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -ra --durations=15 --dist loadfile \
  --no-loadscope-reorder
CPUS := $(shell getconf _NPROCESSORS_ONLN)

# one process more, because slow tests often wait: for Slurm, a signal, the end of a process
test: venv  ## run all tests except most fault tests on Slurm
	$(PYTEST) -n $$(($(CPUS) + 1)) -m "not slurm"

test-fast: venv  ## run the tests that take seconds
	$(PYTEST) -n $(CPUS) -m "not slow"

test-slurm: venv  ## start a real Slurm and run all fault tests on it (needs root and Debian's slurm-wlm)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -ra tests/slurm

fuzz: venv  ## try thousands of wrong configurations and records: some ten minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -ra -m fuzz --hypothesis-profile fuzz

soak-slurm: venv  ## run 500 tiny cells on such a Slurm
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=tests $(BIN)/python -m slurm.soak

bench: venv  ## compare training and attention with other projects on a CPU: ten minutes, more if it is busy
	$(call COMPARED,$(foreach name,training attention,$(call BENCHMARK,$(name),--device cpu)))

bench-long: venv  ## the other benchmarks: images, start-up, equal accuracy, a dry run of 10,000 cells
	$(call COMPARED,$(foreach name,pipeline loader startup dry_run,$(call BENCHMARK,$(name))) \
	  $(call BENCHMARK,equivalence,--device cpu))

bench-gpu: venv  ## compare on a GPU, at CIFAR's and ImageNet's size, and time whole trainings on CIFAR-100
	$(call COMPARED,$(foreach images,cifar imagenet,$(foreach name,training attention, \
	  $(call BENCHMARK,$(name),--device cuda --images $(images),$(name).$(images)-gpu))) \
	  $(call BENCHMARK,time_to_accuracy,--device cuda --target 75.6 --within 60,time_to_accuracy.gpu) \
	  $(call BENCHMARK,time_to_accuracy,--device cuda --recipe cifar_200ep --seeds 1 --within 120,cifar_200ep.gpu) \
	  $(call BENCHMARK,spatial_attention,--device cuda --dtype bfloat16,spatial_attention.gpu))

# arguments: the benchmark's name, its options, and the name of its JSON file if it differs
BENCHMARK = $(BIN)/python benchmarks/$(1).py $(2) --json results/benchmarks/$(or $(3),$(1)).json || failed="$$failed $(or $(3),$(1))";
COMPARED = PATH="$(CURDIR)/$(BIN):$$PATH"; export PATH; failed=; $(1) test -z "$$failed" || { echo "bounds missed:$$failed"; exit 1; }

docs: venv  ## build the documentation as a site in site/, which needs no network and no server
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: venv  ## run formatter, linter, type checker, import checker and Snakemake's own lint
	PATH="$(CURDIR)/$(BIN):$$PATH"; export PATH; set -e; \
	  ruff format --check; ruff check; mypy; pyright; lint-imports; \
	  snakefmt --check Snakefile workflow; snakemake --lint

format: venv  ## format the sources
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/snakefmt Snakefile workflow

clean:  ## remove the demo's outputs, keep the environment
	rm -rf results/demo tables/demo.* figures/demo.* logs .snakemake
