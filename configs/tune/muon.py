"""Muon, and AdamW beside it: both learning rates, and the momentum.

    python tune.py configs/tune/muon.py --jobs=2

Peaks of 2e-2 and 1.6e-2 with a momentum of 0.9 hold, at 1.771.
"""

name = "tune/muon"
base = "configs/small.py"
optimizer = "muon"
beta1 = 0.8  # of AdamW: its best, and that of Wen et al.
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=2e-2, lr_other=1.6e-2, momentum=0.95)
grid = dict(
    lr=[5e-3, 1e-2, 2e-2, 4e-2, 8e-2], lr_other=[4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2], momentum=[0.8, 0.9, 0.95, 0.98]
)
seeds = [0, 1, 2]
tolerance = 0.005
