"""Cooldowns, cosines and linear decay at 4, 8 and 32 tokens per parameter; shapes, shares and cycles of the cooldown.

    python prepare_data.py packages --tokenizer=bytes
    python study.py configs/lengths.py --jobs=2

It took 61 minutes of training on one thread each of a busy Xeon with bf16. At 2,400 steps and its best peak a cooldown
ends at 1.465, linear decay at 1.470, cosine to zero at 1.480: see "Schedules over lengths" in results/README.md.
"""

base = "configs/quiet.py"
eval_tokens = 500_000
window_horizon = 60
_lengths = [300, 600, 2400]  # 4, 8 and 32 tokens per parameter
_all = [
    dict(schedule="wsd", cooldown_shape="1-sqrt"),
    dict(schedule="linear"),
    dict(schedule="cosine", final_lr_frac=[0.0, 0.1]),
]
_trunk = dict(lr=8e-3, schedule="wsd", cooldown_shape="1-sqrt")
grids = [
    dict(seed=_seed, data_seed=_seed) | _grid
    for _seed in (0, 1, 2)
    for _grid in (
        *(dict(lr=[4e-3, 8e-3], total_steps=_lengths) | _one for _one in _all),
        *(dict(lr=1.6e-2, total_steps=_lengths[:2]) | _one for _one in _all),
        dict(lr=2e-3, total_steps=_lengths[2]) | _all[0],
        # shapes and lengths of the cooldown
        _trunk | dict(total_steps=_lengths[1:], cooldown_shape=["linear", "power:0.7", "power:0.3"]),
        _trunk | dict(total_steps=_lengths, cooldown_frac=[0.05, 0.1, 0.4, 0.6]),
        # cycles that go on from the decayed weights, and what a trunk and three cooldowns make of as many updates
        dict(lr=8e-3, schedule="wsd_s", total_steps=2400, cycle_ends=(600, 1200), cooldown_frac=0.2)
        | dict(cooldown_shape="linear", final_lr_frac=0.0, eval_every=600),
        dict(lr=8e-3, schedule="wsd", total_steps=[522, 1044, 2088], cooldown_shape="linear"),
    )
]
