"""Which optimizer needs the fewest tokens, and the least time? (After Wen et al. 2025, arXiv 2509.02046.)

A model of 68,000 parameters at 10 and 20 tokens per parameter, with a linear cooldown of 20% and three seeds. Each
optimizer has the options of its certificate: configs/tune/ has the grids, results/optimizers/tune/ what came out. AdamW
has three lengths more, as the others are measured on its law.

    python study.py configs/optimizers.py --jobs=2
    python -m laws speedup results/optimizers/results.csv --by=optimizer --baseline=adamw --D=tokens --loss=val_loss

It took 38 minutes of training on threads that other programs slowed down. At 1,320 steps AdamW ends at 1.543, Muon at
1.531 and SOAP at 1.459. Each run has its name here, so that the study can grow by an optimizer or a length.
"""

base = "configs/small.py"
cooldown_shape = "linear"
eval_every = 330
_tuned = dict(
    adamw=dict(lr=1.6e-2, beta1=0.8),
    muon=dict(lr=2e-2, lr_other=3.2e-2, beta1=0.8),
    soap=dict(lr=8e-3, beta1=0.8, beta2=0.98),
)
_lengths = dict(adamw=[330, 660, 1320, 1980, 2640], muon=[660, 1320], soap=[660, 1320])
grids = [
    dict(name=f"{_name}_{_steps}_seed{_seed}", seed=_seed, data_seed=_seed, total_steps=_steps, optimizer=_name)
    | _options
    for _name, _options in _tuned.items()
    for _steps in _lengths[_name]
    for _seed in (0, 1, 2)
]
