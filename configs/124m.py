"""The paper's 124M model, 123,587,328 parameters: the longest of its runs, at a constant LR. Run for 60 steps at most.

What goes with it is in configs/README.md: cosines, cooldowns, commands.
"""

name = "124m"
n_layer = 12
n_head = 12
n_embd = 768
lr = 5e-4
schedule = "constant"
total_steps = 30_000
