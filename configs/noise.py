"""How far do paired differences scatter from seed to seed, by learning rate, beta2 and number of heads?

A cosine and a linear cooldown at 20 tokens per parameter, four seeds each, in five settings.

    python study.py configs/noise.py --jobs=2

It took 33 minutes of training on one thread each of a busy Xeon. See results/README.md.
"""

base = "configs/quiet.py"
dtype = "bfloat16"
_cells = [
    dict(n_head=1, lr=4e-3, beta2=0.95),
    dict(n_head=4, lr=4e-3, beta2=0.95),
    dict(n_head=4, lr=4e-3, beta2=0.99),
    dict(n_head=4, lr=8e-3, beta2=0.99),
    dict(n_head=2, lr=8e-3, beta2=0.99),
]
_pair = [dict(schedule="onecycle"), dict(schedule="wsd", cooldown_shape="linear")]
grids = [dict(seed=_seed, data_seed=_seed) | _cell | _one for _cell in _cells for _seed in range(4) for _one in _pair]
