"""Which learning rate and weight decay are best for a short run? A start, a grid, and rounds until a centre holds.

A model of 68,000 parameters at 10 tokens per parameter, with a linear cooldown and three seeds.

    python tune.py configs/tune_small.py --jobs=2
"""

base = "configs/small.py"
total_steps = 660
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=8e-3, weight_decay=0.1)
grid = dict(lr=[4e-3, 8e-3, 1.6e-2, 3.2e-2], weight_decay=[0.0, 0.1, 0.4, 1.6])
seeds = [0, 1, 2]
