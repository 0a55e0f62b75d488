# One command each for the things a person does here. All of them use .venv,
# made from requirements.lock the first time.
PYTHON ?= python3
CORES  ?= all
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv demo current claims paper test test-fast test-slurm soak-slurm bench bench-long bench-gpu lint format clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "attngrid needs Python 3.11 or 3.12, found $$($(PYTHON) --version). Name one: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@

venv: $(VENV)/.installed  ## make the environment in .venv (the others do so by themselves)

demo: venv  ## train the demo grid on the digits; tables, figures and a report
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores $(CORES)
	@echo "The demo's tables, figures and report:"
	@$(BIN)/attngrid outputs config/config.yaml

current: venv  ## render whatever records exist; train nothing
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake current --cores $(CORES)

claims: venv  ## the verdicts on the papers' claims, from whatever records exist
	$(BIN)/attngrid claims

paper: claims  ## paper/main.pdf from the generated tables, figures and numbers (wants latexmk and a TeX)
	latexmk -pdf -cd -halt-on-error -interaction=nonstopmode -silent paper/main.tex

# a file at a time for each core, of one thread each
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -ra --durations=15 -n logical --dist loadfile \
  --no-loadscope-reorder

test: venv  ## all tests but the full tier of faults on Slurm
	$(PYTEST) -m "not slurm"

test-fast: venv  ## the tests that take seconds
	$(PYTEST) -m "not slow"

test-slurm: venv  ## every fault on a real Slurm, which it starts here (root, Debian's slurm-wlm)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -ra tests/slurm

soak-slurm: venv  ## 500 tiny cells through the same
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=tests $(BIN)/python -m slurm.soak

bench: venv  ## training and attention against what others do: ten minutes of a CPU, more where it is busy
	$(call COMPARED,$(foreach name,training attention,$(call BENCHMARK,$(name),--device cpu)))

bench-long: venv  ## the rest: images, start-up, equal accuracy, a dry run of 10,000 cells
	$(call COMPARED,$(foreach name,pipeline loader startup dry_run,$(call BENCHMARK,$(name))) \
	  $(call BENCHMARK,equivalence,--device cpu))

bench-gpu: venv  ## on a GPU, at CIFAR's and ImageNet's size, and whole trainings on CIFAR-100
	$(call COMPARED,$(foreach images,cifar imagenet,$(foreach name,training attention, \
	  $(call BENCHMARK,$(name),--device cuda --images $(images),$(name).$(images)-gpu))) \
	  $(call BENCHMARK,time_to_accuracy,--device cuda --target 75.6 --within 60,time_to_accuracy.gpu) \
	  $(call BENCHMARK,time_to_accuracy,--device cuda --recipe cifar_200ep --seeds 1 --within 120,cifar_200ep.gpu) \
	  $(call BENCHMARK,spatial_attention,--device cuda --dtype bfloat16,spatial_attention.gpu))

# a benchmark's name, its options, and what its record is named where not the same
BENCHMARK = $(BIN)/python benchmarks/$(1).py $(2) --json results/benchmarks/$(or $(3),$(1)).json || failed="$$failed $(or $(3),$(1))";
COMPARED = PATH="$(CURDIR)/$(BIN):$$PATH"; export PATH; failed=; $(1) test -z "$$failed" || { echo "bounds not kept:$$failed"; exit 1; }

lint: venv  ## formatter, linter, type checker, import checker and Snakemake's own lint
	PATH="$(CURDIR)/$(BIN):$$PATH"; export PATH; set -e; \
	  ruff format --check; ruff check; mypy; lint-imports; \
	  snakefmt --check Snakefile workflow; snakemake --lint

format: venv  ## rewrite the sources as the formatters want them
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/snakefmt Snakefile workflow

clean:  ## remove what the demo made, keep the environment
	rm -rf results/demo tables/demo.* figures/demo.* logs .snakemake
