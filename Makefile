# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EMBEDDED := pipeline/models/embedded
PROCESSES := -n logical --maxprocesses 4 --dist worksteal
SLOW ?= slow
MODELS := teacher-mask teacher-uniform compass judge

.PHONY: setup demo test test-slow lint claims assets wheel clean
.DEFAULT_GOAL := test

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch triton
	$(BIN)/pip install --quiet -c constraints.txt -e '.[eval,dev]'
	touch $(STAMP)

demo: setup  ## The whole story on the embedded models, on one page; DEMO passes options on.
	$(BIN)/tsdfm-pipeline demo $(DEMO)

test: setup  ## The default test suite.
	$(BIN)/python -m pytest -m 'not slow' $(PROCESSES)

test-slow: setup  ## The slow tests only: kills, resumes, clusters, wheels. CI passes over the longest: SLOW='slow and not release'.
	$(BIN)/python -m pytest -m '$(SLOW)' --durations=15 $(PROCESSES)

# The four folders are a namespace only once installed; a type checker finds them, and the tests, through links made here.
lint: setup
	$(BIN)/ruff check .
	mkdir -p .namespace && ln -sfn .. .namespace/tsdfm && ln -sfn ../tests .namespace/tests
	cd .namespace && MYPYPATH=. ../$(BIN)/mypy --config-file ../pyproject.toml -p tsdfm.schemas -p tsdfm.kernels -p tsdfm.pipeline -p tsdfm.jobs -p tests
	$(BIN)/yamllint -s docker

claims: setup  ## Test the paper's claim on real text and write tests/benchmarks/README.md (resumes; CLAIMS passes options on).
	$(BIN)/python tests/benchmarks/claims.py --write $(CLAIMS)

assets: setup $(MODELS:%=build/assets/%)  ## Train the embedded models anew from their recipes (hours, on one core each; resumes).

build/assets/teacher-%: $(EMBEDDED)/teacher-%/recipe.yaml
	$(BIN)/tsdfm-pipeline pretrain $< --out $@ --half
	cp $@/*.json $@/*.safetensors $(<D)

build/assets/%: $(EMBEDDED)/%/recipe.yaml
	$(BIN)/tsdfm-pipeline fit-compass $< --out $@ --half
	cp $@/*.json $@/*.safetensors $(<D)

wheel: setup
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist .namespace *.egg-info
