"""How many epochs of 65,536 bytes, at which peak and weight decay, for a model of 64 channels?

    python tune.py configs/tune/limited_64k_64.py --jobs=2

32 epochs at a peak of 0.008 with a weight decay of 3.2 hold, at 1.791. The nearest neighbour, a peak of 0.004,
is behind by 0.008 ± 0.019.
"""

name = "tune/limited_64k_64"
base = "configs/small.py"
dataset = "stdlib-bytes@65536"  # 64 steps an epoch
n_embd = 64
n_head = 2
cooldown_shape = "linear"
warmup_steps = 20
eval_every = 0  # at the end only
start = dict(lr=8e-3, weight_decay=1.6, total_steps=1024)
grid = dict(
    lr=[2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2],
    weight_decay=[0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4],
    total_steps=[256, 512, 1024, 2048, 4096],  # 4 to 64 epochs
)
seeds = [0, 1, 2]
tolerance = 0.005
