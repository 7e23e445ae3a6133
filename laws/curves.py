"""Laws of whole loss curves: the loss at every step of a run, under any learning-rate schedule."""

import math
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from .fitting import DELTA, Fit, Law, Mistake, evaluate, fit_law, linear_start, spans


class Curve(NamedTuple):
    """One run; steps count finished updates."""

    lrs: np.ndarray  # (T + 1,): lrs[s] is the learning rate of the update that ended at step s; lrs[0] = 0
    steps: np.ndarray  # where the loss was measured, all of them after warmup
    losses: np.ndarray


# ----------------------------------------------------------------------------------------------------------------------
# The annealing law


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
    if warmup not in ("ramp", "peak"):
        raise Mistake(f"warmup={warmup!r} must be 'ramp' or 'peak'")
    if not 0 <= lam < 1:
        raise Mistake(f"lam={lam} must be at least 0 and below 1")
    return fit_curves(LAWS["annealing"], curves, delta, draws, seed, {"lam": lam, "warmup": warmup})


# ----------------------------------------------------------------------------------------------------------------------
# The multi-power law
#
#   L(t) = L0 + A S1(t)^-alpha + B sum_k d_k G(C lr_k^-gamma S_k(t)),    G(x) = 1 - (1 + x)^-beta
#
# with d_k = lr_k - lr_{k-1}, and S_k(t) = lr_k + ... + lr_t = S1(t) - S1(k-1), summed over the steps k <= t. The paper
# writes -B and lr_{k-1} - lr_k. Only steps that change the learning rate count, but those are all T of a cosine: n
# measured losses cost n T powers, for every start and draw. Neighbours are worth about the same, so the search and the
# bootstrap ("rough") merge them, to one change of their total size at their mean ln lr_k and S1(k-1), weighted by size.


class Changes(NamedTuple):
    """What multi_power reads off a curve with n measured losses and K changes of the learning rate, merged or not."""

    S1: np.ndarray  # (n,) sum of learning rates up to each measured step
    lr: np.ndarray  # (n,) learning rate there
    size: np.ndarray  # (K,) d_k, positive for a rise
    log_lr: np.ndarray  # (K,) ln lr_k
    before: np.ndarray  # (K,) S1(k-1)
    seen: np.ndarray  # (n,) how many of the changes, which stand in their order, came by each measured step


def multi_power_features(curves, settings):
    """The Changes of every curve. `merge` is the share of a curve's length within which changes are merged; 0: none.

    Merged are only changes of one sign with no measured step between them: a loss sees all of them or none.
    """
    features = []
    for lrs, steps, _ in curves:
        S1, sizes = np.cumsum(lrs), np.diff(lrs, prepend=0)
        changed = np.flatnonzero(sizes)  # the steps k; later than the last measured one they do not count
        changed = changed[changed <= steps[-1]]
        sizes = sizes[changed]
        first_to_see = np.searchsorted(steps, changed)  # index of the first measured step at k or later
        stretch = changed // max(1, round(settings["merge"] * len(lrs)))
        new = [np.diff(x, prepend=-2) != 0 for x in (first_to_see, stretch, np.sign(sizes))]
        first = np.flatnonzero(np.any(new, 0))  # of each group of changes that are merged
        size = np.add.reduceat(sizes, first)
        log_lr = np.log(np.maximum(lrs[changed], 1e-9 * lrs.max()))  # a change to 0 is one to nearly 0
        log_lr, before = (np.add.reduceat(sizes * x, first) / size for x in (log_lr, S1[changed - 1]))
        seen = np.searchsorted(first_to_see[first], np.arange(len(steps)), side="right")
        features.append(Changes(S1[steps], lrs[steps], size, log_lr, before, seen))
    return features


def sum_of_changes(C, beta, gamma, changes):
    """sum_k d_k G(x_k), x_k = C lr_k^-gamma S_k(t), for C, beta, gamma (S, 1) -> (S, n, 4).

    The sum at each measured step t, and its derivatives by ln C, ln beta and gamma.
    """
    S1, _, size, log_lr, before, seen = changes
    rate = C * np.exp(-gamma * log_lr)  # (S, K)
    beta = beta[..., None]  # (S, 1, 1)
    sums = np.empty((len(rate), len(S1), 4))
    rows = max(1, 200_000 // rate.size)  # measured steps at once: what fits into the cache
    for i in range(0, len(S1), rows):
        part = slice(i, i + rows)
        k = seen[part].max()  # the changes behind the first k are still to come
        counted = np.where(np.arange(k) < seen[part, None], size[:k], 0)  # (rows, k): d_k, 0 if still to come
        x = rate[:, None, :k] * np.maximum(S1[part, None] - before[:k], 0)  # (S, rows, k)
        log_x = np.log1p(x)
        rest = counted * np.exp(-beta * log_x)  # d_k (1 + x)^-beta, so that d_k G = counted - rest
        slope = beta * rest * x / (1 + x)  # d_k x G'(x): the derivative by ln x, hence by ln C
        sums[:, part, 0] = counted.sum(1) - rest.sum(-1)
        sums[:, part, 1] = slope.sum(-1)
        sums[:, part, 2] = beta[..., 0] * (rest * log_x).sum(-1)
        sums[:, part, 3] = -(slope @ log_lr[:k])  # ln x falls by ln lr_k per unit of gamma
    return sums


def multi_power_value(theta, features):
    L0, A, _, B, C, beta, _ = np.exp(theta).T[..., None]  # (S, 1) each; alpha and gamma are not logarithms
    alpha, gamma = theta[:, 2:3], theta[:, 6:]
    values, jacs = [], []
    for changes in features:
        power = A * changes.S1**-alpha  # (S, n)
        sums = B[..., None] * sum_of_changes(C, beta, gamma, changes)
        values.append(L0 + power + sums[..., 0])
        by_theta = [L0, power, -power * np.log(changes.S1), sums[..., 0], *np.moveaxis(sums[..., 1:], 2, 0)]
        jacs.append(np.stack(np.broadcast_arrays(*by_theta), -1))
    return np.concatenate(values, 1), np.concatenate(jacs, 1)


def multi_power_starts(features, measured):
    lr, S1 = (np.concatenate([getattr(changes, name) for changes in features]) for name in ("lr", "S1"))
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


# ----------------------------------------------------------------------------------------------------------------------
# What both share


LAWS = (
    Law("annealing", ("L0", "A", "alpha", "C"), ("L0", "A"), True,
        annealing_features, annealing_value, annealing_starts, {"lam": 0.999, "warmup": "ramp"}),
    Law("multi_power", ("L0", "A", "alpha", "B", "C", "beta", "gamma"), ("L0", "A", "B", "C", "beta"), True,
        multi_power_features, multi_power_value, multi_power_starts, {"merge": 0},
        {"merge": 1 / 1500}),  # 4e-6 off in the loss on Luo et al.'s curves of 24,000 steps, and 16 times cheaper
)  # fmt: skip
LAWS = {law.name: law for law in LAWS}


def fit_curves(law, curves, delta, draws, seed, settings=None):
    """Fit a law to curves; a tenth of a curve is taken to share its noise."""
    curves = [check_curve(curve, f"curve {i + 1}") for i, curve in enumerate(curves)]
    if not curves:
        raise Mistake(f"{law.name} needs at least one curve")
    if all(lrs[: steps[-1] + 1].max() == lrs[steps[-1]] for lrs, steps, _ in curves):
        raise Mistake("no learning rate falls in these curves, so nothing tells what that is worth: add a cooldown")
    measured = np.concatenate([curve.losses for curve in curves])
    block = max(1, len(measured) // len(curves) // 10)
    ranges = spans(step=[curve.steps[-1] for curve in curves], lr=[curve.lrs.max() for curve in curves])
    return fit_law(law, curves, measured, delta, draws, seed, block, settings, ranges)


def check_lrs(lrs, where):
    lrs = np.asarray(lrs, float)
    if not np.isfinite(lrs).all() or (lrs < 0).any() or not lrs.any():
        raise Mistake(f"{where}: learning rates must be finite, none negative, and some positive")
    return lrs


def check_curve(curve, where):
    """The curve as arrays, or a Mistake that says what is wrong with it."""
    lrs, steps, losses = check_lrs(curve.lrs, where), np.asarray(curve.steps, int), np.asarray(curve.losses, float)
    if not len(steps) or len(steps) != len(losses):
        raise Mistake(f"{where}: {len(steps)} steps with {len(losses)} losses after warmup")
    if steps[0] < 1 or steps[-1] >= len(lrs) or (np.diff(steps) <= 0).any():
        raise Mistake(f"{where}: steps must increase, from 1 at least to {len(lrs) - 1} where learning rates end")
    if lrs[0]:
        raise Mistake(f"{where}: lrs[0]={lrs[0]:g} stands before the first update and must be 0")
    if not lrs[: steps[0] + 1].any():
        raise Mistake(f"{where}: all learning rates up to its first loss, at step {steps[0]}, are 0")
    for i in np.flatnonzero(~(np.isfinite(losses) & (losses > 0)))[:1]:
        raise Mistake(f"{where}: the loss at step {steps[i]} is {losses[i]:g}; it must be positive and finite")
    return Curve(lrs, steps, losses)


def curve_errors(fit, curve) -> dict:
    """Errors on a curve the fit may not have seen: R2, mae and rmse in nats, mean and largest relative error, final.

    `final` is that of the last loss, predicted minus measured in nats, with its sign.
    """
    error = evaluate(LAWS[fit.law], fit.params, [curve], fit.settings) - curve.losses
    size = abs(error)
    variation = ((curve.losses - curve.losses.mean()) ** 2).sum()
    return {
        "R2": 1 - error @ error / variation if variation else math.nan,
        "mae": size.mean(),
        "rmse": math.sqrt(error @ error / len(error)),
        "mean_relative": (size / curve.losses).mean(),
        "max_relative": (size / curve.losses).max(),
        "final": error[-1],
    }


def schedule_bound(lrs, distance=1.0, gradient=1.0):
    """Bound how far from the optimum SGD ends on a convex problem -> (bound, bound at the best scale, best scale).

    d^2 / (2 s_1) + g^2 [q_1 / (2 s_1) + 1/2 sum_{k<T} lr_k / s_{k+1} x q_k / s_k], s_k and q_k the sums of lr and lr^2
    from step k on; Schaipp et al. 2025 (2501.18965). At the best scale of all rates it is 2 sqrt of the product
    of both parts: a ranking of schedules without parameters, lower is better. Knows no noise scale and no curvature.
    """
    lrs = np.trim_zeros(check_lrs(lrs, "schedule"))  # steps without a learning rate change nothing
    s, q = np.cumsum(lrs[::-1])[::-1], np.cumsum(lrs[::-1] ** 2)[::-1]
    start = distance**2 / (2 * s[0])
    steps = gradient**2 * (q[0] / (2 * s[0]) + 0.5 * np.sum(lrs[:-1] / s[1:] * q[:-1] / s[:-1]))
    return start + steps, 2 * math.sqrt(start * steps), math.sqrt(start / steps)
