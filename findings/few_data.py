"""Few data and much compute, from the table that limited.py wrote."""

import numpy as np

from tables import grouped, over_seeds, read_rows, where

from .text import FOLDER, WORDS, Study, from_to, left, listed, load, minutes, power, read, size, values


def number(text):
    """A cell of a CSV as a number, if it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def limited_table(recipes, D, sizes):
    """The table for D bytes, of the rows that limited.py wrote."""
    table = [[f"{D:,} bytes", f"{size(sizes[0])} parameters", *map(size, sizes[1:])]]
    table[0].append(f"worth so many times the data, at {size(sizes[-1])}")

    def line(name, recipe, form, last=True):
        here = {row["n_params"]: row for row in recipes if row["D"] == D and row["recipe"] == recipe}
        if here:
            cells = [form(here[n]) if n in here else "" for n in sizes]
            table.append([name, *cells, worth(here[sizes[-1]]) if last else ""])

    def loss(row):
        return f"{row['loss']:.3f} ± {row['std']:.3f}"

    line("standard", "standard", loss, last=False)
    line("regularized", "regularized", loss)
    options = "its weight decay, peak, epochs"
    line(options, "regularized", lambda r: f"{r['weight_decay']:g}, {power(r['lr'])}, {r['epochs']:.0f}", last=False)
    minus = "regularized minus standard"
    line(minus, "regularized", lambda row: f"{row['minus_standard']:+.3f} ± {row['error']:.3f}", last=False)
    line("student of samples of one", "student of samples-one", loss)
    line("student of samples of five", "student of samples-five", loss)
    line("ensemble of five", "ensemble of 5", lambda row: f"{row['loss']:.3f}")
    limit = "its limit over the number of models"
    line(limit, "ensemble, K to infinity", lambda row: f"{row['loss']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    return table


def worth(row):
    """5.2 [2.2, inf]: how many times its data the standard recipe would need."""
    return f"{row['efficiency']:.1f} [{row['efficiency_low']:.1f}, {row['efficiency_high']:.1f}]"


def decay_costs(rows):
    """By how much students with a weight decay of 0.8 are worse than those with 0.1, from the least on."""
    kinds = grouped(rows, ["dataset", "n_params"]).values()
    means = [[np.mean(over_seeds(of, weight_decay=decay)) for decay in (0.1, 0.8)] for of in kinds]
    return sorted(more - less for less, more in means)


def smallest_peak(rows, D, n):
    """By how much the smallest peak is better than the best of the others, for the standard recipe."""
    plain, best = where(rows, n_params=n, weight_decay=0.1, dataset=f"stdlib-bytes@{D}"), []
    for lr in values(plain, "lr"):
        here = where(plain, lr=lr)
        best.append(min(np.mean(over_seeds(here, total_steps=steps)) for steps in values(here, "total_steps")))
    return min(best[1:]) - best[0]


def recipe_phrases(recipes, sizes, small, large):
    """What the text says of the table that limited.py wrote."""
    loss = {(row["recipe"], row["D"], row["n_params"]): row["loss"] for row in recipes}
    above_ensemble = {n: loss["regularized", large, n] - loss["ensemble of 5", large, n] for n in sizes}
    gains, n = sorted(above_ensemble.values()), sizes[-1]
    kept = (loss["regularized", large, n] - loss["student of samples-five", large, n]) / above_ensemble[n]
    teaches = loss["regularized", large, n] - loss["student of samples-one", large, n]
    regularized = where(recipes, recipe="regularized")
    helps = sorted(-row["minus_standard"] for row in regularized if row["n_params"] > sizes[0])
    epochs = [f"{epochs:.0f}" for epochs in values(regularized, "epochs")]
    limit = loss["ensemble, K, then N to infinity", large, np.inf]
    return [
        f"Five models that saw the same {large:,} bytes, with other seeds, predict better by {gains[0]:.2f} to "
        f"{gains[-1]:.2f} than one of them",
        f"keeps {kept:.0%} of that at {size(n)} parameters",
        f"a student of the same size is better than models like its teacher by {teaches:.3f}",
        f"It lets a model read the text {from_to(epochs)} times where a weight decay of 0.1",
        f"worth {helps[0]:.3f} to {helps[-1]:.3f} to the two larger models",
        f"the limit of ensembles over sizes, {limit:.3f} at {large:,} bytes",
    ]


def run_phrases(rows, students, sizes, small, large):
    """What the text says of the runs."""
    n, steps = sizes[-1], students[0]["total_steps"]
    longer = where(rows, dataset=f"stdlib-bytes@{large}", n_params=n, weight_decay=3.2, total_steps=steps)
    costs, peaks = decay_costs(students), [smallest_peak(rows, D, n) for D in (large, small)]
    plain = [row for row in where(rows, weight_decay=0.1) if row["dataset"].endswith((f"@{small}", f"@{large}"))]
    epochs = [f"{n}" for n in sorted({round(row["epochs"]) for row in plain})]
    certificate = load("data_limited/tune/64k_64/certificate.json")
    tuning = [row for path in (FOLDER / "data_limited/tune").iterdir() for row in read(path)]
    return [
        f"models of {listed([size(n) for n in sizes])} parameters on the first {small:,} and {large:,} bytes",
        f"a weight decay of 0.1, and the best of {from_to(epochs)} epochs and of three to five peaks",
        f"({WORDS[len(certificate['seeds'])]} seeds, a tolerance of {certificate['tolerance']:g}, none at the edge",
        f"Students have the {large:,} bytes {students[0]['epochs/stdlib-bytes@65536']:.0f} times, and "
        f"{0.75 * students[0]['tokens'] / 1e6:.1f} million sampled bytes once: of the five models of {size(n)}",
        f"Tuning took {minutes(tuning)} minutes of training on a shared EPYC, the study's {len(rows)} runs "
        f"{minutes(rows)} minutes and the students' {len(students)} runs {minutes(students)}",
        f"sharing left {left(rows):.0f}% of the study's FLOPs",
        f"its best peak at {size(n)} parameters is the smallest that was tried, 1e-3, better by {peaks[0]:.3f} and "
        f"{peaks[1]:.3f} than the best of the others",
        f"A student takes {steps:,.0f} steps, twice as many as its teachers; but these, trained as long, are worse, "
        f"with {np.mean(over_seeds(longer)):.3f}",
        f"With a weight decay of 0.8 instead of 0.1 students are worse by {costs[0]:.3f} to {costs[-1]:.3f}",
    ]


def data_limited():
    rows, students = read("data_limited"), read("distilled")
    recipes = [{c: number(v) for c, v in row.items()} for _, row in read_rows(FOLDER / "data_limited/recipes.csv")]
    sizes, (small, large) = values(rows, "n_params"), (32_768, 65_536)
    best = {row["recipe"]: row for row in where(recipes, D=large, n_params=sizes[-1])}
    ensemble, student, plain = (best[x] for x in ("ensemble of 5", "student of samples-five", "regularized"))
    decays = values(where(recipes, recipe="regularized"), "weight_decay")
    answer = (
        f"ensembles most: five models of {size(sizes[-1])} parameters on {large:,} bytes are worth {worth(ensemble)} "
        f"times the data; then distillation, {worth(student)}; then a weight decay of {10 * decays[0]:.0f} to "
        f"{10 * decays[-1]:.0f} times the usual, {worth(plain)}"
    )
    paper = "the same order; 5.2 times the data for the limit of ensembles"
    claims = [("What helps when data are few?", answer, paper)]
    phrases = recipe_phrases(recipes, sizes, small, large) + run_phrases(rows, students, sizes, small, large)
    tables = {f"data_limited_{D}": limited_table(recipes, D, sizes) for D in (small, large)}
    return Study("data_limited", "Few data", "make data_limited", rows + students, phrases, tables, claims)
