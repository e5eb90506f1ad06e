# make demo   extend the small model of examples/ from 512 to 8,192 tokens on this machine
# make test   the tests that need no GPU and no patience
# make check  lint, format, types, floors, rules of the repository
# make clean  remove what these three made, runs included

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check clean

demo: $(INSTALLED)
	$(BIN)/longspan run examples/laptop.toml
	@echo
	@echo "Report:  runs/laptop/report.html"
	@echo "Summary: runs/laptop/summary.json"

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not gpu"

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_repository.py

clean:
	rm -rf .venv runs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Installing is done once for each state of pyproject.toml. Without an NVIDIA GPU the release whose CPU build is known to
# be small comes first; with one, the newest that fits.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "longspan needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments; install its venv module (Debian, Ubuntu: apt-get install python3-venv)"; \
	  exit 1; }
	@echo "Installing into .venv: once, a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@command -v nvidia-smi >/dev/null || $(BIN)/python -m pip install --quiet "torch==2.13.0" \
	  || echo "torch 2.13.0 is not to be had here; taking the newest that fits"
	$(BIN)/python -m pip install --quiet "torch>=2.11"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@
