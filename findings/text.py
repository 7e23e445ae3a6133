"""What a function of a study returns, and numbers as text.

`rows` are those of a results.csv, as of tables.py. Losses and differences are arrays over seeds, in their order, as of
tables.over_seeds: so `gap(a - b)` is the mean of differences taken seed by seed, with its standard error.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tables import CELL, at_best, grouped, mean_error, read_log, read_results, settings, std, where

FOLDER = Path(__file__).parents[1] / "results"
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Study(NamedTuple):
    name: str  # of its folder in results/
    section: str  # heading of its section in results/README.md
    command: str  # that trains it
    rows: list  # its runs
    phrases: list  # to be found in its section
    tables: dict = {}  # {name in its marker: rows of cells, the first of which is the head}
    claims: list = []  # (question, answer here, in the paper): rows of the first table
    readme: list = []  # phrases to be found in README.md
    timed: bool = True  # whether the times of its runs mean anything


def read(name):
    """The rows of a study in results/."""
    return read_results([FOLDER / name])


def load(path):
    """A JSON file in results/."""
    return json.loads((FOLDER / path).read_text(encoding="utf-8"))


def evaluations(study, rows, **wanted):
    """Of the runs in results/ that have these values the evaluations, by seed: {step: the line of the log} each."""
    runs = sorted(where(rows, **wanted), key=lambda row: row["seed"])
    return [{line["step"]: line for line in read_log(FOLDER / study / row["name"])[1]} for row in runs]


def spread(losses):
    """1.598 ± 0.023: mean and standard deviation over seeds."""
    return f"{np.mean(losses):.3f} ± {std(losses):.3f}"


def gap(differences, form="+.3f"):
    """-0.118 ± 0.016: mean of differences, seed by seed, and its standard error."""
    mean, error = mean_error(differences)
    return f"{mean:{form}} ± {error:{form.removeprefix('+')}}"


def share_of_gain(constant, average, cooldown):
    """52%: how much of what a cooldown gains over the constant run an average shows; of losses over seeds."""
    return f"{100 * np.mean(constant - average) / np.mean(constant - cooldown):.0f}%"


def listed(items):
    """a, b and c."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def from_to(texts):
    """a to b, of texts in order; a if there is one only."""
    texts = list(texts)
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def power(value):
    """1.6e-2 for 0.016."""
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def bold(cell, best):
    """The cell, in bold if it is the best."""
    return f"**{cell}**" if best else cell


def size(n_params):
    """68,000 for 67,744."""
    return f"{round(n_params, -3):,.0f}"


def values(rows, column):
    """The different values of a column, from the least to the most."""
    return sorted({row[column] for row in rows if row.get(column) is not None})


def counted(rows, column, unit):
    """three seeds: how many values of a column there are."""
    n = len(values(rows, column))
    return f"{WORDS[n]} {unit}{'s' * (n > 1)}"


def listed_steps(rows):
    """660, 1,320 and 1,980: lengths of runs."""
    return listed([f"{n:,.0f}" for n in values(rows, "total_steps")])


def ratios(rows):
    """10, 20 and 30 tokens per parameter."""
    found = sorted({round(row["tokens"] / row["n_params"]) for row in rows})
    return f"{listed([str(n) for n in found])} tokens per parameter"


def best(rows, **wanted):
    """Of the rows that have these values those at the peak of lowest mean loss."""
    return at_best(where(rows, **wanted), same=CELL)


def minutes(rows):
    """29 or 3.5: minutes of training."""
    total = sum(row["train_s_paid"] for row in rows) / 60
    return f"{total:.0f}" if total >= 9.95 else f"{total:.1f}"


def hours(rows):
    """4.1: hours of training."""
    return f"{sum(row['train_s_paid'] for row in rows) / 3600:.1f}"


def facts(study):
    """Cells of the first table: parameters, steps, seeds, runs and their time."""
    rows = study.rows
    time = f" in {minutes(rows)} min" if float(minutes(rows)) < 120 else f" in {hours(rows)} h"
    steps = from_to(f"{n:,.0f}" for n in values(rows, "total_steps"))
    seeds = sorted({len(alike) for alike in grouped(rows, settings(rows)).values()})
    sizes = from_to(map(size, values(rows, "n_params")))
    return [sizes, steps, from_to(map(str, seeds)), f"{len(rows)}{time * study.timed}"]


def updates(rows, alone=False):
    """Updates that the runs take, those that they share once or, if `alone`, as often as they are in a run."""
    return round(sum(row["total_steps"] * (1 if alone else row["flops_paid"] / row["flops"]) for row in rows))


def left(rows):
    """The share of the FLOPs of runs that is left to train once they share steps, in percent."""
    return 100 * sum(row["flops_paid"] for row in rows) / sum(row["flops"] for row in rows)


def cost(rows):
    """What the text of a study says of its cost."""
    training = f"Its {len(rows)} runs took {minutes(rows)} minutes of training"
    return f"{training}; sharing left {left(rows):.0f}% of their FLOPs"
