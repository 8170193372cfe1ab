# A fresh clone needs only `make demo` and `make test`; every target makes the environment first.
# .ci/run and .github/workflows/checks.yml call these same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow browser coverage mutants kill chaos fuzz guide lint wheel-check lock sync clean

demo: $(VENV)/installed
	$(BIN)/regionqa demo --out demo-images --overwrite

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
DEFAULT := -n auto --dist worksteal -m "not slow and not gpu and not browser"

# One process a core with one thread each: more threads would wait for each other. Tests run in a
# random order; to repeat one, add PYTEST_ADDOPTS=--randomly-seed=N.
test: $(VENV)/installed
	$(PYTEST) $(DEFAULT)

slow: $(VENV)/installed
	HYPOTHESIS_PROFILE=slow $(BIN)/python -m pytest -m "slow or gpu or hypothesis"

# The page of `regionqa serve` in Chromium, of the system or of `playwright install chromium`.
browser: $(VENV)/installed
	$(BIN)/python -c "import playwright" || $(BIN)/python -m pip install --quiet --editable '.[browser]'
	$(PYTEST) -m browser tests/commands/serve

coverage: $(VENV)/installed
	$(PYTEST) $(DEFAULT) --cov --cov-report=term:skip-covered --cov-fail-under=90

# Small faults planted in FILES, one at a time; prints those that the tests do not notice.
mutants: $(VENV)/installed
	$(BIN)/python -c "import cosmic_ray" || $(BIN)/python -m pip install --quiet --editable '.[mutants]'
	$(BIN)/python benchmarks/mutants.py $(FILES)

# Six commands killed at random moments, resumed, and compared with an undisturbed run.
KILLS ?= 200
kill: $(VENV)/installed
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m campaigns.kills --kills $(KILLS)

# Actors, nodes and drivers of `regionqa batch` killed on a local Ray; every answer is counted.
chaos: $(VENV)/installed
	$(BIN)/python -c "import ray" || $(BIN)/python -m pip install --quiet --editable '.[batch]'
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m campaigns.batch_kills --kills $(KILLS)

# Damaged images, box files, cards, requests, records, settings, chats and checkpoints; findings are
# kept in build/fuzz. Where atheris cannot be installed, inputs are damaged at random.
SECONDS ?= 300
fuzz: $(VENV)/installed
	$(BIN)/python -c "import atheris" || $(BIN)/python -m pip install --quiet --editable '.[fuzz]' || true
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m campaigns.fuzzing --seconds $(SECONDS)

# the tables of docs/guide/models.md, from the models' cards
guide: $(VENV)/installed
	$(BIN)/python docs/models_table.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# builds the wheel and uses it in a clean environment, from a folder outside the checkout
wheel-check: $(VENV)/installed
	.ci/wheel-check $(BIN)/python

# torch and torchvision are resolved in one command: their builds must match
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'regionqa needs Python 3.11 or newer; run make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# requirements-dev.lock: exact versions of an environment that the checks passed in
lock: $(VENV)/installed
	echo "# Versions that the checks last passed with (Linux x86_64, Python 3.11). Written by \`make lock\`, used by \`make sync\`." > requirements-dev.lock
	$(BIN)/python -m pip freeze --all --exclude-editable | grep -v '^pip=' | grep '==' >> requirements-dev.lock

sync:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements-dev.lock --editable '.[dev]'
	touch $(VENV)/installed

clean:
	rm -rf $(VENV) build dist *.egg-info demo-images
