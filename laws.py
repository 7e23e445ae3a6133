"""Scaling laws: fit what runs show, say how well the data pin it down, predict the next run.

    python laws.py chinchilla results.csv --N=params --D=tokens --loss=final_val_loss --plot=fit.png
    python laws.py chinchilla results.csv --json > law.json && python laws.py predict law.json --N=1e9 --D=2e10
    python laws.py annealing runs/a/log.jsonl runs/b/log.jsonl --test=runs/c/log.jsonl --json > curves.json
    python laws.py predict curves.json --lr=0:0,300:1e-3,8000:1e-3,10000:0      # a planned cooldown

Of final losses: chinchilla, isoflop, overtraining, downstream, asymptote, speedup, diagonal. Of whole loss curves:
annealing, multi_power; schedule_bound ranks schedules without any run. Papers stand with the functions. Columns may be
products and quotients (--D=steps*batch*512, --D=flops/6/params); --where=dataset=c4 picks rows.
"""

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.signal import lfilter
from scipy.stats import t as student_t

LEVEL = 0.95  # of every interval
DELTA = 1e-3  # Huber's delta on log losses, Hoffmann et al.: residuals beyond 0.1% count by their size, not its square


class Fit(NamedTuple):
    """A fitted law; what --json prints."""

    law: str
    params: dict
    objective: float  # Huber sum over the points; half the sum of squares where delta is infinite
    residuals: np.ndarray  # ln fitted - ln measured, or fitted - measured where the law is fitted to plain values
    intervals: dict  # name -> (low, high), 95% of the bootstrap; (-inf, inf) where there is none
    unidentified: list  # names whose interval is wider than half the value: the data do not determine them
    draws: list  # params of every bootstrap fit
    n_points: int
    scatter: float  # standard deviation of the residuals, corrected for the number of parameters
    ranges: dict  # input -> (lowest, highest) it was fitted on
    settings: dict  # what else belongs to the law


class Curve(NamedTuple):
    """One run for the laws of whole loss curves; steps count finished updates."""

    lrs: np.ndarray  # (T + 1,): lrs[s] is the learning rate of the update that ended at step s; lrs[0] = 0
    steps: np.ndarray  # where the loss was measured, all of them after warmup
    losses: np.ndarray


class Law(NamedTuple):
    names: tuple  # parameters, in the order of theta
    logs: tuple  # those that theta holds as logarithms, and that are therefore positive
    on_logs: bool  # whether residuals are taken on logarithms
    prepare: Callable  # (inputs, settings) -> features: whatever does not depend on theta, computed once
    predict: Callable  # (theta (S, P), features) -> values (S, n), derivatives by theta (S, n, P)
    starts: Callable  # (features, measured) -> theta (S, P), where the search begins


# ----------------------------------------------------------------------------------------------------------------------
# One optimizer and one bootstrap for all laws


def huber(residuals, delta):
    """r^2 / 2 for |r| <= delta, delta (|r| - delta / 2) beyond."""
    size = np.minimum(abs(residuals), delta)
    return size * (abs(residuals) - size / 2)


@np.errstate(all="ignore")  # a wild step gives inf or nan, and is refused
def minimize_huber(predict, theta, target, delta, weights=1.0, iterations=400):
    """Minimize the weighted Huber loss from every row of theta (S, P) at once -> (theta, objectives (S,)).

    Levenberg-Marquardt with weights delta / |r| beyond delta; steps that do not lower the objective are refused. Stops
    when no row has gained a relative 1e-13 for ten iterations: on Chinchilla's points at the last digit of the
    objective, where quasi-Newton methods with default tolerances stop percents short in the parameters.
    """
    theta = np.array(theta, dtype=float)
    damping, idle, diagonal = np.full(len(theta), 1e-2), 0, np.arange(theta.shape[1])
    value, jac = map(np.array, predict(theta))
    res = value - target
    cost = np.nan_to_num((weights * huber(res, delta)).sum(1), nan=np.inf)
    for _ in range(iterations):
        weighted = jac * (weights * np.minimum(1, delta / np.maximum(abs(res), 1e-300)))[..., None]
        normal = np.swapaxes(weighted, 1, 2) @ jac
        gradient = np.swapaxes(weighted, 1, 2) @ res[..., None]
        scale = normal[:, diagonal, diagonal]
        normal[:, diagonal, diagonal] += damping[:, None] * scale + 1e-13 * scale.max(1, keepdims=True) + 1e-280
        usable = np.isfinite(normal).all((1, 2)) & np.isfinite(gradient).all((1, 2))
        normal[~usable], gradient[~usable] = np.eye(len(diagonal)), 0
        trial = theta - np.linalg.solve(normal, gradient)[..., 0]
        value, trial_jac = predict(trial)
        trial_res = value - target
        trial_cost = (weights * huber(trial_res, delta)).sum(1)
        better = trial_cost < cost  # false for nan
        idle = 0 if (cost[better] - trial_cost[better] > 1e-13 * cost[better]).any() else idle + 1
        theta[better], res[better], jac[better] = trial[better], trial_res[better], trial_jac[better]
        cost[better] = trial_cost[better]
        damping = np.where(better, damping / 5, damping * 5).clip(1e-12, 1e12)
        if idle == 10:
            break
    return theta, cost


def search(predict, starts, target, delta):
    """Minimize from all starts, from the best of them to convergence -> (theta (P,), objective, its start (P,))."""
    chunks = [starts[i : i + 250] for i in range(0, len(starts), 250)]  # 250 x points x parameters fit into the cache
    tried = [minimize_huber(predict, chunk, target, delta, iterations=8) for chunk in chunks]
    theta, cost = (np.concatenate(x) for x in zip(*tried, strict=True))
    order = np.argsort(cost)[:32]
    theta, cost = minimize_huber(predict, theta[order], target, delta)
    if not np.isfinite(cost.min()):
        raise ValueError("no start leads to a finite objective; check the units of the columns")
    return theta[cost.argmin()], cost.min(), starts[order[cost.argmin()]]


def bootstrap(predict, starts, target, delta, block, n_draws, rng):
    """Fit again to resampled data, from each of the starts, the fit first -> thetas (n_draws, P).

    Half by residuals: the fit plus its residuals in random order and with random signs. The P nearest to zero stay out,
    as a fit passes (nearly, under Huber's loss) through P of its points. Right for few points, too narrow where some
    points are noisier than others. Half by points, drawn with replacement: the other way round, left out below 2P
    points. Both in blocks of consecutive points, which share their noise on a curve, and widened by Student's factor.
    """
    theta, n, n_params = starts[0], len(target), len(starts[0])
    freedom, by_points = n - n_params, n_draws // 2 if n >= 2 * n_params else 0
    widen = student_t.ppf(0.5 + LEVEL / 2, freedom) / 1.96
    fitted = predict(theta[None])[0]
    residuals = (fitted - target)[0]
    kept = residuals[np.sort(np.argsort(abs(residuals))[n_params:])]
    picked = rng.integers(0, n * freedom, (n_draws, -(-n // block), 1)) + np.arange(block)  # uniform mod n and freedom
    signs = widen * rng.choice([-1, 1], (n_draws, picked.shape[1], 1))
    targets = fitted + (kept[picked % freedom] * signs).reshape(n_draws, -1)[:, :n]
    targets[:by_points], weights = target, np.ones((n_draws, n))
    for i in range(by_points):
        weights[i] = np.bincount(picked[i].ravel()[:n] % n, minlength=n)
    thetas = []
    for rows in np.array_split(np.arange(n_draws), -(-n_draws // 250)):
        many = [np.repeat(start[None], len(rows), 0) for start in starts]
        fits = [minimize_huber(predict, start, targets[rows], delta, weights[rows], iterations=60) for start in many]
        best = np.argmin([cost for _, cost in fits], axis=0)
        thetas.append(np.stack([found for found, _ in fits])[best, np.arange(len(rows))])
    thetas = np.concatenate(thetas)
    thetas[:by_points] = theta + widen * math.sqrt(n / freedom) * (thetas[:by_points] - theta)
    return thetas


def fit_law(name, inputs, measured, delta, draws, seed, block=1, settings=None, ranges=None, rough=None) -> Fit:
    """Fit a law of LAWS and bootstrap it: what all laws share.

    `rough` are settings under which predictions cost less and are nearly right, for the search and the bootstrap.
    """
    law, settings, n, n_params = LAWS[name], settings or {}, len(measured), len(LAWS[name].names)
    if n < n_params:
        raise ValueError(f"{name} has {n_params} parameters ({', '.join(law.names)}) but {n} points; add runs")
    target = np.log(measured) if law.on_logs else measured

    def predictor(features):
        def predict(theta):
            value, jac = law.predict(theta, features)
            return (np.log(value), jac / value[..., None]) if law.on_logs else (value, jac)

        return predict

    features = law.prepare(inputs, settings | (rough or {}))
    predict = predictor(features)
    theta, objective, start = search(predict, law.starts(features, measured), target, delta)
    thetas = []
    if n > n_params and draws:
        # from the start too: a draw cannot leave a corner where a term has vanished
        thetas = bootstrap(predict, [theta, start], target, delta, block, draws, np.random.default_rng(seed))
    if rough:
        predict = predictor(law.prepare(inputs, settings))
        theta, objective = (x[0] for x in minimize_huber(predict, theta[None], target, delta))
    value, jac = predict(theta[None])
    thetas = [to_params(law, x) for x in thetas]
    fit = describe(
        name, to_params(law, theta), objective, value[0] - target, thetas, settings, ranges or spans(**inputs)
    )
    unseen = [n for n, size in zip(law.names, abs(jac[0]).max(0), strict=True) if size < 1e-9 * abs(jac).max()]
    if unseen:  # a term that has vanished: nothing moves its parameters, not even the bootstrap
        fit = fit._replace(intervals=fit.intervals | dict.fromkeys(unseen, (-math.inf, math.inf)))
        fit = fit._replace(unidentified=[n for n in law.names if n in {*unseen, *fit.unidentified}])
    return fit


def to_params(law, theta):
    theta = np.where([n in law.logs for n in law.names], np.exp(np.clip(theta, -700, 700)), theta)
    return dict(zip(law.names, theta.tolist(), strict=True))


def to_theta(law, params):
    return np.array([[math.log(params[n]) if n in law.logs else params[n] for n in law.names]])


def describe(law, params, objective, residuals, draws, settings, ranges) -> Fit:
    """Gather a Fit: intervals from the draws, and the names of what these leave open."""
    intervals = {name: (-math.inf, math.inf) for name in params}
    if draws:
        intervals = {name: tuple(map(float, quantiles([d[name] for d in draws]))) for name in params}
    n, freedom = len(residuals), len(residuals) - len(params)
    wide = [name for name, (low, high) in intervals.items() if not high - low <= abs(params[name]) / 2]
    unidentified = wide if draws or not freedom else []  # without draws nobody asked
    scatter = math.sqrt(residuals @ residuals / freedom) if freedom else math.inf
    return Fit(law, params, float(objective), residuals, intervals, unidentified, draws, n, scatter, ranges, settings)


def quantiles(values):
    """(low, high) of the central 95% along the first axis."""
    return tuple(np.quantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0))


def spans(**columns):
    return {name: (float(np.min(x)), float(np.max(x))) for name, x in columns.items()}


def checked(distinct=None, **columns):
    """Give the columns back as float arrays; ValueError unless they have one length and hold positive finite numbers.

    `distinct` says of how many different values a column must consist at least.
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    if len({len(array) for array in arrays.values()}) > 1:
        raise ValueError(f"columns of different length: {', '.join(f'{n} {len(a)}' for n, a in arrays.items())}")
    for name, array in arrays.items():
        for i in np.flatnonzero(~(np.isfinite(array) & (array > 0)))[:1]:
            raise ValueError(f"{name} of point {i + 1} is {array[i]:g}; it must be positive and finite")
        if len(np.unique(array)) < (distinct or {}).get(name, 1):
            raise ValueError(f"{len(np.unique(array))} different {name}; this law needs {distinct[name]}: add runs")
    return arrays.values()


# ----------------------------------------------------------------------------------------------------------------------
# Laws of final losses


def sum_of_powers(theta, terms):
    """Sum over j of exp(theta . terms[:, j]), and its derivatives; terms (n, J, P) hold the logs of the inputs."""
    n, J, P = terms.shape
    powers = np.exp((theta @ terms.reshape(n * J, P).T).reshape(-1, n, J))
    return powers.sum(-1), np.einsum("snj,njp->snp", powers, terms, optimize=True)


def stack_terms(n, *rows):
    """Terms (n, J, P) from J rows of P entries, each a number or an array (n,)."""
    return np.moveaxis(np.array([[np.broadcast_to(x, n) for x in row] for row in rows], dtype=float), 2, 0)


def grid(*axes):
    """Every combination of the axes' values, (combinations, axes)."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)).astype(float)


def chinchilla_terms(inputs, settings):
    n, d = np.log(inputs["N"]), np.log(inputs["D"])
    return stack_terms(len(n), (1, 0, 0, 0, 0), (0, 1, 0, -n, 0), (0, 0, 1, 0, -d))


def chinchilla_starts(features, measured):
    # the 4500 starts of Hoffmann et al.: ln E, ln A, ln B, alpha, beta
    return grid(np.linspace(-1, 1, 5), range(0, 26, 5), range(0, 26, 5), np.linspace(0, 2, 5), np.linspace(0, 2, 5))


def chinchilla(N, D, loss, delta=DELTA, draws=400, seed=0) -> Fit:
    """Fit L(N, D) = E + A/N^alpha + B/D^beta to parameters, tokens and final losses in nats.

    Hoffmann et al. 2022 (2203.15556), approach 3: Huber loss on logs. Wants runs that end their schedule and vary N and
    D apart; N within a factor of 10 leaves E and A open, however small the residuals. Silent on learning rate and data.
    """
    N, D, loss = checked({"N": 2, "D": 2}, N=N, D=D, loss=loss)
    return fit_law("chinchilla", {"N": N, "D": D}, loss, delta, draws, seed)


def optimum(params, C):
    """(N, D, loss) that minimize a chinchilla law under 6 N D = C FLOPs: N = G (C/6)^(beta/(alpha+beta)), eq. 4."""
    E, A, B, alpha, beta = (params[name] for name in LAWS["chinchilla"].names)
    N = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta))
    D = C / 6 / N
    return N, D, E + A / N**alpha + B / D**beta


def overtraining_terms(inputs, settings):
    c, m = np.log(6 * inputs["N"] * inputs["D"]), np.log(inputs["D"] / inputs["N"])
    return stack_terms(len(c), (1, 0, 0, 0), (0, 1, 0, m - c), (0, 0, 1, -m - c))


def overtraining_starts(features, measured):
    coefficients = np.log([10, 100, 1000])
    return grid(np.log(measured.min() * np.array([0.3, 0.6, 0.9])), coefficients, coefficients, [0.05, 0.1, 0.2, 0.3])


def overtraining(N, D, loss, delta=math.inf, draws=400, seed=0) -> Fit:
    """Fit L(C, M) = E + (a M^eta + b M^-eta) C^-eta with C = 6 N D in FLOPs and M = D/N tokens a parameter.

    Gadre et al. 2024 (2403.08540), eq. 4: chinchilla's law with alpha = beta = 2 eta, so that few small runs fix it;
    least squares on losses, as there. Their fits take 5 runs for 4 parameters, hence the wide intervals.
    """
    N, D, loss = checked({"N": 2}, N=N, D=D, loss=loss)
    checked({"M": 2}, M=D / N)
    return fit_law("overtraining", {"N": N, "D": D}, loss, delta, draws, seed)


def power_terms(inputs, settings):
    x = np.log(inputs["x"])
    return stack_terms(len(x), (1, 0, 0), (0, 1, -x))


def power_starts(features, measured):
    log_x = -features[:, 1, 2]
    starts = grid(np.log(measured.min() * np.array([0.01, 0.3, 0.6, 0.8, 0.9, 0.97])), [0], [0.05, 0.1, 0.2, 0.5, 1, 2])
    for start in starts:
        start[1] = np.mean(np.log(measured - np.exp(start[0])) + start[2] * log_x)  # A that fits, given C and b
    return starts


def asymptote(x, loss, delta=math.inf, draws=400, seed=0) -> Fit:
    """Fit L(x) = A/x^b + C, x being whatever grows: tokens, parameters, epochs, members of an ensemble.

    Least squares on losses, as Kim et al. 2025 (2509.14786) do where data are limited. C, the loss in the limit, rests
    on the form of the law. Joint limits: fit the C of each size against the size, again with this law.
    """
    x, loss = checked({"x": 3}, x=x, loss=loss)
    return fit_law("asymptote", {"x": x}, loss, delta, draws, seed)


def saturation(theta, loss):
    rate = np.exp(theta[:, 2:3])
    gap = np.exp(theta[:, 1:2] - rate * loss)  # k exp(-gamma L)
    return theta[:, :1] - gap, np.stack([np.ones_like(gap), -gap, gap * rate * loss], -1)


def saturation_starts(loss, measured):
    starts = []
    for gamma in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2):
        design = np.stack([np.ones_like(loss), -np.exp(-gamma * loss)], 1)
        epsilon, k = np.linalg.lstsq(design, measured, rcond=None)[0]  # linear once gamma is given
        starts.append([epsilon, np.log(max(k, 1e-6)), np.log(gamma)])
    return np.array(starts)


def downstream(loss, error, delta=math.inf, draws=400, seed=0) -> Fit:
    """Fit Err(L) = epsilon - k exp(-gamma L): mean error of tasks (0 to 1) against loss in nats.

    Gadre et al. 2024 (2403.08540), eq. 5, least squares. Holds for averages of many tasks, and for the evaluation loss
    it was fitted with; epsilon is about the error of guessing.
    """
    loss, error = checked({"loss": 3}, loss=loss, error=error)
    return fit_law("downstream", {"loss": loss}, error, delta, draws, seed)


def line(theta, x):
    return theta[:, :1] * x + theta[:, 1:], np.broadcast_to(np.stack([x, np.ones_like(x)], -1), (len(theta), len(x), 2))


def diagonal(loss_x, loss_y, delta=math.inf, draws=400, seed=0) -> Fit:
    """Fit perplexity y = slope x perplexity x + intercept to the final losses of pairs of runs with equal N and D.

    Hägele et al. 2024 (2405.18392), Fig. 12 right: cosine y against cooldown x. settings: mean and largest difference
    loss_x - loss_y in nats; a negative mean says that x is better. One seed a run cannot tell less than seed noise.
    """
    loss_x, loss_y = checked({"loss_x": 2}, loss_x=loss_x, loss_y=loss_y)
    gap = loss_x - loss_y
    settings = {"mean_difference": float(gap.mean()), "largest_difference": float(abs(gap).max())}
    return fit_law("diagonal", {"perplexity": np.exp(loss_x)}, np.exp(loss_y), delta, draws, seed, settings=settings)


def isoflop_terms(inputs, settings):
    x = np.log(inputs["C"] / settings["C0"])
    return stack_terms(len(x), (1, x))


def isoflop(C, N, loss, noise=None, draws=400, seed=0) -> Fit:
    """Fit N_opt(C) = N0 (C / C0)^exponent to the best model size at each budget of C FLOPs; settings hold the mean C0.

    Hoffmann et al. 2022, approach 2, as Porian et al. 2024 (2406.19146) do it: the minimum of an Akima spline through
    ln loss over ln N; budgets whose minimum lies at an edge drop out. `noise`, the standard deviation of ln loss, gives
    weights (1 / variance of ln N_opt) and intervals; if None, it is taken from third differences along the budgets.
    Wants 4 sizes or more a budget, on both sides of the minimum. Predicts sizes, not losses.
    """
    C, N, loss = checked(C=C, N=N, loss=loss)
    order = np.argsort(C)
    budgets = np.split(order, np.flatnonzero(np.diff(np.log(C[order])) > 0.05) + 1)  # within 5% is one budget
    profiles = []
    for rows in budgets:
        x, which = np.unique(np.log(N[rows]), return_inverse=True)
        if len(x) < 4:
            raise ValueError(f"budget {C[rows[0]]:g} has {len(x)} model sizes; isoflop needs 4 or more for each")
        profiles.append((x, np.bincount(which, np.log(loss[rows])) / np.bincount(which)))
    if noise is None:
        noise = math.sqrt(np.mean(np.concatenate([third_differences(x, y) for x, y in profiles])))
    rng = np.random.default_rng(seed)
    best = np.array([lowest(x, y) for x, y in profiles])
    redrawn = [[lowest(x, y + noise * rng.standard_normal(len(x))) for x, y in profiles] for _ in range(draws)]
    inside = np.isfinite(best)
    if inside.sum() < 2:
        raise ValueError(f"{inside.sum()} of {len(best)} budgets have a minimum inside their sizes; widen the sizes")
    log_C, best = np.array([np.log(C[rows]).mean() for rows in budgets])[inside], best[inside]
    redrawn = np.array(redrawn).reshape(draws, -1)[:, inside]
    redrawn = redrawn[np.isfinite(redrawn).sum(1) > 1]
    weights = 1 / np.maximum(np.nanvar([best, *redrawn], axis=0), 1e-30)
    x = log_C - log_C.mean()
    params, *many = (weighted_line(x, y, weights) for y in [best, *redrawn])
    settings = {"C0": math.exp(log_C.mean()), "noise": noise, "minima": np.exp([log_C, best]).T.tolist()}  # C, N_opt
    residuals = math.log(params["N0"]) + params["exponent"] * x - best
    return describe("isoflop", params, weights @ residuals**2 / 2, residuals, many, settings, spans(C=C))


def weighted_line(x, y, weights):
    weights, y = np.where(np.isfinite(y), weights, 0), np.nan_to_num(y)
    mean_x, mean_y = np.average(x, weights=weights), np.average(y, weights=weights)
    slope = weights @ ((x - mean_x) * (y - mean_y)) / (weights @ (x - mean_x) ** 2)
    return {"N0": math.exp(mean_y - slope * mean_x), "exponent": float(slope)}


def third_differences(x, y):
    """Squared third divided differences, each scaled to the variance of y's noise: blind to any local parabola."""
    out = []
    for i in range(len(x) - 3):
        nodes = x[i : i + 4]
        weights = np.array([1 / np.prod(node - np.delete(nodes, j)) for j, node in enumerate(nodes)])
        out.append((weights @ y[i : i + 4]) ** 2 / (weights @ weights))
    return out


def lowest(x, y):
    """Where an Akima spline through the points is lowest; nan if that is at an edge."""
    spline = Akima1DInterpolator(x, y)
    roots = spline.derivative().roots(extrapolate=False)
    candidates = np.concatenate([x[[0, -1]], roots[np.isfinite(roots)]])
    best = np.argmin(spline(candidates))
    return candidates[best] if best > 1 else np.nan


def speedup(D, loss, by, baseline, draws=400, seed=0):
    """Say how many times more tokens a baseline needs for the same loss -> (its fit, a dict for every other run).

    Wen et al. 2025 (2509.02046): the baseline's runs give L(D) = A/D^b + C; a run of D tokens and loss L is worth
    D_eff = (A / (L - C))^(1/b) of it, and its speedup is D_eff / D, infinite at or below C. One model size at a time,
    every method tuned by itself. Intervals are of the baseline's law only; the seed noise of the run comes on top.
    """
    (D, loss), by = checked(D=D, loss=loss), np.asarray(by)
    if baseline not in by:
        raise ValueError(f"baseline {baseline!r} is not among {', '.join(sorted(set(map(str, by))))}")
    fit = asymptote(D[by == baseline], loss[by == baseline], draws=draws, seed=seed)
    rows = []
    for i in np.flatnonzero(by != baseline):
        value, *many = (equal_x(params, loss[i]) / D[i] for params in (fit.params, *fit.draws))
        low, high = np.quantile(many, [0.025, 0.975], method="nearest") if many else (0.0, math.inf)  # some may be inf
        rows.append({"by": str(by[i]), "D": D[i], "loss": loss[i], "speedup": value, "low": low, "high": high})
    return fit, rows


def equal_x(params, loss):
    """The x at which an asymptote law has this loss; inf at or below its limit."""
    excess = loss - params["C"]
    return (params["A"] / excess) ** (1 / params["b"]) if excess > 0 and params["b"] > 0 else math.inf


# ----------------------------------------------------------------------------------------------------------------------
# Laws of whole loss curves


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
    for alpha in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0):
        L0, A, C = np.linalg.lstsq(np.stack([np.ones_like(S1), S1**-alpha, -S2], 1), measured, rcond=None)[0]
        starts.append([np.log(max(L0, 0.1 * measured.min())), np.log(max(A, 1e-6)), alpha, C])  # linear given alpha
    return np.array(starts)


def annealing(curves, lam=0.999, warmup="ramp", delta=DELTA, draws=400, seed=0, block=None) -> Fit:
    """Fit L(s) = L0 + A S1^-alpha - C S2 to loss curves under any schedules, Tissue et al. 2024 (2408.11029).

    S1 is the sum of learning rates up to step s, S2 that of m_i = lam m_{i-1} + (lr_{i-1} - lr_i), after warmup. S1
    takes the warmup as it was ("ramp") or as if at the peak ("peak": the authors; worse on public curves). C goes with
    1 - lam. A law within one model, batch size and peak learning rate: over several peaks C can turn negative, and it
    always prefers the higher one. `block`: points in a row that share their noise; a tenth of a curve if None.
    """
    if warmup not in ("ramp", "peak") or not 0 <= lam < 1:
        raise ValueError(f"warmup={warmup!r} must be 'ramp' or 'peak', and lam={lam} between 0 and 1")
    return fit_curves("annealing", curves, delta, draws, seed, block, {"lam": lam, "warmup": warmup})


def multi_power_features(curves, settings):
    """Per curve: lr and S1 at the measured steps; size, ln lr and S before of each change; how many a step has seen.

    Changes of one sign, within `merge` steps and between two measured steps, count as one at their mean; 1 is exact.
    """
    features = []
    for lrs, steps, _ in curves:
        area, gaps = np.cumsum(lrs), np.diff(lrs, prepend=0)
        changed = np.flatnonzero(gaps)
        row = np.searchsorted(steps, changed)  # the first measured step to see the change
        changed, row = changed[row < len(steps)], row[row < len(steps)]
        new = [np.diff(x, prepend=-2) != 0 for x in (row, changed // settings["merge"], np.sign(gaps[changed]))]
        first = np.flatnonzero(np.any(new, 0))
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
        design = np.stack([np.ones_like(S1), S1**-alpha, lr - lr.max()], 1)
        L0, A, B = np.maximum(np.linalg.lstsq(design, measured, rcond=None)[0], [0.1 * measured.min(), 1e-3, 1])
        starts += [[np.log(L0), np.log(A), alpha, np.log(B), log_C, np.log(0.5), 0.5] for log_C in (0, 3)]
    return np.array(starts)


def multi_power(curves, delta=DELTA, draws=100, seed=0, block=None) -> Fit:
    """Fit L(t) = L0 + A S1^-alpha - B sum_k (lr_{k-1} - lr_k) G(lr_k^-gamma S_k(t)) to loss curves.

    Luo et al. 2025 (2503.12811): G(x) = 1 - (1 + C x)^-beta, S_k(t) the sum of learning rates from step k to t. As in
    the authors' code the sum runs over the rises of the warmup too, and S1 takes the warmup as it was. B, C, beta and
    gamma trade off: a converged fit is nearer to its curves than the published parameters, and no better on others.
    About a minute on three curves of 24,000 steps. `block` as for annealing.
    """
    changes = sum(len(curve.steps) * np.count_nonzero(np.diff(curve.lrs)) for curve in curves)
    rough = {"merge": 16} if changes > 100_000 else None  # 4e-6 off in the loss on Luo et al.'s curves
    return fit_curves("multi_power", curves, delta, draws, seed, block, {"merge": 1}, rough)


def fit_curves(name, curves, delta, draws, seed, block, settings, rough=None):
    curves = [check_curve(curve, f"curve {i + 1}") for i, curve in enumerate(curves)]
    if not curves:
        raise ValueError(f"{name} needs at least one curve")
    measured = np.concatenate([curve.losses for curve in curves])
    block = max(1, len(measured) // len(curves) // 10) if block is None else block
    ranges = spans(step=[curve.steps[-1] for curve in curves], lr=[curve.lrs.max() for curve in curves])
    return fit_law(name, curves, measured, delta, draws, seed, block, settings, ranges, rough)


def check_curve(curve, where):
    """The curve as arrays, or a ValueError that says what is wrong with it."""
    lrs, steps, losses = np.asarray(curve.lrs, float), np.asarray(curve.steps, int), np.asarray(curve.losses, float)
    if not (np.isfinite(lrs).all() and (lrs >= 0).all() and lrs.max() > 0):
        raise ValueError(f"{where}: learning rates must be finite, none negative, and some positive")
    if not len(steps) or len(steps) != len(losses):
        raise ValueError(f"{where}: {len(steps)} steps with {len(losses)} losses after warmup")
    if steps[0] < 1 or steps[-1] >= len(lrs) or (np.diff(steps) <= 0).any():
        raise ValueError(f"{where}: steps must increase, from 1 at least to {len(lrs) - 1} where learning rates end")
    for i in np.flatnonzero(~(np.isfinite(losses) & (losses > 0)))[:1]:
        raise ValueError(f"{where}: the loss at step {steps[i]} is {losses[i]:g}; it must be positive and finite")
    return Curve(lrs, steps, losses)


def curve_errors(fit, curve) -> dict:
    """Errors on a curve the fit may not have seen: R2, mae and rmse in nats, mean and largest relative error."""
    error = evaluate(fit.law, fit.params, [curve], fit.settings) - curve.losses
    size = abs(error)
    return {
        "R2": 1 - error @ error / ((curve.losses - curve.losses.mean()) ** 2).sum(),
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


LAWS = {
    "chinchilla": Law(
        ("E", "A", "B", "alpha", "beta"), ("E", "A", "B"), True, chinchilla_terms, sum_of_powers, chinchilla_starts
    ),
    "overtraining": Law(
        ("E", "a", "b", "eta"), ("E", "a", "b"), False, overtraining_terms, sum_of_powers, overtraining_starts
    ),
    "asymptote": Law(("C", "A", "b"), ("C", "A"), False, power_terms, sum_of_powers, power_starts),
    "downstream": Law(
        ("epsilon", "k", "gamma"), ("k", "gamma"), False, lambda x, _: x["loss"], saturation, saturation_starts
    ),
    "diagonal": Law(
        ("slope", "intercept"), (), False, lambda x, _: x["perplexity"], line, lambda x, y: np.array([[1.0, 0.0]])
    ),
    "isoflop": Law(("N0", "exponent"), ("N0",), True, isoflop_terms, sum_of_powers, None),
    "annealing": Law(
        ("L0", "A", "alpha", "C"), ("L0", "A"), True, annealing_features, annealing_value, annealing_starts
    ),
    "multi_power": Law(
        ("L0", "A", "alpha", "B", "C", "beta", "gamma"), ("L0", "A", "B", "C", "beta"), True,
        multi_power_features, multi_power_value, multi_power_starts,
    ),
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Prediction


def evaluate(law, params, inputs, settings=None):
    """Values of a law under given params, at a dict of arrays or at curves."""
    return LAWS[law].predict(to_theta(LAWS[law], params), LAWS[law].prepare(inputs, settings or {}))[0][0]


def predict(fit, inputs, seed=0):
    """Predict at a dict of arrays, or at curves -> (values, low, high), 95% for one new run.

    The interval holds the bootstrap of the law and the scatter of single runs about it. It cannot hold the error of the
    law's form, which is what extrapolations die of: see `beyond`.
    """
    law, values = LAWS[fit.law], evaluate(fit.law, fit.params, inputs, fit.settings)
    if not fit.draws:
        return values, np.full_like(values, -np.inf), np.full_like(values, np.inf)
    features = law.prepare(inputs, fit.settings | ({"merge": 16} if fit.law == "multi_power" else {}))
    many = np.concatenate([law.predict(to_theta(law, params), features)[0] for params in fit.draws])
    noise = fit.scatter * np.random.default_rng(seed).standard_t(fit.n_points - len(fit.params), many.shape)
    return values, *quantiles(many * np.exp(noise) if law.on_logs else many + noise)


def beyond(fit, inputs) -> list:
    """Say how far outside of what was fitted the inputs lie, a sentence each."""
    notes = []
    for name in sorted(fit.ranges.keys() & inputs.keys()):
        (low, high), least, most = fit.ranges[name], np.min(inputs[name]), np.max(inputs[name])
        if most > 1.05 * high:
            notes.append(f"{name} = {most:.4g} is {most / high:.3g} times the largest fitted")
        if least < low / 1.05:
            notes.append(f"{name} = {least:.4g} is {least / low:.3g} times the smallest fitted")
    return notes


# ----------------------------------------------------------------------------------------------------------------------
# Files


def read_rows(path):
    """Rows of a CSV or JSON-lines file (named .jsonl) -> [(where, dict)], `where` for messages."""
    with open(path, newline="") as f:
        if not path.endswith(".jsonl"):
            reader = csv.DictReader(f)
            return [(f"{path} line {reader.line_num}", row) for row in reader]
        rows = []
        for i, text in enumerate(f, 1):
            try:
                rows.append((f"{path} line {i}", dict(json.loads(text))))
            except (ValueError, TypeError):
                raise ValueError(f"{path} line {i} is not a JSON object") from None
        return rows


def text_in(row, column, where):
    if column not in row:
        raise ValueError(f"{where}: no column {column!r}; there are {', '.join(map(str, row))}")
    return row[column]


def number_in(row, column, where):
    """The number in a column, or in a product and quotient of columns and numbers such as batch*steps/2."""
    parts = [column] if column in row else re.split(r"([*/])", column)
    value = 1.0
    for operator, part in zip(["*", *parts[1::2]], parts[::2], strict=True):
        literal = re.fullmatch(r"[\d.]+(e[+-]?\d+)?", part)
        text = part if literal and part not in row else text_in(row, part, where)
        try:
            value = value * float(text) if operator == "*" else value / float(text)
        except (TypeError, ValueError, ZeroDivisionError):
            raise ValueError(f"{where}: {part} is {text!r}; it must be a number") from None
    return value


def read_points(paths, columns, conditions=(), labels=()) -> dict:
    """Read columns of positive numbers (name -> column, or expression) and labels from the rows that meet conditions.

    Conditions are column=value; a label may join columns a,b as a/b. Of JSON lines only those with the loss
    count, after step 0: a run's evaluations.
    """
    points = {name: [] for name in (*columns, *labels)}
    for where, row in (pair for path in paths for pair in read_rows(path)):
        if ".jsonl line " in where and (columns["loss"] not in row or row.get("step") == 0):
            continue
        wanted = [condition.partition("=")[::2] for condition in conditions]
        if not all(same(text_in(row, column, where), value) for column, value in wanted):
            continue
        for name, column in columns.items():
            value = number_in(row, column, where)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{where}: {column} is {value:g}; it must be positive and finite")
            points[name].append(value)
        for name in labels:
            points[name].append("/".join(str(text_in(row, part, where)) for part in name.split(",")))
    if not points["loss"]:
        raise ValueError(f"{', '.join(paths)}: no rows" + (f" with {', '.join(conditions)}" if conditions else ""))
    return {name: np.array(values) for name, values in points.items()}


def same(text, value):
    """Whether a cell is a value: the same text or the same number."""
    try:
        return text == value or float(text) == float(value)
    except (TypeError, ValueError):
        return False


def read_curve(path, loss=None, lr="lr", warmup_steps=None) -> Curve:
    """Read a loss curve, after its warmup, from a run's log.jsonl or from a CSV with the columns step, lr and loss.

    A row may lack the loss or the learning rate. Between rows the learning rate is linear: log it densely where it
    jumps. `warmup_steps`: if rows begin later, the learning rate rose linearly from 0 over so many steps, then stayed.
    """
    loss, is_log = loss or ("val_loss" if path.endswith(".jsonl") else "loss"), path.endswith(".jsonl")
    lrs, losses = {}, {}
    for where, row in read_rows(path):
        for column, known in ((lr, lrs), (loss, losses)):
            if (row.get(column) if is_log else text_in(row, column, where)) not in (None, ""):
                known[int(number_in(row, "step", where))] = number_in(row, column, where)
    if not lrs or not losses:
        raise ValueError(f"{path} has {len(lrs)} rows with {lr!r} and {len(losses)} with {loss!r}; a curve needs both")
    dense = dense_lrs(lrs, max(*lrs, *losses), warmup_steps, path)
    steps = np.array(sorted(step for step in losses if step >= max(1, np.argmax(dense))), dtype=int)
    return check_curve(Curve(dense, steps, np.array([losses[step] for step in steps])), path)


def read_lrs(text, warmup_steps=None):
    """Learning rates of a planned run, for every step, from knots step:lr or from a file with step and lr."""
    try:
        if ":" in text:
            known = {int(float(step)): float(lr) for step, lr in (knot.split(":") for knot in text.split(","))}
        else:
            rows = [pair for pair in read_rows(text) if pair[1].get("lr") not in (None, "")]
            known = {int(number_in(row, "step", where)): number_in(row, "lr", where) for where, row in rows}
        return dense_lrs(known, max(known, default=0), warmup_steps, text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"--lr={text}: {error}; knots are 0:0,300:1e-3,9000:1e-3,10000:0") from None


def dense_lrs(known, last, warmup_steps, where):
    """Learning rates of steps 0 .. last from known ones {step: lr}, linear between them, 0 before the first update."""
    steps = sorted(known)
    values = [known[step] for step in steps]
    if not steps or steps[0] < 0 or not np.isfinite(values).all() or min(values) < 0 or not max(values):
        raise ValueError(f"{where}: steps and learning rates must be finite, none negative, and some lr positive")
    if warmup_steps is None and len(steps) > 1 and steps[0] > 2 * (steps[1] - steps[0]):
        raise ValueError(
            f"{where}: begins at step {steps[0]}; give --warmup_steps, 0 if the learning rate was constant"
        )
    lrs = np.interp(np.arange(last + 1), steps, values)
    if warmup_steps:
        lrs[:warmup_steps] = np.linspace(0, values[0], warmup_steps)
    lrs[0] = 0
    return lrs


def to_json(x):
    """A Fit, or what it holds, as plain data with None for what is not finite."""
    if isinstance(x, Fit):
        return to_json(x._asdict())
    if isinstance(x, dict):
        return {name: to_json(value) for name, value in x.items()}
    if isinstance(x, list | tuple | np.ndarray):
        return [to_json(value) for value in x]
    if isinstance(x, np.generic):
        x = x.item()
    return None if isinstance(x, float) and not math.isfinite(x) else x


def read_fit(path) -> Fit:
    """Read a Fit that --json wrote."""
    try:
        with open(path) as f:
            data = json.load(f)
        fit = Fit(**{name: data[name] for name in Fit._fields})
        to_theta(LAWS[fit.law], fit.params)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what laws.py ... --json writes ({type(error).__name__}: {error})") from None
    return fit._replace(scatter=math.inf if fit.scatter is None else fit.scatter)


# ----------------------------------------------------------------------------------------------------------------------
# Tables and pictures


def rounded(value, low, high):
    """A value to the digits its interval leaves: two of the interval's width."""
    if abs(value) < 1e-30:  # of a term that has vanished
        return "0"
    width = high - low
    digits = 8 if not width else 2 + math.ceil(math.log10(abs(value) / width)) if math.isfinite(width) else 4
    return f"{value:.{min(max(digits, 1), 8)}g}"


def table(fit):
    """Parameters, intervals and settings as lines of text."""
    lines = [f"{fit.law}: {fit.n_points} points, objective {fit.objective:.8g}, scatter {fit.scatter:.3g}"]
    for name, value in fit.params.items():
        low, high = fit.intervals[name]
        between = f"[{low:.4g}, {high:.4g}]" if math.isfinite(high - low) else "no interval"
        note = "   not identified: wider than half the value" if name in fit.unidentified else ""
        lines.append(f"{name:>10}  {rounded(value, low, high):>10}  {between}{note}")
    shown = {name: value for name, value in fit.settings.items() if name not in ("minima", "merge")}
    return "\n".join(lines + [f"{name:>10}  {value}" for name, value in shown.items()])


def views(fit, points):
    """What to draw, one dict per model size or curve: x and measured, inputs there, and inputs along a line."""
    if fit.law in ("annealing", "multi_power"):
        shared = [{"name": "step", "x": c.steps, "measured": c.losses, "at": [c], "along": [c]} for c in points]
        return [view | {"line": view["x"], "label": f"curve {i + 1}"} for i, view in enumerate(shared)]
    if fit.law == "isoflop":
        points = dict(zip(("C", "N"), np.transpose(fit.settings["minima"]), strict=True))
    *names, measured = points
    sizes = np.array([float(f"{n:.3g}") for n in points["N"]]) if "N" in names else np.zeros(len(points[measured]))
    out = []
    for size in np.unique(sizes):
        at = {name: points[name][sizes == size] for name in names}
        x = at[names[-1]]
        line = np.geomspace(x.min(), x.max(), 100)
        along = {name: np.full(100, values.mean()) for name, values in at.items()} | {names[-1]: line}
        view = {"name": names[-1], "x": x, "measured": points[measured][sizes == size], "at": at, "along": along}
        out.append(view | {"line": line, "label": f"N = {size:.3g}" if size else None})
    return out


def plot(fit, points, path):
    """Draw points, fit, its 95% band and the residuals; `points` as the law was given them: columns, or curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 1), layout="constrained")
    drawn = views(fit, points)
    for i, view in enumerate(drawn):
        color = plt.get_cmap("viridis")(0.85 * i / max(1, len(drawn) - 1))
        style = {"ls": "", "color": color, "marker": "o", "ms": 4 if len(view["x"]) < 60 else 1.5}
        value, low, high = predict(fit._replace(scatter=0.0), view["along"])
        top.plot(view["x"], view["measured"], **style)
        top.plot(view["line"], value, color=color, lw=1, label=view.get("label"))
        if fit.draws:
            top.fill_between(view["line"], low, high, color=color, alpha=0.2, lw=0)
        fitted = evaluate(fit.law, fit.params, view["at"], fit.settings)
        bottom.plot(view["x"], 100 * (view["measured"] / fitted - 1), **style)
    names = {
        "N": "parameters",
        "D": "tokens",
        "C": "training FLOPs",
        "loss": "loss (nats)",
        "perplexity": "perplexity x",
    }
    measured = {"downstream": "error", "isoflop": "best number of parameters", "diagonal": "perplexity y"}
    top.set(ylabel=measured.get(fit.law, "loss (nats)"), yscale="log" if fit.law == "isoflop" else "linear")
    bottom.set(xlabel=names.get(drawn[0]["name"], drawn[0]["name"]), ylabel="measured / fit - 1 (%)")
    bottom.axhline(0, color="gray", lw=0.8)
    if drawn[0]["name"] in ("D", "C", "x"):
        bottom.set_xscale("log")
    title = f"{fit.law}: {fit.n_points} points, scatter {fit.scatter:.2g}; band: 95% of the law"
    if 1 < len(drawn) <= 12:
        top.legend(fontsize=8)
    elif len(drawn) > 12:
        title += f"\ncolour: {drawn[0]['label']} (dark) to {drawn[-1]['label']}"
    top.set_title(title, fontsize=10)
    fig.savefig(path, dpi=120)
    plt.close(fig)


# ----------------------------------------------------------------------------------------------------------------------
# Command line

LOSS = ("final_val_loss", "val_loss", "loss")
COLUMNS = {  # law -> the columns it reads, and what they are called unless the flag says so: the first that is there
    "chinchilla": {"N": ("params", "n_params"), "D": ("tokens",), "loss": LOSS},
    "isoflop": {"C": ("flops",), "N": ("params", "n_params"), "loss": LOSS},
    "overtraining": {"N": ("params", "n_params"), "D": ("tokens",), "loss": LOSS},
    "downstream": {"loss": LOSS, "error": ("error",)},
    "asymptote": {"x": ("tokens",), "loss": LOSS},
    "speedup": {"D": ("tokens",), "loss": LOSS},
    "diagonal": {"loss": LOSS},
}


def points_of(args, labels=()):
    rows = [row for _, row in read_rows(args.files[0])]
    columns = {}
    for name, usual in COLUMNS[args.command].items():
        there = [column for column in usual if any(column in row for row in rows)]
        columns[name] = getattr(args, name) or (there or usual)[0]
    return read_points(args.files, columns, args.where, labels)


def pairs_of(args):
    """Columns loss_x, loss_y of the runs that agree in --match and have one and the other value of --by."""
    match, pair = args.match.split(","), args.pair.split(",")
    points, losses = points_of(args, (args.by, *match)), {label: {} for label in pair}
    for label, loss, *key in zip(*(points[name] for name in (args.by, "loss", *match)), strict=True):
        if label in losses and losses[label].setdefault(tuple(key), loss) != loss:
            raise ValueError(f"two runs have {args.by}={label}, {args.match}={','.join(key)}: narrow with --where")
    shared = sorted(set.intersection(*map(set, losses.values())))
    if len(losses) != 2 or not shared:
        there = ", ".join(sorted(set(points[args.by])))
        raise ValueError(f"--pair={args.pair} has no pairs; of {args.by} there are {there}")
    return {f"loss_{side}": np.array([losses[x][key] for key in shared]) for side, x in zip("xy", pair, strict=True)}


def given(args, *names):
    """Those of the flags that were given, as keyword arguments."""
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def final_command(args):
    points = pairs_of(args) if args.command == "diagonal" else points_of(args)
    fit = args.function(**points, **given(args, "delta", "noise", "draws", "seed"))
    out, text = fit._asdict(), [table(fit)]
    if fit.law == "chinchilla":
        value, *draws = (p["beta"] / (p["alpha"] + p["beta"]) for p in (fit.params, *fit.draws))
        low, high = quantiles(draws) if draws else (-math.inf, math.inf)
        out["N_opt_exponent"] = [value, low, high]
        text.append(f"N_opt goes with C^{value:.3f} [{low:.3f}, {high:.3f}], D_opt with the rest of the exponent")
    if args.plot:
        if fit.law == "diagonal":
            points = {"perplexity": np.exp(points["loss_x"]), "perplexity_y": np.exp(points["loss_y"])}
        plot(fit, points, args.plot)
    return out, text


def curves_command(args):
    def read(paths):
        return {path: read_curve(path, args.loss, args.lr, args.warmup_steps) for path in paths}

    curves, tests = read(args.files), read(args.test.split(",") if args.test else ())
    fit = args.function(list(curves.values()), **given(args, "lam", "warmup", "draws", "seed"))
    errors = {path: curve_errors(fit, curve) for path, curve in tests.items()}
    if args.plot:
        plot(fit, list(curves.values()), args.plot)
    text = [f"{path}: " + "  ".join(f"{k} {v:.6g}" for k, v in error.items()) for path, error in errors.items()]
    return fit._asdict() | {"tests": errors}, [table(fit), *text]


def speedup_command(args):
    points = points_of(args, (args.by,))
    fit, rows = speedup(points["D"], points["loss"], points[args.by], args.baseline, **given(args, "draws", "seed"))
    text = [f"{'speedup':>8}  95% of the baseline    {'D':>9}  {'loss':>7}  {args.by}"]
    for r in rows:
        between = f"[{r['low']:.3f}, {r['high']:.3f}]"
        text.append(f"{r['speedup']:8.3f}  {between:<20}  {r['D']:9.4g}  {r['loss']:7.4f}  {r['by']}")
    return {"baseline": fit._asdict(), "speedups": rows}, [table(fit), *text]


def bound_command(args):
    rows = [(schedule_bound(read_lrs(text, args.warmup_steps)[1:]), text) for text in args.files]
    rows = sorted((best, scale, text) for (_, best, scale), text in rows)
    out = [{"schedule": text, "bound": best, "scale": scale, "ratio": best / rows[0][0]} for best, scale, text in rows]
    return {"schedules": out}, [f"{r['ratio']:.4f} x best  {r['schedule']}" for r in out]


def predict_command(args):
    path, values = args.files[0], given(args, "N", "D", "C", "x", "loss", "perplexity")
    if len(args.files) > 1:
        raise ValueError(f"predict takes one law, not {' and '.join(args.files)}")
    fit, values = read_fit(path), {name: np.array([float(x) for x in text.split(",")]) for name, text in values.items()}
    if fit.law in ("annealing", "multi_power"):
        if args.lr == "lr":
            raise ValueError(f"{path} is a law of loss curves: give --lr, knots step:lr or a file with step and lr")
        lrs = read_lrs(args.lr, args.warmup_steps)
        first, last = max(1, int(np.argmax(lrs))), len(lrs) - 1
        steps = np.unique([*range(first, last, args.every or -(-last // 200)), last])
        inputs, shown = [Curve(lrs, steps, np.ones(len(steps)))], {"step": steps, "lr": lrs[steps]}
        notes = beyond(fit, {"step": last, "lr": lrs.max()})
    else:
        if fit.law == "chinchilla" and "C" in values:
            values["N"], values["D"], _ = optimum(fit.params, values["C"])
        names = {"diagonal": ["perplexity"], "isoflop": ["C"]}.get(fit.law) or list(COLUMNS[fit.law])[:-1]
        if any(name not in values for name in names):
            raise ValueError(f"{path} is a {fit.law} law: give {' and '.join(f'--{name}' for name in names)}")
        inputs = shown = dict(zip(names, checked(**{name: values[name] for name in names}), strict=True))
        notes = beyond(fit, inputs)
    value, low, high = predict(fit, inputs, args.seed)
    columns = shown | {"predicted": value, "low": low, "high": high}
    text = ["  ".join(f"{name:>10}" for name in columns)]
    text += ["  ".join(f"{x:>10.5g}" for x in row) for row in zip(*columns.values(), strict=True)]
    return {"law": fit.law} | columns | {"beyond": notes}, [*text, *notes]


FLAGS = {  # type, default, help; a str default "-" marks what must be given
    "N": (str, None, "parameters: a column, or for predict a value (or values a,b,c)"),
    "D": (str, None, "tokens: a column or values"),
    "C": (str, None, "training FLOPs: a column or values"),
    "x": (str, None, "what grows: a column or values"),
    "loss": (str, None, "final loss in nats: a column or values"),
    "error": (str, None, "mean error of the tasks: a column"),
    "perplexity": (str, None, "perplexity x: values"),
    "where": (str, None, "column=value, to pick rows; may be repeated"),
    "delta": (float, None, "of Huber's loss (1e-3 on logs; inf, least squares, on values)"),
    "noise": (float, None, "standard deviation of ln loss (default: from third differences)"),
    "by": (str, "-", "column that names the method; columns a,b give names a/b"),
    "baseline": (str, "-", "value of --by to compare with"),
    "pair": (str, "-", "X,Y: two values of --by"),
    "match": (str, "-", "columns in which the two runs of a pair agree, such as params,tokens"),
    "lr": (str, "lr", "column of the learning rate; for predict knots step:lr (0:0,300:1e-3,10000:0) or a file"),
    "warmup_steps": (int, None, "linear warmup from 0 before the file's first row"),
    "test": (str, None, "files a,b,c to predict"),
    "lam": (float, 0.999, "decay of the momentum in S2"),
    "warmup": (str, "ramp", "ramp or peak: how S1 counts the warmup"),
    "every": (int, None, "steps between predicted points (default: 200 points)"),
    "draws": (int, None, "bootstrap fits; 0: no intervals"),
    "seed": (int, 0, "of the bootstrap"),
    "plot": (str, None, "write points, fit, band and residuals to this .png"),
}
COMMANDS = {  # function, how it is run, flags
    "chinchilla": (chinchilla, final_command, "N D loss where delta draws seed plot"),
    "isoflop": (isoflop, final_command, "C N loss where noise draws seed plot"),
    "overtraining": (overtraining, final_command, "N D loss where delta draws seed plot"),
    "downstream": (downstream, final_command, "loss error where delta draws seed plot"),
    "asymptote": (asymptote, final_command, "x loss where delta draws seed plot"),
    "diagonal": (diagonal, final_command, "loss by pair match where delta draws seed plot"),
    "speedup": (speedup, speedup_command, "D loss by baseline where draws seed"),
    "annealing": (annealing, curves_command, "loss lr warmup_steps test lam warmup draws seed plot"),
    "multi_power": (multi_power, curves_command, "loss lr warmup_steps test draws seed plot"),
    "schedule_bound": (schedule_bound, bound_command, "warmup_steps"),
    "predict": (predict, predict_command, "N D C x loss perplexity lr warmup_steps every seed"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors, so that every mistake ends in one line."""

    def error(self, message):
        raise ValueError(message)


def make_parser():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (function, run, flags) in COMMANDS.items():
        summary = function.__doc__.splitlines()[0].replace("%", "%%")
        sub = commands.add_parser(
            name, help=summary, description=function.__doc__.replace("%", "%%"), allow_abbrev=False
        )
        sub.set_defaults(run=run, function=function)
        sub.add_argument(
            "files", nargs="+", help="CSV or .jsonl; for predict a JSON, for schedule_bound knots or files"
        )
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        for flag in flags.split():
            kind, default, text = FLAGS[flag]
            must = {"required": True} if default == "-" else {"default": default}
            must |= {"action": "append", "default": []} if flag == "where" else {"type": kind}
            sub.add_argument(f"--{flag}", **must, help=text.replace("%", "%%"))
    return parser


def main(argv=None) -> int:
    try:
        args = make_parser().parse_args(argv)
        out, text = args.run(args)
    except (ValueError, ArithmeticError, OSError, csv.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(to_json(out)) if args.json else "\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
