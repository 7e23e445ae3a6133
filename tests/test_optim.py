"""Tests of optim.py: which parameter is in which group, updates against AdamW written out, and what a resume keeps.

python -m pytest tests/test_optim.py
"""

import copy

import numpy as np
import pytest
import torch

from model import Llama, Shape
from optim import build, load_state, set_lr

torch.set_num_threads(1)
SETTINGS = dict(lr=0.02, weight_decay=0.3, betas=(0.8, 0.95))


def make_model(tied=True):
    return Llama(Shape(vocab_size=64, n_layer=2, n_head=2, n_embd=16, seq_len=8, tied=tied))


def names_of(optimizer, model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [sorted(names[p] for p in group["params"]) for group in optimizer.param_groups]


def set_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def adamw_by_hand(values, gradients, rates, weight_decay, betas, eps=1e-8):
    """Algorithm 2 of Loshchilov and Hutter (2019) with torch's decay of lr * weight_decay, in fp64."""
    (beta1, beta2), m, v = betas, 0.0, 0.0
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        direction = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        values = values - lr * direction - lr * weight_decay * values
    return values


@pytest.mark.parametrize("tied", [True, False])
def test_groups(tied):
    model = make_model(tied)
    decayed, others = build("adamw", model, **SETTINGS).param_groups
    matrices = ["attention.out", "attention.qkv", "mlp.down", "mlp.gate", "mlp.up"]
    norms = [f"blocks.{i}.{name}_norm.weight" for i in (0, 1) for name in ("attention", "mlp")]
    expected = [
        [f"blocks.{i}.{name}.weight" for i in (0, 1) for name in matrices],
        sorted([*norms, "norm.weight", "embedding.weight"] + ([] if tied else ["head.weight"])),
    ]
    optimizer = build("adamw", model, **SETTINGS)
    assert names_of(optimizer, model) == expected
    in_groups = [p.data_ptr() for group in optimizer.param_groups for p in group["params"]]
    assert sorted(in_groups) == sorted({p.data_ptr() for p in model.parameters()})  # each once, the tied one too
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    for group in (decayed, others):
        assert group["initial_lr"] == group["lr"] == 0.02 and group["betas"] == (0.8, 0.95) and group["eps"] == 1e-8


def test_set_lr_starts_from_the_peak_of_each_group():
    optimizer = build("adamw", make_model(), **SETTINGS)
    optimizer.param_groups[1]["initial_lr"] = 5.0
    for factor in (0.5, 0.0, 1.0, 0.25):  # a factor of the peak, not of the rate before
        set_lr(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.02 * factor, 5.0 * factor]


def test_updates_are_those_of_adamw():
    model, factors = make_model(), [0.1, 1.0, 0.5, 0.0, 0.7]
    optimizer = build("adamw", model, **SETTINGS)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    before = {p: p.detach().numpy().astype(np.float64) for p in model.parameters()}
    gradients = {p: [] for p in before}
    for step, factor in enumerate(factors):
        set_gradients(model, step)
        for p in gradients:
            gradients[p].append(p.grad.numpy().astype(np.float64))
        set_lr(optimizer, factor)
        optimizer.step()
    rates = [0.02 * factor for factor in factors]
    for p, values in before.items():
        expected = adamw_by_hand(values, gradients[p], rates, decays[p], (0.8, 0.95))
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-6, atol=1e-6 * 0.02)  # of a step of lr
        other = adamw_by_hand(values, gradients[p], rates, 0.3 - decays[p], (0.8, 0.95))  # the control
        assert abs(p.detach().numpy() - other).max() > 1e-4


def test_a_resume_keeps_moments_and_takes_settings_from_now():
    def trained():
        model = make_model()
        optimizer = build("adamw", model, **SETTINGS)
        for step in range(3):
            set_gradients(model, step)
            optimizer.step()
        return model, optimizer

    def step_on(model, optimizer):
        set_gradients(model, 3)
        set_lr(optimizer, 0.5)
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    new = dict(lr=0.07, weight_decay=0.01, betas=(0.5, 0.6))
    first, source = trained()
    state = copy.deepcopy(source.state_dict())
    resumed = make_model()
    resumed.load_state_dict(first.state_dict())
    optimizer = build("adamw", resumed, **new)
    forgetful = copy.deepcopy((resumed, optimizer))
    load_state(optimizer, state)
    for group, decay in zip(optimizer.param_groups, (0.01, 0.0), strict=True):
        assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.07, 0.07, decay)
        assert group["betas"] == (0.5, 0.6)
    for index, moments in optimizer.state_dict()["state"].items():
        assert moments["step"] == 3
        assert all(torch.equal(moments[key], state["state"][index][key]) for key in ("exp_avg", "exp_avg_sq"))

    changed, its_optimizer = trained()  # the same by hand: one that never stopped, its settings overwritten
    for group, decay in zip(its_optimizer.param_groups, (0.01, 0.0), strict=True):
        group |= {"initial_lr": 0.07, "weight_decay": decay, "betas": (0.5, 0.6)}
    after = step_on(resumed, optimizer)
    assert torch.equal(after, step_on(changed, its_optimizer))
    assert not torch.equal(after, step_on(*trained()))
    assert not torch.equal(after, step_on(*forgetful))
