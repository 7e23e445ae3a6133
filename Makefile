# Each target sets up .venv by itself. PYTHON chooses the interpreter for it: Python 3.10 or newer.
PYTHON ?= python3
RUN = .venv/bin/python

.PHONY: demo data_limited figures results bench test test-long lint format

# One run at a constant learning rate with cooldowns, against a cosine for every length (the paper's Figure 1)
demo: .venv/installed
	$(RUN) prepare_data.py stdlib --tokenizer=bytes
	$(RUN) study.py configs/demo.py --jobs=2
	$(RUN) plot.py curves runs/demo --from_step=120 --out=runs/demo/curves.png
	@echo "next: the figures above; runs/demo/results.csv; README.md for more studies and for runs of your own"
	$(RUN) plot.py cost runs/demo --out=runs/demo/cost.png

# Recipes for limited data: certificates, runs, samples of five models and of one, students of these, and what all is worth
BEST = runs/data_limited/n-embd64_stdlib-bytes@65536_lr0.008_weight-decay3.2_total-steps2048_seed
data_limited: .venv/installed
	$(RUN) prepare_data.py stdlib --tokenizer=bytes
	for task in configs/tune/limited_*.py; do $(RUN) tune.py $$task --jobs=2 || exit 1; done
	$(RUN) study.py configs/data_limited.py --jobs=2
	$(RUN) sample.py $(BEST)[0-4]/ckpt/step_00002048.pt --tokens=3200K --out=data/samples-five
	$(RUN) sample.py $(BEST)0/ckpt/step_00002048.pt --tokens=3200K --out=data/samples-one
	$(RUN) study.py configs/distilled.py --jobs=2
	$(RUN) limited.py runs/data_limited runs/distilled

# Two curves of each seed, to which laws are fitted, and others, which they predict
SEEDS = _seed0 _seed1 _seed2
SEEN = $(foreach run,constant_lr0.004_total-steps6000 wsd_lr0.004_total-steps6000,\
	$(addprefix results/far/$(run),$(SEEDS)))
UNSEEN = $(foreach run,wsd_lr0.004_total-steps1500 wsd_lr0.004_total-steps3000 \
	wsd_lr0.004_total-steps6000_cooldown-frac0.4 cosine_lr0.004_total-steps6000_final-lr-frac0.0 \
	wsd_lr0.008_total-steps6000 cosine_lr0.008_total-steps6000_final-lr-frac0.0,\
	$(addprefix --test=results/far/$(run),$(SEEDS)))

# Every picture in results/, and what laws say, from the tables and logs beside it
figures: .venv/installed
	$(RUN) plot.py curves results/demo --from_step=120 --out=results/demo/curves.png
	$(RUN) plot.py lr results/lr_sensitivity --out=results/lr_sensitivity/lr.png
	$(RUN) plot.py cooldown_shape results/cooldown_shape --out=results/cooldown_shape/cooldown_shape.png
	$(RUN) plot.py cooldown_length results/cooldown_length --out=results/cooldown_length/cooldown_length.png
	$(RUN) plot.py cooldown_length results/lengths --only lr=0.008 cooldown_shape=1-sqrt \
		--out=results/lengths/cooldown_length.png
	$(RUN) -m laws annealing $(SEEN) $(UNSEEN) --draws=0 --json > results/far/annealing.json
	$(RUN) -m laws multi_power $(SEEN) $(UNSEEN) --draws=0 --json > results/far/multi_power.json
	$(RUN) plot.py mix results/cooldown_mix --out=results/cooldown_mix/mix.png
	$(RUN) plot.py lr results/ladder --only schedule=onecycle,wsd --out=results/ladder/lr.png
	$(RUN) plot.py averages results/ladder --out=results/ladder/averages.png
	$(RUN) plot.py envelope results/ladder --out=results/ladder/envelope.png
	$(RUN) plot.py diagonal results/ladder --out=results/ladder/diagonal.png
	$(RUN) plot.py cost results/ladder --out=results/ladder/cost.png
	$(RUN) -m laws chinchilla results/ladder/results.csv --N=n_params --D=tokens --loss=val_loss \
		--where=schedule=wsd --where=lr=0.008 --plot=results/ladder/chinchilla.png \
		--json > results/ladder/chinchilla.json
	$(RUN) -m laws holdout results/ladder/results.csv --where=schedule=wsd --best=lr \
		--plot=results/ladder/holdout.png --json > results/ladder/holdout.json
	$(RUN) -m laws holdout results/ladder/results.csv --where=schedule=wsd --best=lr --holdout=2 \
		--json > results/ladder/holdout_two.json
	$(RUN) -m laws holdout results/ladder/results.csv --where=schedule=wsd --best=lr --by=D \
		--json > results/ladder/holdout_lengths.json
	$(RUN) plot.py lr results/sizes/68k results/sizes/108k --only schedule=onecycle,wsd --out=results/sizes/lr.png
	$(RUN) plot.py downstream results/sizes/68k/typos/one_peak.json --out=results/sizes/68k/typos/downstream.png
	$(RUN) -m laws downstream results/sizes/68k/typos/ends.json --json > results/sizes/68k/typos/law.json
	$(RUN) plot.py certificate results/tune_small --out=results/tune_small/certificate.png
	$(RUN) plot.py methods results/optimizers --baseline=adamw --out=results/optimizers/methods.png
	$(RUN) -m laws speedup results/optimizers/results.csv --by=optimizer --baseline=adamw --D=tokens --loss=val_loss \
		--json > results/optimizers/speedup.json
	$(RUN) plot.py certificate results/optimizers/tune/adamw --out=results/optimizers/certificate.png
	$(RUN) plot.py methods results/schedule_free results/optimizers --out=results/schedule_free/methods.png \
		"--baseline=adamw, cooldown, linear" --only optimizer=adamw,schedule_free total_steps=660,1320,2640
	$(RUN) plot.py lr results/mup --out=results/mup/lr.png
	$(RUN) plot.py lr results/supar --out=results/supar/lr.png
	$(RUN) limited.py results/data_limited results/distilled

# Every picture and every table, and a look for every number of README.md and results/README.md: half a minute of one core
results: figures
	$(RUN) report.py

# How fast each part is, and next to what
bench: .venv/installed
	$(RUN) bench.py

test: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

test-long: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m long -s --timeout=0

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
