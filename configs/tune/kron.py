"""PSGD Kron, and AdamW beside it: both learning rates, and the momentum.

    python tune.py configs/tune/kron.py --jobs=2

Peaks of 4e-3 and 1.6e-2 with a momentum of 0.8 hold, at 1.788. A momentum of 0.6 is as good.
"""

name = "tune/kron"
base = "configs/small.py"
optimizer = "kron"
beta1 = 0.8  # of AdamW: its best
total_steps = 400
eval_every = 0  # at the end only
cooldown_shape = "linear"
start = dict(lr=2e-3, lr_other=1.6e-2, momentum=0.9)
grid = dict(
    lr=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3], lr_other=[4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2], momentum=[0.6, 0.8, 0.9, 0.95]
)
seeds = [0, 1, 2]
tolerance = 0.005
