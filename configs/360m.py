"""The paper's 360M model, 359,842,816 parameters: the longest of its runs, at a constant LR. Not run yet.

What goes with it is in configs/README.md: cosines, cooldowns, commands.
"""

name = "360m"
n_layer = 24
n_head = 16
n_embd = 1024
lr = 5e-4
schedule = "constant"
total_steps = 50_000
global_batch_size = 400
