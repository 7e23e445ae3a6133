"""The base model of configs/mup.py, 32 channels: learning rate, and the factor of the logits.

    python tune.py configs/tune/mup.py --jobs=2

A peak of 1.6e-2 and a factor of 1 hold, at 1.922: what it would be without muP.
"""

name = "tune/mup"
base = "configs/small.py"
beta1 = 0.8
mup_base = 32
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=1.6e-2, alpha_out=1.0)
grid = dict(lr=[4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2], alpha_out=[0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
seeds = [0, 1, 2]
tolerance = 0.005
