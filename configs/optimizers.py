"""Which optimizer needs the fewest tokens, and the least time? (After Wen et al. 2025, arXiv 2509.02046.)

A model of 68,000 parameters at 10, 20 and 40 tokens per parameter, with a linear cooldown of 20% and three seeds. Each
optimizer has the options of its certificate: configs/tune/ has the grids, results/optimizers/tune/ what came out. AdamW
has two lengths more, as the others are measured on its law.

    python study.py configs/optimizers.py --jobs=2
    python -m laws speedup results/optimizers/results.csv --by=optimizer --baseline=adamw --D=tokens --loss=val_loss

Its 87 runs took 20 minutes of training on one thread each. At 1,320 steps AdamW ends at 1.548, Muon at 1.534, SOAP at
1.463 and Kron at 1.467.
"""

base = "configs/small.py"
cooldown_shape = "linear"
eval_every = 330
_tuned = dict(
    adamw=dict(lr=1.6e-2, beta1=0.8, beta2=0.95),
    nadamw=dict(lr=1.6e-2, beta1=0.8, beta2=0.95),
    cautious=dict(lr=1.6e-2, beta1=0.8, beta2=0.9),
    mars=dict(lr=1.6e-2, beta1=0.8, beta2=0.95),
    lion=dict(lr=4e-3, beta1=0.8, weight_decay=0.7),
    muon=dict(lr=2e-2, lr_other=1.6e-2, momentum=0.9, beta1=0.8),
    scion=dict(lr=2e-2, lr_other=2e-3, momentum=0.8),
    soap=dict(lr=8e-3, beta1=0.7, beta2=0.98),
    kron=dict(lr=4e-3, lr_other=1.6e-2, momentum=0.8, beta1=0.8),
)
grids = [
    dict(optimizer=_name, seed=_seed, data_seed=_seed, total_steps=[660, 1320, 2640]) | _options
    for _name, _options in _tuned.items()
    for _seed in (0, 1, 2)
]
grids += [
    dict(optimizer="adamw", seed=_seed, data_seed=_seed, total_steps=[330, 1980]) | _tuned["adamw"]
    for _seed in (0, 1, 2)
]
