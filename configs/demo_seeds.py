"""The runs of configs/demo.py with ten seeds, in fp32 and in bf16: does it show what it says, whatever the seed?

    python prepare_data.py stdlib --tokenizer=bytes
    python study.py configs/demo_seeds.py --jobs=2

It does, with one thread, on a CPU with AVX-512 and, in fp32, on one that has AVX2 only: all cooldowns end 0.05 to 0.16
below their cosines. See "The demo" in results/README.md.
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
dtype = ["float32", "bfloat16"]
compile = False  # it needs a C++ compiler
_lengths = [300, 600, 900]
grids = [
    dict(seed=_seed, data_seed=_seed) | _grid
    for _seed in range(10)
    for _grid in (
        dict(schedule="onecycle", total_steps=_lengths),
        dict(schedule="constant", total_steps=_lengths[-1]),
        dict(schedule="wsd", total_steps=_lengths),
    )
]
