"""SOAP, its bases updated at every tenth step: learning rate and beta1.

    python tune.py configs/tune/soap.py --jobs=2

A peak of 8e-3 with a beta1 of 0.8 holds, at 1.744, in a corner of the grid: nothing lower was tried.
"""

name = "tune/soap"
base = "configs/small.py"
optimizer = "soap"
beta2 = 0.98
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=1.6e-2, beta1=0.9)
grid = dict(lr=[8e-3, 1.6e-2, 3.2e-2, 6.4e-2], beta1=[0.8, 0.9, 0.95])
seeds = [0, 1, 2]
tolerance = 0.005
