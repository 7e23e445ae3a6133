"""The paper's Figure 1 on a laptop: cosine at three lengths, and one run at a constant LR that cools down to each.

A model of 152,000 parameters on the bytes of Python's standard library, with three seeds. On average over them the
cooldowns end 0.08 to 0.10 below the cosines; configs/demo_seeds.py has ten seeds.

    python prepare_data.py stdlib --tokenizer=bytes
    python study.py configs/demo.py --jobs=2
"""

base = "configs/quiet.py"
dataset = "stdlib-bytes"
global_batch_size = 8  # 1,024 tokens per step
micro_batch_size = 8
lr = 4e-3
warmup_steps = 50
eval_every = 60
eval_tokens = 32_768
window_horizon = 60
ema_half_life = (20.0,)
dtype = "float32"
compile = False  # it needs a C++ compiler
_lengths = [300, 600, 900]
grids = [
    dict(seed=_seed, data_seed=_seed) | _grid
    for _seed in (0, 1, 2)
    for _grid in (
        dict(schedule="onecycle", total_steps=_lengths),
        dict(schedule="constant", total_steps=_lengths[-1]),
        dict(schedule="wsd", total_steps=_lengths),
    )
]
