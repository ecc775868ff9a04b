# `make demo` and `make test` start from nothing but Python 3.10 or newer: they make .venv here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types format check profile gallery audit clean

$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@

demo: $(BIN)/.installed  ## set everything up and run the main job
	$(BIN)/avalanche-rwf compare

test: $(BIN)/.installed  ## set everything up and pass the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(BIN)/.installed
	$(BIN)/ruff check .

types: $(BIN)/.installed
	$(BIN)/mypy

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .

check: test lint types

profile: $(BIN)/.installed  ## speed as ratios to one frozen forward
	$(BIN)/python profiling/step_time.py

gallery: $(BIN)/.installed  ## the pictures in docs/images, from a fresh comparison
	$(BIN)/python examples/gallery.py

audit: $(BIN)/.installed  ## known weaknesses of what is installed; needs the internet
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install -q pip-audit
	$(VENV)-audit/bin/pip-audit --strict --skip-editable --path \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean:
	rm -rf $(VENV) $(VENV)-audit build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
