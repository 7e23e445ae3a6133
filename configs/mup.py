"""Does the best learning rate of a narrow model serve a wider one? (muP: Yang et al. 2022, arXiv 2203.03466.)

Models of 32 to 128 channels in heads of 32, with the standard parametrization at six peaks and with muP from 32
channels; 250 steps of 512 tokens, three seeds. The factor of the logits is 1: results/mup/tune has its
certificate, at 400 steps of 1,024 tokens.

    python study.py configs/mup.py --jobs=2

With muP the best peak is 8e-3 at all widths; without, it falls from 8e-3 to 2e-3, where the widest model ends at 1.911,
and at 2.096 with muP.
"""

base = "configs/small.py"
beta1 = 0.8
seq_len = 64
total_steps = 250
warmup_steps = 25
cooldown_shape = "linear"
eval_every = 0  # at the end only
_sizes = [dict(n_embd=_width, n_head=_width // 32) for _width in (32, 64, 96, 128)]
_peaks = [4e-3, 8e-3, 1.6e-2, 3.2e-2]
grids = [
    dict(seed=_seed, data_seed=_seed) | _size | _options
    for _size in _sizes
    for _seed in (0, 1, 2)
    for _options in (dict(lr=[1e-3, 2e-3, *_peaks]), dict(lr=_peaks, mup_base=32))
]
