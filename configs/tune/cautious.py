"""Cautious AdamW: learning rate and beta1.

    python tune.py configs/tune/cautious.py --jobs=2

Not run yet.
"""

name = "tune/cautious"
base = "configs/small.py"
optimizer = "cautious"
beta2 = 0.98
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=1.6e-2, beta1=0.8)
grid = dict(lr=[8e-3, 1.6e-2, 3.2e-2], beta1=[0.8, 0.9, 0.95])
seeds = [0, 1, 2]
tolerance = 0.005
