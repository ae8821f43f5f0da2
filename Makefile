# Two commands do everything: `make quickstart` and `make test`. Whatever they install, download or cache stays inside
# this checkout, and a second run needs no network.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON_VERSION := $(shell cat .python-version)
UV_VERSION := 0.13.8
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed

# `uv` from PATH where it is there and runs, else one of our own.
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .uv/bin/uv)
GET_UV = test -x "$(UV)" || $(MAKE) --no-print-directory .uv/bin/uv

# The first cores only: MLP critics get slower, not faster, on dozens of threads.
THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))

# Processes that share the tests; PYTEST_ARGS="-n 0" runs them in one.
TEST_PROCESSES ?= 2

# ---- What `make quickstart` runs ------------------------------------------------------------------------------------
# The launcher's flags are all given, so that no accelerate config in the user's home changes the run. A team's own run
# is the same two lines with another --config_path and --bundle.
LAUNCH := .venv/bin/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $(THREADS)
QUICKSTART_DEMOS := recipes/robocasa/make_demos.py --config_path recipes/configs/quickstart_demos.yaml
QUICKSTART_TRAIN := recipes/finetune_groot.py --config_path recipes/configs/quickstart.yaml
QUICKSTART_EVAL := eval/robocasa.py --bundle outputs/quickstart --assets=lite --split=test --horizon=200 \
	--tasks='[CloseDrawer,TurnOnStove]' --candidates='[1,16]' --episodes=25 --workers=2 \
	--output_dir outputs/quickstart/eval

# Four tasks with one policy and one critic, more demonstrations, and a round of rollouts.
KITCHENS_DEMOS := recipes/robocasa/make_demos.py --config_path recipes/configs/kitchen_demos.yaml
KITCHENS_TRAIN := recipes/finetune_groot.py --config_path recipes/configs/kitchens.yaml
KITCHEN_TASKS := '[CloseDrawer,CloseMicrowave,TurnOnStove,TurnOffStove]'
KITCHENS_IMPROVE := recipes/improve.py --bundle outputs/kitchens --rounds=1 --episodes=40 --candidates=64 --validation_episodes=4 \
	--kitchens.tasks=$(KITCHEN_TASKS) --kitchens.assets=lite --kitchens.split=varied --kitchens.validation_split=validation \
	--kitchens.horizon=300 --output_dir outputs/kitchens_rounds
KITCHENS_EVAL := eval/robocasa.py --bundle outputs/kitchens_rounds/round-1/bundle --assets=lite --split=test --horizon=300 \
	--tasks=$(KITCHEN_TASKS) --candidates='[1,16,64]' --episodes=25 --workers=2 \
	--output_dir outputs/kitchens_rounds/eval

# robosuite's Lift, whose demonstrations ship.
LIFT_TRAIN := recipes/finetune_groot.py --config_path recipes/configs/lift.yaml
LIFT_EVAL := eval/robosuite.py --bundle outputs/lift --candidates='[1,16]' --episodes=100 --seed=0 \
	--output_dir outputs/lift/eval

# ---- Nothing outside the checkout -----------------------------------------------------------------------------------
CACHE := $(CURDIR)/outputs/.cache
export UV_CACHE_DIR ?= $(CURDIR)/.uv-cache
export UV_PYTHON_INSTALL_DIR := $(CURDIR)/.uv/python
export UV_PYTHON_INSTALL_BIN := 0
export UV_HTTP_TIMEOUT ?= 300
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export XDG_CACHE_HOME := $(CACHE)
export HF_HOME := $(CACHE)/huggingface
export MPLCONFIGDIR := $(CACHE)/matplotlib
export TORCH_HOME := $(CACHE)/torch
export TRITON_HOME := $(CACHE)/triton
# A sourced ROS workspace or a user's site-packages must not shadow the pinned packages.
export PYTHONNOUSERSITE := 1
# Imports here are large: without cached bytecode each start of Python takes twice as long.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV HF_LEROBOT_HOME HF_HUB_CACHE HF_DATASETS_CACHE

.PHONY: help quickstart kitchens lift test lint format install requirements clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 24

quickstart: $(INSTALLED) ## demonstrate, finetune, train a critic, compare best-of-16 with the base policy, at toy size
	test -d outputs/quickstart_demos || HF_HUB_OFFLINE=1 $(PYTHON) $(QUICKSTART_DEMOS)
	HF_HUB_OFFLINE=1 $(LAUNCH) $(QUICKSTART_TRAIN)
	rm -rf outputs/quickstart/eval  # of an earlier bundle: an evaluation goes on only with its own
	HF_HUB_OFFLINE=1 $(PYTHON) $(QUICKSTART_EVAL)

kitchens: $(INSTALLED) ## the same for four tasks, and a round of rollouts
	test -d outputs/kitchen_demos || HF_HUB_OFFLINE=1 $(PYTHON) $(KITCHENS_DEMOS)
	HF_HUB_OFFLINE=1 $(LAUNCH) $(KITCHENS_TRAIN)
	HF_HUB_OFFLINE=1 $(PYTHON) $(KITCHENS_IMPROVE)
	rm -rf outputs/kitchens_rounds/eval
	HF_HUB_OFFLINE=1 $(PYTHON) $(KITCHENS_EVAL)

lift: $(INSTALLED) ## the same on robosuite's Lift
	HF_HUB_OFFLINE=1 $(LAUNCH) $(LIFT_TRAIN)
	rm -rf outputs/lift/eval
	HF_HUB_OFFLINE=1 $(PYTHON) $(LIFT_EVAL)

test: $(INSTALLED) ## run the whole test suite, fast tests first
	$(PYTHON) -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(INSTALLED) ## ruff check, ruff format, mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy deas_vla

format: $(INSTALLED) ## let ruff sort imports and format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

install: $(INSTALLED) ## set up .venv only

requirements: ## pin anew after a change of setup.cfg (needs the network)
	@$(GET_UV)
	$(UV) pip compile setup.cfg --extra all --extra dev --python-version $(PYTHON_VERSION) --universal --quiet \
		--custom-compile-command "make requirements" --output-file requirements.txt

clean: ## remove caches and what make quickstart left
	rm -rf outputs/quickstart outputs/quickstart_demos outputs/.cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find deas_vla recipes eval tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove the environment and its download cache too
	rm -rf .venv .uv .uv-cache

# The stamp makes the second run offline: nothing is installed again until one of these files changes, and then the
# network is asked only for what is neither installed nor in the cache.
PIP_INSTALL := $(UV) pip install --python $(PYTHON) --no-deps
$(INSTALLED): requirements.txt setup.cfg pyproject.toml .python-version
	@$(GET_UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON_VERSION) .venv
	$(PIP_INSTALL) --offline --quiet --requirement requirements.txt 2>/dev/null || \
		$(PIP_INSTALL) --requirement requirements.txt || \
		$(PIP_INSTALL) --system-certs --requirement requirements.txt  # behind a company's own certificates
	$(PIP_INSTALL) --offline --quiet --no-build-isolation --editable .
	@mkdir -p $(CACHE) && touch $@

# Run from /, where a pyenv `python3` does not ask for the version of .python-version.
.uv/bin/uv:
	@cd / && command -v python3 >/dev/null || { echo "make: neither uv nor python3 is on PATH; install one" >&2; exit 1; }
	@cd / && python3 -m venv "$(CURDIR)/.uv" || { \
		echo "make: 'python3 -m venv' failed; install uv, or the venv module (Debian: python3-venv)" >&2; exit 1; }
	.uv/bin/python -m pip install --quiet uv==$(UV_VERSION)
