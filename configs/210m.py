"""The paper's 210M model, 208,540,416 parameters: the longest of its runs, at a constant LR. Not run yet.

What goes with it is in configs/README.md: cosines, cooldowns, commands.
"""

name = "210m"
n_layer = 24
n_head = 12
n_embd = 768
lr = 5e-4
schedule = "constant"
total_steps = 62_500
