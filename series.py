"""Rows of studies -> lines of figures and tables: what runs are called, and means over seeds.

    lines(read_results(["runs/demo"]), x="total_steps")     # means and standard deviations, a line for equal settings

Runs have the same words everywhere: "cosine (OneCycle), 660 steps", "cooldown, 1-sqrt", "constant, window of 60 steps".
"""

import math
from typing import NamedTuple

import numpy as np

from config import Mistake
from tables import AVERAGES, SEEDS, grouped, settings

CELL = ("dataset", "n_params", "n_layer", "n_embd", "total_steps", "tokens")  # what compared runs have in common
COSINES = ("cosine", "onecycle")
SCHEDULES = {"onecycle": "cosine (OneCycle)", "wsd": "cooldown"}  # the others are called by their names
FIRST = ("n_params", "total_steps", "cooldown_frac", "lr")  # settings that a label says before all others


# ----------------------------------------------------------------------------------------------------------------------
# Runs -> words


def called(row):
    """What a run is called in every table and figure: its schedule, and its cooldown's shape: "cooldown, 1-sqrt"."""
    name = SCHEDULES.get(row["schedule"], row["schedule"])
    return f"{name}, {row['cooldown_shape']}" if row.get("cooldown_shape") else name


def averaged(loss, rows):
    """Whose losses the column `loss` of the rows has: "weights as they are", "window of 60 steps", "EMA"."""
    steps = [row["window_steps"] for row in rows if row.get("window_steps")]
    if loss != "val_loss_window" or not steps:
        return AVERAGES[loss]
    low, high = min(steps), max(steps)
    return f"window of {low:,.0f} to {high:,.0f} steps" if low < high else f"window of {high:,.0f} steps"


def in_words(column, value):
    """A setting for a legend: 1.2M parameters, 1,980 steps, 20 tokens per parameter, over the last 20%, lr 0.001."""
    if column == "n_params":
        unit, letter = next((u, s) for u, s in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, "")) if value >= u or u == 1)
        return f"{value / unit:.3g}{letter} parameters"
    if column == "cooldown_frac":
        return f"over the last {100 * value:.3g}%"
    forms = {"total_steps": "{:,.0f} steps", "tokens_per_param": "{:g} tokens per parameter"}
    forms |= {"cooldown_steps": "over the last {:,.0f} steps", "dataset": "{}"}
    return forms.get(column, f"{column} {{{':g' * isinstance(value, float)}}}").format(value)


def labels(keys):
    """Words for each of the {column: value}: what it is called, and as many settings as tell it from the rest."""
    parts = [((None, called(key)),) for key in keys]
    for column in dict.fromkeys([*FIRST, *(c for key in keys for c in key)]):
        finer = [(*part, (column, key.get(column))) for part, key in zip(parts, keys, strict=True)]
        if len(set(finer)) > len(set(parts)):
            parts = finer
    return [", ".join([name, *(in_words(c, v) for c, v in part if v is not None)]) for (_, name), *part in parts]


# ----------------------------------------------------------------------------------------------------------------------
# Runs -> lines: means and standard deviations over seeds


class Line(NamedTuple):
    kind: str  # what its runs are called, or the column of an average: what decides the looks
    label: str
    x: list
    mean: np.ndarray
    std: np.ndarray  # of single runs; nan where there is only one
    n: list  # seeds
    row: dict  # one of its runs


def at_best(rows, y, same):
    """Of rows alike in the columns `same` those of lowest mean y, among the settings with the most seeds."""
    rows, chosen = [row for row in rows if row.get(y) is not None], []
    for alike in grouped(rows, same).values():
        runs = grouped(alike, settings(alike)).values()
        chosen += min(runs, key=lambda group: (-len(group), np.mean([row[y] for row in group])))
    return chosen


def at_best_lr(rows, y="val_loss"):
    """Every run at the peak learning rate that turned out best for it."""
    return at_best(rows, y, [c for c in settings(rows) if c != "lr"])


def with_length(rows):
    """The settings that follow from a run's length: tokens, and the cooldown's length in steps, or else as a share."""
    steps, shares = ({row.get(c) for row in rows} for c in ("cooldown_steps", "cooldown_frac"))
    return "total_steps", "tokens", "cooldown_frac" if len(steps) < len(shares) else "cooldown_steps"


def lines(rows, x, y="val_loss", ignore=(), average=None):
    """Lines of y over the column x, one for all runs of equal settings but for x and those to `ignore`.

    average    what to call an average, instead of what `averaged` says of these rows
    """
    rows = [row for row in rows if row.get(y) is not None]
    columns = [c for c in settings(rows) if c not in (x, *ignore)]
    groups = grouped(rows, columns)
    names = labels([dict(zip(columns, key, strict=True)) for key in groups])
    found = []
    for label, alike in zip(names, groups.values(), strict=True):
        points = {at: runs for (at,), runs in sorted(grouped(alike, [x]).items())}
        for one, *twins in (same for runs in points.values() for same in grouped(runs, SEEDS).values()):
            if twins:
                both = f"{one['name']} and {twins[0]['name']}"
                raise Mistake(f"{both} have equal seed and settings, as far as the table says: leave one out")
        values = [[run[y] for run in runs] for runs in points.values()]
        std = np.array([np.std(v, ddof=1) if len(v) > 1 else math.nan for v in values])
        means, n = np.array([np.mean(v) for v in values]), [len(v) for v in values]
        kind, label = (called(alike[0]), label) if y == "val_loss" else (y, f"{label}, {average or averaged(y, alike)}")
        found.append(Line(kind, label, list(points), means, std, n, alike[0]))
    return sorted(found, key=lambda line: [line.row[c] for c in ("n_params", "total_steps", "lr")])


def front(points):
    """The lower envelope of (x, y): the points with none at their left or below them that is as low."""
    lowest = []
    for x, y in sorted(points):
        if not lowest or y < lowest[-1][1]:
            lowest.append((x, y))
    return lowest


def paired(rows, cosines, y):
    """(y, cosine loss) of rows and cosine rows of equal seed, size, data and length: an array (pairs, 2)."""
    losses = {tuple(map(row.get, CELL + SEEDS)): row["val_loss"] for row in cosines}
    pairs = [(row[y], losses.get(tuple(map(row.get, CELL + SEEDS)))) for row in rows]
    return np.array([pair for pair in pairs if pair[1] is not None]).reshape(-1, 2)


def mean_and_error(values):
    """Mean and its standard error, nan for fewer than two."""
    return np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
