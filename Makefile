PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,plot,tensorboard,interop,notebooks,dev
RUN := runs/quickstart

.PHONY: demo test bench notebooks lint types setup peers clean

setup: $(VENV)/.installed

# Adds the libraries that benchmarks, notebooks and some tests compare with.
peers: $(VENV)/.peers

INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

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

# Trains the quickstart (or goes on with it), prints a sample, draws the loss curve.
demo: setup
	$(BIN)/lstm-jax train configs/quickstart.toml --workdir $(RUN)

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Tables and pictures of docs/benchmarks/, beside the peers of the [bench] extra; a quarter hour.
bench: peers
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/speed.py --devices 1 --name one_device --peers lstm_jax torch onnx

# Runs the notebooks and writes their .ipynb, and the README's pictures of them.
notebooks: peers
	$(BIN)/python notebooks/build.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyrefly check

clean:
	rm -rf $(VENV) runs
