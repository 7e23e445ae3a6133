"""Muon: learning rates of the matrices and of the rest, which AdamW updates.

    python tune.py configs/tune/muon.py --jobs=2

Peaks of 2e-2 and 3.2e-2 hold, at 1.803; 1.6e-2 for the rest is worse by 0.006 ± 0.006 only.
"""

name = "tune/muon"
base = "configs/small.py"
optimizer = "muon"
beta1 = 0.8  # of AdamW: its best, and that of Wen et al.
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=2e-2, lr_other=1.6e-2)
grid = dict(lr=[1e-2, 2e-2, 4e-2, 8e-2], lr_other=[8e-3, 1.6e-2, 3.2e-2])
seeds = [0, 1, 2]
tolerance = 0.005
