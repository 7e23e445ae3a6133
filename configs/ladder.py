"""Does the comparison hold over model sizes and lengths? (Figures 12, 13 and 23.)

Four models of 18,000 to 200,000 parameters, each at about 10, 20 and 30 tokens per parameter, and at several peaks: a
cosine for every length; a constant learning rate, with averages over windows, and cooldowns of 20% from it. Three
seeds. At full scale this is configs/paper.py.

    python study.py configs/ladder.py --jobs=2

It took 4.1 hours of training on one thread. At their best peaks 200,000 parameters end at 1.177 with cosine, and at
1.170 with a cooldown.
"""

base = "configs/small.py"
_peaks = [4e-3, 8e-3, 1.6e-2, 3.2e-2]
_sizes = [
    dict(n_layer=1, n_embd=16, n_head=1, lr=_peaks)
    | dict(total_steps=[180, 360, 540], warmup_steps=20, window_horizon=20, eval_every=45),
    dict(n_layer=1, n_embd=32, n_head=1, lr=_peaks)
    | dict(total_steps=[380, 760, 1140], warmup_steps=40, window_horizon=40, eval_every=95),
    dict(n_layer=2, n_embd=40, n_head=1, lr=_peaks)
    | dict(total_steps=[850, 1700, 2550], warmup_steps=80, window_horizon=85, eval_every=200),
    dict(n_layer=2, n_embd=80, n_head=2, lr=_peaks[:-1])
    | dict(total_steps=[1950, 3900, 5850], warmup_steps=160, window_horizon=195, eval_every=450),
]
_schedules = [dict(schedule="onecycle"), dict(schedule="constant"), dict(schedule="wsd", cooldown_shape="1-sqrt")]
grids = [
    dict(seed=_seed, data_seed=_seed) | _size | _schedule
    for _seed in (0, 1, 2)
    for _size in _sizes
    for _schedule in _schedules
]
