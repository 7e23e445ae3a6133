"""Scion: learning rates of the matrices and of the rest, which signs update.

python tune.py configs/tune/scion.py --jobs=2
"""

name = "tune/scion"
base = "configs/small.py"
optimizer = "scion"
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=4e-2, lr_other=4e-3)
grid = dict(lr=[1e-2, 2e-2, 4e-2, 8e-2], lr_other=[2e-3, 4e-3, 8e-3])
seeds = [0, 1, 2]
tolerance = 0.005
