"""The paper's 93M model, 93,159,040 parameters: the longest of its runs, at a constant LR. Not run yet.

What goes with it is in configs/README.md: cosines, cooldowns, commands.
"""

name = "93m"
n_layer = 12
n_head = 10
n_embd = 640
lr = 1e-3
schedule = "constant"
total_steps = 25_000
