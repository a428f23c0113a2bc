# The whole workbook in a few words; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INTERPRETER := $(VENV)/.interpreter
ENGINE := $(VENV)/.engine
LOG := $(VENV)/setup.log
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off
EXPLAINED = { code=$$?; exec >&2; tail -n 12 $(LOG); \
	echo "Set-up failed; all that pip said is in $(LOG), its last lines are above."; exit $$code; }

.DEFAULT_GOAL := help
.PHONY: help setup report test matrix kernels browser lab lab-test scale-test clean docs

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY) ## create .venv and install the pinned packages (the others do this on first use)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; got $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): installing pinned packages (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@{ $(PIP) -r requirements.lock && $(PIP) --no-deps -e .; } >$(LOG) 2>&1 || $(EXPLAINED)
	@touch $(READY)
	@echo "Set-up done."

report: $(READY) ## run params/quick.yaml and print the path of the report
	@$(BIN)/muse run params/quick.yaml

# Processes of one thread each, one for a core, end sooner than one with all cores. `make test` has one more: many of its
# tests wait for processes of their own (two cores: 329 s with three workers, 366 with two).
WORKERS ?= 2

test: $(READY) ## lint, then run every test
	@$(BIN)/ruff check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($(WORKERS) + 1)) --dist loadfile --no-loadscope-reorder

kernels: $(INTERPRETER) ## test the CUDA kernels without a GPU: interpreted by Triton, and compiled for two cards (three minutes)
	@TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m kernels -n $(WORKERS) $(SLICE)

# The pin of the extra alone, so that pip leaves torch as it is.
$(INTERPRETER): $(READY)
	@$(PIP) --no-deps "$$(sed -n 's/^kernels = \["\(.*\)"\].*/\1/p' pyproject.toml)" >$(LOG) 2>&1 || $(EXPLAINED)
	@touch $(INTERPRETER)

# No look for updates, no news, no list of extensions: the server connects to nobody, and asks nobody whether it may.
OFFLINE := --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.news_url=None \
	--LabApp.extension_manager=readonly --LabApp.app_settings_dir="$(CURDIR)/.lab"

# Threads that wait for one another sleep: spinning, they took half of a busy machine from those they waited for.
PATIENT := OMP_WAIT_POLICY=PASSIVE

browser: $(READY) ## test the check of pages in a browser, fault by fault (two minutes)
	@$(BIN)/python -m pytest -m browser

# What JupyterLab saves by itself goes to copies, which git ignores and nothing overwrites.
lab: $(READY) ## open JupyterLab on your copies of the notebooks, in notebooks/mine/
	@mkdir -p notebooks/mine
	@for made in notebooks/*.ipynb; do mine="notebooks/mine/$${made##*/}"; \
		if [ ! -e "$$mine" ]; then cp "$$made" "$$mine"; \
		elif [ "$$made" -nt "$$mine" ]; then echo "$$mine is older than $$made: remove it to get the new one"; fi; done
	@$(PATIENT) $(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks/mine $(OFFLINE)

matrix: ## try every supported Python that is found, each in .matrix/ (gigabytes; less with MATRIX=--without-torch)
	@$(PYTHON) tests/matrix.py $(MATRIX)

lab-test: $(READY) ## test every notebook in JupyterLab, mistakes included (some minutes)
	@$(BIN)/python -m pytest -m lab

scale-test: $(ENGINE) ## test sweeps on Parsl with kills, and on a SLURM where it starts (some minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m scale -n $(WORKERS) --dist worksteal

# With what the lock pins, so that pip leaves it as it is.
$(ENGINE): $(READY)
	@$(PIP) -c requirements.lock "$$(sed -n 's/^cluster = \["\(.*\)"\].*/\1/p' pyproject.toml)" >$(LOG) 2>&1 || $(EXPLAINED)
	@touch $(ENGINE)

docs: $(READY) ## write docs/ and the README's table from the committed records
	@$(BIN)/python -m muse.report.docs

clean: ## remove caches and generated reports, keep .venv and checkpoints
	@rm -rf reports/quick reports/quick.previous reports/quick.unfinished .pytest_cache .ruff_cache build *.egg-info
