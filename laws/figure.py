"""A fit as a picture: points, the law with its 95% band, the residuals below; and runs that were held out."""

import numpy as np

from .curves import LAWS as CURVE_LAWS
from .final import LAWS, predict
from .fitting import evaluate

X_LABELS = {
    "N": "parameters", "D": "tokens", "C": "training FLOPs", "loss": "loss (nats)", "perplexity": "perplexity x",
}  # fmt: skip
Y_LABELS = {"downstream": "error", "isoflop": "best number of parameters", "diagonal": "perplexity y"}


def plot(fit, points, path):
    """Draw a fit into a file; `points` as the law was given them: columns, the measured one last, or curves.

    Of diagonal they are "perplexity" (x) and what stands against it. The band is of the law; single runs scatter more.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 1), layout="constrained")
    name, drawn = views(fit, points)
    for i, (label, x, measured, at, line, along) in enumerate(drawn):
        color = plt.get_cmap("viridis")(0.85 * i / max(1, len(drawn) - 1))
        style = {"ls": "", "color": color, "marker": "o", "ms": 4 if len(x) < 60 else 1.5}
        value, low, high = predict(fit._replace(scatter=0.0), along)
        top.plot(x, measured, **style)
        top.plot(line, value, color=color, lw=1, label=label)
        if fit.draws:
            top.fill_between(line, low, high, color=color, alpha=0.2, lw=0)
        fitted = evaluate(LAWS[fit.law], fit.params, at, fit.settings)
        bottom.plot(x, 100 * (measured / fitted - 1), **style)
    top.set(ylabel=Y_LABELS.get(fit.law, "loss (nats)"), yscale="log" if fit.law == "isoflop" else "linear")
    bottom.set(xlabel=X_LABELS.get(name, name), ylabel="measured / fit - 1 (%)")
    bottom.axhline(0, color="gray", lw=0.8)
    if name in ("D", "C", "x"):
        bottom.set_xscale("log")
    title = f"{fit.law}: {fit.n_points} points, scatter {fit.scatter:.2g}; band: 95% of the law"
    if 1 < len(drawn) <= 12:
        top.legend(fontsize=8)
    elif len(drawn) > 12:
        title += f"\ncolour: {drawn[0][0]} (dark) to {drawn[-1][0]}"
    top.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def views(fit, points):
    """(x axis, a tuple for each model size or curve: label, x, measured, inputs at x, line, inputs along the line)."""
    if fit.law in CURVE_LAWS:
        return "step", [(f"curve {i}", c.steps, c.losses, [c], c.steps, [c]) for i, c in enumerate(points, 1)]
    if fit.law == "isoflop":
        points = dict(zip(("C", "N"), np.transpose(fit.settings["minima"]), strict=True))
    *names, measured = points
    name = names[-1]  # of the other input a view has one value
    sizes = np.zeros(len(points[measured]))
    if "N" in names:
        sizes = np.array([float(f"{size:.3g}") for size in points["N"]])
    out = []
    for size in np.unique(sizes):
        at = {other: points[other][sizes == size] for other in names}
        line = np.geomspace(at[name].min(), at[name].max(), 100)
        along = {other: np.full(100, values.mean()) for other, values in at.items()} | {name: line}
        label = f"N = {size:.3g}" if size else None
        out.append((label, at[name], points[measured][sizes == size], at, line, along))
    return name, out


def plot_holdout(fit, fitted, rows, path):
    """Draw measured against predicted losses; `fitted` are the columns N, D and loss that the fit has seen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 6), layout="constrained")
    seen = evaluate(LAWS[fit.law], fit.params, {"N": fitted["N"], "D": fitted["D"]}, fit.settings)
    axes.plot(seen, fitted["loss"], ls="", marker="o", ms=4, color="gray", label=f"fitted ({fit.n_points} runs)")
    sizes = np.unique(rows["N"])
    for i, size in enumerate(sizes):
        x, low, high, y = (rows[name][rows["N"] == size] for name in ("predicted", "low", "high", "measured"))
        style = {"fmt": "D", "ms": 5, "capsize": 2, "lw": 1, "color": plt.get_cmap("viridis")(0.8 * i / len(sizes))}
        axes.errorbar(x, y, xerr=[x - low, high - x], label=f"held out, N = {size:.3g}", **style)
    lowest, highest = min(seen.min(), rows["low"].min()), max(seen.max(), rows["high"].max())
    axes.plot([lowest, highest], [lowest, highest], color="black", lw=0.8)
    axes.set(xlabel="predicted loss (nats); bar: 95% for one run", ylabel="measured loss (nats)")
    inside = (abs(rows["off"]) <= 1).sum()
    axes.set_title(f"{fit.law}: {inside} of {len(rows['off'])} held-out runs within the interval", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
