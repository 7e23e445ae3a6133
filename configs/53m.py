"""The paper's 53M model, 53,027,328 parameters: the longest of its runs, at a constant LR. Not run yet.

What goes with it is in configs/README.md: cosines, cooldowns, commands.
"""

name = "53m"
n_layer = 8
n_head = 8
n_embd = 512
lr = 1e-3
schedule = "constant"
total_steps = 11_250
