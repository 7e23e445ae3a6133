"""SOAP, its bases updated at every tenth step: learning rate and betas.

    python tune.py configs/tune/soap.py --jobs=2

A peak of 8e-3 with betas of 0.7 and 0.98 holds, at 1.741. A beta1 of 0.8 is worse by 0.008 ± 0.019 only.
"""

name = "tune/soap"
base = "configs/small.py"
optimizer = "soap"
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=8e-3, beta1=0.8, beta2=0.98)
grid = dict(lr=[2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2], beta1=[0.6, 0.7, 0.8, 0.9, 0.95], beta2=[0.9, 0.95, 0.98, 0.99])
seeds = [0, 1, 2]
tolerance = 0.005
