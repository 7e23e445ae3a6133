"""67,744 parameters at 10, 20 and 40 tokens per parameter: one size of a ladder, which are the configs of this folder.

A cosine for every length; a constant learning rate, with averages over 60 steps, and cooldowns of 20% from it. Each at
several peaks, with three seeds, and in fp32, in which kinds of CPU agree: see "The demo" in results/README.md.

    python prepare_data.py packages --tokenizer=bytes
    python study.py configs/sizes/68k.py --jobs=2

It took 33 minutes of training on one thread each. The cooldown ends 0.04 to 0.08 below cosine. For the task:

    python typos.py data/packages-bytes --out=runs/tasks
    python evaluate.py runs/68k/[cow]*/ckpt/step_* --tasks=typos --tasks_dir=runs/tasks --tokens=262144 --json
"""

base = "configs/quiet.py"
n_layer = 2
n_embd = 32
n_head = 2
dtype = "float32"
window_horizon = 60
eval_every = 330
eval_tokens = 262_144
_lengths = [330, 660, 1320]
lr = [4e-3, 8e-3, 1.6e-2, 3.2e-2]
grids = [
    dict(seed=_seed, data_seed=_seed) | _grid
    for _seed in (0, 1, 2)
    for _grid in (
        dict(schedule="onecycle", total_steps=_lengths),
        dict(schedule="constant", total_steps=_lengths[-1]),
        dict(schedule="wsd", cooldown_shape="1-sqrt", total_steps=_lengths),
    )
]
