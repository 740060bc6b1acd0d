# Run `make` for the list of targets. They use the Python of .venv if there is one, else python3; name
# another with `make test PYTHON=...`. Options of pytest: `make test ARGS="--durations=20"`.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
BIN = $(dir $(shell $(PYTHON) -c 'import sys; print(sys.executable)'))
WORKERS ?= 2
ARGS ?=
PYTEST = $(strip $(PYTHON) -m pytest -n $(WORKERS) $(ARGS))
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: ## create .venv with everything that development needs
	python3 -m venv .venv
	.venv/bin/pip install -c constraints.txt -e ".[all,dev]"

.PHONY: hooks
hooks: ## have git run lint, typecheck and imports before each commit
	$(BIN)pre-commit install

.PHONY: check
check: lint typecheck imports test ## everything that is quick: lint, typecheck, imports, test

.PHONY: lint
lint: ## check style, format, spelling, words and the Dockerfile
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(BIN)typos
	$(PYTHON) tools/banned_words.py
	$(BIN)hadolint Dockerfile

.PHONY: format
format: ## format the code, and fix what ruff can fix
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.PHONY: typecheck
typecheck: ## check types with mypy
	$(PYTHON) -m mypy stars_engine langchain_stars llamaindex_stars tools

.PHONY: imports
imports: ## check that modules import only layers below their own
	$(BIN)lint-imports

.PHONY: test
test: ## run the tests that are not marked slow (about 3 minutes on two cores)
	$(PYTEST) -m "not slow"

.PHONY: test-all
test-all: ## run all tests
	$(PYTEST)

.PHONY: test-real-model
test-real-model: ## run the tests over SmolLM2, a real instruct model (STARS_SMOLLM2 names its directory)
	STARS_REAL_MODEL=all $(PYTHON) -m pytest $(ARGS) -m smollm2 tests/real_model

.PHONY: test-servers
test-servers: ## run the tests over real vLLM servers: make test-servers VLLM=path/to/vllm MODEL=dir
	$(PYTHON) tools/test_servers.py --vllm $(VLLM) --model $(MODEL) $(ARGS)
	STARS_LAW_SAMPLES=5000 $(PYTHON) -m pytest tests/remote/test_law.py

.PHONY: docs
docs: ## build the documentation site into build/site, with warnings as errors
	$(PYTHON) tools/docs_site.py

.PHONY: docs-serve
docs-serve: ## serve the documentation site while you write
	$(PYTHON) tools/docs_site.py serve

.PHONY: map
map: ## print the map of the code and its layers
	@$(PYTHON) tools/code_map.py

.PHONY: benchmark
benchmark: ## run a benchmark: make benchmark NAME=local_engine ARGS="--help"
ifdef NAME
	$(PYTHON) -m benchmarks.$(NAME) $(ARGS)
else
	@echo 'usage: make benchmark NAME=... [ARGS="..."]; names:'
	@grep -l '^if __name__' benchmarks/*.py | sed 's,.*/\(.*\)\.py,  \1,'
endif

.PHONY: soak
soak: ## mixed load for minutes: equal texts, flat memory: make soak ARGS="--minutes 20"
	$(PYTHON) -m benchmarks.soak $(ARGS)

.PHONY: build
build: ## build the source distribution and the wheel into dist/
	$(PYTHON) -m build

.PHONY: clean
clean: ## remove what was built, and caches
	rm -rf build dist .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
