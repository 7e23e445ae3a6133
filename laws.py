"""Scaling laws: fit what runs show, say how well the data pin it down, predict the next run.

    python laws.py chinchilla results.csv --N=params --D=tokens --loss=final_val_loss --plot=fit.png
    python laws.py chinchilla results.csv --json > law.json && python laws.py predict law.json --N=1e9 --D=2e10
    python laws.py annealing runs/a/log.jsonl runs/b/log.jsonl --test=runs/c/log.jsonl --json > curves.json
    python laws.py predict curves.json --lr=0:0,300:1e-3,8000:1e-3,10000:0      # a planned cooldown

Of final losses: chinchilla, isoflop, overtraining, downstream, asymptote, speedup, diagonal. Of whole loss curves, from
curves.py: annealing, multi_power, schedule_bound. Papers stand with the functions. Columns may be products and
quotients (--D=steps*batch*512, --D=flops/6/params); --where=dataset=c4 --where='loss<3.4' picks rows.
"""

import argparse
import csv
import json
import math
import re
import sys

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from curves import LAWS as CURVE_LAWS
from curves import Curve, annealing, curve_errors, multi_power, read_curve, read_lrs, schedule_bound
from fitting import (
    DELTA,
    Fit,
    Law,
    describe,
    evaluate,
    fit_law,
    linear_start,
    number_in,
    quantiles,
    read_rows,
    spans,
    text_in,
    to_theta,
)

# ----------------------------------------------------------------------------------------------------------------------
# Laws of final losses


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
    return grid(np.linspace(-1, 1, 5), range(0, 26, 5), range(0, 26, 5), np.linspace(0, 2, 5), np.linspace(0, 2, 5))


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
        raise ValueError(f"alpha={alpha:g}, beta={beta:g}: both must be positive, or no size is the best")
    N = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta))
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
    on the form of the law. Joint limits: fit the C of each size against the size, again with this law.
    """
    x, loss = checked({"x": 3}, x=x, loss=loss)
    return fit_law(LAWS["asymptote"], {"x": x}, loss, delta, draws, seed)


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
    return fit_law(
        LAWS["diagonal"], {"perplexity": np.exp(loss_x)}, np.exp(loss_y), delta, draws, seed, settings=settings
    )


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


LAWS = {
    law.name: law
    for law in (
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
    )
}  # fmt: skip


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


def read_points(paths, columns, conditions=(), labels=()) -> dict:
    """Read columns of positive numbers (name -> column, or expression) and labels from the rows that meet conditions.

    Conditions are as `meets` has them; a label may join columns a,b as a/b. Of JSON lines only those with the loss
    count, after step 0: a run's evaluations.
    """
    points = {name: [] for name in (*columns, *labels)}
    for where, row in (pair for path in paths for pair in read_rows(path)):
        if ".jsonl line " in where and (columns["loss"] not in row or row.get("step") == 0):
            continue
        if not all(meets(row, condition, where) for condition in conditions):
            continue
        for name, column in columns.items():
            value = number_in(row, column, where)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{where}: {column} is {value:g}; it must be positive and finite")
            points[name].append(value)
        for name in labels:
            points[name].append("/".join(str(text_in(row, part, where)) for part in name.split(",")))
    if not points["loss"]:
        wanted = " and ".join([repr(columns["loss"]), *conditions])
        raise ValueError(f"{', '.join(paths)}: no rows with {wanted}")
    return {name: np.array(values) for name, values in points.items()}


def meets(row, condition, where):
    """Whether a row meets column=value (the same text or number), column!=value, column<value or column>value.

    What is not a number is neither smaller nor larger.
    """
    match = re.fullmatch(r"([^=!<>]+)(=|!=|<|>)([^=!<>]*)", condition)
    if not match:
        raise ValueError(f"--where={condition} must be column=value, column!=value, column<value or column>value")
    column, operator, value = match.groups()
    cell = text_in(row, column, where)
    try:
        x, y = float(cell), float(value)
    except (TypeError, ValueError):
        x, y = str(cell), value
        if operator in "<>":
            return False
    return {"=": x == y, "!=": x != y, "<": x < y, ">": x > y}[operator]


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
    """Read a Fit that --json wrote, or a published law: {"law": ..., "params": {...}}, which has no intervals."""
    try:
        with open(path) as f:
            data = json.load(f)
        fit = Fit(**{name: data[name] for name in Fit._fields if name in data})
        for params in (fit.params, *fit.draws):
            to_theta(LAWS[fit.law], params)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what laws.py ... --json writes ({type(error).__name__}: {error})") from None
    return fit


# ----------------------------------------------------------------------------------------------------------------------
# Tables and pictures


def table(fit):
    """Parameters, intervals and settings as lines of text."""
    lines = [f"{fit.law}: {fit.n_points} points, objective {fit.objective:.8g}, scatter {fit.scatter:.3g}"]
    for name, value in fit.params.items():
        low, high = fit.intervals[name]
        between = f"[{low:.4g}, {high:.4g}]" if math.isfinite(high - low) else "no interval"
        note = "   not identified: wider than half the value" if name in fit.unidentified else ""
        lines.append(f"{name:>10}  {value:>10.6g}  {between}{note}")
    shown = {name: value for name, value in fit.settings.items() if name not in ("minima", "merge")}
    return "\n".join(lines + [f"{name:>10}  {value}" for name, value in shown.items()])


def views(fit, points):
    """What to draw, one dict per model size or curve: x and measured, inputs there, and inputs along a line."""
    if fit.law in CURVE_LAWS:
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
        fitted = evaluate(LAWS[fit.law], fit.params, view["at"], fit.settings)
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
    curves = [read_measured(args, path) for path in args.files]
    fit = args.function(curves, **given(args, "lam", "warmup", "delta", "draws", "seed"))
    if args.plot:
        plot(fit, curves, args.plot)
    errors, text = held_out(args, fit)
    return fit._asdict() | {"tests": errors}, [table(fit), *text]


def read_measured(args, path):
    return read_curve(path, **given(args, "loss", "lr", "warmup_steps"))


def held_out(args, fit):
    """({path: errors}, lines of text) of the curves of --test, with their mean if there are several."""
    errors = {path: curve_errors(fit, read_measured(args, path)) for path in (args.test or "").split(",") if path}
    if not errors:
        return {}, []
    names, rows = list(next(iter(errors.values()))), dict(errors)
    if len(rows) > 1:
        rows["mean"] = {name: np.mean([error[name] for error in errors.values()]) for name in names}
    text = ["  ".join(f"{name:>13}" for name in names) + "  test"]
    return rows, text + [
        "  ".join(f"{error[name]:13.6g}" for name in names) + f"  {path}" for path, error in rows.items()
    ]


def speedup_command(args):
    points = points_of(args, (args.by,))
    fit, rows = speedup(points["D"], points["loss"], points[args.by], args.baseline, **given(args, "draws", "seed"))
    if args.plot:
        base = points[args.by] == args.baseline
        plot(fit, {"x": points["D"][base], "loss": points["loss"][base]}, args.plot)
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
    path, flags = args.files[0], ("N", "D", "C", "x", "loss", "perplexity", "lr", "warmup_steps", "every", "test")
    if len(args.files) > 1:
        raise ValueError(f"predict takes one law, not {' and '.join(args.files)}")
    fit = read_fit(path)
    known = ["lr", "warmup_steps", "every", "test", "loss"] if fit.law in CURVE_LAWS else inputs_of(fit.law)
    for name in given(args, *flags):
        if name not in known and (fit.law, name) != ("chinchilla", "C"):
            raise ValueError(f"{path} is a law of kind {fit.law}: it has no --{name}, but --{' --'.join(known)}")
    if args.test:
        return held_out(args, fit)
    inputs, shown = planned_curve(fit, args) if fit.law in CURVE_LAWS else planned_points(fit, args)
    notes = beyond(fit, shown)
    value, low, high = predict(fit, inputs, args.seed)
    columns = shown | {"predicted": value, "low": low, "high": high}
    text = ["  ".join(f"{name:>10}" for name in columns)]
    text += ["  ".join(f"{x:>10.5g}" for x in row) for row in zip(*columns.values(), strict=True)]
    return {"law": fit.law} | columns | {"beyond": notes}, [*text, *notes]


def inputs_of(law):
    return {"diagonal": ["perplexity"], "isoflop": ["C"]}.get(law) or list(COLUMNS[law])[:-1]


def planned_points(fit, args):
    """Inputs for the law from the flags of predict, as dicts for the law and to show."""
    values, names = given(args, "N", "D", "C", "x", "loss", "perplexity"), inputs_of(fit.law)
    for name, text in values.items():
        try:
            values[name] = np.array([float(x) for x in text.split(",")])
        except ValueError:
            raise ValueError(f"--{name}={text} must be a number, or numbers a,b,c") from None
    if "C" in values and ("N" in values or "D" in values):
        raise ValueError("give --N and --D, or --C for the best of both, not all")
    if fit.law == "chinchilla" and "C" in values:
        values["N"], values["D"], _ = optimum(fit.params, *checked(C=values["C"]))
    if any(name not in values for name in names):
        raise ValueError(f"a law of kind {fit.law} needs {' and '.join(f'--{name}' for name in names)}")
    inputs = dict(zip(names, checked(**{name: values[name] for name in names}), strict=True))
    return inputs, inputs


def planned_curve(fit, args):
    """The curve that --lr plans, without its losses, for the law; its steps and learning rates to show."""
    if args.lr is None:
        raise ValueError(f"a law of kind {fit.law} needs --lr, knots step:lr or a file with step and lr, or --test")
    if args.every is not None and args.every < 1:
        raise ValueError(f"--every={args.every} must be 1 or more steps")
    lrs = read_lrs(args.lr, args.warmup_steps)
    first, last = max(1, int(np.argmax(lrs))), len(lrs) - 1
    steps = np.unique([*range(first, last, args.every or -(-last // 200)), last])
    return [Curve(lrs, steps, np.ones(len(steps)))], {"step": steps, "lr": lrs[steps]}


FLAGS = {  # type, default, help; a str default "-" marks what must be given
    "N": (str, None, "parameters: a column, or for predict a value (or values a,b,c)"),
    "D": (str, None, "tokens: a column or values"),
    "C": (str, None, "training FLOPs: a column or values"),
    "x": (str, None, "what grows: a column or values"),
    "loss": (str, None, "final loss in nats: a column or values"),
    "error": (str, None, "mean error of the tasks: a column"),
    "perplexity": (str, None, "perplexity x: values"),
    "where": (str, None, "column=value (or != < >), to pick rows; may be repeated"),
    "delta": (float, None, "of Huber's loss (1e-3 on logs; inf, least squares, on values)"),
    "noise": (float, None, "standard deviation of ln loss (default: from third differences)"),
    "by": (str, "-", "column that names the method; columns a,b give names a/b"),
    "baseline": (str, "-", "value of --by to compare with"),
    "pair": (str, "-", "X,Y: two values of --by"),
    "match": (str, "-", "columns in which the two runs of a pair agree, such as params,tokens"),
    "lr": (str, None, "column of the learning rate; for predict knots step:lr (0:0,300:1e-3,10000:0) or a file"),
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
    "speedup": (speedup, speedup_command, "D loss by baseline where draws seed plot"),
    "annealing": (annealing, curves_command, "loss lr warmup_steps test lam warmup delta draws seed plot"),
    "multi_power": (multi_power, curves_command, "loss lr warmup_steps test delta draws seed plot"),
    "schedule_bound": (schedule_bound, bound_command, "warmup_steps"),
    "predict": (predict, predict_command, "N D C x loss perplexity lr warmup_steps every test seed"),
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
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps(to_json(out)) if args.json else "\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
