# Everything runs in .venv, which is made on first use and brought up to date when a source changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc mixfast -name __pycache__ -prune -o -type f -print) setup.py pyproject.toml CMakeLists.txt
# A process for each core, and each file in one of them, so that what its tests share is made once; files in the order
# of tests/conftest.py. Nothing is measured here. Bytecode is kept, as many tests start processes that import mixfast.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -p no:benchmark
.PHONY: setup train test test-fast lint docs bench bench-smoke doctor clean

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/train.stamp: $(SOURCES) | $(VENV)/bin/pip
	$(BIN)/pip install ".[vision]"
	@touch $@

$(VENV)/test.stamp: $(SOURCES) | $(VENV)/bin/pip
	$(BIN)/pip install ".[test]"
	@touch $(VENV)/train.stamp $@

$(VENV)/bench.stamp: $(SOURCES) | $(VENV)/bin/pip
	$(BIN)/pip install ".[test,bench]"
	@touch $(VENV)/train.stamp $(VENV)/test.stamp $@

setup: $(VENV)/test.stamp

train: $(VENV)/train.stamp
	$(BIN)/python -m mixfast.train $(ARGS)

test: $(VENV)/test.stamp
	$(PYTEST) $(ARGS)

# For quick turns, without the tests marked slow: builds, commands, compilers, emulated kernels, whole runs.
test-fast: $(VENV)/test.stamp
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/test_repo.py tests/test_layers.py

docs: $(VENV)/test.stamp
	$(BIN)/python -m sphinx -q -W -c docs . build/site

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks $(ARGS)

bench-smoke: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks --smoke $(ARGS)

doctor: $(VENV)/train.stamp
	$(BIN)/python -m mixfast.doctor

clean:
	rm -rf $(VENV) build dist *.egg-info _mixfast_*.so .*_cache .hypothesis
