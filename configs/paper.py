"""The whole suite of the paper at its real sizes (Tables 1 and 2, lengths as its logs have them), on SlimPajama.

Eight models of 33M to 360M parameters. For each, cosine from scratch at three lengths; one run at a constant learning
rate, half of cosine's, with averages over windows of 500 steps; and a linear cooldown of 20% from it for every length.

    python study.py configs/paper.py --plan
    python study.py configs/paper.py --launch="torchrun --nproc_per_node=2"

By the paper's count of FLOPs, the cosines cost 1.145e20. The constant runs with three cooldowns each cost 7.33e19, 36%
less; the paper's figure has these bars. Its "half" is right for GPU hours (147 against 277). For FLOPs it is 45% less
if the longest run ends in its own cooldown, instead of going on for the averages. Not run yet.
"""

from scaling import PAPER_MODELS as _MODELS

dataset = "slimpajama-6b-gpt2"
window_horizon = 500
window_keep = 10
grids = [
    dict(n_layer=_model.shape.n_layer, n_embd=_model.shape.n_embd, n_head=_model.shape.n_head)
    | dict(global_batch_size=_model.global_batch_size)
    | _runs
    for _model in _MODELS
    if _model.name != "166M"  # trained on other text, and in none of the paper's totals
    for _runs in (
        dict(schedule="onecycle", lr=_model.lr_cosine, total_steps=list(_model.steps_as_run)),
        dict(schedule="wsd", lr=_model.lr_cosine / 2, total_steps=list(_model.steps_as_run), cooldown_shape="linear"),
        dict(schedule="constant", lr=_model.lr_cosine / 2, total_steps=_model.steps_as_run[-1]),
    )
]
