"""Is a constant learning rate with a cooldown as good as a cosine, and as sensitive to its peak? (Figures 3 and 21.)

A model of 68,000 parameters at 20 tokens per parameter, with three seeds. At full scale: configs/124m.py for 25,000
steps at peaks of 2.5e-4, 5e-4, 1e-3, 2e-3 and 4e-3, with cooldowns of 20%.

    python study.py configs/lr_sensitivity.py --jobs=2

It took 29 minutes of training on one thread. The best peak is 1.6e-2 for all. There cosine ends at 1.598, linear
at 1.588 and 1-sqrt at 1.589.
"""

base = "configs/small.py"
lr = [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
grids = [
    dict(seed=_seed, data_seed=_seed) | _schedule
    for _seed in (0, 1, 2)
    for _schedule in (dict(schedule="onecycle"), dict(schedule="wsd", cooldown_shape=["linear", "1-sqrt"]))
]
