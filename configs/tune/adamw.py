"""AdamW, the baseline, so with all that the others may choose: learning rate and both betas.

    python tune.py configs/tune/adamw.py --jobs=2

A peak of 1.6e-2 with betas of 0.8 and 0.95 holds, at 1.924. A beta1 of 0.9 or of 0.6 is worse by 0.10.
"""

name = "tune/adamw"
base = "configs/small.py"
optimizer = "adamw"
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=1.6e-2, beta1=0.9, beta2=0.95)
grid = dict(lr=[8e-3, 1.6e-2, 3.2e-2], beta1=[0.6, 0.8, 0.9, 0.95], beta2=[0.95, 0.98, 0.99])
seeds = [0, 1, 2]
tolerance = 0.005
