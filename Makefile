# Thin over Python entry points: each target makes the environment if it is missing or out of
# date, then calls one command. `make help` lists what there is.

PYTHON ?= python3
VENV   ?= .venv
PRESET ?= nano
RUN    ?= runs/$(PRESET)

BIN   := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: run test lint paper publish lab clean help

run: $(READY)  ## the whole workbook, then the draft of the paper, in RUN (runs/nano)
	@$(BIN)/strata workbook --preset $(PRESET) --output $(RUN)
	@$(BIN)/strata paper $(RUN) --draft

test: lint  ## lint, then the unit tests and every notebook, in one pytest session
	@$(BIN)/pytest --nbval --nbval-current-env --nbval-cell-timeout 1200 \
		--nbval-sanitize-with tests/nbval.cfg tests $(wildcard notebooks)

lint: $(READY)  ## ruff and mypy, changing nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

paper: $(READY)  ## the paper's PDF, from the results that are stored in the repository
	@$(BIN)/strata paper

publish: $(READY)  ## publish RUN into figures/ and paper/, and build the PDF
	@$(BIN)/strata paper $(RUN)

lab: $(READY)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks

clean:  ## caches and build leftovers; runs/ and the environment stay
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find strata tests tools notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	@find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} + 2>/dev/null || true
	@rm -f $(addprefix paper/*.,aux blg fdb_latexmk fls log out)

help:  ## this list
	@echo "make TARGET [PYTHON=python3.12] [PRESET=nano] [RUN=runs/nano]"
	@sed -n 's/^\([a-z]*\):.*## /  \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-8s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt tools/make_environment.py
	@command -v $(PYTHON) >/dev/null || { \
		echo "make: $(PYTHON) is not installed. On Debian or Ubuntu:" >&2; \
		echo "  sudo apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) tools/make_environment.py $(VENV)
	@touch $(READY)
