"""Which optimizer needs the fewest tokens, and the least time? (After Wen et al. 2025, arXiv 2509.02046.)

A model of 68,000 parameters at 10, 20 and 40 tokens per parameter, with a linear cooldown of 20% and three seeds. Each
optimizer has the options that its certificate names: configs/tune/ has the grids, results/optimizers/tune/ what came
out. AdamW has two lengths more, as the others are measured on its law.

    python study.py configs/optimizers.py --jobs=2
    python -m laws speedup results/optimizers/results.csv --by=optimizer --baseline=adamw --D=tokens --loss=val_loss

It is written so that an optimizer can be added later: each run has its name here, and keeps it.
"""

base = "configs/small.py"
cooldown_shape = "linear"
eval_every = 330
_steps = [660, 1320, 2640]
_tuned = dict(
    adamw=dict(lr=1.6e-2, beta1=0.8, total_steps=[330, *_steps[:2], 1980, _steps[2]]),
    muon=dict(lr=2e-2, lr_other=3.2e-2, beta1=0.8),
    soap=dict(lr=8e-3, beta1=0.8, beta2=0.98),
)
grids = [
    dict(optimizer=_optimizer, seed=_seed, data_seed=_seed, name=f"{_optimizer}_{_n}_seed{_seed}") | _options | dict(total_steps=_n)
    for _optimizer, _options in _tuned.items()
    for _seed in (0, 1, 2)
    for _n in _options.get("total_steps", _steps)
]
