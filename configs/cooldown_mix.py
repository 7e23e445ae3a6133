"""What should a cooldown train on, if there is a little better text than the rest?

General text is the standard library's code, the target the docstrings of NumPy and SciPy. A model of 68,000 parameters
at 20 tokens per parameter, of which the last 20% are a linear cooldown: on the general text, on a mix with a quarter or
a half of target, or on the target alone. Beside them are runs with as much target as each of these, spread over their
whole length. All cooldowns of a seed share one trunk. Losses are on both texts, with three seeds.

    python prepare_data.py stdlib --tokenizer=bytes
    python prepare_data.py docstrings --tokenizer=bytes
    python study.py configs/cooldown_mix.py --jobs=2

It took 6.7 minutes of training on one thread, four on two. With as much target, a cooldown on a mix predicts it better
than a mix for the whole run, by 0.19 to 0.27, and general text worse, by 0.07 to 0.46: see results/README.md.
"""

base = "configs/small.py"
dataset = "stdlib-bytes"
val_dataset = "stdlib-bytes,docstrings-bytes"
cooldown_shape = "linear"
eval_every = 330
log_every = 20
_shares = {0.25: "stdlib-bytes:0.75,docstrings-bytes:0.25", 0.5: "stdlib-bytes:0.5,docstrings-bytes:0.5"}
_shares[1.0] = "docstrings-bytes"
grids = []
for _seed in (0, 1, 2):
    _seeds = dict(seed=_seed, data_seed=_seed)
    grids.append(_seeds | dict(name=f"general_seed{_seed}"))
    for _share, _mix in _shares.items():
        _spread = 0.2 * _share  # of the whole run's tokens: as many of the target
        _whole = f"stdlib-bytes:{1 - _spread:g},docstrings-bytes:{_spread:g}"
        grids.append(_seeds | dict(name=f"cooldown-{_share:g}_seed{_seed}", cooldown_dataset=_mix))
        grids.append(_seeds | dict(name=f"spread-{_spread:g}_seed{_seed}", dataset=_whole))
