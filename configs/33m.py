"""The paper's 33M model, 33,479,040 parameters: the longest of its runs, at a constant LR. Not run yet.

What goes with it is in configs/README.md: cosines, cooldowns, commands.
"""

name = "33m"
n_layer = 8
n_head = 6
n_embd = 384
lr = 1e-3
schedule = "constant"
total_steps = 10_000
