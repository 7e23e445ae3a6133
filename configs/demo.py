"""The paper's Figure 1 on a laptop: cosine at three lengths, and one run at a constant LR that cools down to each.

A model of 68,000 parameters on the bytes of Python's standard library, at 10, 20 and 30 tokens per parameter.

    python prepare_data.py stdlib --tokenizer=bytes
    python study.py configs/demo.py --jobs=2

On two cores it took 1.4 minutes. It is one seed: on the CPU of the pictures the longest runs ended at 1.522 with cosine
and at 1.501 with a 1-sqrt cooldown, on another CPU at 1.483 and at 1.492.
"""

base = "configs/small.py"
total_steps = [660, 1320, 1980]
eval_every = 60
window_horizon = 60
ema_half_life = (30.0,)
grids = [
    dict(schedule="onecycle"),
    dict(schedule="constant"),
    dict(schedule="wsd", cooldown_shape=["linear", "1-sqrt"]),
]
