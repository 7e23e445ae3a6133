"""Does the best learning rate of a dense model serve a sparse one? (SuPar: Dey et al. 2024, arXiv 2405.15743.)

Models of 64 channels of which all, 1/2, 1/4 and 1/8 of the blocks' weights are not 0, each at six peaks, scaled for
the density and not; 250 steps of 512 tokens, three seeds.

    python study.py configs/supar.py --jobs=2

Scaled, the best peak is 4e-3 at all densities; not scaled, it is 4e-3, 8e-3, 1.6e-2 and 1.6e-2.
"""

base = "configs/small.py"
n_embd = 64
n_head = 2
beta1 = 0.8
seq_len = 64
total_steps = 250
warmup_steps = 25
cooldown_shape = "linear"
eval_every = 0  # at the end only
_peaks = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]
grids = [
    dict(seed=_seed, data_seed=_seed) | _density
    for _seed in (0, 1, 2)
    for _density in (dict(lr=_peaks), dict(lr=_peaks, density=[0.5, 0.25, 0.125], supar=[True, False]))
]
