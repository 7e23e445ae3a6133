"""PSGD Kron: learning rate and weight decay.

python tune.py configs/tune/kron.py --jobs=2
"""

name = "tune/kron"
base = "configs/small.py"
optimizer = "kron"
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=4e-3, weight_decay=0.5)
grid = dict(lr=[2e-3, 4e-3, 8e-3, 1.6e-2], weight_decay=[0.1, 0.5])
seeds = [0, 1, 2]
tolerance = 0.005
