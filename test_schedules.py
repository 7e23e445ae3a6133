"""Tests of schedules.py: the rates that the paper's runs logged, torch's and Hugging Face's schedules, literal lists.

python -m pytest test_schedules.py
"""

import inspect
import math
import pickle
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from transformers.optimization import get_wsd_schedule

import schedules
from schedules import (
    SCHEDULES,
    SHAPES,
    constant,
    cooldown,
    cosine,
    cosine_inf,
    inverse_sqrt,
    linear,
    onecycle,
    power,
    wsd,
    wsd_s,
)

SEEDED = settings(derandomize=True, deadline=None, max_examples=50)
LENGTH, FRAC = st.integers(0, 40), st.floats(0.001, 0.9)
close = partial(pytest.approx, rel=1e-12, abs=0)


def values(schedule, stop, start=0):
    return [schedule(k) for k in range(start, stop)]


def cubed(x):
    return (1 - x) ** 3


def every(n):
    """One of each schedule and cooldown shape, 20 n updates long, with every length in proportion to n."""
    return {f"wsd {shape}": wsd(20 * n, 4 * n, 6 * n, None, shape, 0.1) for shape in [*SHAPES, "power:0.7"]} | {
        "wsd half-life": wsd(20 * n, 4 * n, 6 * n, None, f"exponential:{2 * n}"),
        "wsd function": wsd(20 * n, 4 * n, 6 * n, None, cubed),
        "constant": constant(4 * n),
        "cosine": cosine(20 * n, 4 * n),
        "linear": linear(20 * n, 4 * n),
        "inverse_sqrt": inverse_sqrt(4 * n),
        "power": power(8 * n, warmup_steps=4 * n),
        "wsd_s": wsd_s(20 * n, (10 * n,), 4 * n, cooldown_frac=0.2),
        "cosine_inf": cosine_inf(12 * n, 4 * n),
        "onecycle": onecycle(20 * n, 4 * n),
        "inverse_sqrt, cooled": cooldown(inverse_sqrt(4 * n), 20 * n, 6 * n, "linear", final_lr_frac=0.1),
    }


# The rate logged at "iter" k is that of update k. rel is 1e-9, or half of the last digit where few are printed.
COSINE = {50: 1.5350299180558842e-4, 100: 5.180058079879229e-4, 250: 1.871666366821391e-3, 300: 1.9999999527970883e-3}
COSINE |= {350: 1.9998772280175434e-3, 5000: 1.1434148535470331e-3, 9950: 2.0011333181285044e-4}
LINEAR = wsd(3000, 300, cooldown_frac=0.2, cooldown_shape="linear")


@pytest.mark.parametrize(
    "schedule, peak, rel, logged",
    [
        (wsd(10_000, 300, 0), 1e-3, 1e-9, {50: 1.75e-4, 100: 3.4e-4, 250: 8.35e-4, 300: 1e-3, 9950: 1e-3, 10_000: 0}),
        (onecycle(10_000, 300), 2e-3, 1e-9, COSINE | {10_000: 2.0000004720291148e-4}),
        (LINEAR, 1e-3, 1e-9, {2400: 1e-3, 2700: 5e-4, 3000: 0}),
        (LINEAR, 1e-3, 5.5e-8, {2450: 9.166667e-4}),
        (LINEAR, 1e-3, 6e-6, {2950: 8.3333e-5}),
        (wsd(50_000, 300), 1e-3, 1e-9, {40_050: 9.292893218813453e-4, 45_000: 2.9289321881345245e-4}),
        (wsd(50_000, 300), 1e-3, 1e-9, {49_950: 2.5031328369998774e-6, 50_000: 0}),
        (onecycle(50_000, 300, final_lr_frac=1e-4), 1e-3, 4.9e-8, {49_950: 1.0239814e-7}),
    ],
)
def test_golden_values_of_the_paper_logs(schedule, peak, rel, logged):
    assert {k: peak * schedule(k) for k in logged} == close(logged, rel=rel)


WARM = [0.01, 0.505, 1, 1, 1, 1, 1]  # W = 2, then full up to and including k = N - D = 6
COS8 = [1, 0.9619397662556434, 0.8535533905932737, 0.6913417161825449, 0.5]  # (1 + cos(pi i / 8)) / 2
COS8 += [0.30865828381745514, 0.14644660940672624, 0.03806023374435663, 0]
LITERAL = {  # from k = 0 to N or further
    "constant(4)": [0.01, 0.2575, 0.505, 0.7525, 1, 1, 1, 1, 1, 1],
    "constant()": [1, 1, 1],
    "wsd(10, 2, 4)": [*WARM, 0.5, 0.2928932188134524, 0.1339745962155614, 0, 0],  # 1-sqrt
    "wsd(10, 2, 4, None, 'linear')": [*WARM, 0.75, 0.5, 0.25, 0, 0],
    "wsd(10, 2, 4, None, 'linear', 0.2)": [*WARM, 0.8, 0.6, 0.4, 0.2, 0.2],
    "wsd(10, 2, 4, None, 'cosine')": [*WARM, 0.8535533905932737, 0.5, 0.14644660940672624, 0, 0],
    "wsd(10, 2, 4, None, 'mirror-cosine')": [*WARM, 0.6464466094067263, 0.5, 0.3535533905932738, 0, 0],
    "wsd(10, 2, 4, None, '1-square')": [*WARM, 15 / 16, 3 / 4, 7 / 16, 0, 0],
    "wsd(10, 2, 4, None, 'power:3')": [*WARM, 63 / 64, 7 / 8, 37 / 64, 0, 0],
    "wsd(10, 2, 4, None, cubed, 0.2)": [*WARM, 0.2 + 0.8 * 27 / 64, 0.2 + 0.8 / 8, 0.2 + 0.8 / 64, 0.2, 0.2],
    "wsd(10, 2, 4, None, 'exponential', 1 / 16)": [*WARM, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16],
    "wsd(10, 2, 4, None, 'exponential:1')": [*WARM, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16],  # halves at every step
    "wsd(10, 2, 4, None, 'inverse-linear', 0.2)": [*WARM, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 5],
    "wsd(10)": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0.2928932188134524, 0],  # the last fifth
    "cosine(10, 2, 0.0)": [0.01, 0.505, *COS8, 0],
    "cosine(10, 2)": [0.01, 0.505, *(0.1 + 0.9 * c for c in COS8), 0.1],
    "cosine_inf(8, 0, 0.2)": [*(0.2 + 0.8 * c for c in COS8), 0.2, 0.2, 0.2],
    "linear(10, 2)": [0.01, 0.505, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0, 0],
    "inverse_sqrt(4, 0.8, 0.0)": [0, 0.25, 0.5, 0.75, 1, 0.8944271909999159, 0.816496580927726, 0.8, 0.8],
    "inverse_sqrt()": [1, 1, 0.7071067811865476, 0.5773502691896258, 1 / 2],  # 1 / sqrt(k)
    "power(4, -1, 2, 0.45)": [0.01, 0.505, 1, 1, 1, 4 / 5, 4 / 6, 4 / 7, 4 / 8, 0.45, 0.45],
    # Cooldowns of floor(0.4 x 5) = 2 and floor(0.4 x 10) = 4 updates; k = 5 begins the second cycle.
    "wsd_s(10, [5], 1, 0.4, final_lr_frac=0.2)": [0.01, 1, 1, 1, 1 / 3, 1, 1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 5],
    # Full at k = W - 1 = 1, final at k = N - 1 = 9; at N torch's cosine has turned, and its line gone on.
    "onecycle(10, 2)": [0.01, *(0.1 + 0.9 * c for c in COS8), 0.13425421036992092, 0.13425421036992092],
    "onecycle(10, 2, 'linear', 0.2)": [0.01, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1],
    # A cooldown multiplies what it is of: here 1 / sqrt(k) and a line from 2 to 0.2, times 1, 2/3, 1/3, 0
    "cooldown(inverse_sqrt(), 7, 3, 'linear')": [1, 1, 0.5**0.5, 3**-0.5, 1 / 2, 5**-0.5 * 2 / 3, 6**-0.5 / 3, 0, 0],
    "cooldown(lambda k: 2 - k / 5, 9, 3, 'linear', final_lr_frac=0.5)": [
        *(2, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6 * 5 / 6, 0.4 * 4 / 6, 0.2 * 3 / 6)
    ],
    "cooldown(wsd_s(8, [4], 0, 0.25, final_lr_frac=0.5), 8, 2, 'linear')": [1, 1, 1, 1, 1, 1, 1, 2 / 3 / 2, 0, 0],
    # Edges: no warmup, no cooldown, one step of either, nothing between them, nothing but one of them, N = 1
    "wsd(5, 0, 2, None, 'linear')": [1, 1, 1, 1, 0.5, 0],
    "wsd(5, 1, 2, None, 'linear')": [0.01, 1, 1, 1, 0.5, 0],
    "wsd(5, 2, 0)": [0.01, 0.505, 1, 1, 1, 0, 0],
    "wsd(5, 2, 1)": [0.01, 0.505, 1, 1, 1, 0, 0],
    "wsd(5, 3, 2, None, 'linear')": [0.01, 0.34, 0.67, 1, 0.5, 0],
    "wsd(4, 0, 4, None, 'linear')": [1, 0.75, 0.5, 0.25, 0],
    "wsd(2, 2, 0)": [0.01, 0.505, 0, 0],
    "wsd(4, 0, 2, None, 'linear', 1)": [1, 1, 1, 1, 1],
    "wsd(1)": [1, 0, 0],
    "wsd(1, 1)": [0.01, 0, 0],
    "wsd(1, 0, 1)": [1, 0, 0],
    "wsd_s(1, [])": [1, 0.1, 0.1],
    "cosine(1)": [1, 0.1, 0.1],
    "cosine(2, 2)": [0.01, 0.505, 0.1, 0.1],
    "linear(1, 1)": [0.01, 0, 0],
    "onecycle(3, 2)": [0.01, 1, 0.1],
}


@pytest.mark.parametrize("call", LITERAL)
def test_literal_lists(call):
    # abs: 1 + cos(pi x) is exact to a rounding of 1, however small it gets
    assert values(eval(call), len(LITERAL[call])) == close(LITERAL[call], abs=1e-16)


@SEEDED
@given(W=LENGTH, hold=LENGTH, D=st.integers(0, 40), final=FRAC)
def test_wsd_is_the_cooldown_of_a_constant_rate(W, hold, D, final):
    N = W + hold + D + 1
    for shape in [*SHAPES, "power:0.3", cubed]:
        found = cooldown(constant(W, 0.2), N, D, shape, final_lr_frac=final)
        assert values(found, N + 3) == values(wsd(N, W, D, None, shape, final, 0.2), N + 3)


def test_configs_make_a_cooldown_of_any_schedule():
    options = {"total_steps": 100, "warmup_steps": 10, "cooldown_steps": 30, "cooldown_shape": "linear"}
    for name, more in (("inverse_sqrt", {}), ("power", {"knee_steps": 20}), ("cosine_inf", {"cosine_steps": 60})):
        base = schedules.build(name, total_steps=100, warmup_steps=10, **more)
        built = schedules.build(name, **options, **more)
        assert values(built, 71) == values(base, 71) and built(85) == close(base(85) / 2) and built(100) == 0
    floor = schedules.build("cosine_inf", **options, cosine_steps=60, final_lr_frac=0.4)  # the base takes it itself
    assert floor(70) == close(0.4) and floor(100) == 0
    assert schedules.build("constant", **options, final_lr_frac=0.1)(100) == 0.1  # the base does not


def test_first_and_last_update_of_each_phase():
    schedule = wsd(1000, warmup_steps=100, cooldown_steps=200)
    expected = {0: 0.01, 1: 0.0199, 99: 0.9901, 801: 1 - math.sqrt(1 / 200), 999: 1 - math.sqrt(199 / 200)}
    assert {k: schedule(k) for k in expected} == close(expected)
    assert schedule(100) == schedule(800) == 1 and schedule(1000) == schedule(1001) == schedule(10**15) == 0


# The six shapes of the authors' code, written another way: x is the share of the cooldown that is over, r the end.
FORMS = {
    "linear": lambda x, r: 1 - x + r * x,
    "cosine": lambda x, r: 1 - (1 - r) * math.sin(math.pi * x / 2) ** 2,
    "mirror-cosine": lambda x, r: 1 - (1 - r) * (2 * x - math.sin(math.pi * x / 2) ** 2),
    "1-square": lambda x, r: r + (1 - r) * (1 - x) * (1 + x),
    "1-sqrt": lambda x, r: r + (1 - r) * (1 - x) / (1 + math.sqrt(x)),
    "exponential": lambda x, r: math.exp(x * math.log(r)),
}


@pytest.mark.parametrize("shape, final", [(s, r) for s in FORMS for r in (0.0, 0.1, 0.5) if r or s != "exponential"])
@pytest.mark.parametrize("N, W, percent", [(100, 10, 20), (777, 50, 30), (200, 100, 50), (90, 0, 100)])
def test_wsd_equals_the_formula_of_the_paper_code(N, W, percent, shape, final):
    D = percent * N // 100
    expected = [k / W + (1 - k / W) / 100 for k in range(W)] + [1.0] * (N - W - D)
    expected += [FORMS[shape](i / D, final) for i in range(D)] + [final, final]
    # abs: 1 - x and 1 + cos(pi x) cancel near x = 1
    assert values(wsd(N, W, None, percent / 100, shape, final), N + 2) == close(expected, abs=1e-15)
    assert values(wsd(N, W, D - 1, None, shape, final), N + 2) != close(expected, abs=1e-15)


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("init, final", [(0.01, 0.1), (0.01, 1e-4), (0.04, 0.5)])  # the first two: the paper's runs
@pytest.mark.parametrize("N, W", [(3, 2), (10, 9), (64, 7), (997, 300)])
def test_onecycle_equals_torch(N, W, init, final, anneal):
    authors = {"pct_start": W / N, "div_factor": 1 / init, "final_div_factor": init / final, "cycle_momentum": False}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    scheduler = OneCycleLR(optimizer, 1.0, total_steps=N, anneal_strategy=anneal.replace("cosine", "cos"), **authors)
    expected = scheduler.get_last_lr()
    for _ in range(N):  # to k = N: torch takes one step after the last update
        optimizer.step()
        scheduler.step()
        expected += scheduler.get_last_lr()
    # abs: torch turns at pct_start * N - 1, a rounding of W away from W - 1
    assert values(onecycle(N, W, anneal, final, init), N + 1) == close(expected, abs=1e-15)
    assert values(cosine(N, W, final, init), N + 1) != close(expected, rel=1e-3)


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("N, W, D, final", [(100, 10, 20, 0.0), (99, 0, 99, 0.1), (1000, 300, 200, 0.1)])
def test_wsd_equals_hugging_face(N, W, D, final, shape):
    """What differs: there the warmup starts from min_lr_ratio, the final factor, and the default shape is cosine."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_wsd_schedule(optimizer, W, D, N, decay_type=shape, min_lr_ratio=final).lr_lambdas[0]
    # abs: 1 + cos(pi x) is exact to a rounding of 1, however small it gets
    assert values(wsd(N, W, D, None, shape, final), N + 3, start=W) == close(values(theirs, N + 3, W), abs=1e-15)
    assert values(wsd(N, W, D, None, shape, final, final), N + 3) == close(values(theirs, N + 3), abs=1e-15)
    assert values(wsd(N, W, D - 1, None, shape, final), N + 3, W) != close(values(theirs, N + 3, W), abs=1e-15)


@pytest.mark.parametrize("shape", [*SHAPES, "power:0.3", cubed])
@SEEDED
@given(W=LENGTH, hold=LENGTH, D=LENGTH, final=FRAC, init=FRAC)
def test_wsd_rises_holds_falls_and_stays(shape, W, hold, D, final, init):
    assume(W + hold + D > 0)
    N = W + hold + D
    schedule = wsd(N, W, D, None, shape, final, init)
    rise, plateau, fall = values(schedule, W), values(schedule, N - D, W), values(schedule, N + 1, N - D)
    assert rise == sorted(set(rise)) and (W == 0 or rise[0] == init and rise[-1] < 1)  # strictly, so from init to 1
    assert plateau == [1.0] * hold
    assert fall == sorted(set(fall), reverse=True) and fall[0] == (1 if D else final)  # strictly, so from 1 to final
    assert fall[-1] == schedule(N + 1) == schedule(10**12) == final


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@SEEDED
@given(W=LENGTH, D=st.integers(1, 40), final=FRAC, init=FRAC)
def test_cosine_and_linear_are_a_wsd_without_a_hold(shape, W, D, final, init):
    found, expected = SCHEDULES[shape](W + D, W, final, init), wsd(W + D, W, D, None, shape, final, init)
    assert values(found, W + D + 2) == close(values(expected, W + D + 2))


@pytest.mark.parametrize("name", every(1))
def test_in_range_continuous_and_a_function_of_the_share(name):
    fine = values(every(500)[name], 15_000)
    assert 0 < min(fine[:10_000]) and 0 <= min(fine) and max(fine) == 1  # no update is wasted on a rate of 0
    jumps = [k for k in range(1, 15_000) if abs(fine[k] - fine[k - 1]) > 0.02]  # 1-sqrt's first is sqrt(1 / 3000)
    assert jumps == ([5000] if name == "wsd_s" else [])  # its second cycle
    if name != "onecycle":  # turns at W - 1 and N - 1, which are no shares of N
        assert values(every(10)[name], 300) == close(fine[::50])


@SEEDED
@given(half_life=st.integers(1, 50), lives=st.integers(1, 9), hold=LENGTH)
def test_half_life_of_minicpm(half_life, lives, hold):
    N = hold + half_life * lives
    schedule = wsd(N, 0, half_life * lives, cooldown_shape=f"exponential:{half_life}")
    for k in range(hold, N - half_life + 1):
        assert schedule(k + half_life) == close(schedule(k) / 2)
    assert schedule(hold) == 1 and schedule(N) == schedule(10**9) == 0.5**lives
    assert wsd(10, 0, 10, cooldown_shape="exponential:2.5")(5) == close(0.25)


@SEEDED
@given(D=st.integers(3, 100), final=FRAC)
def test_mirror_cosine_is_the_cosine_reflected_at_the_line(D, final):
    line, cos, mirror = (values(wsd(D, 0, D, None, s, final), D + 1) for s in ("linear", "cosine", "mirror-cosine"))
    assert [(a + b) / 2 for a, b in zip(cos, mirror, strict=True)] == close(line) and cos[1] > line[1] > mirror[1]
    assert [1 + final - f for f in reversed(mirror)] == close(mirror)  # and its own half turn about the middle


@SEEDED
@given(percent=st.integers(0, 100), N=st.integers(1, 10_000_000))
def test_cooldown_frac_is_rounded_down_exactly(percent, N):
    D = percent * N // 100
    schedule = wsd(N, cooldown_frac=percent / 100, cooldown_shape="linear")
    assert schedule(N - D) == (1 if D else 0) and (D < 2 or schedule(N - D + 1) == close(1 - 1 / D))


def test_29_percent_of_100_is_29():
    assert int(0.29 * 100) == 28  # in floating point, so in the paper's code, too
    assert wsd(10, cooldown_frac=0.1999999)(9) == 1  # 1.999999 steps are 1, which ends before it begins to fall
    assert values(wsd(100, cooldown_frac=0.29), 101) == values(wsd(100, cooldown_steps=29), 101)
    assert values(wsd_s(100, [], cooldown_frac=0.29), 73, start=70) == close([1, 1, 1 / (1 + 9 / 29)])


@pytest.mark.parametrize("shape, final", [("inverse-linear", 0.1), ("1-sqrt", 0.0), ("exponential:9", 0.0)])
def test_each_wsd_s_cycle_ends_as_a_whole_run_of_that_length(shape, final):
    schedule = wsd_s(1000, (130, 400), 30, 0.29, shape, final)
    for start, end in (0, 130), (130, 400), (400, 1002):
        alone = wsd(min(end, 1000), 30, None, 0.29, shape, final)
        assert values(schedule, end, start) == values(alone, end, start)
    assert schedule(129) < 0.2 and schedule(130) == schedule(400) == 1  # full again right after an end


def test_power_is_the_law_of_its_paper_and_inverse_sqrt_halves_at_four_times_the_step():
    a, b, lr_max, batch, knee = 4, -0.51, 0.02, 128, 1000
    tokens = (lr_max / (batch * a)) ** (1 / b) / knee  # per step
    law = [min(lr_max, batch * a * (k * tokens) ** b) for k in range(1, 5000)]
    assert [lr_max * f for f in values(power(knee), 5000, start=1)] == close(law)
    assert inverse_sqrt(100)(400) == close(0.5) and inverse_sqrt(100)(1600) == close(0.25)


@pytest.mark.parametrize("name", every(1))
def test_pickled_and_in_any_order_the_same(name):
    schedule = every(1)[name]
    copy = pickle.loads(pickle.dumps(schedule))
    assert [copy(k) for k in reversed(range(30))] == values(schedule, 30)[::-1]


@pytest.mark.parametrize("name", every(1))
def test_lambda_lr(name):
    schedule, peaks = every(1)[name], (0.5, 0.002)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": peak} for peak in peaks])
    scheduler = LambdaLR(optimizer, schedule)
    for k in range(25):
        assert [group["lr"] for group in optimizer.param_groups] == [peak * schedule(k) for peak in peaks]
        optimizer.step()
        scheduler.step()
        if k == 15:  # resumed: needs the step, and nothing else
            scheduler = LambdaLR(optimizer, schedule, last_epoch=k)


def test_works_alone_under_a_bare_python(tmp_path):
    shutil.copy(schedules.__file__, tmp_path)
    run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=True)
    code = "import sys; sys.path.insert(0, '.'); import schedules as s; print(s.__file__, s.wsd(10, 2, 4)(7))"
    assert run([sys.executable, "-I", "-S", "-c", code]).stdout == f"{tmp_path.resolve()}/schedules.py 0.5\n"
    drawn = run([sys.executable, "-I", "-S", "schedules.py"])
    assert drawn.stderr == "" and all(f"\n{name}(" in drawn.stdout for name in SCHEDULES)
    assert "1-sqrt  1.000  0.684  0.553  0.452  0.368  0.293  0.225  0.163  0.106  0.051  0.000\n" in drawn.stdout


def test_shares_of_updates_are_those_of_adamw():
    rates, decay = [0.5 * schedules.wsd(8, 2, 3)(k) for k in range(8)], 0.4
    shares = schedules.update_shares(rates, decay)
    assert sum(shares) == close(1.0) and len(shares) == 9
    for i in range(9):  # AdamW, whose update i alone is not 0 but -decay; or all are 0, and the first weight is 1
        theta = float(i == 8)
        for k, rate in enumerate(rates):
            update = -decay if k == i else 0.0
            theta -= rate * (decay * theta + update)
        assert theta == close(shares[i])
    assert schedules.update_shares([0.1] * 3, 1.0) == [close(0.1 * 0.9**2), close(0.1 * 0.9), close(0.1), close(0.9**3)]
    for bad in (0, -1, 3):
        with pytest.raises(ValueError, match=f"^weight_decay={bad}: expected above 0"):
            schedules.update_shares([0.5], bad)


def test_sketch():
    lines = schedules.sketch(linear(8), total_steps=8, width=9, height=4).split("\n")
    assert lines == ["1 |###", "  |...##", "  |.....##", "0 |.......##"]


ARGS = {"total_steps": 10, "cycle_ends": [5], "warmup_steps": 2, "knee_steps": 6, "cosine_steps": 8}
BAD = {  # each refused by each schedule that has the option
    "total_steps": (0, -5, 1e4, True, "10"),
    "knee_steps": (0, 2.5),
    "cosine_steps": (0, 2.5),
    "cooldown_steps": (-1, 2.5, True),
    "warmup_steps": (-1, 0.5, True, "3"),
    "cooldown_frac": (-0.1, 1.1, math.nan, "0.1"),
    "final_lr_frac": (-0.1, 1.1, math.nan, "0.1", True),
    "warmup_init_frac": (-0.1, 1.1, math.nan, "0.1"),
    "exponent": (0, 0.5, math.nan, "x"),
    "anneal": ("cos",),
    "cooldown_shape": "exp power power:x power:0 power:-1 power:inf cosine:2 exponential:0 linear:".split(),
}
ERRORS = {
    "cooldown(constant(), 10, 11)": "cooldown_steps=11 is more than total_steps=10: shorten it",
    "cooldown(constant(), 10, 2, cooldown_frac=0.2)": "cooldown_steps=2 and cooldown_frac=0.2: give one of the two",
    "cooldown(constant(), 0)": "total_steps=0: expected",
    "schedules.build('inverse_sqrt', total_steps=9, cooldown_shape='linear')": "cooldown_shape='linear': schedule",
    "schedules.build('inverse_sqrt', cooldown_frac=0.2)": "cooldown_frac=0.2: schedule 'inverse_sqrt' takes no",
    "schedules.build('inverse_sqrt', total_steps=9, cooldown_frac=0.2, exponent=-1)": "exponent=-1: schedule",
    "wsd(10, 8, 3)": "warmup_steps=8 + cooldown_steps=3 is more than total_steps=10: shorten one",
    "wsd(10, 9)": "warmup_steps=9 + cooldown_steps=2 is more than total_steps=10: shorten one",
    "wsd(10, 11, 0)": "warmup_steps=11 is more than total_steps=10: shorten the warmup",
    "wsd(10, 0, 3, 0.2)": "cooldown_steps=3 and cooldown_frac=0.2: give one of the two",
    "wsd(9, cooldown_shape='exp')": f"cooldown_shape='exp': choose one of {', '.join(SHAPES)}, power:a",
    "wsd(9, cooldown_shape='exponential')": "cooldown_shape='exponential' never reaches 0: give final_lr_frac",
    "wsd(9, cooldown_shape='inverse-linear')": "cooldown_shape='inverse-linear' never reaches 0: give final_lr_frac",
    "wsd(9, 0, 3, None, 'exponential:3', 0.1)": "final_lr_frac=0.1: exponential:3 ends where its half-life takes it",
    "wsd(10000, cooldown_shape='exponential:1')": "cooldown_shape='exponential:1': 2000 steps are too many of its",
    "wsd(9, cooldown_shape=lambda x: 0.5)": "cooldown_shape=<function",
    "wsd_s(2000, 1000)": "cycle_ends=1000: expected a list of steps",
    "cosine_inf(10, 11)": "warmup_steps=11 is more than cosine_steps=10",
    "inverse_sqrt(2.5)": "warmup_steps=2.5: expected",
    "wsd_s(20, [10, 10])": "cycle_ends=[10, 10]: expected increasing steps below total_steps=20",
    "wsd_s(20, [10, 5])": "cycle_ends=[10, 5]: expected increasing steps below total_steps=20",
    "wsd_s(20, [10, 20])": "cycle_ends=[10, 20]: expected increasing steps below total_steps=20",
    "wsd_s(20, [0, 10])": "cycle_ends=0: expected a whole number of steps, at least 1",
    "wsd_s(20, [10], 0, 0.6)": "cooldown_frac=0.6: a cooldown of 12 steps does not fit between 10 and 20; lower it",
    "wsd_s(20, [10], 6, 0.5)": "cooldown_frac=0.5: a cooldown of 5 steps does not fit between 6 and 10; lower it",
    "cosine(10, 11)": "warmup_steps=11 is more than total_steps=10: shorten the warmup",
    "linear(10, 11)": "warmup_steps=11 is more than total_steps=10: shorten the warmup",
    "cosine_inf(10, 0, 0)": "final_lr_frac=0: cosine_inf trains on at it; give one above 0, such as 0.1",
    "power(5, -0.5, 6)": "warmup_steps=6 is more than knee_steps=5",
    "onecycle(10, 1)": "warmup_steps=1: expected a whole number of steps, at least 2",
    "onecycle(10, 10)": "warmup_steps=10: expected less than total_steps=10",
    "schedules.build('wds')": f"schedule='wds': choose one of {', '.join(SCHEDULES)}",
}


@pytest.mark.parametrize("call", ERRORS)
def test_errors_say_what_is_wrong_and_what_to_do(call):
    with pytest.raises(ValueError) as error:
        eval(call)
    assert str(error.value).startswith(ERRORS[call])


@pytest.mark.parametrize("name", "constant wsd cosine linear inverse_sqrt power wsd_s cosine_inf onecycle".split())
def test_build_and_errors_of_every_option(name):
    options = inspect.signature(SCHEDULES[name]).parameters
    args = {option: ARGS[option] for option in options if option in ARGS}
    unset = dict.fromkeys([*options, "no_such"])  # None is as good as not given, and total_steps is always welcome
    built = schedules.build(name, **unset | {"total_steps": 10, "warmup_init_frac": 0.2} | args)
    assert values(built, 30) == values(SCHEDULES[name](**args, warmup_init_frac=0.2), 30) and built(0) == close(0.2)
    with pytest.raises(ValueError, match="^step=-1: steps count from 0"):
        built(-1)
    with pytest.raises(ValueError, match=f"^no_such=1: schedule '{name}' takes no no_such, only .*, warmup_init_frac"):
        schedules.build(name, **args, no_such=1)
    for option in options:
        for value in BAD.get(option, ()):
            with pytest.raises(ValueError) as error:
                schedules.build(name, **args | {option: value})
            assert str(error.value).startswith(f"{option}={value!r}")
        if options[option].default is inspect.Parameter.empty:
            with pytest.raises(ValueError, match=f"^schedule='{name}' needs {option}: give it, too"):
                schedules.build(name, **args | {option: None})
