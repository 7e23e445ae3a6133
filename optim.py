"""Parameter groups and optimizers, one function each.

    optimizer = build("adamw", model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    set_lr(optimizer, factor)       # lr = initial_lr * factor in every group, before every update

Every group keeps its own peak LR as `initial_lr`, so that one schedule drives groups of different LRs.
"""

import torch


def param_groups(model, lr, weight_decay):
    """Two groups as in the paper: matrices of the blocks, with weight decay; embedding, output head, norms, without."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():  # a tied matrix comes once, as the embedding
        (decayed if parameter.dim() >= 2 and "blocks." in name else others).append(parameter)
    return [
        {"params": decayed, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "initial_lr": lr, "weight_decay": 0.0},
    ]


def adamw(model, lr, weight_decay, betas):
    """AdamW (Loshchilov and Hutter 2019): decoupled weight decay, lr * weight_decay per step; eps 1e-8."""
    return torch.optim.AdamW(param_groups(model, lr, weight_decay), lr=lr, betas=betas, fused=True)


OPTIMIZERS = {"adamw": adamw}


def build(name, model, **settings):
    """Make an optimizer by name."""
    return OPTIMIZERS[name](model, **settings)


def set_lr(optimizer, factor):
    """Give every group its peak LR times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def load_state(optimizer, state):
    """Take moments and counters from a saved `state_dict`, and keep LR, weight decay and betas as they are set now."""
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
