# Everything that a fresh machine with Python 3.11+, make and the package index needs.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: install install-dev demo test lint bench clean

install: .venv/.installed
install-dev: .venv/.installed-dev

# The pinned torch is the CPU build where the index has one; others set TORCH, for example to torch.
TORCH ?= torch==2.13.0
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[local]"
	touch $@

# Every store and adapter, their test suites, and the checkers.
.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --editable ".[local,stores,langchain,haystack,eval,mcp,oidc]" --group dev
	touch $@

# Its own data folder, so that a demonstration leaves no trace in yours.
demo: install
	$(BIN)/rag --data-dir .data ingest sample_corpus
	$(BIN)/rag --data-dir .data ask "My box reports E-22. What do I press to start balancing the cells?"

test: lint
	$(BIN)/pytest

lint: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install-dev
	$(BIN)/python benchmarks/ingestion.py
	$(BIN)/python benchmarks/ingestion.py --unchanged 5000
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/retrieval.py --speed
	$(BIN)/python benchmarks/stores.py
	$(BIN)/python benchmarks/stores.py --copy
	$(BIN)/python benchmarks/documents.py
	$(BIN)/python benchmarks/service.py
	$(BIN)/python benchmarks/service_mixed.py
	$(BIN)/python benchmarks/ui.py

clean:
	rm -rf .venv .data build *.egg-info
