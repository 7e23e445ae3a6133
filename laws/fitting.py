"""What all laws share: what a law is and what a fit, one optimizer, one bootstrap.

S stands for laws tried side by side (starts, or draws of the bootstrap), n for points, P for parameters.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import huber
from scipy.stats import t as student_t

LEVEL = 0.95  # of every interval
DELTA = 1e-3  # Huber's delta on log losses, Hoffmann et al.: residuals beyond 0.1% count by their size, not its square


class Mistake(ValueError):
    """A mistake of whoever calls, found by a check: its text is one line that says what was given and what would do."""


class Fit(NamedTuple):
    """A fitted law; what --json prints."""

    law: str
    params: dict
    objective: float = math.nan  # Huber sum over the points; half the sum of squares where delta is infinite
    residuals: np.ndarray = ()  # ln fitted - ln measured; fitted - measured where the law is fitted to plain values
    intervals: dict = {}  # name -> (low, high), 95% of the bootstrap; (-inf, inf) where there is none
    unidentified: list = ()  # names whose interval is wider than half the value: the data do not determine them
    draws: list = ()  # params of every bootstrap fit
    n_points: int = 0
    scatter: float = math.inf  # standard deviation of the residuals, corrected for the number of parameters
    ranges: dict = {}  # input -> (lowest, highest) it was fitted on
    settings: dict = {}  # what else belongs to the law


class Law(NamedTuple):
    """A law in the form that `fit_law` fits. theta holds its parameters, some as logarithms."""

    name: str
    names: tuple  # parameters, in the order of theta
    logs: tuple  # those that theta holds as logarithms, and that are therefore positive
    on_logs: bool  # whether residuals are taken on logarithms
    prepare: Callable  # (inputs, settings) -> features: whatever does not depend on theta, computed once
    predict: Callable  # (theta (S, P), features) -> values (S, n), derivatives by theta (S, n, P)
    starts: Callable  # (features, measured) -> theta (S, P), where the search begins
    settings: dict = {}  # what `prepare` needs, unless a fit says otherwise
    rough: dict = {}  # settings that cost less and are nearly right, for searches and intervals


def to_params(law, theta):
    """The parameters by name from theta (P,)."""
    theta = np.where([n in law.logs for n in law.names], np.exp(np.clip(theta, -700, 700)), theta)
    return dict(zip(law.names, theta.tolist(), strict=True))


def to_theta(law, params):
    """theta (1, P) from the parameters by name."""
    return np.array([[math.log(params[n]) if n in law.logs else float(params[n]) for n in law.names]])


def evaluate(law, params, inputs, settings=None):
    """Values of a law under given params, at a dict of arrays or at curves."""
    return law.predict(to_theta(law, params), law.prepare(inputs, law.settings | (settings or {})))[0][0]


# ----------------------------------------------------------------------------------------------------------------------
# Fitting


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
    cost = np.nan_to_num((weights * huber(delta, res)).sum(1), nan=np.inf)
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
        trial_cost = (weights * huber(delta, trial_res)).sum(1)
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
        raise Mistake("no start leads to a finite objective; check the units of the columns")
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
    if by_points:  # widened as predictions: in the parameters the way is curved, and straight on would leave the law
        moved = fitted + widen * math.sqrt(n / freedom) * (predict(thetas[:by_points])[0] - fitted)
        thetas[:by_points] = minimize_huber(predict, thetas[:by_points], moved, delta, iterations=60)[0]
    return thetas


def fit_law(law, inputs, measured, delta, draws, seed, block=1, settings=None, ranges=None) -> Fit:
    """Fit a law to measured values (n,) at its inputs, and bootstrap it.

    `block`: how many points in a row share their noise. `ranges` of the inputs, unless these are columns.
    """
    n, n_params, settings = len(measured), len(law.names), law.settings | (settings or {})
    check_draws(draws)
    if not delta > 0:
        raise Mistake(f"delta={delta} must be positive; inf means least squares")
    if n < n_params:
        raise Mistake(f"{law.name} has {n_params} parameters ({', '.join(law.names)}) but {n} points; add runs")
    target = np.log(measured) if law.on_logs else measured

    def predictor(settings):
        features = law.prepare(inputs, settings)
        return features, lambda theta: residual_scale(law, *law.predict(theta, features))

    features, predict = predictor(settings | law.rough)
    theta, objective, start = search(predict, law.starts(features, measured), target, delta)
    thetas = []
    if n > n_params and draws:
        # from the start too: a draw cannot leave a corner where a term has vanished
        thetas = bootstrap(predict, [theta, start], target, delta, block, draws, np.random.default_rng(seed))
    if law.rough:
        _, predict = predictor(settings)
        theta, objective = (x[0] for x in minimize_huber(predict, theta[None], target, delta))
    value, jac = predict(theta[None])
    # a term that has vanished: nothing moves its parameters, not even the bootstrap
    unseen = [name for name, size in zip(law.names, abs(jac[0]).max(0), strict=True) if size < 1e-9 * abs(jac).max()]
    params, many = to_params(law, theta), [to_params(law, x) for x in thetas]
    return describe(law.name, params, objective, value[0] - target, many, settings, ranges or spans(**inputs), unseen)


def check_draws(draws):
    if draws < 0 or 0 < draws < 10:
        raise Mistake(f"draws={draws} must be 0 (no intervals) or at least 10")


def residual_scale(law, value, jac):
    """Values and derivatives on the scale on which the law's residuals are taken."""
    return (np.log(value), jac / value[..., None]) if law.on_logs else (value, jac)


def describe(name, params, objective, residuals, draws, settings, ranges, unseen=()) -> Fit:
    """Gather a Fit: intervals from the draws, and the names of what these leave open."""
    open_ended = (-math.inf, math.inf)
    intervals = {p: tuple(map(float, quantiles([d[p] for d in draws]))) if draws else open_ended for p in params}
    intervals |= dict.fromkeys(unseen, open_ended)
    n, freedom = len(residuals), len(residuals) - len(params)
    wide = [p for p, (low, high) in intervals.items() if not high - low <= abs(params[p]) / 2]
    unidentified = wide if draws or not freedom else list(unseen)  # without draws nobody asked
    scatter = math.sqrt(residuals @ residuals / freedom) if freedom else math.inf
    return Fit(name, params, float(objective), residuals, intervals, unidentified, draws, n, scatter, ranges, settings)


def quantiles(values, method="linear"):
    """(low, high) of the central 95% along the first axis; "nearest" where values may be infinite."""
    return tuple(np.quantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0, method=method))


def spans(**columns):
    """{name: (lowest, highest)} of columns."""
    return {name: (float(np.min(x)), float(np.max(x))) for name, x in columns.items()}


def linear_start(measured, *columns):
    """Least-squares coefficients of columns (n,), each at least so large that its term reaches 0.1% of the values."""
    if not np.isfinite(columns).all():
        raise Mistake("powers of the inputs are beyond all numbers; check the units of the columns")
    sizes = np.array([max(abs(column).max(), 1e-300) for column in columns])
    coefficients = np.linalg.lstsq(np.stack(columns, 1) / sizes, measured, rcond=None)[0]
    return np.maximum(coefficients, 1e-3 * measured.min()) / sizes
