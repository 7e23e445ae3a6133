"""Laws of final losses: the loss at the end of a run, by its parameters N, tokens D or FLOPs C = 6 N D.

Inputs are positive numbers in arrays or lists; a Mistake says which is not. predict and beyond take curves, too.
"""

import math

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from .curves import LAWS as CURVE_LAWS

from .fitting import (  # isort: skip
    DELTA, Fit, Law, Mistake, check_draws, describe, evaluate, fit_law, linear_start, quantiles, spans, to_theta,
)  # fmt: skip


def checked(distinct=None, **columns):
    """Give the columns back as float arrays; Mistake unless they have one length and hold positive finite numbers.

    `distinct` says of how many different values a column must consist at least.
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    if len({len(array) for array in arrays.values()}) > 1:
        raise Mistake(f"columns of different length: {', '.join(f'{n} {len(a)}' for n, a in arrays.items())}")
    for name, array in arrays.items():
        for i in np.flatnonzero(~(np.isfinite(array) & (array > 0)))[:1]:
            raise Mistake(f"{name} of point {i + 1} is {array[i]:g}; it must be positive and finite")
        if len(np.unique(array)) < (distinct or {}).get(name, 1):
            raise Mistake(f"{len(np.unique(array))} different {name}; this law needs {distinct[name]}: add runs")
    return arrays.values()


def sum_of_powers(theta, terms):
    """Sum over j of exp(theta . terms[:, j]), and its derivatives; terms (n, J, P) hold the logs of the inputs."""
    n, J, P = terms.shape
    powers = np.exp((theta @ terms.reshape(n * J, P).T).reshape(-1, n, J))
    return powers.sum(-1), np.einsum("snj,njp->snp", powers, terms, optimize=True)


def stack_terms(n, *rows):
    """Terms (n, J, P) from J rows of P entries, each a number or an array (n,)."""
    return np.moveaxis(np.array([[np.broadcast_to(x, n) for x in row] for row in rows], dtype=float), 2, 0)


def power_starts(features, measured):
    """Starts for a sum of powers with one exponent, the last parameter: linear once it is given."""
    starts = []
    for exponent in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0):
        powers = np.exp(exponent * features[:, :, -1])  # (n, J)
        starts.append([*np.log(linear_start(measured, *powers.T)), exponent])
    return np.array(starts)


def chinchilla_terms(inputs, settings):
    n, d = np.log(inputs["N"]), np.log(inputs["D"])
    return stack_terms(len(n), (1, 0, 0, 0, 0), (0, 1, 0, -n, 0), (0, 0, 1, 0, -d))


def chinchilla_starts(features, measured):
    # the 4500 starts of Hoffmann et al.: ln E, ln A, ln B, alpha, beta
    E, AB, exponent = np.linspace(-1, 1, 5), np.arange(0.0, 26, 5), np.linspace(0, 2, 5)
    return np.stack(np.meshgrid(E, AB, AB, exponent, exponent, indexing="ij"), -1).reshape(-1, 5)


def chinchilla(N, D, loss, delta=DELTA, draws=400, seed=0) -> Fit:
    """Fit L(N, D) = E + A/N^alpha + B/D^beta to parameters, tokens and final losses in nats.

    Hoffmann et al. 2022 (2203.15556), approach 3: Huber loss on logs. Wants runs that end their schedule and vary N and
    D apart; N within a factor of 10 leaves E and A open, however small the residuals. Silent on learning rate and data.
    """
    N, D, loss = checked({"N": 2, "D": 2, "loss": 2}, N=N, D=D, loss=loss)
    return fit_law(LAWS["chinchilla"], {"N": N, "D": D}, loss, delta, draws, seed)


def optimum(params, C):
    """(N, D, loss) that minimize a chinchilla law under 6 N D = C FLOPs: N = G (C/6)^(beta/(alpha+beta)), eq. 4."""
    E, A, B, alpha, beta = (params[name] for name in LAWS["chinchilla"].names)
    if min(alpha, beta) <= 0:
        raise Mistake(f"alpha={alpha:g}, beta={beta:g}: no size is the best unless both are positive; add runs")
    with np.errstate(all="ignore"):  # of exponents near 0 the best size is 0 or inf
        N = np.float64(alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta))
        D = C / 6 / N
        return N, D, E + A / N**alpha + B / D**beta


def overtraining_terms(inputs, settings):
    c, m = np.log(6 * inputs["N"] * inputs["D"]), np.log(inputs["D"] / inputs["N"])
    return stack_terms(len(c), (1, 0, 0, 0), (0, 1, 0, m - c), (0, 0, 1, -m - c))


def overtraining(N, D, loss, delta=math.inf, draws=400, seed=0) -> Fit:
    """Fit L(C, M) = E + (a M^eta + b M^-eta) C^-eta with C = 6 N D in FLOPs and M = D/N tokens a parameter.

    Gadre et al. 2024 (2403.08540), eq. 4: chinchilla's law with alpha = beta = 2 eta, so that few small runs fix it;
    least squares on losses, as there. Their fits take 5 runs for 4 parameters, hence the wide intervals.
    """
    N, D, loss = checked({"N": 2}, N=N, D=D, loss=loss)
    checked({"M": 2}, M=D / N)
    return fit_law(LAWS["overtraining"], {"N": N, "D": D}, loss, delta, draws, seed)


def power_terms(inputs, settings):
    x = np.log(inputs["x"])
    return stack_terms(len(x), (1, 0, 0), (0, 1, -x))


def asymptote(x, loss, delta=math.inf, draws=400, seed=0) -> Fit:
    """Fit L(x) = A/x^b + C, x being whatever grows: tokens, parameters, epochs, members of an ensemble.

    Least squares on losses, as Kim et al. 2025 (2509.14786) do where data are limited. C, the loss in the limit, rests
    on the form of the law. For the limits of several sizes, and the limit of these, see `joint`.
    """
    x, loss = checked({"x": 3}, x=x, loss=loss)
    return fit_law(LAWS["asymptote"], {"x": x}, loss, delta, draws, seed)


def joint(size, x, loss, draws=100, seed=0):
    """Fit L(x) = A/x^b + C for each size, then the limits C against the size by the same law: the limit of limits.

    As Kim et al. 2025 (2509.14786) let first the members of an ensemble grow, then the models -> ({size: Fit}, Fit).
    The second Fit's intervals are of the first ones' uncertainty; three sizes cannot show whether its form is right.
    """
    size, x, loss = checked({"size": 3}, size=size, x=x, loss=loss)
    fits = {n: asymptote(x[size == n], loss[size == n], draws=draws, seed=seed) for n in np.unique(size).tolist()}
    sizes, limits = [*fits], [fit.params["C"] for fit in fits.values()]
    outer = asymptote(sizes, limits, draws=0)
    many = zip(*([params["C"] for params in fit.draws] for fit in fits.values()), strict=True)  # if all have intervals
    many = [asymptote(sizes, drawn, draws=0).params for drawn in many]
    return fits, describe("asymptote", outer.params, outer.objective, outer.residuals, many, {}, outer.ranges)


def saturation(theta, loss):
    rate = np.exp(theta[:, 2:3])
    gap = np.exp(theta[:, 1:2] - rate * loss)  # k exp(-gamma L)
    return theta[:, :1] - gap, np.stack([np.ones_like(gap), -gap, gap * rate * loss], -1)


def saturation_starts(loss, measured):
    starts = []
    for gamma in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2):  # linear once gamma is given
        epsilon, k = linear_start(measured, np.ones_like(loss), -np.exp(-gamma * loss))
        starts.append([epsilon, np.log(k), np.log(gamma)])
    return np.array(starts)


def downstream(loss, error, delta=math.inf, draws=400, seed=0) -> Fit:
    """Fit Err(L) = epsilon - k exp(-gamma L): mean error of tasks (0 to 1) against loss in nats.

    Gadre et al. 2024 (2403.08540), eq. 5, least squares. Holds for averages of many tasks, and for the evaluation loss
    it was fitted with; epsilon is about the error of guessing.
    """
    loss, error = checked({"loss": 3}, loss=loss, error=error)
    return fit_law(LAWS["downstream"], {"loss": loss}, error, delta, draws, seed)


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
    inputs, measured = {"perplexity": np.exp(loss_x)}, np.exp(loss_y)
    return fit_law(LAWS["diagonal"], inputs, measured, delta, draws, seed, settings=settings)


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
    check_draws(draws)
    log_C, profiles = budgets(C, N, loss)
    if noise is None:
        noise = math.sqrt(np.mean(np.concatenate([third_differences(x, y) for x, y in profiles])))
    rng = np.random.default_rng(seed)
    best = np.array([lowest(x, y) for x, y in profiles])
    redrawn = [[lowest(x, y + noise * rng.standard_normal(len(x))) for x, y in profiles] for _ in range(draws)]
    inside = np.isfinite(best)
    if inside.sum() < 2:
        raise Mistake(f"{inside.sum()} of {len(best)} budgets have a minimum inside their sizes; widen the sizes")
    log_C, best = log_C[inside], best[inside]
    redrawn = np.array(redrawn).reshape(draws, -1)[:, inside]
    redrawn = redrawn[np.isfinite(redrawn).sum(1) > 1]
    weights = 1 / np.maximum(np.nanvar([best, *redrawn], axis=0), 1e-30)
    x = log_C - log_C.mean()
    params, *many = (weighted_line(x, y, weights) for y in [best, *redrawn])
    settings = {"C0": math.exp(log_C.mean()), "noise": noise, "minima": np.exp([log_C, best]).T.tolist()}  # C, N_opt
    residuals = math.log(params["N0"]) + params["exponent"] * x - best
    return describe("isoflop", params, weights @ residuals**2 / 2, residuals, many, settings, spans(C=C))


def budgets(C, N, loss):
    """Runs by budget -> (mean ln C of each (budgets,), (ln N, mean ln loss) of each, by size)."""
    order = np.argsort(C)
    groups = np.split(order, np.flatnonzero(np.diff(np.log(C[order])) > 0.05) + 1)  # within 5% is one budget
    profiles = []
    for rows in groups:
        x, which = np.unique(np.log(N[rows]), return_inverse=True)
        if len(x) < 4:
            raise Mistake(f"budget {C[rows[0]]:g} has {len(x)} model sizes; isoflop needs 4 or more for each")
        profiles.append((x, np.bincount(which, np.log(loss[rows])) / np.bincount(which)))
    return np.array([np.log(C[rows]).mean() for rows in groups]), profiles


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
        raise Mistake(f"baseline {baseline!r} is not among {', '.join(sorted(set(map(str, by))))}")
    fit = asymptote(D[by == baseline], loss[by == baseline], draws=draws, seed=seed)
    A, C, b = (np.array([params[name] for params in (fit.params, *fit.draws)]) for name in "ACb")
    rows = []
    for i in np.flatnonzero(by != baseline):
        with np.errstate(all="ignore"):
            worth = np.where((loss[i] > C) & (b > 0), (A / (loss[i] - C)) ** (1 / b), math.inf)  # D_eff
        value, *many = worth / D[i]
        low, high = quantiles(many, method="nearest") if many else (0.0, math.inf)
        rows.append({"by": str(by[i]), "D": D[i], "loss": loss[i], "speedup": value, "low": low, "high": high})
    return fit, rows


LAWS = (
    Law("chinchilla", ("E", "A", "B", "alpha", "beta"), ("E", "A", "B"), True,
        chinchilla_terms, sum_of_powers, chinchilla_starts),
    Law("overtraining", ("E", "a", "b", "eta"), ("E", "a", "b"), False,
        overtraining_terms, sum_of_powers, power_starts),
    Law("asymptote", ("C", "A", "b"), ("C", "A"), False, power_terms, sum_of_powers, power_starts),
    Law("downstream", ("epsilon", "k", "gamma"), ("k", "gamma"), False,
        lambda x, _: x["loss"], saturation, saturation_starts),
    Law("diagonal", ("slope", "intercept"), (), False,
        lambda x, _: x["perplexity"], line, lambda x, y: np.array([[1.0, 0.0]])),
    Law("isoflop", ("N0", "exponent"), ("N0",), True, isoflop_terms, sum_of_powers, None, {"C0": 1.0}),
    *CURVE_LAWS.values(),
)  # fmt: skip
LAWS = {law.name: law for law in LAWS}


# ----------------------------------------------------------------------------------------------------------------------
# Prediction


def predict(fit, inputs, seed=0):
    """Predict at a dict of arrays, or at curves -> (values, low, high), 95% for one new run.

    The interval holds the bootstrap of the law and the scatter of single runs about it. It cannot hold the error of the
    law's form, which is what extrapolations die of: see `beyond`.
    """
    law = LAWS[fit.law]
    values = evaluate(law, fit.params, inputs, fit.settings)
    if not fit.draws:
        return values, np.full_like(values, -np.inf), np.full_like(values, np.inf)
    features = law.prepare(inputs, law.settings | fit.settings | law.rough)
    many = np.concatenate([law.predict(to_theta(law, params), features)[0] for params in fit.draws])
    noise = fit.scatter * np.random.default_rng(seed).standard_t(fit.n_points - len(fit.params), many.shape)
    return values, *quantiles(many * np.exp(noise) if law.on_logs else many + noise)


def beyond(fit, inputs) -> list:
    """Say how far outside of what was fitted the inputs lie, a sentence each."""
    if not fit.ranges:
        return ["the law does not say on what it was fitted, so nobody knows how far beyond it this is"]
    notes = []
    for name in sorted(fit.ranges.keys() & inputs.keys()):
        (low, high), least, most = fit.ranges[name], np.min(inputs[name]), np.max(inputs[name])
        if most > 1.05 * high:
            notes.append(f"{name} = {most:.4g} is {most / high:.3g} times the largest fitted")
        if least < low / 1.05:
            notes.append(f"{name} = {least:.4g} is {least / low:.3g} times the smallest fitted")
    return notes
