"""How long should a cooldown be? (Figures 5, 19 and 20.)

A model of 68,000 parameters at 10 and 30 tokens per parameter, with three seeds, and a cosine beside it at its own best
peak. At full scale: configs/124m.py for 15,000, 25,000 and 35,000 steps at a peak of 1e-3, with linear cooldowns of 10
to 90%.

    python study.py configs/cooldown_length.py --jobs=2

It took 13 minutes of training on one thread. The best share is 20% of 660 steps (1.844) and 40% of 1,980 (1.478).
"""

base = "configs/small.py"
total_steps = [660, 1980]
grids = [
    dict(seed=_seed, data_seed=_seed) | _schedule
    for _seed in (0, 1, 2)
    for _schedule in (dict(schedule="wsd", cooldown_frac=[0.05, 0.1, 0.2, 0.4, 0.6, 0.8]), dict(schedule="onecycle"))
]
