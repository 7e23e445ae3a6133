"""Few data and much compute: how many epochs, which weight decay, and what do ensembles add? (After Kim et al. 2025.)

Models of 32,000, 68,000 and 152,000 parameters on the first 32,768 and 65,536 bytes of the standard library, with a
linear cooldown. The standard recipe has a weight decay of 0.1 and takes the best of its epochs and peaks; that of the
largest model has four sizes of data more, for its law. The regularized recipe is at its certificates (configs/tune/
limited_*.py), with two epochs more or less, and five seeds as members of ensembles.

    make data_limited
"""

base = "configs/small.py"
cooldown_shape = "linear"
warmup_steps = 20
eval_every = 0  # at the end only
_STEP = 1024  # tokens
_heads = {16: 1, 32: 1, 64: 2}


def _runs(D, n, seed, epochs, **options):
    model = dict(dataset=f"stdlib-bytes@{D}", n_embd=n, n_head=_heads[n], seed=seed, data_seed=seed)
    return model | dict(total_steps=[D * e // _STEP for e in epochs]) | options


grids = [
    _runs(_D, _n, _seed, (4, 8, 16), weight_decay=0.1, lr=[4e-3, 8e-3, 1.6e-2])
    for _D in (32_768, 65_536)
    for _n in _heads
    for _seed in (0, 1, 2)
]
grids += [
    _runs(_D, _n, _seed, (32,), weight_decay=0.1, lr=8e-3)
    for _D in (32_768, 65_536)
    for _n in _heads
    for _seed in (0, 1, 2)
]
grids += [
    _runs(_D, 64, _seed, _epochs, weight_decay=0.1, lr=[4e-3, 8e-3])
    for _D, _epochs in ((16_384, (4, 8, 16)), (131_072, (4, 8)), (262_144, (2, 4, 8)))
    for _seed in (0, 1, 2)
]
