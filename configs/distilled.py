"""Does a model learn from samples of five what the five know together? And from samples of one like itself?

Students of 68,000 and 152,000 parameters on the 65,536 bytes that their teachers had, 16 times, and three times as many
sampled ones, each once. The teachers are the members of the regularized ensemble of configs/data_limited.py.

    make data_limited

Found, at a weight decay of 0.1: of five 1.707 and 1.678, of one 1.745 and 1.715; 0.8 is worse by 0.036 to 0.077. The 24
runs took 40 minutes of training, on one thread of a shared Xeon.
"""

base = "configs/small.py"
cooldown_shape = "linear"
warmup_steps = 20
eval_every = 0  # at the end only
lr = 8e-3
total_steps = 4096  # 16 epochs of the real text
_heads = {32: 1, 64: 2}
grids = [
    dict(
        name=f"{_teacher}_n-embd{_n}_weight-decay{_decay}_seed{_seed}",
        dataset=f"stdlib-bytes@65536:0.25,samples-{_teacher}:0.75",
        n_embd=_n,
        n_head=_heads[_n],
        weight_decay=_decay,
        seed=_seed,
        data_seed=_seed,
    )
    for _teacher in ("five", "one")
    for _n in _heads
    for _decay in (0.1, 0.8)
    for _seed in (0, 1, 2)
]
