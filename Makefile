# Two commands set everything up on a machine with Python, make and git: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
JOBS ?= 2
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo test lint check clean conformance conformance-peers

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,torch,dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/lathe optimize sample:residual-cnn --output residual-cnn.lathe --overwrite

test: $(STAMP) lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv *.lathe .mypy_cache .ruff_cache

N ?= 10000
.PHONY: fuzz
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --count $(N) --jobs $(JOBS) $(if $(filter 10000,$(N)),--write docs/fuzzing.md)
conformance: $(STAMP)
	$(BIN)/python -m tests.conformance --jobs $(JOBS)

conformance-peers: $(STAMP)
	$(BIN)/python -m tests.conformance --jobs $(JOBS) --peers
# Mutated model files through everything that opens them; at most half an hour on two cores.
.PHONY: fuzz-files
fuzz-files: N ?= 20000
fuzz-files: $(STAMP)
	$(BIN)/python -m tests.redteam.fuzz $(N) --jobs $(JOBS)
