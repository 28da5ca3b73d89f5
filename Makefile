PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,parquet,plot,tensorboard,interop,notebooks,dev
RUN := runs/quickstart

# Python stores the modules that it compiles, even if the environment forbids it. The tests start
# many processes, each of which would otherwise compile two thousand modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-oldest test-newest test-optimized test-wheel test-extras bench notebooks docs lint types setup peers clean

setup: $(VENV)/.installed

# Installs the other libraries that benchmarks, notebooks and some tests use for comparison.
peers: $(VENV)/.peers

# Python compiles modules when they are first imported. Compiling all of them here would take half
# of the installation's time.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lstm_jax needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.peers: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[$(EXTRAS),bench]'
	@touch $(VENV)/.installed $@

# Trains the quickstart (or resumes it), prints a sample and plots the loss curve.
# Other options of the training, for example: make demo OPTIONS="--train.num_steps 400"
demo: setup
	$(BIN)/lstm-jax train configs/quickstart.toml --workdir $(RUN) $(OPTIONS)

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Core tests with the oldest versions that pyproject.toml declares, and with the newest published
# ones, in separate environments. A newer Python may support newer versions: PYTHON=python3.13.
# They cover all cells, the fused engine, sequences, stacks, both directions, shardings, nnx, linen,
# models and one short training run: about 5 minutes each.
CORE := cells/test_lstm.py cells/test_published.py cells/test_ways.py sequence/fused \
  sequence/test_unroll.py sequence/test_stack.py sequence/test_bidirectional.py \
  sequence/test_shardings.py test_nnx.py test_linen.py models \
  train/test_loop.py::test_run_folder_contents
DECLARED = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"])

test-oldest test-newest: test-%:
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --editable '.[train,plot,dev]' \
	  $(if $(filter oldest,$*),$$($(PYTHON) -c '$(DECLARED)' | sed 's/>=/==/g'))
	.venv-$*/bin/python -m pip list | grep -E '^(jax|jaxlib|flax|optax|chex) '
	.venv-$*/bin/python -m pytest --numprocesses 2 --dist worksteal $(CORE:%=tests/%)

# Tests of the LSTM cell and of bitwise equality, compiled with the default optimisations of users;
# other tests are compiled with fewer optimisations (tests/compiled.py).
test-optimized: setup
	XLA_FLAGS=--xla_backend_optimization_level=3 $(BIN)/python -m pytest -m optimized \
	  tests/cells/test_lstm.py tests/inspect/test_trace.py tests/sequence/test_truncated.py

# Builds an sdist and a wheel, and runs the quickstart from the wheel in a separate environment.
test-wheel: setup
	.ci/wheel $(BIN)/python

# Installs each extra in a new environment and uses its features; about a minute per extra.
test-extras: setup
	.ci/extras $(BIN)/python

# Tables and plots of docs/benchmarks/, with the libraries of the [bench] extra; 15 minutes.
bench: peers
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/speed.py --devices 1 --name one_device --peers lstm_jax torch onnx

# Runs the notebooks, and writes their .ipynb files and their images in the docs.
notebooks: peers
	$(BIN)/python notebooks/build.py

# Builds the site of guides, applications, notebooks and API reference; warnings are errors.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html
	@echo docs/_build/html/index.html

$(VENV)/.docs: pyproject.toml constraints.txt | setup
	$(INSTALL) '.[docs]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyrefly check

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest docs/_build runs
