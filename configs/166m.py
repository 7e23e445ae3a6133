"""The paper's 166M model, 166,205,312 parameters: the longest of its runs, at a constant LR. Not run yet.

What goes with it is in configs/README.md: cosines, cooldowns, commands.
"""

name = "166m"
n_layer = 12
n_head = 14
n_embd = 896
lr = 5e-4
schedule = "constant"
total_steps = 30_000
