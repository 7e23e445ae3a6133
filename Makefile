# Each target sets up .venv by itself. PYTHON chooses the interpreter for it: Python 3.10 or newer.
PYTHON ?= python3
RUN = .venv/bin/python

.PHONY: demo test test-long lint format

demo: .venv/installed
	$(RUN) prepare_data.py stdlib --tokenizer=bytes
	$(RUN) train.py configs/tiny.py

test: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

test-long: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m long -s

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: .venv/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
