# Every target installs what it needs first; the stamp makes that free when nothing has changed.
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEVICE ?= auto
SEED   ?= 0
ARGS   ?=
EXTRAS ?=
FLOOR  ?= 3.12
FLOORS := .venv-floor-$(FLOOR)

# Spinning OpenMP threads make torch tens of times slower on a machine that does anything else.
export OMP_WAIT_POLICY ?= PASSIVE
# Modules that are compiled once start several times faster.
unexport PYTHONDONTWRITEBYTECODE
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-dist test-slurm test-pretended test-gpu test-floor bench-gpu wheels rehearsal tiny real lint lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## install the pinned packages and this one into .venv (EXTRAS=optuna,tensorboard those of extras, too)
	$(if $(EXTRAS),$(BIN)/uv pip install --python $(BIN)/python --no-build-isolation --constraints requirements-extras.lock \
	  --editable '.[$(EXTRAS)]')

demo: $(STAMP)  ## CPO on canny with the embedded model and data: a table, a report, a trained ControlNet (SEED=0 DEVICE=auto ARGS=)
	$(BIN)/lpo-train method=cpo task=canny resume=auto seed=$(SEED) hardware=$(DEVICE) $(ARGS)

# The files are given out in their order: the long ones of commands/ come first, so that no core waits at the end.
test: $(STAMP)  ## the tests, one process for each core, minutes on two (ARGS= goes to pytest)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP)  ## the long tests: learning on several seeds, the wheel, kill and resume, full-size counts
	$(BIN)/python -m pytest -m slow $(ARGS)

test-dist: $(STAMP)  ## the tests that start whole runs of several processes
	$(BIN)/python -m pytest -m dist $(ARGS)

test-slurm: $(STAMP)  ## the tests that submit jobs to Slurm; makes this machine a cluster if it is root's and has apt
	tests/long/slurm/start.sh
	$(BIN)/python -m pytest -m slurm -rs $(ARGS)

test-pretended: $(STAMP)  ## whole jobs of every method, model and precision on a GPU that is pretended on the CPU, half an hour on two cores
	$(BIN)/python -m pytest -m pretended -n auto --dist load -rs $(ARGS)

test-gpu: $(STAMP)  ## what a first hour on a GPU should ask, in less than ten minutes: a row for each check
	$(BIN)/python tests/long/gpu/first_hour.py --limit 570 --json outputs/first_hour.json $(ARGS)

test-floor: $(FLOORS)/.installed  ## the tests on the lowest versions that pyproject.toml allows (FLOOR=3.12, the Python)
	$(FLOORS)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

bench-gpu: $(STAMP)  ## every speed and memory figure of a GPU in nine minutes, into outputs/benchmark.json
	$(BIN)/lpo-benchmark --everything --limit 540 --json outputs/benchmark.json $(ARGS)

# Of the pinned versions those that an image with torch, transformers, peft and lightning lacks; one comes as source.
CARRIED := diffusers hydra-core omegaconf kornia kornia-rs importlib-metadata
wheels: $(STAMP)  ## into .whl what the benchmark lacks on a GPU machine without a network (lpo-benchmark --help)
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  $(addprefix --platform manylinux_2_,$(addsuffix _x86_64,28 27 24 17)) --platform manylinux2014_x86_64 -d .whl \
	  $$(sed -nE 's/^([a-z-]+==[^ ]+).*/\1/p' requirements.lock | grep -E '^($(subst $() $(),|,$(CARRIED)))==')
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w .whl $$(grep -oE '^antlr4[^ ]+' requirements.lock)
	@du -sh .whl

tiny: $(STAMP)  ## train the embedded tiny models again
	$(BIN)/python launchers/tiny.py $(ARGS)

rehearsal: $(STAMP)  ## every recipe of conf/experiment at toy size, on a local hub with its published ids: a table, exit code 1 if one fails
	PYTHONPATH=tests $(BIN)/python -m toys.rehearsal --missing $(ARGS)

real: $(STAMP)  ## the same job on photographs and rendered pictures that come with packages
	$(BIN)/python launchers/real.py $(ARGS)

lint: $(STAMP)  ## check the style
	$(BIN)/ruff check .

# Both locks name every file by its hash; the larger one has every extra, in the versions of the smaller one.
LOCK := pip compile pyproject.toml --generate-hashes --no-emit-index-url --python-version 3.11 --quiet
lock:  ## resolve the versions again and write requirements.lock and requirements-extras.lock (needs .venv)
	$(BIN)/uv $(LOCK) --extra dev --upgrade --output-file requirements.lock
	$(BIN)/uv $(LOCK) --all-extras --upgrade --constraints requirements.lock --output-file requirements-extras.lock

clean:  ## remove .venv and what tools have cached; outputs/ stays
	rm -rf $(VENV) .venv-floor-* .pytest_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml Makefile
	@PYTHON=$$(command -v python3.11 || command -v python3) && "$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: Python 3.11 or newer is needed, as python3.11 or python3 on the PATH" >&2; exit 1; }; \
	  test -x $(BIN)/python || { echo "making $(VENV) with $$PYTHON" && "$$PYTHON" -m venv $(VENV); } || { rm -rf $(VENV); exit 1; }
	@awk '/^[a-z0-9]/ {wanted = /^uv==/} wanted && !/#/' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/uv --version 2>/dev/null | grep -q "^uv $$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' $(VENV)/uv.lock)\b" \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.lock
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-build-isolation --no-deps --offline --editable .
	@touch $@

# A pyenv puts a python3.12 on the PATH that does not start; the interpreter itself lies among its versions.
$(FLOORS)/.installed: pyproject.toml $(STAMP)
	@found=$(FLOOR); for python in python$(FLOOR) $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$(FLOOR).*/bin/python; do \
	  "$$python" -c '' 2>/dev/null && found=$$(command -v "$$python") && break; done; \
	  $(BIN)/uv venv --quiet --clear --python "$$found" $(FLOORS)
	$(BIN)/uv pip compile pyproject.toml --extra dev --resolution lowest-direct --python $(FLOORS)/bin/python \
	  --no-emit-index-url --quiet --output-file $(FLOORS)/requirements.txt
	$(BIN)/uv pip sync --python $(FLOORS)/bin/python $(FLOORS)/requirements.txt
	$(BIN)/uv pip install --python $(FLOORS)/bin/python --quiet --no-build-isolation --no-deps --offline --editable .
	@touch $@
