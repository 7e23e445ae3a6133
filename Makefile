# Each target sets up .venv by itself. PYTHON chooses the interpreter for it: Python 3.10 or newer.
PYTHON ?= python3
RUN = .venv/bin/python

.PHONY: demo test test-long lint format

# One run at a constant learning rate with cooldowns, against a cosine for every length (the paper's Figure 1)
demo: .venv/installed
	$(RUN) prepare_data.py stdlib --tokenizer=bytes
	$(RUN) study.py configs/demo.py --jobs=2
	$(RUN) plot.py curves runs/demo/constant*1980 runs/demo/onecycle* runs/demo/wsd*1-sqrt --from_step=120 --out=runs/demo/curves.png
	$(RUN) plot.py averages runs/demo --out=runs/demo/averages.png
	@echo "next: the figures above; runs/demo/results.csv; README.md for more studies and for runs of your own"
	$(RUN) plot.py cost runs/demo --out=runs/demo/cost.png

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

.venv/installed: requirements.txt tests/requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@
