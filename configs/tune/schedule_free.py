"""Schedule-Free AdamW: learning rate and betas.

    python tune.py configs/tune/schedule_free.py --jobs=2

A peak of 3.2e-2 with betas of 0.9 and 0.8 holds, at 1.924.
"""

name = "tune/schedule_free"
base = "configs/small.py"
optimizer = "schedule_free"
total_steps = 400
eval_every = 0  # at the end only
schedule = "constant"
start = dict(lr=3.2e-2, beta1=0.95, beta2=0.95)
grid = dict(
    lr=[8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128], beta1=[0.8, 0.9, 0.95, 0.98], beta2=[0.6, 0.8, 0.9, 0.95, 0.98, 0.99]
)
seeds = [0, 1, 2]
tolerance = 0.005
