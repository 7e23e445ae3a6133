"""MARS-AdamW with a gamma of 0.025: learning rate and betas.

    python tune.py configs/tune/mars.py --jobs=2

A peak of 1.6e-2 with betas of 0.8 and 0.95 holds, at 1.935. A beta2 of 0.9 is as good.
"""

name = "tune/mars"
base = "configs/small.py"
optimizer = "mars"
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=1.6e-2, beta1=0.8, beta2=0.95)
grid = dict(lr=[4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2], beta1=[0.6, 0.7, 0.8, 0.9, 0.95], beta2=[0.9, 0.95, 0.98, 0.99])
seeds = [0, 1, 2]
tolerance = 0.005
