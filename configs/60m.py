"""The paper's 60M model, 59,845,120 parameters: the longest of its runs, at a constant LR. Not run yet.

What goes with it is in configs/README.md: cosines, cooldowns, commands.
"""

name = "60m"
n_layer = 10
n_head = 8
n_embd = 512
lr = 1e-3
schedule = "constant"
total_steps = 17_500
