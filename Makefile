# `make demo` and `make test` start from nothing but Python 3.10 or newer: they make .venv here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Each of these is to have 95 % of its lines run by the tests that are about it.
COVERED := experiments benchmarks/datasets leaderboard

.PHONY: demo test coverage lint types format check docs index profile gpu gallery audit clean

$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@

demo: $(BIN)/.installed  ## set everything up and run the main job
	$(BIN)/avalanche-rwf compare

test: $(BIN)/.installed  ## set everything up and pass the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: $(BIN)/.installed  ## which lines of COVERED no test runs; fails below 95 % of any of the three
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report= \
		$(addprefix tests/,$(COVERED)) tests/faults tests/strategies/test_saving.py tests/cli \
		--ignore tests/faults/test_sigkill.py  # what is killed is not measured
	@status=0; for part in $(COVERED); do \
		$(BIN)/python -m coverage report --include="avalanche_rwf/$$part/*" --fail-under=95 || status=1; \
	done; exit $$status

lint: $(BIN)/.installed
	$(BIN)/ruff check .

types: $(BIN)/.installed
	$(BIN)/mypy

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .

check: test lint types

docs: $(BIN)/.installed  ## the documentation site, in build/site; fails on a broken link
	$(BIN)/python -m pip install -q -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

index: $(BIN)/.installed  ## what `list` knows without importing PyTorch; after a change of a method, head or backbone
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m avalanche_rwf.cli.index

profile: $(BIN)/.installed  ## speed as ratios to one frozen forward
	$(BIN)/python profiling/step_time.py

gpu: $(BIN)/.installed  ## what a GPU does here: gpu.json and gpu.md, below 8 minutes on one card
	$(BIN)/python profiling/gpu.py --out gpu

gallery: $(BIN)/.installed  ## the pictures in docs/images, from a fresh comparison
	$(BIN)/python examples/gallery.py

audit: $(BIN)/.installed  ## known weaknesses of what is installed; needs the internet
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install -q pip-audit
	$(VENV)-audit/bin/pip-audit --strict --skip-editable --path \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean:
	rm -rf $(VENV) $(VENV)-audit build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage*
