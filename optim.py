"""Parameter groups, and optimizers as rules of a few lines each. Torch only: copy this file anywhere.

    optimizer = build("muon", model, lr=0.02, weight_decay=0.1, lr_other=0.005)
    set_lr(optimizer, factor)       # lr = initial_lr * factor in every group, before every update
    optimizer.step()

A rule turns a gradient into a direction u; `Rules.step` counts, decays and applies it: p -= lr * weight_decay * p, then
p -= lr * u. Below, t = 1, 2, ... counts the updates of p, m = ema(g, b) is m = b m + (1 - b) g from 0, and m^ is
m / (1 - b^t). Rules for matrices are used for those in the blocks; what AdamW (scion: the sign) updates beside them is
embedding, head and norms, at `lr_other`. To add a rule, write a function and its record in OPTIMIZERS.

All that a rule remembers lies in the state of its parameter: tensors of the parameter's dtype, and Python numbers. So
it is saved, resumes to the bit and survives `load_state`. No rule draws from a global generator.

Values to start from: Wen et al. 2025 (arXiv 2509.02046), tuned at 130M parameters, 2.6B tokens and 0.5M tokens per
step; AdamW there: lr 0.008, weight decay 0.1, betas 0.9, 0.98. "Cost 3" is a step() that takes three times as long as
that of torch's fused AdamW, with the 5.2M parameters of 6 layers and 256 channels, in fp32 on one CPU thread.
"""

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

EPS = 1e-8  # beside the root of a second moment

# ----------------------------------------------------------------------------------------------------------------------
# Rules for every tensor


def keeps(tensors, pairs=0):
    """Say beside a rule what it stores: tensors like p, and for a matrix pairs of (rows x rows, columns x columns)."""

    def mark(rule):
        rule.tensors, rule.pairs = tensors, pairs
        return rule

    return mark


def ema(state, name, value, beta):
    """Update and return the moving average under `name`: m = beta m + (1 - beta) value, from 0."""
    if name not in state:
        state[name] = torch.zeros_like(value)
    return state[name].lerp_(value, 1 - beta)


def adam_ratio(m, v, t, group):
    """m^ / (sqrt(v^) + eps)"""
    return (m / (1 - group["beta1"] ** t)).div_((v / (1 - group["beta2"] ** t)).sqrt_().add_(EPS))


@keeps(tensors=2)
def adam(p, grad, state, group):
    """AdamW (Loshchilov and Hutter 2019): u = m^ / (sqrt(v^) + eps), m = ema(g, beta1), v = ema(g^2, beta2).

    8 bytes per parameter. OPTIMIZERS["adamw"] is torch's fused one; this is for what stands beside matrix rules.
    """
    m, v = ema(state, "m", grad, group["beta1"]), ema(state, "v", grad.square(), group["beta2"])
    return adam_ratio(m, v, state["step"], group)


@keeps(tensors=2)
def nadamw(p, grad, state, group):
    """NAdamW (Dozat 2016), as in optax: AdamW whose m^ is b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t).

    torch.optim.NAdam is another method. 8 bytes per parameter, cost 3. Wen: lr 0.008, weight decay 0.1, betas 0.95,
    0.98.
    """
    beta1, t = group["beta1"], state["step"]
    m, v = ema(state, "m", grad, beta1), ema(state, "v", grad.square(), group["beta2"])
    ahead = (m * (beta1 / (1 - beta1 ** (t + 1)))).add_(grad, alpha=(1 - beta1) / (1 - beta1**t))
    return ahead.div_((v / (1 - group["beta2"] ** t)).sqrt_().add_(EPS))


@keeps(tensors=1)
def lion(p, grad, state, group):
    """Lion (Chen et al. 2023, arXiv 2302.06675): u = sign(b1 m + (1 - b1) g), then m = ema(g, b2).

    4 bytes per parameter, cost 1.5. Wen: lr 0.001 to 0.002, weight decay 0.6 to 0.7, betas 0.9, 0.95; from lr 0.004 on
    it diverges.
    """
    m = state.setdefault("m", torch.zeros_like(p))
    direction = m.lerp(grad, 1 - group["beta1"]).sign_()
    m.lerp_(grad, 1 - group["beta2"])
    return direction


@keeps(tensors=2)
def cautious(p, grad, state, group):
    """Cautious AdamW (Liang et al. 2024, arXiv 2411.16085): AdamW's u where u g > 0, else 0, over the share of such.

    The share is per tensor, and at least 0.001. 8 bytes per parameter, cost 5. Wen: lr 0.008, weight decay 0.1, betas
    0.95, 0.98; with beta1 0.8 it diverges.
    """
    direction = adam(p, grad, state, group)
    agrees = (direction * grad > 0).to(p.dtype)
    return direction.mul_(agrees.div_(agrees.mean().clamp_(min=1e-3)))


@keeps(tensors=3)
def mars(p, grad, state, group):
    """MARS-AdamW (Yuan et al. 2024, arXiv 2411.10438): AdamW on c = g + gamma b1 / (1 - b1) (g - g of the step before).

    c is scaled to a norm of at most 1, per tensor. 12 bytes per parameter, cost 5. Wen: lr 0.008 to 0.016, weight
    decay 0.1, betas 0.9, 0.95 to 0.98, gamma 0.025; with a warmup of 1,000 steps or less it diverges.
    """
    before = state.setdefault("before", torch.zeros_like(p))
    factor = group["gamma"] * group["beta1"] / (1 - group["beta1"])
    corrected = grad.lerp(before, -factor)  # g + factor (g - before)
    before.copy_(grad)
    return adam(p, corrected.div_(corrected.norm().clamp_(min=1.0)), state, group)


@keeps(tensors=3)
def ademamix(p, grad, state, group):
    """AdEMAMix (Pagliardini et al. 2024, arXiv 2409.03137): u = (m^ + alpha_t s) / (sqrt(v^) + eps), s = ema(g, b3_t).

    With f = t / total_steps, at most 1: alpha_t = alpha f, and 1 / ln b3_t goes from 1 / ln b1 to 1 / ln b3 with f. So
    total_steps is part of the method, and a run of another length is another run. 12 bytes per parameter, cost 4.
    Semenov et al. 2025 (arXiv 2509.01440), 124M: lr 0.001, beta2 0.999, beta3 0.999, alpha 8. Bad in short runs.
    """
    beta1, t = group["beta1"], state["step"]
    f = min(t / group["total_steps"], 1.0)
    inverse = (1 - f) / math.log(beta1) if beta1 else 0.0
    beta3 = min(math.exp(1 / (inverse + f / math.log(group["beta3"]))), group["beta3"])
    m, v = ema(state, "m", grad, beta1), ema(state, "v", grad.square(), group["beta2"])
    slow = ema(state, "slow", grad, beta3)
    mixed = (m / (1 - beta1**t)).add_(slow, alpha=group["alpha"] * f)
    return mixed.div_((v / (1 - group["beta2"] ** t)).sqrt_().add_(EPS))


@keeps(tensors=2)
def schedule_free(p, grad, state, group):
    """Schedule-Free AdamW (Defazio et al. 2024, arXiv 2405.15682): p is y; the weights that count are x, `averaged`.

    u = g / (sqrt(v^) + eps) + weight_decay y, v = ema(g^2, b2), c = lr_max^2 / (sum of them so far), and then
    z = z - lr u, x = (1 - c) x + c z, y = (1 - b1) z + b1 x, written without x. lr_max is the largest lr so far.
    Warm up, then keep the lr constant: a cooldown gains nothing, as late small steps count in full. One run is for all
    lengths. 8 bytes per parameter, cost 3. Semenov et al. 2025, 124M: lr 0.001, betas 0.9, 0.9999.
    """
    lr, beta1 = group["lr"], group["beta1"]
    if "z" not in state:  # the first update, or one that goes on from merged weights
        state |= {"z": p.clone(), "lr_max": 0.0, "weight_sum": 0.0, "beta1": beta1}
    z = state["z"]
    if state["beta1"] != beta1:  # y lies elsewhere between the same z and x
        p.copy_(averaged(p, state).lerp_(z, 1 - beta1))
        state["beta1"] = beta1
    v = ema(state, "v", grad.square(), group["beta2"])
    direction = grad / (v / (1 - group["beta2"] ** state["step"])).sqrt_().add_(EPS)
    direction.add_(p, alpha=group["weight_decay"])
    state["lr_max"] = max(state["lr_max"], lr)
    weight = state["lr_max"] ** 2
    state["weight_sum"] += weight
    share = weight / state["weight_sum"] if weight else 0.0
    p.lerp_(z, share).add_(direction, alpha=lr * (beta1 * (1 - share) - 1))
    z.sub_(direction, alpha=lr)


def averaged(p, state):
    """x of `schedule_free`, from y and z: a new tensor."""
    return p + (p - state["z"]) * ((1 - state["beta1"]) / state["beta1"]) if "z" in state else p.clone()


# ----------------------------------------------------------------------------------------------------------------------
# Rules for matrices


def orthogonalized(m):
    """Nearly the closest matrix of orthonormal rows or columns to m: U V' of its SVD, by 5 Newton-Schulz iterations.

    Its singular values come out between 0.7 and 1.2. The polynomial is Jordan's. On a GPU it is computed in bf16, as by
    torch.optim.Muon, and elsewhere in m's own dtype: directions then differ by up to 3%, so a run that moves between
    them does not go on to the bit. It is 5 (4 k^2 n + 2 k^3) FLOPs for k x n, k <= n, whatever the batch.
    """
    x = m.bfloat16() if m.is_cuda else m
    x = x.mT if m.size(0) > m.size(1) else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return (x.mT if m.size(0) > m.size(1) else x).to(m.dtype)


def rms_scale(p):
    """sqrt(rows / columns), at least 1: then the best lr does not depend on the width."""
    return math.sqrt(max(1, p.size(0) / p.size(1)))


@keeps(tensors=1)
def muon(p, grad, state, group):
    """Muon (Jordan et al. 2024): u = orthogonalized((1 - mu) g + mu m) sqrt(max(1, rows / columns)), m = ema(g, mu).

    4 bytes per parameter, cost 65. Wen: lr 0.016, lr_other 0.2 to 0.3 of it, weight decay 0.1, momentum 0.95, betas
    0.8, 0.98.
    """
    m = ema(state, "m", grad, group["momentum"])
    return orthogonalized(grad.lerp(m, group["momentum"])).mul_(rms_scale(p))


@keeps(tensors=1)
def scion(p, grad, state, group):
    """Scion (Pethick et al. 2025, arXiv 2502.07529), as in Wen: u = orthogonalized(m) sqrt(max(1, rows / columns)).

    Weight decay takes the place of the paper's norm constraint. 4 bytes per parameter, cost 70. Wen: lr 0.016, lr_other
    0.1 to 0.2 of it, weight decay 0.1, momentum 0.9 to 0.95.
    """
    return orthogonalized(ema(state, "m", grad, group["momentum"])).mul_(rms_scale(p))


@keeps(tensors=1)
def sign(p, grad, state, group):
    """What scion does beside its matrices: u = sign(m). 4 bytes per parameter."""
    return ema(state, "m", grad, group["momentum"]).sign()


@keeps(tensors=2, pairs=2)
def soap(p, grad, state, group):
    """SOAP (Vyas et al. 2024, arXiv 2409.11321): Adam in the eigenbasis of Shampoo's L = ema(g g'), R = ema(g' g).

    Bases QL, QR; r = QL' g QR; v = ema(r^2); u = QL (QL' m^ QR / (sqrt(v^) + eps)) QR'. The first gradient only sets
    the bases: no update. They follow L and R by one QR step every `precondition_every` updates.
    8 + 8 (rows^2 + columns^2) / (rows columns) bytes per parameter, cost 80: 65, and 200 with a QR step. Wen: lr 0.016,
    weight decay 0.1, beta1 0.95 (with 0.9 it diverges), beta2 0.98 to 0.99, beta3 0.95, precondition_every 1, warmup
    1,000 steps.
    """
    beta3 = group["beta3"]
    if "left" not in state:
        state["left"], state["right"] = (1 - beta3) * grad @ grad.mT, (1 - beta3) * grad.mT @ grad
        for side in ("left", "right"):
            state[f"{side}_basis"] = torch.linalg.eigh(state[side]).eigenvectors.flip(1).contiguous()  # largest first
        return None
    left, right, t = state["left_basis"], state["right_basis"], state["step"] - 1
    m = ema(state, "m", grad, group["beta1"])
    v = ema(state, "v", (left.mT @ grad @ right).square_(), group["beta2"])
    direction = left @ adam_ratio(left.mT @ m @ right, v, t, group) @ right.mT
    state["left"].lerp_(grad @ grad.mT, 1 - beta3)
    state["right"].lerp_(grad.mT @ grad, 1 - beta3)
    if t % group["precondition_every"] == 0:
        for dim, side in enumerate(("left", "right")):
            turned = state[side] @ state[f"{side}_basis"]
            order = (state[f"{side}_basis"] * turned).sum(0).argsort(descending=True, stable=True)
            state["v"] = state["v"].index_select(dim, order)
            state[f"{side}_basis"] = torch.linalg.qr(turned[:, order]).Q.contiguous()
    return direction


@keeps(tensors=1, pairs=1)
def kron(p, grad, state, group):
    """PSGD Kron (Li, arXiv 1512.04202; Pooladzandi and Li 2024, arXiv 2402.04553): u = A' A h B' B, h = m^.

    A and B, upper triangular, whiten h: `whiten`. They are updated at each of the first 500 steps, then less and less
    often, down to one in 33. u is scaled to an rms of at most 1.1.
    4 + 4 (rows^2 + columns^2) / (rows columns) bytes per parameter, cost 170 while it updates them. Wen: lr 0.002,
    weight decay 0.5 to 0.7, momentum 0.95, warmup 1,000 steps.
    """
    t = state["step"]
    h = ema(state, "m", grad, group["momentum"]) / (1 - group["momentum"] ** t)
    if "left" not in state:
        state["left"], state["right"] = (torch.eye(n, dtype=p.dtype, device=p.device) for n in p.shape)
        state |= {"whitened": 0, "since": 0}
    state["since"] += 1
    share = min(max(math.exp(-0.001 * (t - 501)), 0.03), 1.0)  # of the steps
    if state["since"] >= 1 / share:
        state["since"], state["whitened"] = 0, state["whitened"] + 1
        text = f"{group['seed']} {state['index']} {t}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
        probe = torch.randn(
            p.shape, dtype=p.dtype, device=p.device, generator=torch.Generator(p.device).manual_seed(seed)
        )
        whiten(state["left"], state["right"], h, probe, balance=state["whitened"] % 100 == 0)
    left, right = state["left"], state["right"]
    direction = left.mT @ (left @ h @ right.mT) @ right
    return direction.mul_((1.1 / (direction.square().mean().sqrt() + 1e-6)).clamp_(max=1.0))


def whiten(left, right, h, probe, balance=False, rate=0.1):
    """One step of A and B, in place, towards an A h B' as white as the probe. `balance` gives them one largest entry.

    a = A h B' and b = A'^-1 probe B^-1; A -= rate triu(a a' - b b') A / |a a' + b b'|, and likewise B with a' a, b' b.
    """
    if balance:
        tops = left.abs().max(), right.abs().max()
        middle = (tops[0] * tops[1]).sqrt()
        left.mul_(middle / tops[0])
        right.mul_(middle / tops[1])
    a = left @ h @ right.mT
    b = torch.linalg.solve_triangular(left.mT, probe, upper=False)
    b = torch.linalg.solve_triangular(right, b, upper=True, left=False)
    for factor, x, y in ((left, a, b), (right, a.mT, b.mT)):
        grown, noise = x @ x.mT, y @ y.mT
        factor.sub_((grown - noise).mul_(rate / spectral_norm(grown + noise)).triu_() @ factor)


def spectral_norm(a):
    """A lower bound of the largest eigenvalue of a symmetric matrix: two steps of power iteration from a long row."""
    scale = a.abs().max().clamp(min=torch.finfo(a.dtype).tiny)
    a = a / scale
    x = a @ a.index_select(0, a.square().sum(1).argmax().view(1)).flatten()
    return scale * (a @ (x / x.norm())).norm()


# ----------------------------------------------------------------------------------------------------------------------
# Optimizers


class Recipe(NamedTuple):
    """What an optimizer is: a rule for the matrices of the blocks, one for all else, and what the two read."""

    matrices: Callable
    others: Callable
    options: dict  # that the rules read besides lr and weight decay, and their defaults
    facts: tuple = ()  # of the run that they read, too: total_steps, seed
    final: Callable | None = None  # (p, state) -> what p stands for, where that is not p itself
    fan_in_power: float = 1.0  # a matrix of the blocks has lr / fan_in_ratio^this: see `param_groups`
    whole: bool = False  # whether the rules look at a tensor as a whole, so that some rows of it would not do


BETAS = {"beta1": 0.9, "beta2": 0.95}
MOMENTUM = {"momentum": 0.95}
OPTIMIZERS = {
    "adamw": Recipe(adam, adam, BETAS),
    "nadamw": Recipe(nadamw, nadamw, BETAS),
    "lion": Recipe(lion, lion, BETAS),
    "cautious": Recipe(cautious, cautious, BETAS, whole=True),
    "mars": Recipe(mars, mars, BETAS | {"gamma": 0.025}, whole=True),
    "ademamix": Recipe(ademamix, ademamix, BETAS | {"beta3": 0.999, "alpha": 8.0}, facts=("total_steps",)),
    "muon": Recipe(muon, adam, BETAS | MOMENTUM, fan_in_power=0.0, whole=True),
    "scion": Recipe(scion, sign, MOMENTUM, fan_in_power=0.0, whole=True),
    "soap": Recipe(soap, adam, BETAS | {"beta3": 0.95, "precondition_every": 10}, whole=True),
    "kron": Recipe(kron, adam, BETAS | MOMENTUM, facts=("seed",), whole=True),
    "schedule_free": Recipe(schedule_free, schedule_free, BETAS, final=averaged),
}


class Rules(torch.optim.Optimizer):
    """Updates by the rules of the optimizer that every group names; groups as of `build`."""

    def __init__(self, groups):
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self):
        """Make one update, of all parameters that have a gradient."""
        index = 0  # of every matrix, for what draws random numbers
        for group in self.param_groups:
            recipe = OPTIMIZERS[group["optimizer"]]
            rule = recipe.matrices if group["is_matrix"] else recipe.others
            for p in group["params"]:
                for part, grad, state in self.parts(p, group["parts"]):
                    if grad is not None:
                        state |= {"step": state.get("step", 0) + 1, "index": index}
                        apply(part, rule(part, grad, state, group), group)
                    index += 1

    def parts(self, p, rows):
        """(matrix, its gradient, its state) of a parameter, or of each of the matrices that are stacked in it."""
        state = self.state[p]
        if not rows:
            return [(p, p.grad, state)]
        grads = p.grad.split(rows) if p.grad is not None else [None] * len(rows)
        states = [state.setdefault(str(i), {}) for i in range(len(rows))]
        return zip(p.split(rows), grads, states, strict=True)


def apply(p, direction, group):
    """p -= lr weight_decay p, then p -= lr u; nothing if there is no direction, or the rule has moved p itself."""
    if direction is not None:
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])


def param_groups(model, recipe, lr, weight_decay, lr_other=None):
    """As in the paper: matrices of the blocks, with weight decay; embedding, output head and norms, without.

    `lr_other` is the peak of the second kind; None: `lr`. Here and nowhere else a parameter gets its factor of the peak
    and of the weight decay: those of equal factors are one group. Where rules are for matrices, so are those whose
    module says in `parts` that its weight is several of them, one above the other, of so many rows.

    muP and SuPar: a module says in `fan_in_ratio` how many inputs its weight has for one that it has in the model for
    which lr was found. Where all entries of an update are about as large, many inputs add up to more: lr is over the
    ratio. An orthogonalized update is as large for any number of inputs, so lr stays. soap and kron are taken to be of
    the first kind, but lie between: whether their lr carries over is not tested. lr * weight_decay always stays, as lr
    carries over only then (Kosson et al. 2025, arXiv 2510.19093).
    """
    groups = {}
    for name, parameter in model.named_parameters():  # a tied matrix comes once, as the embedding
        is_matrix = parameter.dim() >= 2 and "blocks." in name
        module = model.get_submodule(name.rpartition(".")[0])
        ratio = getattr(module, "fan_in_ratio", 1.0) if is_matrix else 1.0
        lr_factor, decay_factor = 1 / ratio**recipe.fan_in_power, is_matrix * ratio**recipe.fan_in_power
        parts = getattr(module, "parts", ()) if recipe.matrices is not recipe.others and is_matrix else ()
        groups.setdefault((not is_matrix, lr_factor, decay_factor, parts), {})[name] = parameter
    made = []
    for (other, lr_factor, decay_factor, parts), named in sorted(groups.items(), key=lambda item: item[0][0]):
        peak = lr_factor * (lr_other if other and lr_other is not None else lr)
        group = {"params": list(named.values()), "names": list(named), "is_matrix": not other, "parts": parts}
        made.append(group | {"lr": peak, "initial_lr": peak, "weight_decay": decay_factor * weight_decay})
    return made


def options():
    """All options that some optimizer reads and others do not."""
    return list(dict.fromkeys(option for recipe in OPTIMIZERS.values() for option in recipe.options))


def check(name, given, averaged=False, in_shards=False):
    """ValueError for an option in `given`, {option: value}, that this optimizer does not read.

    `averaged` is whether windows or EMAs of its weights are kept: not of those that it averages itself. `in_shards`:
    whether it sees some rows of the tensors only.
    """
    if in_shards and OPTIMIZERS[name].whole:
        able = ", ".join(other for other, recipe in OPTIMIZERS.items() if not recipe.whole)
        raise ValueError(f"optimizer={name!r} looks at whole matrices, and shards are rows of them: choose {able}")
    if averaged and OPTIMIZERS[name].final:
        raise ValueError(
            f"window_horizon, ema_decay, ema_half_life: {name} averages its weights itself, so leave these out"
        )
    for option, value in given.items():
        if option not in OPTIMIZERS[name].options:
            readers = ", ".join(other for other, recipe in OPTIMIZERS.items() if option in recipe.options)
            raise ValueError(
                f"{option}={value!r}: {name} has no {option}; leave it out, or choose another of {readers}"
            )
    if name == "schedule_free" and given.get("beta1") == 0:
        raise ValueError("beta1=0: schedule_free would train on z and lose x; choose a number above 0, such as 0.9")


def build(name, model, lr, weight_decay, betas=None, lr_other=None, **given):
    """Make an optimizer by name. `given` are options and facts of its Recipe; None: its default.

    `betas` is short for beta1 and beta2. ValueError for what the optimizer does not read.
    """
    recipe = OPTIMIZERS[name]
    given |= dict(zip(("beta1", "beta2"), betas, strict=True)) if betas else {}
    facts = {fact: given.pop(fact) for fact in recipe.facts}
    given = {option: value for option, value in given.items() if value is not None}
    check(name, given)
    read = recipe.options | given
    groups = param_groups(model, recipe, lr, weight_decay, lr_other)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(read["beta1"], read["beta2"]), eps=EPS, fused=True)
    return Rules([group | {"optimizer": name} | read | facts for group in groups])


def state_bytes(name, model):
    """Bytes of the tensors that an optimizer keeps for a model, which may be on the device "meta"."""
    recipe, total = OPTIMIZERS[name], 0
    for group in param_groups(model, recipe, lr=1.0, weight_decay=0.0):
        rule = recipe.matrices if group["is_matrix"] else recipe.others
        for p in group["params"]:
            total += rule.tensors * p.numel() * p.element_size()
            for rows in (group["parts"] or p.shape[:1]) if rule.pairs else ():
                total += rule.pairs * (rows**2 + p.size(1) ** 2) * p.element_size()
    return total


def set_lr(optimizer, factor):
    """Give every group its peak LR times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def load_state(optimizer, state):
    """Take moments and counters from a saved `state_dict`, and keep LR, weight decay and betas as they are set now."""
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})


# ----------------------------------------------------------------------------------------------------------------------
# What a checkpoint stands for


@torch.no_grad()
def has_final(name):
    """Whether the weights that count are made from the optimizer's state."""
    return name in OPTIMIZERS and OPTIMIZERS[name].final is not None


def final_weights(name, weights, state):
    """The weights to evaluate, merge or export: `weights` themselves, or what this optimizer makes of them on a copy.

    weights   state_dict of the bare model
    state     state_dict of the optimizer, of the same step
    Tied names stay tied. ValueError if the optimizer is unknown, or its state, where it takes that, is not there.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r}: this code has none of that name, and cannot tell what its weights are")
    final = OPTIMIZERS[name].final
    if final is None:
        return weights
    if not state:
        raise ValueError(f"its weights are made from the state of {name}, which is not in it")
    found = {}  # by place in memory, as tied tensors have one, and by shape, as those without numbers have none
    for group in state["param_groups"]:
        for parameter, index in zip(group["names"], group["params"], strict=True):
            p = weights[parameter]
            found[p.data_ptr(), p.shape] = final(p, state["state"].get(index, {}))
    return {parameter: found.get((p.data_ptr(), p.shape), p) for parameter, p in weights.items()}


def from_final(state):
    """The optimizer's state to go on with from final weights, as of a merge: their average begins anew."""
    kept = {index: {key: v for key, v in of_p.items() if key != "z"} for index, of_p in state["state"].items()}
    return state | {"state": kept}
