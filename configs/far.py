"""A trunk used ten times as far as its peak was tuned for, next to cosines of the full length.

    python prepare_data.py packages --tokenizer=bytes
    python study.py configs/far.py --jobs=2

It took 83 minutes of training on one thread each. The peak tuned for 600 steps costs 0.004 ± 0.006 at 6,000.

For the merges of results/far/merges.json the last part of each constant run of 4e-3 was trained again, from the study's
checkpoint at step 4,801 (in runs/far/shared) with --save_at=4860,4920,...,6000, and the last 5, 10 and 20 of these
merged: `python evaluate.py --merge CHECKPOINTS --weights=1-sqrt --tokens=131072 --json`, and --weights=linear.
"""

base = "configs/quiet.py"
eval_every = 250
eval_tokens = 131_072
window_horizon = 60
_far = 6000  # 81 tokens per parameter
grids = [
    dict(seed=_seed, data_seed=_seed) | _grid
    for _seed in (0, 1, 2)
    for _grid in (
        # one trunk per peak, and where it cools down: at 600 steps the best peak is 8e-3, see configs/lengths.py
        dict(lr=[4e-3, 8e-3], schedule="constant", total_steps=_far),
        dict(lr=[4e-3, 8e-3], schedule="wsd", cooldown_shape="1-sqrt", total_steps=[600, 1500, 3000, _far]),
        dict(lr=2e-3, schedule="wsd", cooldown_shape="1-sqrt", total_steps=_far),
        dict(lr=4e-3, schedule="wsd", cooldown_shape="1-sqrt", total_steps=_far, cooldown_frac=[0.05, 0.1, 0.4]),
        # a schedule that has to know its end
        dict(lr=[4e-3, 8e-3], schedule="cosine", final_lr_frac=0.0, total_steps=_far),
    )
]
