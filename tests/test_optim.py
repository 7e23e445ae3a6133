"""Tests of optim.py: groups, updates against each algorithm written out and against packages, and whole runs.

python -m pytest tests/test_optim.py
"""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import flat, launched, lines, same, tensors, two_ranks

import checkpoint
import evaluate
import optim
import parallel
import planner
import scaling
import sealed
import train as trainer
from config import Mistake
from model import Llama, Shape, shape_of
from optim import build, load_state, set_lr
from train import Config

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


# ----------------------------------------------------------------------------------------------------------------------
# Every rule against its algorithm

START = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=torch.float64)
BETAS = dict(beta1=0.9, beta2=0.95)
GOLDEN = {  # after four updates with lr 0.1 and weight decay 0.5, in fp64, by an independent implementation of each
    "adamw": (BETAS, "-.20432954 .28162305 .11488703 .62546938 .52597492 .64665997"),
    "nadamw": (BETAS, "-.20687229 .30559015 .15865381 .63762443 .54994202 .60743816"),
    "lion": (dict(beta1=0.9, beta2=0.99), "-.08953687 .36241375 .26336437 .49679000 .60676562 .46969125"),
    "cautious": (BETAS, "-.21582970 .35669828 .13667674 .63010729 .60105016 .61540351"),
    "mars": (dict(beta1=0.95, beta2=0.99, gamma=0.025), "-.17114691 .26872176 .16046955 .59524620 .51307363 .60072992"),
    "ademamix": (
        dict(beta1=0.9, beta2=0.99, beta3=0.999, alpha=8.0, total_steps=10),
        "-.21470507 .28810760 .10924168 .63619326 .53245947 .65335882",
    ),
    "muon": (dict(momentum=0.95), "-.13503053 .35847998 .23722418 .54062636 .61603206 .52526467"),
    "scion": (dict(momentum=0.9), "-.18295695 .34027434 .17618579 .58343565 .59800011 .58973023"),
    "schedule_free": (BETAS, "-.05903755 .27225016 .25421928 .51479074 .53420536 .55227921"),
}


def tiny(values=START, where="blocks"):
    """A model of one matrix, in fp64: of the blocks, or beside them."""
    model = torch.nn.ModuleDict(
        {where: torch.nn.Linear(values.size(1), values.size(0), bias=False, dtype=torch.float64)}
    )
    with torch.no_grad():
        model[where].weight.copy_(values)
    return model


def waves(t):
    """sin(t + i + 2 j)"""
    i, j = (torch.arange(n, dtype=torch.float64) for n in START.shape)
    return torch.sin(t + i[:, None] + 2 * j)


def full_rank(t):
    """sin(t (1 + i) + 3 i j + j)"""
    i, j = (torch.arange(n, dtype=torch.float64) for n in START.shape)
    return torch.sin(t * (1 + i[:, None]) + 3 * i[:, None] * j + j)


def updates(optimizer, p, n, gradient=waves):
    for t in range(1, n + 1):
        p.grad = gradient(t)
        optimizer.step()
    return p.detach()


def after(name, n, where="blocks", decay=0.5, gradient=waves, **options):
    """The matrix and its state after n updates."""
    model = tiny(where=where)
    optimizer = build(name, model, lr=0.1, weight_decay=decay, **options)
    optimizer.param_groups[0]["weight_decay"] = decay  # also beside the blocks
    (p,) = model.parameters()
    return updates(optimizer, p, n, gradient), optimizer.state[p]


def literal(text):
    return torch.tensor([float(x) for x in text.split()], dtype=torch.float64).view(3, 2)


def close(a, b, atol=1e-8):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    options, values = GOLDEN[name]
    close(after(name, 4, **options)[0], literal(values))
    if len(options) > 1:  # each option counts
        for option in options:
            other = options | {option: options[option] // 2 if option == "total_steps" else options[option] / 9}
            one, two = (after(name, 9, gradient=full_rank, **chosen)[0] for chosen in (options, other))
            assert (one - two).abs().max() > 1e-5, option


def test_golden_values_of_scions_sign():
    signs = after("scion", 4, where="head", momentum=0.9)[0]
    close(signs, literal("-.28953688 .36241375 .07336437 .69679000 .60676562 .65969125"))


def test_golden_values_of_soap():
    options = dict(decay=0.0, gradient=full_rank, beta1=0.95, beta2=0.95, beta3=0.95)
    every = literal("-.13675425 .22261326 .53962727 .33694921 .43807313 .61826618")
    close(after("soap", 4, precondition_every=1, **options)[0], every)
    second = literal("-.07613931 .32481315 .62029824 .28295476 .45165933 .62905190")
    close(after("soap", 6, precondition_every=2, **options)[0], second)
    assert torch.equal(after("soap", 1, **options | {"decay": 0.5})[0], START)  # the first gradient only sets the bases


def test_golden_values_of_schedule_free():
    y, state = after("schedule_free", 4, **BETAS)
    close(state["z"], literal("-.01645308 .38029686 .37049931 .45833071 .62371464 .38857029"))
    close(optim.averaged(y, state), literal("-.06376915 .26024497 .24129927 .52106408 .52425988 .57046909"))
    y, state = after("schedule_free", 1, **BETAS)
    close(optim.averaged(y, state), state["z"], atol=1e-15)


def test_schedule_free_is_the_textbooks():
    """x, y and z written out, with a warmup, a falling lr and one of 0 at the start, against y and z alone."""
    model, rates = tiny(), [0.0, 0.05, 0.1, 0.1, 0.03, 0.02]
    (p,) = model.parameters()
    optimizer = build("schedule_free", model, lr=0.1, weight_decay=0.5, **BETAS)
    x = y = z = START
    v, total = torch.zeros_like(x), 0.0
    for t, lr in enumerate(rates, start=1):
        p.grad = waves(t)
        set_lr(optimizer, lr / 0.1)
        optimizer.step()
        v = 0.95 * v + 0.05 * waves(t) ** 2
        z = z - lr * (waves(t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8) + 0.5 * y)
        weight = max(rates[:t]) ** 2
        total += weight
        share = weight / total if total else 0.0
        x = (1 - share) * x + share * z
        y = 0.1 * z + 0.9 * x
        close(p.detach(), y, 1e-12)
        close(optim.averaged(p.detach(), optimizer.state[p]), x, 1e-12)


def test_schedule_free_with_another_beta1_goes_on_between_the_same_x_and_z():
    model = tiny()
    (p,) = model.parameters()
    optimizer = build("schedule_free", model, lr=0.1, weight_decay=0.0, **BETAS)
    updates(optimizer, p, 4)
    x, z = optim.averaged(p.detach(), optimizer.state[p]), optimizer.state[p]["z"].clone()
    optimizer.param_groups[0] |= {"beta1": 0.6, "lr": 0.0}
    updates(optimizer, p, 1, lambda t: torch.zeros_like(START))
    close(optim.averaged(p.detach(), optimizer.state[p]), x + 0.2 * (z - x), 1e-12)  # one more of the same weight
    assert optimizer.state[p]["beta1"] == 0.6


def theirs(kind, n, gradient=waves, start=START, **settings):
    p = torch.nn.Parameter(start.clone())
    optimizer = kind([p], lr=0.1, **settings)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return updates(optimizer, p, n, gradient)


def test_rules_are_those_of_other_packages():
    package = pytest.importorskip("pytorch_optimizer")
    free = pytest.importorskip("schedulefree").AdamWScheduleFree
    betas = dict(betas=(0.9, 0.95), weight_decay=0.5)
    close(after("schedule_free", 9, **BETAS)[0], theirs(free, 9, foreach=False, **betas), 1e-12)
    mars = theirs(package.MARS, 9, betas=(0.95, 0.99), gamma=0.025, weight_decay=0.5, mars_type="adamw")
    close(after("mars", 9, beta1=0.95, beta2=0.99)[0], mars, 1e-6)
    mix = theirs(
        package.AdEMAMix,
        9,
        betas=(0.9, 0.95, 0.999),
        alpha=8.0,
        t_alpha_beta3=10,
        weight_decay=0.5,
        weight_decouple=True,
    )
    close(after("ademamix", 9, total_steps=10, **BETAS)[0], mix, 1e-12)
    muon = theirs(torch.optim.Muon, 4, momentum=0.95, weight_decay=0.5)
    close(after("muon", 4, momentum=0.95)[0], muon, 0.003)  # it computes in bf16: 3% of lr
    settings = dict(betas=(0.95, 0.95), shampoo_beta=0.95, precondition_frequency=2, weight_decay=0.0)
    soap = theirs(package.SOAP, 9, full_rank, correct_bias=True, **settings)
    ours = after("soap", 9, decay=0.0, gradient=full_rank, beta1=0.95, beta2=0.95, precondition_every=2)[0]
    close(ours, soap, 1e-6)  # its QR is in fp32


def test_kron_is_that_of_another_package(monkeypatch):
    """With the same probes; they take part, and depend on seed, step and matrix, not on torch's generator."""
    kron, probes, randn = pytest.importorskip("pytorch_optimizer").Kron, [], torch.randn

    def recorded(*args, **settings):
        probes.append(randn(*args, **settings))
        return probes[-1]

    monkeypatch.setattr(torch, "randn", recorded)
    options = dict(momentum=0.9, decay=0.5, gradient=full_rank)
    ours = after("kron", 9, seed=1, **options)[0]
    drawn = [*probes]
    torch.manual_seed(5)
    assert torch.equal(after("kron", 9, seed=1, **options)[0], ours)
    assert (after("kron", 9, seed=2, **options)[0] - ours).abs().max() > 1e-3
    assert len(drawn) == 9 and len({probe.sum().item() for probe in probes}) == 18
    monkeypatch.setattr(torch, "randn_like", lambda *args, **settings: drawn.pop(0))
    settings = dict(momentum=0.9, weight_decay=0.5, balance_prob=0.0, precondition_dtype=torch.float64)
    close(ours, theirs(kron, 9, full_rank, **settings), 1e-6)  # its triangular solve is in fp32


def test_kron_balances_and_then_updates_less_often(monkeypatch):
    calls, whiten = [], optim.whiten
    monkeypatch.setattr(optim, "whiten", lambda *args, balance: calls.append(balance) or whiten(*args, balance))
    _, state = after("kron", 1200, seed=0, gradient=full_rank)
    assert [i for i, balance in enumerate(calls, 1) if balance] == list(range(100, len(calls) + 1, 100))
    assert (
        len(calls) == state["whitened"] and 500 + 200 < len(calls) < 500 + 500
    )  # 1000 (1 - exp(-0.7)) = 503, rounded down
    left, right, h = torch.eye(3) * 8, torch.eye(2) * 0.5, torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    whiten(left, right, h, torch.zeros(3, 2), balance=True, rate=0.0)
    assert left.max() == right.max() == 2.0


def test_orthogonalized_has_singular_values_near_one():
    m = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for matrix in (m, m.T):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        near = optim.orthogonalized(matrix)
        values = (u.T @ near @ v.T).diagonal()
        assert 0.65 < values.min() and values.max() < 1.25
        close(near, u * values @ v, 1e-9)


# ----------------------------------------------------------------------------------------------------------------------
# Every optimizer: groups, state, options


def settings_of(name):
    facts = {"total_steps": 40, "seed": 7}
    return dict(lr=0.02, weight_decay=0.3) | {fact: facts[fact] for fact in optim.OPTIMIZERS[name].facts}


def make_gqa():
    return Llama(Shape(vocab_size=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, seq_len=8))


def train_on(name, model, optimizer, steps):
    for step in steps:
        set_gradients(model, step)
        set_lr(optimizer, min(1.0, (step + 1) / 5))
        optimizer.step()


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_resumes_to_the_bit(name, tmp_path):
    """From a checkpoint file, under another global seed; and its state is as large as is said, and plain data."""
    model, resumed = make_gqa(), make_gqa()
    optimizer = build(name, model, **settings_of(name))
    train_on(name, model, optimizer, range(15))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    path = checkpoint.save(tmp_path, 15, state)  # refuses what it could not read again
    train_on(name, model, optimizer, range(15, 30))

    torch.manual_seed(123)
    state = checkpoint.load(path)
    resumed.load_state_dict(state["model"])
    second = build(name, resumed, **settings_of(name))
    load_state(second, state["optimizer"])
    train_on(name, resumed, second, range(15, 30))
    ours, other = flat(second.state_dict()["state"]), flat(optimizer.state_dict()["state"])
    assert ours.keys() == other.keys() and all(torch.equal(ours[key], other[key]) for key in ours)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for p in model.parameters())

    resumed.load_state_dict(state["model"])  # the control: without the state it is another run
    train_on(name, resumed, build(name, resumed, **settings_of(name)), range(15, 30))
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
    kept = sum(4 * t.numel() for t in ours.values() if t.dim())
    with torch.device("meta"):
        assert optim.state_bytes(name, make_gqa()) == kept


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_lr_other_is_of_all_but_the_matrices_of_the_blocks(name):
    model = make_model(tied=False)
    optimizer = build(name, model, **settings_of(name), lr_other=5.0)
    set_lr(optimizer, 0.5)
    rates = {p: (group["initial_lr"], group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    for parameter_name, p in model.named_parameters():
        is_matrix = "blocks." in parameter_name and p.dim() == 2
        assert rates[p] == ((0.02, 0.01) if is_matrix else (5.0, 2.5))


@pytest.mark.parametrize("name", ["muon", "scion", "soap", "kron"])
def test_stacked_matrices_are_updated_as_if_apart(name):
    """The rows of q, k and v, of unlike numbers, against three matrices; without `parts` they are one."""
    model = make_gqa()
    qkv = model.blocks[0].attention.qkv
    assert qkv.parts == (16, 8, 8) and qkv.weight.shape == (32, 16)
    apart = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList(torch.nn.Linear(16, n, bias=False) for n in qkv.parts)})
    fused = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(16, 32, bias=False)])})
    whole = copy.deepcopy(fused)
    fused["blocks"][0].parts = qkv.parts
    with torch.no_grad():
        for matrix, rows in zip(apart.parameters(), qkv.weight.split(qkv.parts), strict=True):
            matrix.copy_(rows)
        for matrix in (*fused.parameters(), *whole.parameters()):
            matrix.copy_(qkv.weight)
    models = (fused, whole, apart)
    optimizers = [build(name, m, **settings_of(name)) for m in models]
    for step in range(5):
        grad = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        for m, optimizer in zip(models, optimizers, strict=True):
            sizes = [p.size(0) for p in m.parameters()]
            for p, part in zip(m.parameters(), grad.split(sizes), strict=True):
                p.grad = part.clone()
            optimizer.step()
    results = [torch.cat([p.detach() for p in m.parameters()]) for m in models]
    torch.testing.assert_close(results[0], results[2], rtol=1e-6, atol=1e-7)
    assert (results[0] - results[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name, option, readers",
    [("adamw", "momentum", "muon, scion, kron"), ("scion", "beta1", "adamw, nadamw"), ("muon", "gamma", "mars")],
)
def test_an_option_that_an_optimizer_does_not_read_is_an_error(run, tmp_path, name, option, readers):
    with pytest.raises(Mistake, match=f"^{option}=0.5: {name} has no {option}; leave it out, or .*{readers}"):
        run(optimizer=name, **{option: 0.5})
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match=f"{option}=0.5"):
        build(name, make_model(), lr=0.1, weight_decay=0.0, **{option: 0.5})


def rates_of(name, **shape):
    """{parameter: (lr, weight decay, lr x weight decay)} and the groups."""
    shape = dict(vocab_size=64, n_layer=1, n_head=8, n_embd=128, seq_len=8) | shape
    model = Llama(Shape(**shape))
    groups = build(name, model, **settings_of(name), lr_other=0.005).param_groups
    names = {p: name for name, p in model.named_parameters()}
    rates = {names[p]: (g["lr"], g["weight_decay"], g["lr"] * g["weight_decay"]) for g in groups for p in g["params"]}
    return rates, [{k: v for k, v in group.items() if k != "params"} for group in groups]


@pytest.mark.parametrize("name", ["adamw", "schedule_free", "soap", "muon", "scion"])
def test_rates_go_down_with_the_inputs_of_each_matrix(name):
    """128 channels are 4 x 32, and the MLP's 512 are 2 x 256; half of all weights are on."""
    before, groups = rates_of(name)
    assert rates_of(name, mup_base=128) == (before, groups)  # nothing changes at the base, to the bit
    after, _ = rates_of(name, mup_base=32, density=0.5)
    for parameter, (lr, decay, both) in after.items():
        ratio = 1.0 if "down" in parameter else 2.0
        if name in ("muon", "scion") or "norm" in parameter or "blocks." not in parameter:
            ratio = 1.0
        assert (lr, decay) == (before[parameter][0] / ratio, before[parameter][1] * ratio), parameter
        assert both == pytest.approx(before[parameter][2], rel=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# Whole runs

NO_AVERAGES = dict(window_horizon=0, ema_half_life=())
SHORT = dict(**NO_AVERAGES, total_steps=24, warmup_steps=3, cooldown_steps=8, eval_every=8, save_every=8)
EXACT = ["schedule_free", "soap", "kron"]


@pytest.mark.parametrize("name", EXACT)
def test_runs_are_exact(run, tmp_path, name):
    """A branch that is stopped, resumed and looked at after each update ends as the direct run."""
    options = dict(SHORT, optimizer=name, n_kv_head=1)
    direct = run("direct", **options)
    torch.manual_seed(9)
    run("trunk", **options | {"schedule": "constant", "cooldown_steps": None}, save_at=(12,), stop_at=12)
    branch = dict(options, init_from=str(tmp_path / "runs/trunk/ckpt/step_00000012.pt"), eval_every=1, save_every=3)
    run("branch", **branch, stop_at=18)
    assert same(run("branch", **branch), direct)
    logged = [[x for x in lines(tmp_path, run_name) if x["step"] % 8 == 0] for run_name in ("branch", "direct")]
    assert logged[0] == logged[1]
    assert not same(run("other", **branch | {"save_every": 0}, lr_other=5e-3), direct)
    assert json.loads((tmp_path / "runs/other/result.json").read_text())["lr_changed_at"] == 12


@two_ranks
@pytest.mark.parametrize("name", ["schedule_free", "kron"])
def test_two_ranks_equal_one_with_any_optimizer(run, tmp_path, data_dir, name):
    options = dict(NO_AVERAGES, optimizer=name, total_steps=8, warmup_steps=2, cooldown_steps=3, eval_every=4)
    assert same(launched(2, tmp_path, data_dir, "pair", **options), run("alone", **options))
    assert lines(tmp_path, "pair") == lines(tmp_path, "alone")


def test_mup_at_its_base_changes_no_bit(run, tmp_path):
    options = dict(SHORT, total_steps=12, cooldown_steps=4)
    assert same(run("base", **options, mup_base=32), run("plain", **options))
    assert lines(tmp_path, "base") == lines(tmp_path, "plain")
    assert not same(run("wider", **options, mup_base=16), run("plain", **options))


@pytest.mark.parametrize("name", ["adamw", "muon", "soap"])
def test_a_sparse_run_is_exact_and_stays_sparse(run, tmp_path, capsys, name):
    """With muP, stopped and resumed and branched: what is off is 0 in weights and averages, at every checkpoint."""
    options = dict(SHORT, optimizer=name, n_embd=64, n_head=4, mup_base=32, density=0.25, ema_half_life=(5.0,), seed=3)
    direct = run("direct", **options)
    trunk = options | {"schedule": "constant", "cooldown_steps": None}
    run("trunk", **trunk, save_at=(12,), stop_at=12)
    branch = dict(options, init_from=str(tmp_path / "runs/trunk/ckpt/step_00000012.pt"))
    middle = run("branch", **branch, stop_at=18)
    assert same(run("branch", **branch), direct)
    for state in (direct, middle):
        (average,) = state["averages"]["ema"]["blocks"]
        for tensors_of in (state["model"], average["tensors"]):
            for parameter, is_off in masks_of(state):
                p = tensors_of[parameter]
                assert not p[is_off].any() and (p[~is_off] != 0).all(), parameter
        groups, of_p = state["optimizer"]["param_groups"], state["optimizer"]["state"]
        index = {p: i for group in groups for p, i in zip(group["names"], group["params"], strict=True)}
        for parameter, is_off in masks_of(state):
            if "qkv" not in parameter:  # three matrices for some
                mean = of_p[index[parameter]]["exp_avg" if name == "adamw" else "m"]
                assert not mean[is_off].any() and mean[~is_off].any(), parameter  # of gradients
    assert "parameters are not 0" in capsys.readouterr().out
    for option, value in (("density", 0.5), ("mup_base", 64), ("seed", 4)):
        with pytest.raises(Mistake, match=f"^{option}={value}, but .* was trained with .*: a branch has to keep it"):
            run("other", **branch | {option: value})


def masks_of(state):
    """[(name, where it is off)] of the matrices of a run's model, which has its seed."""
    model = Llama(shape_of(state))
    names = {p: name for name, p in model.named_parameters()}
    return [(names[p], is_off) for p, is_off in model.masks(state["config"]["seed"])]


def test_a_skipped_update_advances_nothing(run, monkeypatch):
    calls, step = [], optim.Rules.step

    def counted(optimizer):
        calls.append(1)
        step(optimizer)

    monkeypatch.setattr(optim.Rules, "step", counted)
    monkeypatch.setattr(parallel, "Llama", Broken)
    Broken.calls = 0
    state = run(**SHORT, optimizer="schedule_free")
    of_p = state["optimizer"]["state"][0]
    assert state["progress"]["skipped"] == 1 and of_p["step"] == len(calls) == 23
    assert all(torch.isfinite(t).all() for t in tensors(state).values())
    schedule = trainer.make_schedule(config_of(state))
    squares = [1e-4 * max(map(schedule, range(k + 1))) ** 2 for k in range(24) if k != 5]
    assert of_p["weight_sum"] == pytest.approx(sum(squares), rel=1e-12)


def config_of(state):
    return Config(**{name: value for name, value in state["config"].items() if name != "not_default"})


class Broken(Llama):
    """One whose gradient is not finite in one micro-batch of update 5."""

    calls = 0

    def forward(self, tokens, targets=None, **settings):
        loss = super().forward(tokens, targets, **settings)
        if targets is not None and self.training and torch.is_grad_enabled():
            Broken.calls += 1
            return loss * float("nan") if Broken.calls == 6 * 5 + 2 else loss
        return loss


def test_another_rule_touches_one_file(run, monkeypatch):
    """A function and a record: options of Config, resuming, checks and the planner's estimate follow."""

    @optim.keeps(tensors=1)
    def heavy_ball(p, grad, state, group):
        return optim.ema(state, "m", grad, group["momentum"]) * group["scale"]

    recipe = optim.Recipe(heavy_ball, heavy_ball, {"momentum": 0.9, "scale": 10.0})
    monkeypatch.setitem(optim.OPTIMIZERS, "heavy_ball", recipe)
    options = dict(SHORT, optimizer="heavy_ball", lr=0.1)
    whole = run("whole", **options)
    run("parts", **options, stop_at=13)
    assert same(run("parts", **options), whole)
    assert whole["progress"]["losses"]["val_loss"] < 4.5  # of 5.5
    assert not same(run("slow", **options, momentum=0.99), whole)
    with pytest.raises(Mistake, match="beta2=0.5: heavy_ball has no beta2"):
        run("mistake", **options, beta2=0.5)
    shape = Shape(vocab_size=64, n_layer=1, n_head=1, n_embd=16, seq_len=8)
    assert planner.optimizer_bytes("heavy_ball", shape) == 4 * scaling.num_params(shape)


# ----------------------------------------------------------------------------------------------------------------------
# Schedule-Free: what a checkpoint stands for


@pytest.fixture
def free(run, tmp_path):
    """Two checkpoints of a schedule_free run: their paths."""
    run(
        **SHORT | dict(optimizer="schedule_free", schedule="constant", cooldown_steps=None, save_at=(8,), eval_tokens=0)
    )
    return [tmp_path / f"runs/run/ckpt/step_{step:08d}.pt" for step in (8, 24)]


def x_by_hand(state):
    """x of every parameter, from y and z in the file."""
    x, y = {}, state["model"]
    indices = {
        name: i for g in state["optimizer"]["param_groups"] for name, i in zip(g["names"], g["params"], strict=True)
    }
    for name, tensor in y.items():
        z = state["optimizer"]["state"][indices["embedding.weight" if name == "head.weight" else name]]["z"]
        x[name] = (tensor.double() - 0.1 * z.double()) / 0.9
    return x


def rows(capsys, *args):
    capsys.readouterr()
    evaluate.run([*map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)["rows"]


def test_every_reader_sees_x(free, tmp_path, capsys):
    first, last = free
    logged = {x["step"]: x["val_loss"] for x in lines(tmp_path, "run") if "val_loss" in x}
    xs = [x_by_hand(checkpoint.load(path)) for path in free]
    state = evaluate.read(last)
    model = evaluate.build_model(state, last, "cpu")
    assert state["model"]["head.weight"].data_ptr() == state["model"]["embedding.weight"].data_ptr()  # still tied
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor.double(), xs[1][name], rtol=1e-5, atol=1e-6)
    with_y = checkpoint.load(last)["model"]
    assert any((with_y[name] - xs[1][name]).abs().max() > 1e-3 for name in with_y)  # the control

    alone = [row["val_loss"] for row in rows(capsys, first, last)]
    assert alone == [logged[8], logged[24]]  # train.py evaluates the same
    ends = rows(capsys, "--interpolate", first, last, "--points=2")
    assert [row["val_loss"] for row in ends] == alone
    one, both = rows(capsys, "--ensemble", first, last)
    assert sorted([one["lowest"], one["highest"]]) == pytest.approx(sorted(alone), rel=1e-6)
    assert both["val_loss"] < one["val_loss"] == pytest.approx(sum(alone) / 2, rel=1e-6)

    out = tmp_path / "merged.pt"
    (merged,) = rows(capsys, "--merge", first, last, f"--out={out}")
    weights = evaluate.read(out)["model"]
    for name in weights:
        mean = (xs[0][name] + xs[1][name]) / 2
        torch.testing.assert_close(weights[name].double(), mean, rtol=1e-5, atol=1e-6)
    (again,) = rows(capsys, out)
    assert again["val_loss"] == merged["val_loss"]


def test_a_branch_from_merged_weights_averages_anew(free, run, tmp_path, capsys):
    out = tmp_path / "merged.pt"
    (merged,) = rows(capsys, "--merge", *free, f"--out={out}")
    options = SHORT | dict(optimizer="schedule_free", schedule="constant", cooldown_steps=None, total_steps=40)
    state = run("branch", **options, init_from=str(out), stop_at=25, eval_tokens=0)
    assert {x["step"]: x for x in lines(tmp_path, "branch")}[24]["val_loss"] == merged["val_loss"]
    for of_p in state["optimizer"]["state"].values():
        assert of_p["weight_sum"] == pytest.approx(1e-4) and of_p["step"] == 25


def test_schedule_free_refuses_what_it_cannot_do(free, run, tmp_path, capsys):
    options = dict(SHORT, optimizer="schedule_free")
    with pytest.raises(Mistake, match="window_horizon, .*schedule_free averages its weights itself"):
        run("mistake", **options | {"window_horizon": 10})
    with pytest.raises(Mistake, match="beta1=0: schedule_free"):
        run("mistake", **options, beta1=0.0)
    slim = tmp_path / "slim.pt"
    sealed.write(slim, checkpoint.load(free[1]) | {"optimizer": None})
    with pytest.raises(Mistake, match="slim.pt: its weights are made from the state of schedule_free"):
        rows(capsys, slim)


def test_a_rank_may_have_no_rows_of_several_tensors():
    """Tensors without numbers all lie at the same place in memory, which is none."""
    weights = {"a": torch.empty(0, 2), "b": torch.empty(0)}
    of = {i: {"z": w.clone(), "beta1": 0.9} for i, w in enumerate(weights.values())}
    state = {"state": of, "param_groups": [{"names": ["a", "b"], "params": [0, 1]}]}
    found = optim.final_weights("schedule_free", weights, state)
    assert {name: w.shape for name, w in found.items()} == {name: w.shape for name, w in weights.items()}
