# `make demo` and `make test` are the two commands to know; both set up .venv first, once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Files of tests are spread over the cores; each process starts one engine for all tests that need one. With a process
# per core, threads of PyTorch and FAISS would only wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile
READY := $(VENV)/.ready

# Nothing here needs a model hub: everything that is tested loads from local folders.
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo results results-real test test-slow lint docs wheel-test format clean

setup: $(READY)

$(READY): requirements-cpu.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-cpu.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

demo: setup
	$(BIN)/ragalign demo

# The results on the testbed, on the real engine (README, docs/results.md); an interrupted run is resumed.
results: setup
	$(BIN)/ragalign bench --testbed --out build/testbed --browse 40
	cp build/testbed/report.json benchmarks/results/bench_testbed.json
	mkdir -p docs && cp build/testbed/report.html docs/testbed.html

# Demonstrations and a real base model, from the material in DATA. On two cores at most two hours a call, the most
# important figures first; called again, it goes on where it stopped. Minutes on a GPU.
DATA ?= ../shared/data
REAL := $(BIN)/python benchmarks/results_real.py
results-real: setup
	test -e build/results-real/questions.json || $(REAL) prepare --data $(DATA)
	$(REAL) measure --limit-s 6300
	$(REAL) report --data $(DATA) --out benchmarks/results/real.json --page docs/real.html

# Tests that start an engine of their own come after the others: a process can hold one.
test: lint
	$(PYTEST) -m "not slow and not own_engine"
	$(BIN)/pytest -m "not slow and own_engine"

test-slow: setup
	$(PYTEST) -m "slow and not own_engine"
	$(BIN)/pytest -m "slow and own_engine"

lint: setup
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation, into build/site; a warning is an error. What pages take from the code is written again first.
docs: setup
	$(BIN)/python docs/hooks/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

# The wheel, used in an environment of its own.
wheel-test: setup
	$(BIN)/python .ci/wheel_test.py

format: setup
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV)
