"""The paper's 151M model, 151,905,024 parameters: the longest of its runs, at a constant LR. Not run yet.

What goes with it is in configs/README.md: cosines, cooldowns, commands.
"""

name = "151m"
n_layer = 16
n_head = 12
n_embd = 768
lr = 5e-4
schedule = "constant"
total_steps = 50_000
