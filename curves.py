"""Laws of whole loss curves: the loss at every step of a run, under any learning-rate schedule.

    python laws.py annealing runs/a/log.jsonl runs/b/log.jsonl --test=runs/c/log.jsonl --json > law.json
    python laws.py predict law.json --lr=0:0,300:1e-3,8000:1e-3,10000:0      # a planned cooldown
    python laws.py schedule_bound 0:1,1000:0 0:1,800:1,1000:0                # ranks schedules without any run

Tissue et al. 2024 (2408.11029), Luo et al. 2025 (2503.12811), Schaipp et al. 2025 (2501.18965).
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from fitting import DELTA, Fit, Law, evaluate, fit_law, linear_start, number_in, read_rows, spans

MAX_STEPS = 10**7  # of a curve: its learning rates are held for every step


class Curve(NamedTuple):
    """One run; steps count finished updates."""

    lrs: np.ndarray  # (T + 1,): lrs[s] is the learning rate of the update that ended at step s; lrs[0] = 0
    steps: np.ndarray  # where the loss was measured, all of them after warmup
    losses: np.ndarray


# ----------------------------------------------------------------------------------------------------------------------
# Laws


def annealing_features(curves, settings):
    """(S1, S2) at the measured steps of all curves, one after the other."""
    lam, sums = settings["lam"], []
    for lrs, steps, _ in curves:
        peak = int(np.argmax(lrs))  # the end of warmup
        drops = -np.diff(lrs, prepend=0)
        drops[: peak + 1] = 0
        if settings["warmup"] == "peak":
            lrs = np.concatenate([[0], np.full(peak, lrs[peak]), lrs[peak + 1 :]])
        momentum = lfilter([1], [1, -lam], drops)  # m_i = lam m_{i-1} + drop_i
        sums.append((np.cumsum(lrs)[steps], np.cumsum(momentum)[steps]))
    return [np.concatenate(x) for x in zip(*sums, strict=True)]


def annealing_value(theta, features):
    S1, S2 = features
    L0, C = np.exp(theta[:, :1]), theta[:, 3:]
    power = np.exp(theta[:, 1:2] - theta[:, 2:3] * np.log(S1))
    return L0 + power - C * S2, np.stack(np.broadcast_arrays(L0, power, -power * np.log(S1), -S2), -1)


def annealing_starts(features, measured):
    S1, S2 = features
    starts = []
    for alpha in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0):  # linear once alpha is given
        L0, A, C = linear_start(measured, np.ones_like(S1), S1**-alpha, -S2)
        starts.append([np.log(L0), np.log(A), alpha, C])
    return np.array(starts)


def annealing(curves, lam=0.999, warmup="ramp", delta=DELTA, draws=400, seed=0) -> Fit:
    """Fit L(s) = L0 + A S1^-alpha - C S2 to loss curves under any schedules, Tissue et al. 2024 (2408.11029).

    S1 is the sum of learning rates up to step s, S2 that of m_i = lam m_{i-1} + (lr_{i-1} - lr_i), after warmup. S1
    takes the warmup as it was ("ramp") or as if at the peak ("peak": the authors; worse on public curves). C goes with
    1 - lam. A law within one model, batch size and peak learning rate: over several peaks C can turn negative, and it
    always prefers the higher one.
    """
    if warmup not in ("ramp", "peak") or not 0 <= lam < 1:
        raise ValueError(f"warmup={warmup!r} must be 'ramp' or 'peak', and lam={lam} between 0 and 1")
    return fit_curves(LAWS["annealing"], curves, delta, draws, seed, {"lam": lam, "warmup": warmup})


def multi_power_features(curves, settings):
    """Per curve: lr and S1 at the measured steps; size, ln lr and S before of each change; how many a step has seen.

    Changes of one sign, within a share `merge` of the curve's length and between two measured steps, count as one at
    their mean; 0 is exact.
    """
    features = []
    for lrs, steps, _ in curves:
        area, gaps = np.cumsum(lrs), np.diff(lrs, prepend=0)
        changed = np.flatnonzero(gaps)
        row = np.searchsorted(steps, changed)  # the first measured step to see the change
        changed, row = changed[row < len(steps)], row[row < len(steps)]
        merged = changed // max(1, round(settings["merge"] * len(lrs)))
        first = np.flatnonzero(np.any([np.diff(x, prepend=-2) != 0 for x in (row, merged, np.sign(gaps[changed]))], 0))
        size = np.add.reduceat(gaps[changed], first)
        log_lr = np.log(np.maximum(lrs[changed], 1e-9 * lrs.max()))
        log_lr, before = (np.add.reduceat(gaps[changed] * x, first) / size for x in (log_lr, area[changed - 1]))
        seen = np.searchsorted(row[first], np.arange(len(steps)), side="right")
        features.append((lrs[steps], area[steps], size, log_lr, before, seen))
    return features


def multi_power_value(theta, features):
    S, alpha = len(theta), theta[:, 2:3]
    L0, A, _, B, C, beta, _ = np.exp(theta).T[..., None]  # (S, 1) each
    gamma = theta[:, 6:]
    values, jacs = [], []
    for _, S1, size, log_lr, before, seen in features:
        rate = C * np.exp(-gamma * log_lr)  # (S, changes)
        sums = np.empty((S, len(S1), 4))  # sum over changes of size x G, and its derivatives by ln C, ln beta, gamma
        rows = max(1, 200_000 // (S * len(size)))  # measured steps at once: what fits into the cache
        for i in range(0, len(S1), rows):
            part, m = slice(i, i + rows), seen[i : i + rows].max()
            counted = np.where(np.arange(m) < seen[part, None], size[:m], 0)  # (rows, m)
            x = rate[:, None, :m] * np.maximum(S1[part, None] - before[:m], 0)  # (S, rows, m)
            log_x = np.log1p(x)
            rest = counted * np.exp(-beta[..., None] * log_x)  # size x (1 - G)
            slope = beta[..., None] * rest * x / (1 + x)
            sums[:, part, 0] = counted.sum(1) - rest.sum(-1)
            sums[:, part, 1], sums[:, part, 2] = slope.sum(-1), beta * (rest * log_x).sum(-1)
            sums[:, part, 3] = -(slope @ log_lr[:m])
        power, sums = A * S1**-alpha, B[..., None] * sums
        values.append(L0 + power + sums[..., 0])
        jac = np.broadcast_arrays(L0, power, -power * np.log(S1), sums[..., 0], *np.moveaxis(sums[..., 1:], 2, 0))
        jacs.append(np.stack(jac, -1))
    return np.concatenate(values, 1), np.concatenate(jacs, 1)


def multi_power_starts(features, measured):
    lr, S1 = (np.concatenate([f[i] for f in features]) for i in (0, 1))
    starts = []
    for alpha in (0.3, 0.5):  # C -> infinity makes the sum B (peak - lr): linear once alpha is given
        L0, A, B = np.log(linear_start(measured, np.ones_like(S1), S1**-alpha, lr - lr.max()))
        starts += [[L0, A, alpha, B, log_C, np.log(0.5), 0.5] for log_C in (0, 3)]
    return np.array(starts)


def multi_power(curves, delta=DELTA, draws=100, seed=0) -> Fit:
    """Fit L(t) = L0 + A S1^-alpha - B sum_k (lr_{k-1} - lr_k) G(lr_k^-gamma S_k(t)) to loss curves.

    Luo et al. 2025 (2503.12811): G(x) = 1 - (1 + C x)^-beta, S_k(t) the sum of learning rates from step k to t. As in
    the authors' code the sum runs over the rises of the warmup too, and S1 takes the warmup as it was. B, C, beta and
    gamma trade off: a converged fit is nearer to its curves than the published parameters, and no better on others.
    About a minute on three curves of 24,000 steps.
    """
    return fit_curves(LAWS["multi_power"], curves, delta, draws, seed)


LAWS = {
    "annealing": Law(
        "annealing",
        ("L0", "A", "alpha", "C"),
        ("L0", "A"),
        True,
        annealing_features,
        annealing_value,
        annealing_starts,
        {"lam": 0.999, "warmup": "ramp"},
    ),
    "multi_power": Law(
        "multi_power",
        ("L0", "A", "alpha", "B", "C", "beta", "gamma"),
        ("L0", "A", "B", "C", "beta"),
        True,
        multi_power_features,
        multi_power_value,
        multi_power_starts,
        {"merge": 0},
        {"merge": 1 / 1500},  # 4e-6 off in the loss on Luo et al.'s curves of 24,000 steps, and 16 times cheaper
    ),
}


def fit_curves(law, curves, delta, draws, seed, settings=None):
    """Fit a law to curves; a tenth of a curve is taken to share its noise."""
    curves = [check_curve(curve, f"curve {i + 1}") for i, curve in enumerate(curves)]
    if not curves:
        raise ValueError(f"{law.name} needs at least one curve")
    if all(lrs[: steps[-1] + 1].max() == lrs[steps[-1]] for lrs, steps, _ in curves):
        raise ValueError("no learning rate falls in these curves, so nothing tells what that is worth: add a cooldown")
    measured = np.concatenate([curve.losses for curve in curves])
    block = max(1, len(measured) // len(curves) // 10)
    ranges = spans(step=[curve.steps[-1] for curve in curves], lr=[curve.lrs.max() for curve in curves])
    return fit_law(law, curves, measured, delta, draws, seed, block, settings, ranges)


def check_curve(curve, where):
    """The curve as arrays, or a ValueError that says what is wrong with it."""
    lrs, steps, losses = np.asarray(curve.lrs, float), np.asarray(curve.steps, int), np.asarray(curve.losses, float)
    if not (np.isfinite(lrs).all() and (lrs >= 0).all() and lrs.max() > 0):
        raise ValueError(f"{where}: learning rates must be finite, none negative, and some positive")
    if not len(steps) or len(steps) != len(losses):
        raise ValueError(f"{where}: {len(steps)} steps with {len(losses)} losses after warmup")
    if steps[0] < 1 or steps[-1] >= len(lrs) or (np.diff(steps) <= 0).any():
        raise ValueError(f"{where}: steps must increase, from 1 at least to {len(lrs) - 1} where learning rates end")
    if lrs[0]:
        raise ValueError(f"{where}: lrs[0]={lrs[0]:g} stands before the first update and must be 0")
    for i in np.flatnonzero(~(np.isfinite(losses) & (losses > 0)))[:1]:
        raise ValueError(f"{where}: the loss at step {steps[i]} is {losses[i]:g}; it must be positive and finite")
    return Curve(lrs, steps, losses)


def curve_errors(fit, curve) -> dict:
    """Errors on a curve the fit may not have seen: R2, mae and rmse in nats, mean and largest relative error."""
    error = evaluate(LAWS[fit.law], fit.params, [curve], fit.settings) - curve.losses
    size = abs(error)
    variation = ((curve.losses - curve.losses.mean()) ** 2).sum()
    return {
        "R2": 1 - error @ error / variation if variation else math.nan,
        "mae": size.mean(),
        "rmse": math.sqrt(error @ error / len(error)),
        "mean_relative": (size / curve.losses).mean(),
        "max_relative": (size / curve.losses).max(),
    }


def schedule_bound(lrs, distance=1.0, gradient=1.0):
    """Bound how far from the optimum SGD ends on a convex problem -> (bound, bound at the best scale, best scale).

    d^2 / (2 s_1) + g^2 [q_1 / (2 s_1) + 1/2 sum_{k<T} lr_k / s_{k+1} x q_k / s_k], s_k and q_k the sums of lr and lr^2
    from step k on; Schaipp et al. 2025 (2501.18965). At the best scale of all rates it is 2 sqrt of the product
    of both parts: a ranking of schedules without parameters, lower is better. Knows no noise scale and no curvature.
    """
    lrs = np.trim_zeros(np.asarray(lrs, float))  # steps without a learning rate change nothing
    if not len(lrs) or not np.isfinite(lrs).all() or (lrs < 0).any():
        raise ValueError("learning rates must be finite, none negative, and some positive")
    s, q = np.cumsum(lrs[::-1])[::-1], np.cumsum(lrs[::-1] ** 2)[::-1]
    start = distance**2 / (2 * s[0])
    steps = gradient**2 * (q[0] / (2 * s[0]) + 0.5 * np.sum(lrs[:-1] / s[1:] * q[:-1] / s[:-1]))
    return start + steps, 2 * math.sqrt(start * steps), math.sqrt(start / steps)


# ----------------------------------------------------------------------------------------------------------------------
# Files


def read_curve(path, loss=None, lr="lr", warmup_steps=None) -> Curve:
    """Read a loss curve, after its warmup, from a run's log.jsonl or from a CSV with the columns step, lr and loss.

    A row may lack the loss or the learning rate. Between rows the learning rate is linear, but a change between two
    constant stretches is a jump at the later row; to be exact, add a row without a loss where it bends. `warmup_steps`:
    if rows begin later, the learning rate rose linearly from 0 over so many steps, then stayed.
    """
    loss = loss or ("val_loss" if path.endswith(".jsonl") else "loss")
    rows = read_rows(path)
    lrs, losses = filled_in(rows, lr, path), filled_in(rows, loss, path)
    dense = dense_lrs(lrs, max(*lrs, *losses), warmup_steps, path)
    known = sorted(lrs)
    for before, left, right, after in zip(known, known[1:], known[2:], known[3:], strict=False):
        if lrs[before] == lrs[left] != lrs[right] == lrs[after] and right - left <= left - before:
            dense[left:right] = lrs[left]
    steps = np.array(sorted(step for step in losses if step >= max(1, np.argmax(dense))), dtype=int)
    return check_curve(Curve(dense, steps, np.array([losses[step] for step in steps])), path)


def read_lrs(text, warmup_steps=None):
    """Learning rates of a planned run, for every step, from knots step:lr or from a file with step and lr."""
    try:
        if ":" in text:
            known = {int(float(step)): float(lr) for step, lr in (knot.split(":") for knot in text.split(","))}
        else:
            known = filled_in(read_rows(text), "lr", text)
        return dense_lrs(known, max(known, default=0), warmup_steps, text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"--lr={text}: {error}; knots are 0:0,300:1e-3,9000:1e-3,10000:0") from None


def filled_in(rows, column, path):
    """{step: value} of the rows that hold a value in the column."""
    filled = [(where, row) for where, row in rows if row.get(column) not in (None, "")]
    if not filled:
        raise ValueError(f"{path} has no {column!r} in any row; a curve needs the columns step, lr and loss")
    return {step_in(row, where): number_in(row, column, where) for where, row in filled}


def step_in(row, where):
    step = number_in(row, "step", where)
    if step != round(step, 0):  # nan, too
        raise ValueError(f"{where}: step is {step:g}; it must be a whole number")
    return int(step)


def dense_lrs(known, last, warmup_steps, where):
    """Learning rates of steps 0 .. last from known ones {step: lr}, linear between them, 0 before the first update."""
    steps = sorted(known)
    values = [known[step] for step in steps]
    if not steps or steps[0] < 0 or not np.isfinite(values).all() or min(values) < 0 or not max(values):
        raise ValueError(f"{where}: steps and learning rates must be finite, none negative, and some lr positive")
    if last > MAX_STEPS:
        raise ValueError(f"{where}: {last:.3g} steps are more than {MAX_STEPS:.0e}; count larger steps")
    if warmup_steps is None and len(steps) > 1 and steps[0] > 2 * (steps[1] - steps[0]):
        raise ValueError(
            f"{where}: begins at step {steps[0]}; give --warmup_steps, 0 if the learning rate was constant"
        )
    if warmup_steps and not 0 < warmup_steps <= steps[0]:
        raise ValueError(f"{where}: warmup_steps={warmup_steps} must be from 0 to {steps[0]}, its first step")
    lrs = np.interp(np.arange(last + 1), steps, values)
    if warmup_steps:
        lrs[:warmup_steps] = np.linspace(0, values[0], warmup_steps)
    lrs[0] = 0
    return lrs
