"""107,760 parameters at 10, 20 and 40 tokens per parameter: one size of a ladder, which are the configs of this folder.

A cosine for every length; a constant learning rate, with averages over 60 steps, and cooldowns of 20% from it. Each at
several peaks, with three seeds, and in fp32, in which kinds of CPU agree: see "The demo" in results/README.md.

    python prepare_data.py packages --tokenizer=bytes
    python study.py configs/sizes/108k.py --jobs=2

It took 57 minutes of training on one thread each. The cooldown ends 0.02 to 0.09 below cosine.
"""

base = "configs/quiet.py"
n_layer = 2
n_embd = 48
n_head = 3
dtype = "float32"
window_horizon = 60
eval_every = 525
eval_tokens = 262_144
_lengths = [525, 1050, 2100]
lr = [4e-3, 8e-3, 1.6e-2]
grids = [
    dict(seed=_seed, data_seed=_seed) | _grid
    for _seed in (0, 1, 2)
    for _grid in (
        dict(schedule="onecycle", total_steps=_lengths),
        dict(schedule="constant", total_steps=_lengths[-1]),
        dict(schedule="wsd", cooldown_shape="1-sqrt", total_steps=_lengths),
    )
]
