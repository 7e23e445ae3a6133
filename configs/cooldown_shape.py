"""Which shape should a cooldown have? (Figures 16 to 18.)

A model of 68,000 parameters at 20 tokens per parameter, of which the last 20% are the cooldown, with three seeds. At
full scale: configs/124m.py or configs/210m.py for 25,000 and 50,000 steps at peaks of 5e-4 and 1e-3.

    python study.py configs/cooldown_shape.py --jobs=2

It took 3.5 minutes of training on one thread. Linear ends at 1.588, 1-sqrt at 1.589, 1-square at 1.600.
"""

base = "configs/small.py"
schedule = "wsd"
cooldown_shape = ["linear", "1-sqrt", "cosine", "mirror-cosine", "1-square", "power:0.3"]
grids = [dict(seed=_seed, data_seed=_seed) for _seed in (0, 1, 2)]
