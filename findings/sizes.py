"""Sizes of models with a config and a folder each: cooldowns, cosines, their peaks, averages, and a task."""

import numpy as np
import scipy.stats

from tables import averaged, called, mean_error, over_seeds, read_results, where

from .ladder import ladder_cells, ladder_minus
from .text import (
    FOLDER,
    Study,
    counted,
    evaluations,
    gap,
    hours,
    left,
    listed,
    load,
    power,
    ratios,
    share_of_gain,
    size,
    spread,
    values,
)

SIZES = ("68k", "108k")  # folders of results/sizes
COOLDOWN = {"schedule": "wsd"}
COSINE = {"schedule": "onecycle"}


def losses_table(cells):
    table = [["parameters", "tokens per parameter", "steps", "cosine (OneCycle)", "its peak", "cooldown", "its peak"]]
    table[0].append("cooldown minus cosine")
    for (n, steps), pair in cells.items():
        per_parameter = round(pair[0][0]["tokens"] / n)
        table.append([size(n), str(per_parameter), f"{steps:,.0f}"])
        for runs in pair:
            table[-1] += [spread(over_seeds(runs)), power(runs[0]["lr"])]
        table[-1].append(gap(over_seeds(pair[1]) - over_seeds(pair[0])))
    return table


def over_lengths(rows):
    """{peak: losses over seeds, of the mean over lengths}"""
    steps = values(rows, "total_steps")
    return {lr: np.mean([over_seeds(rows, lr=lr, total_steps=n) for n in steps], axis=0) for lr in values(rows, "lr")}


def best_peak(peaks, losses):
    """log2 of the peak where the parabola through mean losses over log2 of the peaks is lowest; they are a row each."""
    a, b, _ = np.polyfit(np.log2(peaks), np.mean(losses, axis=1), 2)
    return -b / (2 * a)


def jackknife(function, losses):
    """As `factor` says it: what a function of arrays (peaks, seeds) comes to, and its error from one seed left out."""
    seeds = range(next(iter(losses.values())).shape[1])
    left_out = np.array([function(*(np.delete(of, seed, axis=1) for of in losses.values())) for seed in seeds])
    return factor(function(*losses.values()), np.sqrt((len(seeds) - 1) * np.mean((left_out - left_out.mean()) ** 2)))


def peaks_table(rows):
    """(table, {parameters: how many times cosine's best peak the cooldown's is, with one standard error around it})

    The error is the jackknife's, over seeds.
    """
    peaks = values(rows, "lr")
    table, found = [["parameters", "schedule", *map(power, peaks), "best, by a parabola"]], {}
    for n in values(rows, "n_params"):
        losses = {}
        for name, which in (("cosine (OneCycle)", COSINE), ("cooldown", COOLDOWN)):
            at = over_lengths(where(rows, n_params=n, **which))
            losses[name] = np.array([*at.values()])  # (peaks, seeds)
            best = power(float(f"{2 ** best_peak([*at], losses[name]):.2g}"))
            table.append([size(n), name, *(spread(at[lr]) if lr in at else "" for lr in peaks), best])
        found[n] = jackknife(lambda cosine, cooldown, at=[*at]: best_peak(at, cooldown) - best_peak(at, cosine), losses)
    return table, found


def factor(log2, error):
    """0.71 (0.64 to 0.79): a factor, and one standard error of its logarithm to each side."""
    return f"{2**log2:.2f} ({2 ** (log2 - error):.2f} to {2 ** (log2 + error):.2f})"


def averages_table(cells, rows):
    """What a window over 60 steps shows of the cooldown's gain, at the cooldown's best peak."""
    table = [["parameters", "steps", "constant", "its window", "cooldown", "the window's share of the gain"]]
    for (n, steps), (_, runs) in cells.items():
        lr = runs[0]["lr"]
        study = next(name for name in SIZES if n in values(read_results([FOLDER / "sizes" / name]), "n_params"))
        logs = evaluations(f"sizes/{study}", where(rows, n_params=n), schedule="constant", lr=lr)
        raw, window = (np.array([log[steps][column] for log in logs]) for column in ("val_loss", "val_loss_window"))
        cooled = over_seeds(runs)
        cells_of = [f"{np.mean(losses):.3f}" for losses in (raw, window, cooled)]
        table.append([size(n), f"{steps:,.0f}", *cells_of, share_of_gain(raw, window, cooled)])
    return table


def task():
    """(table, what the text says, the answer in short): error on the task of typos, next to the loss, at one peak."""
    table, at = [["at the peak 1.6e-2", "steps", "loss", "error on typos"]], {}
    for row in load("sizes/68k/typos/one_peak.json")["rows"]:
        window = averaged("val_loss_window", [{"window_steps": row.get("steps")}])
        kind = f"constant, {window}" if row.get("average") == "window x 1" else called(row)
        at.setdefault((kind, row["step"]), []).append((row["val_loss"], 100 * row["error"], 100 * row["error_stderr"]))
    told = set()
    for (kind, step), points in sorted(at.items()):
        loss, error, _ = np.mean(points, axis=0)
        table.append([kind if kind not in told else "", f"{step:,}", f"{loss:.3f}", f"{error:.1f}%"])
        told.add(kind)
    ends = load("sizes/68k/typos/ends.json")["rows"]
    rank = scipy.stats.spearmanr([row["val_loss"] for row in ends], [row["error"] for row in ends]).statistic
    stderrs = [100 * row["error_stderr"] for row in ends]
    law = load("sizes/68k/typos/law.json")
    (low, high), gamma = law["intervals"]["gamma"], law["params"]["gamma"]
    phrases = [
        f"Over the {len(ends)} models at the ends of all runs the rank correlation of error and loss is {rank:.2f}",
        f"its standard error, over the 1,000 questions, is {min(stderrs):.1f} to {max(stderrs):.1f}%",
        f"gamma is {gamma:.2f}, and 95% of the bootstrap lies between {low:.2f} and {high:.2f}",
    ]
    return table, phrases, f"yes: their rank correlation is {rank:.2f} over the {len(ends)} models, cooled down or not"


def sizes():
    rows = read_results([FOLDER / "sizes" / name for name in SIZES])
    cells = ladder_cells(rows)
    minus, (peaks, times), (typos, said, follows) = ladder_minus(cells), peaks_table(rows), task()
    errors = [mean_error(of)[1] for of in np.concatenate([*minus.values()])]
    phrases = [
        f"{listed([size(n) for n in minus])} parameters at {ratios(rows)}, {counted(rows, 'seed', 'seed')}",
        f"Its {len(rows)} runs took {hours(rows)} hours of training; sharing left {left(rows):.0f}% of their FLOPs",
        f"as a mean over the three lengths, is {listed([gap(of.mean(axis=0)) for of in minus.values()])}",
        f"standard errors of {min(errors):.3f} to {max(errors):.3f}",
        f"The cooldown's best peak is {listed([*times.values()])} times cosine's",
    ]
    tables = {"sizes": losses_table(cells), "sizes_peaks": peaks, "sizes_averages": averages_table(cells, rows)}
    tables |= {"typos": typos}
    claims = [("Does the error on a task follow the loss?", follows, "")]
    return Study("sizes", "A ladder in fp32", "study.py configs/sizes/68k.py", rows, phrases + said, tables, claims)
