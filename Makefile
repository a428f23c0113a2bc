# The whole workbook in a few words; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOG := $(VENV)/setup.log
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off

.DEFAULT_GOAL := help
.PHONY: help setup report test lab clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY) ## create .venv and install the pinned packages (the others do this on first use)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; got $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): installing pinned packages (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@{ $(PIP) -r requirements.lock && $(PIP) --no-deps -e .; } >$(LOG) 2>&1 || \
		{ code=$$?; tail -n 12 $(LOG); echo "Set-up failed; all that pip said is in $(LOG), its last lines are above."; \
		exit $$code; } >&2
	@touch $(READY)
	@echo "Set-up done."

report: $(READY) ## run params/quick.yaml and print the path of the report
	@$(BIN)/muse run params/quick.yaml

test: $(READY) ## lint, then run every test
	@$(BIN)/ruff check .
	@$(BIN)/python -m pytest

lab: $(READY) ## open JupyterLab on notebooks/
	@$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

clean: ## remove caches and generated reports, keep .venv and checkpoints
	@rm -rf reports/quick reports/quick.previous .pytest_cache .ruff_cache build *.egg-info
