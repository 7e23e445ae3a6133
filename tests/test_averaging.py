"""Tests of averaging.py: closed forms and means of saved iterates in float64, torch's own averages, and equal bits.

python -m pytest tests/test_averaging.py
"""

import ast
import io
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

import averaging
import schedules
import sealed
from averaging import EMA, MERGE_SHAPES, Span, WindowAverage, merge, merge_weights, swapped
from model import Llama, Shape

torch.set_num_threads(1)
EITHER_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


class Net(nn.Module):
    """A tied pair, a scalar, buffers of floating-point numbers and an integer, and one that state_dict leaves out."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.02, generator=generator)
        self.to(dtype)

    def forward(self, x):
        return self.head(self.norm(self.embedding(x)) * self.scale + self.table)


NAMES = ["scale", "embedding.weight", "norm.weight", "norm.bias"]  # each parameter once
BUFFERS = ["norm.running_mean", "norm.running_var"]  # those that come along
N_PARAMS = 28 + 4 + 4 + 1


def walk(model, stop, start=0, std=1e-3):
    """Make the updates start .. stop - 1 of a random walk, the same one whatever the start; yield the steps made."""
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(std * torch.randn(parameter.shape, generator=generator))
        yield step + 1


def iterate(model):
    return {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}


def mean(iterates, weights=None):
    return {name: np.average([x[name] for x in iterates], axis=0, weights=weights) for name in iterates[0]}


def error(average, exact):
    """Largest error of a weight, relative to the largest weight of its tensor."""
    return max(np.abs(average[n].double().numpy() - exact[n]).max() / np.abs(exact[n]).max() for n in exact)


def frozen(tensors):
    return {name: t.detach().clone() for name, t in tensors.items()}


def raw(tensor):
    return tensor.detach().reshape(-1).view(torch.uint8)  # to tell -0.0 from 0.0, and NaN to be itself


def same(a, b):
    """Whether two dicts of tensors agree in every bit and dtype."""
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(raw(a[n]), raw(b[n])) for n in a)


def through_disk(state):
    """A state as a checkpoint gives it back: by way of a file, and read as plain data only."""
    assert sealed.unsafe(state) is None
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Which steps


def test_blocks_end_with_their_last_step_and_the_last_ones_are_held():
    model = Net()
    window, seen = WindowAverage(model, horizon=10, every=5, keep=2), {}
    assert window.span() is None and window.span(0) is None and window.completed == 0
    for step in walk(model, 45):
        window.update(step)
        seen[step] = (window.span(), window.span(0), window.completed)
    assert seen[4] == (None, None, 0)
    assert seen[5] == (Span(1, 5, 1), Span(1, 5, 1), 0)  # as far as it goes
    assert seen[9] == seen[5]
    assert seen[10] == (Span(1, 10, 2), None, 1)
    assert seen[15] == (Span(1, 15, 3), Span(11, 15, 1), 1)  # the last block, and the one that is filling
    assert seen[20] == (Span(11, 20, 2), None, 2)
    assert seen[45] == (Span(31, 45, 3), Span(41, 45, 1), 2)
    assert [window.span(b) for b in (1, 2)] == [Span(31, 40, 2), Span(21, 40, 4)]
    assert [seen[s][0].steps for s in (5, 10, 15, 20)] == [5, 10, 15, 10]
    with pytest.raises(ValueError, match="blocks=3: 2 completed blocks are held"):
        window.average(3)


def test_the_newest_average_is_over_its_span_and_never_stale():
    model, iterates = Net(), {}
    window = WindowAverage(model, horizon=20, every=5)
    for step in walk(model, 70):
        window.update(step)
        if step % 5 == 0:
            iterates[step] = iterate(model)
        if step >= 5:
            first, last, samples = window.span()
            in_span = [x for at, x in iterates.items() if first <= at <= last]
            assert last == step // 5 * 5 and len(in_span) == samples == (last - first + 1) // 5
            assert error(window.average(), mean(in_span)) < 1e-6


@pytest.mark.parametrize("horizon, every", [(1, 1), (3, 1), (4, 4), (12, 3)])
def test_horizon_sweep_is_the_mean_over_the_saved_iterates(horizon, every):
    model, iterates = Net(), []
    window = WindowAverage(model, horizon, every, keep=4)
    for step in walk(model, 6 * horizon + every):
        window.update(step)
        if step % every == 0:
            iterates.append(iterate(model))
        if step % horizon == 0:
            for blocks in range(1, min(step // horizon, 4) + 1):
                n = blocks * horizon // every
                assert window.span(blocks) == Span(step - blocks * horizon + 1, step, n)
                assert error(window.average(blocks), mean(iterates[-n:])) < 1e-6
                assert n == 1 or error(window.average(blocks), mean(iterates[-n + 1 :])) > 1e-4  # one left out
    assert window.completed == 4


def test_switched_on_late_or_with_steps_missing_blocks_are_still_those_of_absolute_steps():
    model, iterates = Net(), {}
    window = WindowAverage(model, horizon=20, every=5)
    for step in walk(model, 90, start=32):
        if not 58 < step < 72:  # misses the end of a block and the beginning of the next
            window.update(step)
            iterates[step] = iterate(model)
    held = [(b.first, b.last, b.samples) for b in window.blocks]
    assert held == [(31, 40, 2), (41, 55, 3), (71, 80, 2), (81, 90, 2)]
    assert window.completed == 3 and window.span(2) == Span(41, 80, 5)
    assert error(window.average(2), mean([iterates[s] for s in (45, 50, 55, 75, 80)])) < 1e-6


@pytest.mark.parametrize("make", [lambda m: WindowAverage(m, 10, 5), lambda m: EMA(m, 0.9, every=5)])
def test_a_step_is_averaged_once(make):
    average = make(Net())
    for step in (1, 3, 3, 5, 6, 6):
        average.update(step)
    for step, newest in ((5, 5), (10, None), (5, 10)):
        if newest is None:
            average.update(step)
        else:
            with pytest.raises(ValueError, match=f"step={step}: {newest} is averaged already"):
                average.update(step)


# How exact


@pytest.mark.parametrize(
    "dtype, horizon, blocks, rms, worst",
    [
        (torch.bfloat16, 500, 1, 4e-8, 6e-8),  # exact but for the division
        (torch.bfloat16, 100, 5, 4e-8, 6e-8),
        (torch.float32, 100, 5, 2e-7, 1e-6),
        (torch.float32, 500, 1, 4e-7, 2e-6),  # 500 roundings in a row: the worst of 3000 weights is 4 rms off
    ],
)
def test_mean_of_500_states_is_that_of_float64(dtype, horizon, blocks, rms, worst):
    weights = [torch.empty(3000, dtype=dtype)]
    window, generator, total = WindowAverage(weights, horizon, every=1), torch.Generator().manual_seed(0), 0
    for step in range(1, 501):
        weights[0].copy_(1 + 0.1 * torch.randn(3000, generator=generator))
        window.update(step)
        total = total + weights[0].double().numpy()
    exact, average = {"0": total / 500}, window.average(blocks)
    ours = average["0"].double().numpy()
    assert window.span(blocks) == Span(1, 500, 500) and average["0"].dtype == torch.float32
    assert np.linalg.norm(ours - exact["0"]) < rms * np.linalg.norm(exact["0"])
    assert error(average, exact) < worst
    assert error({"0": average["0"].bfloat16()}, exact) > 1e-3  # the least that a mean kept in bf16 loses


def test_window_is_torchs_average():
    model = Net()
    window, theirs = WindowAverage(model, horizon=300, every=3), AveragedModel(model)
    for step in walk(model, 300):
        window.update(step)
        if step % 3 == 0:
            theirs.update_parameters(model)
    ours, theirs = window.average(1), dict(theirs.module.named_parameters())
    assert all(torch.allclose(ours[n], theirs[n], rtol=1e-6, atol=1e-8) for n in NAMES)  # a sum, a running mean
    assert not any(torch.allclose(ours[n], p, rtol=1e-6, atol=1e-8) for n, p in model.named_parameters())


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_ema_without_bias_correction_is_torchs_to_the_bit(decay):
    model = Net()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    emas = [EMA(model, decay, bias_corrected=False), EMA(model, decay / 2, bias_corrected=False)]
    for step in walk(model, 50):
        theirs.update_parameters(model)
        for ema in emas:  # several at once
            ema.update(step)
    theirs = {n: t for n, t in theirs.module.state_dict().items() if n in NAMES + BUFFERS}
    assert same(emas[0].average(), theirs)
    assert not same(emas[1].average(), theirs)


@pytest.mark.parametrize("decay, half_life, every", [(0.9, None, 1), (0.5, None, 4), (None, 6.0, 3), (None, 50, 1)])
def test_ema_is_its_closed_form(decay, half_life, every):
    model, iterates = Net(), []
    corrected, plain = (EMA(model, decay, half_life, every, bias_corrected=yes) for yes in (True, False))
    d = decay or 2 ** (-every / half_life)
    for step in walk(model, 40):
        corrected.update(step)
        plain.update(step)
        if step % every == 0:
            iterates.append(iterate(model))
            n = len(iterates)
            powers = d ** np.arange(n - 1, -1, -1.0)  # oldest first
            from_first = np.where(np.arange(n) == 0, 1, 1 - d) * powers
            assert corrected.span() == plain.span() == Span(1, step, n)
            assert error(corrected.average(), mean(iterates, powers)) < 1e-6
            assert error(plain.average(), mean(iterates, from_first)) < 1e-6
            assert n < 3 or error(corrected.average(), mean(iterates, from_first)) > 1e-5 or n * np.log(d) < -8


# Saved and loaded

MAKE = {
    "window": lambda model, **options: WindowAverage(model, **{"horizon": 12, "every": 3, "keep": 2} | options),
    "ema": lambda model, **options: EMA(model, **{"half_life": 8, "every": 3} | options),
}


@EITHER_DTYPE
@pytest.mark.parametrize("kind", MAKE)
def test_resumed_at_any_step_is_uninterrupted(kind, dtype):
    STEPS = 40  # 12, 24 and 36 end a block; 24 and before are held no more

    def run(start=0, state=None, weights=None):
        model, saved = Net(dtype), {}
        average = MAKE[kind](model)
        if start:
            model.load_state_dict(weights)
        if state:
            average.load_state_dict(state)
        for step in walk(model, STEPS, start):
            average.update(step)
            if not start:
                saved[step] = through_disk({"average": average.state_dict(), "model": model.state_dict()})
        return average, saved

    def differs(a, b):
        return a.span() != b.span() or not same(a.average(), b.average())

    def all_bits(average):
        return [frozen(block["tensors"]) for block in average.state_dict()["blocks"]]

    whole, saved = run()
    for step in range(1, STEPS):
        resumed, _ = run(step, saved[step]["average"], saved[step]["model"])
        assert resumed.span() == whole.span() and same(resumed.average(), whole.average())
        assert all(same(a, b) for a, b in zip(all_bits(resumed), all_bits(whole), strict=True))
    for step in (17, 31):
        assert differs(run(35, saved[step]["average"], saved[35]["model"])[0], whole)  # of another step
        assert differs(run(31, None, saved[31]["model"])[0], whole)  # left out


@pytest.mark.parametrize(
    "kind, now, message",
    [
        ("window", {"horizon": 6}, "horizon=6, but it was saved with 12"),
        ("window", {"every": 4}, "every=4, but it was saved with 3"),
        ("window", {"keep": 3}, "keep=3, but it was saved with 2"),
        ("ema", {"half_life": 9}, "half_life=9, but it was saved with 8"),
        ("ema", {"half_life": None, "decay": 0.9}, "decay=0.9, but it was saved with None"),
        ("ema", {"every": 2}, "every=2, but it was saved with 3"),
        ("ema", {"bias_corrected": False}, "bias_corrected=False, but it was saved with True"),
    ],
)
def test_a_state_of_other_settings_is_refused(kind, now, message):
    average, other = MAKE[kind](Net()), MAKE[kind](Net(), **now)
    average.update(12)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(average.state_dict())
    assert other.span() is None
    MAKE[kind](Net()).load_state_dict(average.state_dict())


def test_a_state_of_another_model_or_kind_is_refused():
    window, ema, wider = WindowAverage(Net()), EMA(Net(), 0.9, every=5), Net()
    wider.norm = nn.BatchNorm1d(5)
    window.update(5)
    with pytest.raises(ValueError, match="kind='EMA', but it was saved with 'WindowAverage'"):
        ema.load_state_dict(window.state_dict())
    with pytest.raises(ValueError, match="another model: weight is missing in it, and should be "):
        WindowAverage(nn.Linear(4, 7)).load_state_dict(window.state_dict())
    with pytest.raises(ValueError, match=r"norm.weight is \(4,\) in it, and should be \(5,\)"):
        WindowAverage(wider).load_state_dict(window.state_dict())


def test_loading_copies():
    model = Net()
    window, other = WindowAverage(model, 10, 5), WindowAverage(model, 10, 5)
    window.update(5)
    state = window.state_dict()
    before = frozen(state["blocks"][0]["tensors"])
    other.load_state_dict(state)
    for step in walk(model, 10, start=5):
        other.update(step)
    assert same(state["blocks"][0]["tensors"], before)
    assert window.span() == Span(1, 5, 1) and other.span() == Span(1, 10, 2)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda m: WindowAverage(m, horizon=12, every=5), "horizon=12: expected a multiple of every=5"),
        (lambda m: WindowAverage(m, horizon=0), "horizon=0: expected a whole number"),
        (lambda m: WindowAverage(m, every=0), "every=0: expected a whole number"),
        (lambda m: WindowAverage(m, keep=0), "keep=0: expected a whole number"),
        (lambda m: WindowAverage(m, horizon=500.0), "horizon=500.0: expected a whole number"),
        (lambda m: WindowAverage([]), "nothing to average"),
        (lambda m: WindowAverage(m).average(), "no sample yet"),
        (lambda m: WindowAverage(m).average(0), "no sample yet"),
        (lambda m: WindowAverage(m).average(1), "blocks=1: 0 completed blocks"),
        (lambda m: EMA(m, 0.9).average(1), "blocks=1: 0 completed blocks"),
        (lambda m: EMA(m), "decay=None, half_life=None: give one"),
        (lambda m: EMA(m, 0.9, 10), "decay=0.9, half_life=10: give one"),
        (lambda m: EMA(m, 1.0), "decay=1.0: expected a number between 0 and 1"),
        (lambda m: EMA(m, half_life=0), "half_life=0: expected a number of steps"),
        (lambda m: EMA(m, 0.9, every=0), "every=0: expected a whole number"),
        (lambda m: EMA(m, 0.9).average(), "no sample yet"),
    ],
)
def test_mistakes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(Net())


# Models, and what is in them


def test_tied_parameters_count_once():
    model = Net()
    window, ema = WindowAverage(model, 4, 1), EMA(model, 0.5)
    for step in (1, 2, 3, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        window.update(step)
        ema.update(step)
    average = window.average()
    assert list(average) == list(ema.average()) == NAMES + BUFFERS
    assert all((average[n] == 2.5).all() for n in NAMES)
    assert all(((ema.average()[n] - 49 / 15).abs() < 1e-6).all() for n in NAMES)  # (1 + 2 * 2 + 3 * 4 + 4 * 8) / 15
    with swapped(model, average):
        assert all((p == 2.5).all() for p in model.parameters()) and model.head.weight is model.embedding.weight
    assert all((p == 4).all() for p in model.parameters())


def test_buffers_come_along_as_they_are_in_the_model_now():
    model = Net()
    window = WindowAverage(model, 10, 5)
    window.update(5)
    model.norm.running_mean.fill_(3)
    average = window.average()
    assert average["norm.running_mean"].tolist() == [3, 3, 3, 3]
    average["norm.running_mean"].fill_(4)
    assert model.norm.running_mean.tolist() == [3, 3, 3, 3]
    with swapped(model, average):
        assert model.norm.running_mean.tolist() == [4, 4, 4, 4]
        model(torch.arange(7))
        assert model.norm.num_batches_tracked == 1
    assert model.norm.running_mean.tolist() == [3, 3, 3, 3] and model.norm.num_batches_tracked == 0


@pytest.fixture(scope="module")
def ddp():
    """DDP itself, in a group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", ["compiled", "ddp", "ddp of compiled", "compiled ddp", "part compiled"])
def test_wrapped_models_are_the_models_in_them(wrap, ddp):
    model, plain = Net(), WindowAverage(Net(), 10, 5)
    own = frozen(model.state_dict())
    if wrap == "part compiled":
        model.norm = torch.compile(model.norm)
    wrapped = {
        "compiled": torch.compile,
        "ddp": ddp,
        "ddp of compiled": lambda m: ddp(torch.compile(m)),
        "compiled ddp": lambda m: torch.compile(ddp(m)),
        "part compiled": lambda m: m,
    }[wrap](model)
    window = WindowAverage(wrapped, 10, 5)
    for average in (window, plain):
        average.update(5)
    assert list(window.average()) == NAMES + BUFFERS and same(window.average(), plain.average())
    with swapped(wrapped, {name: t + 1 for name, t in plain.average().items()}):
        assert torch.equal(model.scale, own["scale"] + 1)
        assert torch.equal(model.head.weight, own["head.weight"] + 1)
    assert same(averaging.bare_names(model.state_dict()), own)
    plain.load_state_dict(window.state_dict())  # a run may go on without its wrapper
    assert any(name not in NAMES for name in dict(wrapped.named_parameters()))


def test_a_list_of_parameters_has_their_places_as_names():
    model = Net()
    parameters = [model.embedding.weight, model.head.weight, model.scale, torch.arange(3)]
    own = frozen(model.state_dict())
    for source in (parameters, (p for p in parameters)):
        window = WindowAverage(source, 10, 5)
        window.update(5)
        assert same(window.average(), {"0": model.embedding.weight, "2": model.scale})
    with swapped(parameters, {"0": torch.full((7, 4), 9.0), "2": torch.tensor(8.0)}):
        assert (model.head.weight == 9).all() and model.scale == 8
    assert same(model.state_dict(), own)


def test_models_of_several_dtypes():
    model, iterates = Net(), []
    model.norm.to(torch.bfloat16)
    window, ema = WindowAverage(model, 6, 1), EMA(model, 0.9)
    for step in walk(model, 6, std=0.1):
        window.update(step)
        ema.update(step)
        iterates.append(iterate(model))
    average = window.average()
    assert error(average, mean(iterates)) < 1e-6
    assert error(ema.average(), mean(iterates, 0.9 ** np.arange(5, -1, -1.0))) < 1e-6
    assert all(average[name].dtype == torch.float32 for name in NAMES)
    with swapped(model, average):
        assert torch.equal(model.norm.weight, average["norm.weight"].bfloat16())
        assert torch.equal(model.scale, average["scale"])


# Reading changes nothing


@EITHER_DTYPE
def test_evaluating_averages_at_every_step_or_never_changes_nothing(dtype):
    def run(look, after=lambda window: None):
        model = Net(dtype)
        window, ema = WindowAverage(model, 10, 5, keep=2), EMA(model, 0.9)
        for step in walk(model, 38):
            for average in (window, ema):
                average.update(step)
                if look and average.span():
                    average.state_dict()
                    with swapped(model, average.average()), torch.no_grad():
                        model(torch.arange(7))  # in training mode, so batch norm's buffers move
            after(window)
        return [model.state_dict(), *(block["tensors"] for a in (window, ema) for block in a.state_dict()["blocks"])]

    never = run(False)
    assert len(never) == 1 + 3 + 1
    assert all(map(same, run(True), never))
    touched = run(False, after=lambda window: [t.mul_(1 + 1e-6) for block in window.blocks for t in block.tensors])
    assert not all(map(same, touched, never))


@EITHER_DTYPE
def test_swap_gives_back_every_bit_also_when_the_body_raises(dtype):
    model = Net(dtype)
    with torch.no_grad():
        model.embedding.weight[0, :2] = torch.tensor([-0.0, float("nan")])
    tensors = {**model.state_dict(), "table": model.table}
    own, places = frozen(tensors), {name: t.data_ptr() for name, t in tensors.items()}
    average = {name: torch.full_like(t, 1 / 3, dtype=torch.float32) for name, t in model.named_parameters()}
    with pytest.raises(KeyError), swapped(model, average):
        assert all((p == torch.tensor(1 / 3).to(dtype)).all() for p in model.parameters())
        with torch.no_grad():
            for t in tensors.values():
                t.add_(1)
        raise KeyError
    assert same(tensors, own) and {name: t.data_ptr() for name, t in tensors.items()} == places
    assert all((t == torch.tensor(1 / 3)).all() for t in average.values())


def test_swap_refuses_an_average_of_another_model_before_it_changes_anything():
    model = Net()
    own, average = frozen(model.state_dict()), {name: p.detach() + 1 for name, p in model.named_parameters()}
    for odd, message in (
        ({n: t for n, t in average.items() if n != "scale"}, "scale is missing in it"),
        (average | {"scales": torch.ones(())}, r"scales is \(\) in it, and should be missing"),
        (average | {"scale": torch.ones(2)}, r"scale is \(2,\) in it, and should be \(\)"),
    ):
        with pytest.raises(ValueError, match=message), swapped(model, odd):
            raise AssertionError("entered")
        assert same(model.state_dict(), own)


@pytest.mark.parametrize("make", [lambda m, d: WindowAverage(m, 10, 1, device=d), lambda m, d: EMA(m, 0.9, device=d)])
@pytest.mark.parametrize("device", [None, "cpu"])  # on a CPU, tensor.to("cpu") is the tensor itself
def test_no_memory_is_shared(make, device):
    model = Net()
    average = make(model, device)
    average.update(1)
    returned = average.average()
    as_returned = frozen(returned)
    with swapped(model, returned), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert same(returned, as_returned)  # the model was written to, in its swapped state
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert same(average.average(), as_returned)  # the model moved on
    for t in returned.values():
        t.add_(1)
    assert same(average.average(), as_returned)  # what was returned was written to


# Memory


class NewMemory(TorchDispatchMode):
    """Counts operations, and records every piece of memory that they allocate, in numbers."""

    def __init__(self):
        super().__init__()
        self.calls, self.sizes = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        given = {t.untyped_storage().data_ptr() for t in tensors_in((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        self.sizes += [t.numel() for t in tensors_in(out) if t.untyped_storage().data_ptr() not in given]
        return out


def tensors_in(tree):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@EITHER_DTYPE
def test_one_copy_of_the_model_for_each_block_and_one_more(dtype, monkeypatch):
    monkeypatch.setattr(averaging, "PIECE", 16)
    model = Net(dtype)
    window, ema, held = WindowAverage(model, horizon=10, every=5, keep=3), EMA(model, 0.9, every=5), {}
    for step in range(1, 61):
        with NewMemory() as new:
            window.update(step)
        if step % 10 == 5:
            assert sum(new.sizes) == N_PARAMS  # a block begins
        elif dtype == torch.float32 or step % 5:
            assert new.sizes == [] and new.calls == (step % 5 == 0)  # one _foreach for all parameters
        else:
            assert max(new.sizes) == 16  # bf16 is cast piece by piece
        ema.update(step)
        held[step] = sum(t.numel() for block in window.blocks for t in block.tensors) / N_PARAMS
        assert sum(t.numel() for block in ema.blocks for t in block.tensors) == (N_PARAMS if step >= 5 else 0)
    assert [held[s] for s in (4, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50)] == [0, 1, 1, 2, 2, 3, 3, 4, 3, 4, 3]
    tensors = [t for a in (window, ema) for block in a.blocks for t in block.tensors]
    assert all(t.dtype == torch.float32 and t.untyped_storage().nbytes() == 4 * t.numel() for t in tensors)


# Merging checkpoints


def save_all(folder, states):
    paths = [folder / f"{i}.pt" for i in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        torch.save({"model": state, "optimizer": {"state": torch.zeros(9)}}, path)
    return paths


@EITHER_DTYPE
def test_merge_of_a_tied_model_is_the_mean_in_every_tensor(dtype, tmp_path):
    model, states = Llama(Shape(60, n_layer=1, n_head=2, n_embd=8, seq_len=4)).to(dtype), []
    for value in (1, 2, 3, 4):
        states.append({name: torch.full_like(t, value) for name, t in model.state_dict().items()})
        states[-1]["head.weight"] = states[-1]["embedding.weight"]
    merged = merge(save_all(tmp_path, states))
    assert merged.keys() == model.state_dict().keys()
    assert all((t == 2.5).all() and t.dtype == dtype for t in merged.values())
    assert merged["head.weight"] is merged["embedding.weight"]
    model.load_state_dict(merged)
    torch.save({"model": merged}, tmp_path / "merged.pt")
    assert (tmp_path / "merged.pt").stat().st_size < (tmp_path / "0.pt").stat().st_size + 1000
    weighted = merge(save_all(tmp_path, states), [0.1, 0.2, 0.3, 0.4])
    assert all((t == 3).all() for t in weighted.values())


def test_merge_of_walks_is_the_float64_mean_and_keeps_what_is_not_averaged(tmp_path):
    model, states = Net(), []
    for step in walk(model, 5):
        model.norm.num_batches_tracked.fill_(step)
        states.append(frozen(model.state_dict()))
        states[-1]["head.weight"] = states[-1]["embedding.weight"] if step > 1 else states[-1]["head.weight"]
    weights = merge_weights("1-sqrt", 5)
    merged = merge(save_all(tmp_path, states), weights)
    exact = {n: sum(w * s[n].double() for w, s in zip(weights, states, strict=True)) for n in NAMES + ["head.weight"]}
    assert all(torch.equal(merged[n], exact[n].float()) for n in exact)
    assert merged["norm.num_batches_tracked"] == 5
    assert merged["head.weight"] is merged["embedding.weight"]
    with swapped(model, merged):  # a merge goes in as an average does
        assert torch.equal(model.head.weight, merged["head.weight"])
    wrapped = [{f"module._orig_mod.{name}": t for name, t in state.items()} for state in states]
    assert same(merge([0, 1, 2, 3, 4], weights, key=None, load=lambda i: wrapped[i]), merged)
    states[0]["head.weight"] = states[0]["head.weight"] + 1
    apart = merge(save_all(tmp_path, states), weights)
    assert torch.equal(apart["embedding.weight"], merged["embedding.weight"])
    assert not torch.equal(apart["head.weight"], merged["head.weight"])


def test_merge_has_one_checkpoint_in_memory_at_a_time():
    alive = []

    def load(path):
        assert not any(ref() is not None for ref in alive)
        state = {"a": torch.ones(3), "b": torch.ones(3)}
        alive.extend(weakref.ref(t) for t in state.values())
        return {"model": state}

    assert (merge(range(3), load=load)["a"] == 1).all() and len(alive) == 6


def test_merge_says_which_file_does_not_fit(tmp_path):
    states = [frozen(Net().state_dict()) for _ in range(3)]
    states[1]["scale"] = torch.ones(2)
    paths = save_all(tmp_path, states)
    with pytest.raises(ValueError, match=r"1.pt is of another model: scale is \(2,\) in it, and should be \(\)"):
        merge(paths)
    del states[1]["scale"]
    with pytest.raises(ValueError, match="1.pt is of another model: scale is missing in it"):
        merge(save_all(tmp_path, states))
    states[1] |= {"scale": torch.ones(()), "bias": torch.ones(())}
    with pytest.raises(ValueError, match="1.pt is of another model: bias is .* and should be missing"):
        merge(save_all(tmp_path, states))
    with pytest.raises(ValueError, match="0.pt has no 'weights': it has model, optimizer"):
        merge(paths, key="weights")
    for bad in ([0.5, 0.5], [0.5, 0.5, 0.5], [float("nan")] * 3):
        with pytest.raises(ValueError, match="3 checkpoints, weights=.*: expected one for each, that add up to 1"):
            merge(paths, bad)
    with pytest.raises(ValueError, match="0 checkpoints"):
        merge([])


# Merges that imitate a cooldown


@pytest.mark.parametrize("shape", [*MERGE_SHAPES, lambda x: (1 - x) ** 3, lambda x: 1.0])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 50])
def test_merge_of_constant_lr_sgd_is_sgd_with_the_decayed_lr(shape, n):
    function = MERGE_SHAPES[shape] if isinstance(shape, str) else shape
    generator = np.random.default_rng(0)
    gradients, start, lr = generator.normal(size=(n, 20)), generator.normal(size=20), 0.1

    def sgd(factors):
        visited = [start]
        for factor, gradient in zip(factors, gradients, strict=True):
            visited.append(visited[-1] - lr * factor * gradient)
        return np.array(visited[1:])  # the first update, at the full LR, leads to the oldest checkpoint

    weights = merge_weights(shape, n)
    merged = np.tensordot(weights, sgd([1] * n), axes=1)
    decayed = sgd([function(i / n) for i in range(n)])[-1]
    assert np.abs(merged - decayed).max() < 1e-10
    assert sum(weights) == pytest.approx(1, rel=1e-12) and min(weights) >= 0 and len(weights) == n
    shifted = np.tensordot(np.roll(weights, 1), sgd([1] * n), axes=1)
    assert np.ptp(weights) < 1e-12 or np.abs(shifted - decayed).max() > 1e-3
    if n > 1:  # the same from the factors themselves
        assert merge_weights([function(i / n) for i in range(1, n)], n) == weights


def test_merge_weights_of_a_schedule_are_those_of_its_updates():
    schedule = schedules.wsd(20, cooldown_steps=8, cooldown_shape="1-sqrt")  # full up to update 12
    ours = merge_weights([schedule(k) for k in range(13, 20)], 8)  # checkpoints of steps 13 .. 20
    assert ours == pytest.approx(merge_weights("1-sqrt", 8), rel=1e-12)
    for name, shape in schedules.AFFINE.items():
        if name in MERGE_SHAPES:
            assert merge_weights(name, 7) == merge_weights(shape, 7)


def test_merge_weights_literally():
    assert merge_weights("uniform", 4) == merge_weights("linear", 4) == [0.25] * 4
    assert merge_weights("1-sqrt", 4) == pytest.approx([0.5, 0.5**0.5 - 0.5, 0.75**0.5 - 0.5**0.5, 1 - 0.75**0.5])
    assert merge_weights("1-square", 4) == [1 / 16, 3 / 16, 5 / 16, 7 / 16]
    assert merge_weights([1, 1, 0.5], 4) == [0, 0, 0.5, 0.5]
    for shape, n, message in (("sqrt", 3, "choose one of uniform, linear"), ([0.5], 3, "n=3"), ("linear", 0, "n=0")):
        with pytest.raises(ValueError, match=message):
            merge_weights(shape, n)
    with pytest.raises(ValueError, match="nan"):
        merge_weights(lambda x: float("nan"), 3)


def test_the_file_works_alone():
    nodes = list(ast.walk(ast.parse(Path(averaging.__file__).read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names == {"torch"}
