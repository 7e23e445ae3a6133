"""Learning-rate schedules as pure functions of the step. Standard library only: copy this file into any project.

    schedule = wsd(total_steps=10_000, warmup_steps=300, cooldown_frac=0.2)   # schedule(step): factor of the peak LR
    schedule = cooldown(inverse_sqrt(300), 10_000, 2_000, "linear")           # a cooldown to the end of any schedule
    for step in range(10_000):
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * schedule(step)
        ...
    torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)           # the same, for loops that want a scheduler

    python schedules.py                                              # draws every schedule and every cooldown shape

Update k (counted from 0) uses schedule(k): a run of N steps uses schedule(0) .. schedule(N - 1). Nothing is remembered
between calls: resuming needs the step, and nothing else. Every factory checks its arguments (ValueError says which one
is wrong, and what it should be) and returns a function that pickles, if a shape of your own does.

Warmup: factor(k) = w0 + (1 - w0) k / W for k < W, with w0 = `warmup_init_frac`, and 1 from k = W on. W = 0: none.
Cooldown of D steps to step N: 1 up to and including k = N - D, then the shape at x = (k - (N - D)) / D. schedule(N) is
`final_lr_frac`, and so is every later step; as update N is never made, a cooldown to 0 wastes none on it.

The conventions are those of the runs in Haegele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed
Training Durations", NeurIPS 2024 (arXiv 2405.18392).
"""

import inspect
import math
from functools import partial

# ----------------------------------------------------------------------------------------------------------------------
# Cooldown shapes: x in [0, 1], the share of the cooldown that is over -> 1 .. 0


def _linear(x):
    return 1 - x


def _sqrt(x):
    return 1 - math.sqrt(x)


def _cosine(x):
    return 0.5 * (1 + math.cos(math.pi * x))


def _mirror_cosine(x):
    return 2 * (1 - x) - _cosine(x)  # the cosine reflected at the line


def _square(x):
    return 1 - x * x


def _power(x, exponent):
    return 1 - x**exponent


# These two have no 0 to go to: x, final factor > 0 -> 1 .. final


def _exponential(x, final):
    return final**x


def _inverse_linear(x, final):
    return 1 / (x / final + (1 - x))  # 1/lr grows linearly, as in WSD-S


AFFINE = {"linear": _linear, "1-sqrt": _sqrt, "cosine": _cosine, "mirror-cosine": _mirror_cosine, "1-square": _square}
POSITIVE = {"exponential": _exponential, "inverse-linear": _inverse_linear}
SHAPES = {**AFFINE, **POSITIVE}  # and "power:a", 1 - x^a; "exponential:h", halving every h steps


def _between(x, shape, final):
    return final + (1 - final) * shape(x)


def _cooldown(shape, final, steps, default=0.0):
    """Resolve a shape by name or function: (x -> 1 .. final, final); None is the shape's own, or `default`."""
    given, final = final, default if final is None else _frac("final_lr_frac", final)
    if callable(shape):
        if abs(shape(0.0) - 1) > 1e-9 or abs(shape(1.0)) > 1e-9:
            raise ValueError(f"cooldown_shape={shape!r} goes from {shape(0.0)} to {shape(1.0)}: expected from 1 to 0")
        return partial(_between, shape=shape, final=final), final
    name, colon, value = str(shape).partition(":")
    if name not in (("power", "exponential") if colon else SHAPES):
        raise ValueError(f"cooldown_shape={shape!r}: choose one of {', '.join(SHAPES)}, power:a, exponential:half_life")
    if colon:
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < math.inf:
            raise ValueError(f"cooldown_shape={shape!r}: {value!r} is not a number above 0")
        if name == "power":
            return partial(_between, shape=partial(_power, exponent=number), final=final), final
        if given:
            raise ValueError(
                f"final_lr_frac={given}: {shape} ends where its half-life takes it; leave final_lr_frac out"
            )
        final = 0.5 ** (steps / number)  # MiniCPM's decay: 0.5^(steps / half-life)
        if not final > 0:
            raise ValueError(f"cooldown_shape={shape!r}: {steps} steps are too many of its half-lives; make it longer")
    if name in POSITIVE:
        if not final > 0:
            raise ValueError(f"cooldown_shape={shape!r} never reaches 0: give final_lr_frac > 0, such as 0.1")
        return partial(POSITIVE[name], final=final), final
    return partial(_between, shape=AFFINE[name], final=final), final


# ----------------------------------------------------------------------------------------------------------------------
# Checks


def _steps(name, value, least=0):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number of steps, at least {least}")
    return value


def _frac(name, value):
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected a number from 0 to 1")
    return float(value)


def _share(frac, total_steps):
    return math.floor(frac * total_steps + 1e-9)  # 0.29 x 100 is 29, though it is 28.999999999999996 in floating point


def _check(total_steps, warmup_steps, warmup_init_frac, name="total_steps"):
    """Check what all schedules share."""
    _steps(name, total_steps, 1)
    _frac("warmup_init_frac", warmup_init_frac)
    if _steps("warmup_steps", warmup_steps) > total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} is more than {name}={total_steps}: shorten the warmup")


def _warm(step, warmup_steps, init):
    """Factor during the warmup, None after it."""
    if step < 0:
        raise ValueError(f"step={step}: steps count from 0")
    return init + (1 - init) * step / warmup_steps if step < warmup_steps else None


# ----------------------------------------------------------------------------------------------------------------------
# Schedules. A private function of the step with everything resolved, and under it the public factory that resolves it.


def _constant_at(step, W, w0):
    warm = _warm(step, W, w0)
    return 1.0 if warm is None else warm


def constant(warmup_steps=0, warmup_init_frac=0.01):
    """Warm up, then 1 for ever: a run without an end, for averages and later cooldowns."""
    _frac("warmup_init_frac", warmup_init_frac)
    return partial(_constant_at, W=_steps("warmup_steps", warmup_steps), w0=warmup_init_frac)


def _cooled_at(step, base, start, end, shape, final):
    if step >= end:
        return base(step) * final
    return base(step) * shape((step - start) / (end - start)) if step > start else base(step)


def cooldown(base, total_steps, cooldown_steps=None, cooldown_shape="1-sqrt", cooldown_frac=None, final_lr_frac=None):
    """Take any schedule, and let it fall over the last `cooldown_steps` to `total_steps`: base(k) times the shape.

    Zhai et al. 2022 take the inverse square root, then a linear cooldown: cooldown(inverse_sqrt(W), N, D, "linear").
    `base` is a function of the step. The cooldown takes `cooldown_steps`, or floor(cooldown_frac * total_steps);
    without either 0.2 of the run. `cooldown_shape`: a name of SHAPES, "power:a" for 1 - x^a, "exponential:h" to halve
    every h steps (MiniCPM), or a function of x in [0, 1] that falls from 1 to 0. It ends at `final_lr_frac` of the
    base, by default 0; after "exponential:h", 0.5^(D / h).
    """
    _steps("total_steps", total_steps, 1)
    if cooldown_steps is not None and cooldown_frac is not None:
        raise ValueError(f"cooldown_steps={cooldown_steps} and cooldown_frac={cooldown_frac}: give one of the two")
    if cooldown_steps is None:
        cooldown_steps = _share(_frac("cooldown_frac", 0.2 if cooldown_frac is None else cooldown_frac), total_steps)
    if _steps("cooldown_steps", cooldown_steps) > total_steps:
        raise ValueError(f"cooldown_steps={cooldown_steps} is more than total_steps={total_steps}: shorten it")
    shape, final = _cooldown(cooldown_shape, final_lr_frac, cooldown_steps)
    return partial(_cooled_at, base=base, start=total_steps - cooldown_steps, end=total_steps, shape=shape, final=final)


def wsd(
    total_steps,
    warmup_steps=0,
    cooldown_steps=None,
    cooldown_frac=None,
    cooldown_shape="1-sqrt",
    final_lr_frac=None,
    warmup_init_frac=0.01,
):
    """Warm up, hold, cool down: trapezoid (Zhai 2022), warmup-stable-decay (Hu 2024), constant LR + cooldown.

    `cooldown` of `constant`, with its arguments; warmup and cooldown have to fit into the run.
    """
    _check(total_steps, warmup_steps, warmup_init_frac)
    base = constant(warmup_steps, warmup_init_frac)
    schedule = cooldown(base, total_steps, cooldown_steps, cooldown_shape, cooldown_frac, final_lr_frac)
    if warmup_steps > (start := schedule.keywords["start"]):
        raise ValueError(
            f"warmup_steps={warmup_steps} + cooldown_steps={total_steps - start} is more than "
            f"total_steps={total_steps}: shorten one of the two, or train longer"
        )
    return schedule


def _cycles_at(step, W, w0, cycles):
    warm = _warm(step, W, w0)
    if warm is not None:
        return warm
    for end, steps, shape, _ in cycles:
        if step < end:
            return 1.0 if step <= end - steps else shape((step - (end - steps)) / steps)
    return cycles[-1][3]


def wsd_s(
    total_steps,
    cycle_ends,
    warmup_steps=0,
    cooldown_frac=0.1,
    cooldown_shape="inverse-linear",
    final_lr_frac=None,
    warmup_init_frac=0.01,
):
    """Cool down to each of `cycle_ends` and to `total_steps`; go on from the decayed weights at the full LR.

    WSD-S (Wen et al. 2024). Each cooldown takes floor(cooldown_frac * its end): the checkpoint there stands for a whole
    run of that length. The update right after an end, k = end, has the full LR again. Default `final_lr_frac`: 0.1.
    """
    _check(total_steps, warmup_steps, warmup_init_frac)
    if not isinstance(cycle_ends, (list, tuple)):
        raise ValueError(f"cycle_ends={cycle_ends!r}: expected a list of steps, such as (1000, 2000)")
    ends = [_steps("cycle_ends", end, 1) for end in cycle_ends]
    if ends != sorted(set(ends)) or ends and ends[-1] >= total_steps:
        raise ValueError(f"cycle_ends={ends}: expected increasing steps below total_steps={total_steps}")
    cycles, start = [], warmup_steps
    for end in (*ends, total_steps):
        steps = _share(_frac("cooldown_frac", cooldown_frac), end)
        if start + steps > end:
            raise ValueError(
                f"cooldown_frac={cooldown_frac}: a cooldown of {steps} steps does not fit between {start} and {end}; "
                "lower it, or move warmup_steps or cycle_ends"
            )
        cycles.append((end, steps, *_cooldown(cooldown_shape, final_lr_frac, steps, default=0.1)))
        start = end
    return partial(_cycles_at, W=warmup_steps, w0=warmup_init_frac, cycles=tuple(cycles))


def _decay_at(step, W, w0, end, shape, final):
    warm = _warm(step, W, w0)
    if warm is not None:
        return warm
    return shape((step - W) / (end - W)) if step < end else final


def cosine(total_steps, warmup_steps=0, final_lr_frac=0.1, warmup_init_frac=0.01):
    """Warm up linearly, then half a cosine from 1 at k = W to `final_lr_frac` at k = N, and stay there."""
    _check(total_steps, warmup_steps, warmup_init_frac)
    shape, final = _cooldown("cosine", final_lr_frac, total_steps)
    return partial(_decay_at, W=warmup_steps, w0=warmup_init_frac, end=total_steps, shape=shape, final=final)


def cosine_inf(cosine_steps, warmup_steps=0, final_lr_frac=0.1, warmup_init_frac=0.01):
    """`cosine` down to `final_lr_frac` at `cosine_steps`, then on at that LR for as long as the run lasts."""
    _check(cosine_steps, warmup_steps, warmup_init_frac, name="cosine_steps")
    if not _frac("final_lr_frac", final_lr_frac) > 0:
        raise ValueError(f"final_lr_frac={final_lr_frac}: cosine_inf trains on at it; give one above 0, such as 0.1")
    return cosine(cosine_steps, warmup_steps, final_lr_frac, warmup_init_frac)


def linear(total_steps, warmup_steps=0, final_lr_frac=0.0, warmup_init_frac=0.01):
    """Warm up, then straight to `final_lr_frac` at k = N: decay to zero, D2Z (Bergsma et al. 2025)."""
    _check(total_steps, warmup_steps, warmup_init_frac)
    shape, final = _cooldown("linear", final_lr_frac, total_steps)
    return partial(_decay_at, W=warmup_steps, w0=warmup_init_frac, end=total_steps, shape=shape, final=final)


def _power_law_at(step, W, w0, knee, exponent, final):
    warm = _warm(step, W, w0)
    if warm is not None:
        return warm
    return max(final, (step / knee) ** exponent) if step > knee else 1.0


def inverse_sqrt(warmup_steps=0, final_lr_frac=0.0, warmup_init_frac=0.01):
    """Warm up, then sqrt(W / k), never below `final_lr_frac` (Vaswani et al. 2017). W = 0 counts as 1."""
    return power(max(_steps("warmup_steps", warmup_steps), 1), -0.5, warmup_steps, final_lr_frac, warmup_init_frac)


def power(knee_steps, exponent=-0.51, warmup_steps=0, final_lr_frac=0.0, warmup_init_frac=0.01):
    """Warm up, then min(1, (k / knee_steps)^exponent), never below `final_lr_frac`: the power scheduler.

    In Shen et al. 2024 lr = min(lr_max, batch a n^b) after n tokens, with a = 4, b = -0.51, lr_max = 0.02, the batch in
    sequences. The knee is where the two meet: knee_steps = (lr_max / (batch a))^(1 / b) / (tokens a step).
    """
    _steps("knee_steps", knee_steps, 1)
    _frac("final_lr_frac", final_lr_frac)
    _frac("warmup_init_frac", warmup_init_frac)
    if not isinstance(exponent, (int, float)) or not exponent < 0:
        raise ValueError(f"exponent={exponent!r}: expected a negative number, such as -0.51")
    if _steps("warmup_steps", warmup_steps) > knee_steps:
        raise ValueError(f"warmup_steps={warmup_steps} is more than knee_steps={knee_steps}: the LR would jump there")
    return partial(
        _power_law_at, W=warmup_steps, w0=warmup_init_frac, knee=knee_steps, exponent=exponent, final=final_lr_frac
    )


def _onecycle_at(step, N, W, w0, final, anneal):
    if step < 0:
        raise ValueError(f"step={step}: steps count from 0")
    step = min(step, N)
    start, end, x = (w0, 1.0, step / (W - 1)) if step < W else (1.0, final, (step - (W - 1)) / (N - W))
    return (end - start) * x + start if anneal == "linear" else end + (start - end) / 2 * (math.cos(math.pi * x) + 1)


def onecycle(total_steps, warmup_steps, anneal="cosine", final_lr_frac=0.1, warmup_init_frac=0.01):
    """The paper's cosine baseline, which is torch's OneCycleLR: the warmup is a cosine, too.

    Equals OneCycleLR(pct_start=W / N, div_factor=1 / warmup_init_frac, cycle_momentum=False, anneal_strategy="cos" or
    "linear", final_div_factor=warmup_init_frac / final_lr_frac). Unlike elsewhere in this file it is 1 at k = W - 1,
    and `final_lr_frac` at k = N - 1, the last update; schedule(N), which no update uses, is one step further.
    """
    _check(total_steps, _steps("warmup_steps", warmup_steps, 2), warmup_init_frac)
    _frac("final_lr_frac", final_lr_frac)
    if anneal not in ("cosine", "linear"):
        raise ValueError(f"anneal={anneal!r}: choose cosine or linear")
    if warmup_steps >= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps}: expected less than total_steps={total_steps}")
    return partial(_onecycle_at, N=total_steps, W=warmup_steps, w0=warmup_init_frac, final=final_lr_frac, anneal=anneal)


SCHEDULES = {f.__name__: f for f in (constant, wsd, cosine, linear, inverse_sqrt, power, wsd_s, cosine_inf, onecycle)}
COOLDOWN = ("cooldown_steps", "cooldown_frac", "cooldown_shape", "final_lr_frac")  # options of a `cooldown`


def build(name, **kwargs):
    """Build a schedule by name, for configs: arguments that are None count as not given, and one not taken is an error.

    `total_steps` may always be given: a schedule that has no end does without. `cooldown_steps` or `cooldown_frac`,
    given to a schedule that does not take them, make a `cooldown` of it, with the options that only a cooldown takes.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r}: choose one of {', '.join(SCHEDULES)}")
    taken = inspect.signature(SCHEDULES[name]).parameters
    given = {key: value for key, value in kwargs.items() if value is not None}
    own = {key: value for key, value in given.items() if key in taken}
    rest = {key: value for key, value in given.items() if key not in taken and key != "total_steps"}
    cools = "total_steps" in given and ("cooldown_steps" in rest or "cooldown_frac" in rest)
    for key in rest:
        if not (cools and key in COOLDOWN):
            raise ValueError(f"{key}={rest[key]!r}: schedule {name!r} takes no {key}, only {', '.join(taken)}")
    for key, parameter in taken.items():
        if parameter.default is parameter.empty and key not in own:
            raise ValueError(f"schedule={name!r} needs {key}: give it, too")
    schedule = SCHEDULES[name](**own)
    return cooldown(schedule, given["total_steps"], **rest) if cools else schedule


def update_shares(rates, weight_decay):
    """Share of each update, and of the first weights, in AdamW's last weights: a moving average of its updates.

    `rates`: the learning rate of each update. Update i, u_i, is of length 1 or so in every number, and makes

        theta_(i+1) = (1 - a_i) theta_i + a_i (-u_i / weight_decay),    a_i = rates[i] * weight_decay

    so the last weights are sum_i c_i (-u_i / weight_decay) + c theta_0 with c_i = a_i (1 - a_(i+1)) ... (1 - a_(n-1)),
    c = (1 - a_0) ... (1 - a_(n-1)). Returns [c_0, .., c_(n-1), c], which add up to 1. A constant rate forgets at an
    even pace; a rate that falls to zero spreads the shares (Bergsma et al., "Straight to Zero", arXiv 2502.15938).
    """
    if not weight_decay > 0 or any(not 0 <= rate * weight_decay <= 1 for rate in rates):
        raise ValueError(f"weight_decay={weight_decay}: expected above 0, and at most 1 times every learning rate")
    shares, left = [], 1.0
    for rate in reversed(rates):
        shares.append(left * rate * weight_decay)
        left *= 1 - rate * weight_decay
    return [*reversed(shares), left]


def sketch(schedule, total_steps, width=72, height=8):
    """Draw a schedule over 0 .. total_steps as lines of text, the highest LR on top."""
    values = [schedule(round(column * total_steps / (width - 1))) for column in range(width)]
    rows = [min(height - 1, int(value * height)) for value in values]
    lines = []
    for row in reversed(range(height)):
        axis = "1 |" if row == height - 1 else "0 |" if row == 0 else "  |"
        lines.append(axis + "".join("#" if r == row else "." if r > row else " " for r in rows).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    N, W = 1000, 100
    for call in (
        "constant(W)",
        "wsd(N, W, cooldown_frac=0.2, cooldown_shape='1-sqrt')",
        "cosine(N, W)",
        "linear(N, W)",
        "inverse_sqrt(W)",
        "power(250, warmup_steps=W)",
        "wsd_s(N, (250, 500), W)",
        "cosine_inf(600, W)",
        "onecycle(N, W)",
        "cooldown(inverse_sqrt(W), N, 300, 'linear')",
    ):
        print(f"\n{call}, N = {N}, W = {W}\n{sketch(eval(call), N)}")
    print("\nCooldown shapes: the LR factor when a share x of the cooldown is over\n")
    shares = [i / 10 for i in range(11)]
    print(f"{'x':>17}" + "".join(f"{x:7.1f}" for x in shares))
    for name in [*SHAPES, "power:0.3", "exponential:250"]:
        schedule = wsd(N, cooldown_frac=1, cooldown_shape=name, final_lr_frac=0.1 if name in POSITIVE else 0.0)
        print(f"{name:>17}" + "".join(f"{schedule(round(x * N)):7.3f}" for x in shares))
