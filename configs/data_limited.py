"""Few data and much compute: how many epochs, which weight decay, and what do ensembles add? (After Kim et al. 2025.)

Models of 32,000, 68,000 and 152,000 parameters on the first 32,768 and 65,536 bytes of the standard library, with a
linear cooldown. The standard recipe has a weight decay of 0.1 and takes the best of its epochs and peaks; that of the
largest model has three sizes of data more, for its law. The regularized recipe stands at its certificates (of
configs/tune/limited_*.py) and has five seeds, as members of an ensemble. So have members for ensembles alone: as in the
paper, twice the epochs and half the weight decay.

    make data_limited

Found, at 65,536 bytes and 152,000 parameters: standard 1.863 (its best peak is the smallest here), regularized 1.796,
ensemble of five 1.649; see results/README.md. The 471 runs took 112 minutes of training on one thread of a shared Xeon.
"""

base = "configs/small.py"
cooldown_shape = "linear"
warmup_steps = 20
eval_every = 0  # at the end only
_heads = {16: 1, 32: 1, 64: 2}
_peaks = {16: [8e-3, 1.6e-2, 3.2e-2, 6.4e-2], 32: [2e-3, 4e-3, 8e-3, 1.6e-2], 64: [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]}
_certificates = {  # (bytes, channels): (lr, weight decay, epochs)
    (32_768, 16): (1.6e-2, 0.8, 32),
    (32_768, 32): (1.6e-2, 0.8, 16),
    (32_768, 64): (8e-3, 3.2, 16),
    (65_536, 16): (1.6e-2, 0.4, 32),
    (65_536, 32): (8e-3, 0.8, 16),
    (65_536, 64): (8e-3, 3.2, 32),
}


def _runs(D, n, seed, epochs, **options):
    model = dict(dataset=f"stdlib-bytes@{D}", n_embd=n, n_head=_heads[n], seed=seed, data_seed=seed)
    return model | dict(total_steps=[D * e // 1024 for e in epochs]) | options


grids = []
for _D in (32_768, 65_536):
    for _n in _heads:
        for _seed in (0, 1, 2):
            grids += [
                _runs(_D, _n, _seed, (4, 8, 16), weight_decay=0.1, lr=_peaks[_n]),
                _runs(_D, _n, _seed, (32,), weight_decay=0.1, lr=8e-3),
            ]
for _D, _epochs in ((16_384, (4, 8, 16)), (131_072, (4, 8)), (262_144, (4, 8))):
    grids += [_runs(_D, 64, _seed, _epochs, weight_decay=0.1, lr=_peaks[64]) for _seed in (0, 1, 2)]
for (_D, _n), (_lr, _decay, _best) in _certificates.items():
    _around = [_best // 4, _best // 2, _best, 2 * _best]
    for _seed in range(5):
        grids += [
            _runs(_D, _n, _seed, _around if _seed < 3 else [_best], weight_decay=_decay, lr=_lr),
            _runs(_D, _n, _seed, [2 * _best], weight_decay=_decay / 2, lr=_lr),
        ]
