"""Schedule-Free AdamW at a constant learning rate: its peak and the weight of the average, beta1.

    python tune.py configs/tune/schedule_free.py --jobs=2

A peak of 3.2e-2 with a beta1 of 0.95 holds, at 1.999.
"""

name = "tune/schedule_free"
base = "configs/small.py"
optimizer = "schedule_free"
total_steps = 400
eval_every = 0  # at the end only
schedule = "constant"
start = dict(lr=3.2e-2, beta1=0.9)
grid = dict(lr=[8e-3, 1.6e-2, 3.2e-2, 6.4e-2], beta1=[0.9, 0.95, 0.98])
seeds = [0, 1, 2]
tolerance = 0.005
