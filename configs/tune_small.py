"""Which learning rate and weight decay are best for a short run? A start, a grid, and rounds until a centre holds.

A model of 68,000 parameters at 10 tokens per parameter, with a linear cooldown and three seeds.

    python tune.py configs/tune_small.py --jobs=2

On two cores that other programs shared, its 24 runs took 5.7 minutes. A peak of 1.6e-2 with a weight decay of 0.1
holds, at 1.841. No weight decay is behind by 0.004 ± 0.044 only, which three seeds do not tell apart.
"""

base = "configs/small.py"
total_steps = 660
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=8e-3, weight_decay=0.1)
grid = dict(lr=[4e-3, 8e-3, 1.6e-2, 3.2e-2], weight_decay=[0.0, 0.1, 0.4, 1.6])
seeds = [0, 1, 2]
