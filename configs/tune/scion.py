"""Scion: both learning rates, and the momentum.

    python tune.py configs/tune/scion.py --jobs=2

Peaks of 2e-2 and 2e-3 with a momentum of 0.8 hold, at 1.798.
"""

name = "tune/scion"
base = "configs/small.py"
optimizer = "scion"
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=2e-2, lr_other=2e-3, momentum=0.9)
grid = dict(lr=[5e-3, 1e-2, 2e-2, 4e-2, 8e-2], lr_other=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3], momentum=[0.6, 0.8, 0.9, 0.95])
seeds = [0, 1, 2]
tolerance = 0.005
