# Everything a newcomer runs. `make demo` draws a picture, `make test` checks the whole.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PAGE := src/mezzotint/page/index.html
NODE := $(shell command -v npm)

.PHONY: setup page docs contract clients demo test torture mutations fuzz check lint format serve bench train evaluate-model clean

setup: $(READY) $(if $(NODE),$(PAGE))

# Python compiles what it imports at the first import; pip would compile all of it, which takes longer than the rest.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The web page. Without Node everything else works, and `/` says how to build it.
page: $(PAGE)

$(PAGE): $(shell find web -path web/node_modules -prune -o -type f -print)
	@cd web && npm ci --silent --no-audit --no-fund && npm run --silent build -- --logLevel error \
		|| echo "the web page could not be built; everything else works, and / says how to build it"

demo: setup
	@mkdir -p out
	@$(BIN)/mezzotint generate "a slice of pizza" --seed 7 -o out/pizza.png
	@echo "the picture is $(CURDIR)/out/pizza.png"

# the documentation site, in out/site
docs: setup
	$(BIN)/zensical build --clean --strict

# the types of the page, from the OpenAPI document
contract: setup
	$(BIN)/python -m tests.web.contract

# the unmodified clients that tests/clients runs; without them those tests are skipped by name
clients: setup
	PYTHON=$(BIN)/python tests/clients/install.sh

test: setup
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# histories in virtual time, the store against its model, every call of the disk made to fail, workers and servers killed at
# every named point, then at random under load: about a quarter of an hour; TORTURE="--worker-kills 350 --seed 8" for more
torture: setup
	SIMULATIONS=400 $(BIN)/python -m pytest -q tests/simulator
	HISTORIES=200 $(BIN)/python -m pytest -q tests/contract/test_store_model.py
	DISK_FAULTS=all $(BIN)/python -m pytest -q tests/process/test_disk_faults.py
	FAILPOINTS=all $(BIN)/python -m pytest -q tests/process/test_failpoints.py
	$(BIN)/python -m tests.torture $(TORTURE)

# promises broken on purpose, one after the other, in copies of the source: the tests must notice each
mutations: setup
	$(BIN)/python -m tests.mutations

# ten thousand requests, right and wrong, of every call that the OpenAPI document names
fuzz: setup
	FUZZ_CASES=16000 $(BIN)/python -m pytest -s tests/fuzz

check: lint test

lint: setup
	$(BIN)/ruff format --check src tests training benchmarks
	$(BIN)/ruff check src tests training benchmarks
	$(BIN)/mypy
	$(if $(NODE),cd web && npm run --silent check)

format: setup
	$(BIN)/ruff format src tests training benchmarks
	$(BIN)/ruff check --fix src tests training benchmarks

serve: setup
	$(BIN)/mezzotint serve

bench: setup
	$(BIN)/python -m benchmarks.first_picture

# everything that ships, from nothing; goes on where it was stopped; TRAIN="--part 0.01" to see that all of it runs
train: setup
	$(BIN)/pip install --quiet --no-deps --requirement training/requirements.txt
	$(BIN)/python -m training $(TRAIN)

evaluate-model: setup
	$(BIN)/pip install --quiet --no-deps --requirement training/requirements.txt
	$(BIN)/python -m training.evaluate
	$(BIN)/python -m training.evaluate_types

clean:
	rm -rf .venv out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
