"""Lion: learning rate, weight decay and beta1.

    python tune.py configs/tune/lion.py --jobs=2

A peak of 4e-3 with a weight decay of 0.7 and a beta1 of 0.8 holds, at 1.925. A weight decay of 1.4 is as good, and
so is a beta1 of 0.7.
"""

name = "tune/lion"
base = "configs/small.py"
optimizer = "lion"
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=2e-3, weight_decay=0.7, beta1=0.9)
grid = dict(
    lr=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3], weight_decay=[0.1, 0.35, 0.7, 1.4, 2.8], beta1=[0.6, 0.7, 0.8, 0.9, 0.95]
)
seeds = [0, 1, 2]
tolerance = 0.005
