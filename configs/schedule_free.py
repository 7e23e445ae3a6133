"""Does Schedule-Free AdamW do without a schedule what cosine and cooldowns do with one? (Figure 11.)

A model of 68,000 parameters at 10, 20 and 40 tokens per parameter, with three seeds: one Schedule-Free run for all
lengths and a cosine for each, at the options of their certificates in results/optimizers/tune/. The cooldowns beside
them are AdamW's of configs/optimizers.py.

    python study.py configs/schedule_free.py --jobs=2

Schedule-Free ends at 1.779, 1.571 and 1.426, the cooldowns at 1.768, 1.548 and 1.431, the cosines at 1.815, 1.569 and
1.417.
"""

base = "configs/small.py"
eval_every = 330
total_steps = [660, 1320, 2640]
grids = [
    dict(seed=_seed, data_seed=_seed) | _method
    for _seed in (0, 1, 2)
    for _method in (
        dict(optimizer="adamw", schedule="onecycle", lr=1.6e-2, beta1=0.8, beta2=0.95),
        dict(optimizer="schedule_free", schedule="constant", lr=3.2e-2, beta1=0.9, beta2=0.8),
    )
]
