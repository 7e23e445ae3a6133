"""Lion: learning rate and weight decay.

    python tune.py configs/tune/lion.py --jobs=2

A peak of 2e-3 with a weight decay of 1.4 holds, at 2.035, at the edge: no larger one was tried.
"""

name = "tune/lion"
base = "configs/small.py"
optimizer = "lion"
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=2e-3, weight_decay=0.7)
grid = dict(lr=[1e-3, 2e-3, 4e-3, 8e-3], weight_decay=[0.1, 0.35, 0.7, 1.4])
seeds = [0, 1, 2]
tolerance = 0.005
