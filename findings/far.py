"""A trunk used ten times as far as its peak was chosen for; merges of its checkpoints; laws fitted to two curves."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tables import over_seeds

from .lengths import NAMES, at_peaks, best_of
from .text import Study, cost, evaluations, gap, listed, load, power, read, share_of_gain, size, spread

FAR = 6000
LENGTHS = (600, 1500, 3000, FAR)
COOLDOWN = NAMES["cooldown, 1-sqrt"]


def trunks(rows):
    """(table, {peak: {steps: losses of the cooldown}}): what a trunk of each peak cools down to, on its way."""
    found = {lr: {n: over_seeds(rows, lr=lr, total_steps=n, **COOLDOWN) for n in LENGTHS} for lr in (0.004, 0.008)}
    table = [["a cooldown from the trunk at", *(f"{n:,} steps" for n in LENGTHS)]]
    table += [[power(lr), *(spread(losses) for losses in at.values())] for lr, at in found.items()]
    table.append(["8e-3 minus 4e-3", *(gap(found[0.008][n] - found[0.004][n]) for n in LENGTHS)])
    return table, found


def schedules(rows):
    """(table, {name: losses at its best peak}): cooldowns and cosines over the whole length."""
    found = at_peaks(rows, FAR, ("cooldown, 1-sqrt", "cosine to zero"))
    best = {name: best_of(peaks)[1] for name, peaks in found.items()}
    peaks = sorted({lr for at in found.values() for lr in at})
    table = [["schedule", *map(power, peaks), "its best minus the best cooldown"]]
    for name, at in found.items():
        minus = "" if name == "cooldown, 1-sqrt" else gap(best[name] - best["cooldown, 1-sqrt"])
        table.append([name, *(spread(at[lr]) if lr in at else "" for lr in peaks), minus])
    return table, best


def merges(rows):
    """(table, {distance: the best merge's share of the cooldown's gain}): merged checkpoints, next to a cooldown."""
    merged = {}
    for row in sorted(load("far/merges.json")["rows"], key=lambda row: row["seed"]):
        merged.setdefault((row["distance"], row["weights"]), []).append(row["val_loss"])
    last = over_seeds(rows, lr=0.004, schedule="constant")
    head = ["over the last", "cooldown, 1-sqrt", "merge as linear", "as 1-sqrt", "best merge minus cooldown"]
    table, shares = [[*head, "its share of the gain"]], {}
    for distance in sorted({distance for distance, _ in merged}):
        wanted = COOLDOWN | dict(cooldown_frac=distance / FAR)
        cooled = over_seeds(rows, lr=0.004, total_steps=FAR, **wanted)
        kinds = [np.array(merged[distance, weights]) for weights in ("linear", "1-sqrt")]
        best = min(kinds, key=np.mean)
        shares[distance] = share_of_gain(last, best, cooled)
        cells = [spread(cooled), *map(spread, kinds), gap(best - cooled), shares[distance]]
        table.append([f"{distance:,} steps", *cells])
    return table, shares


def averages(rows):
    """(table, {steps: the window's share of the cooldown's gain}) on the trunk of 4e-3, where it was evaluated."""
    logs, shares = evaluations("far", rows, schedule="constant", lr=0.004), {}
    at = [n for n in LENGTHS if all(n in log for log in logs)]
    table = [["", *(f"{n:,} steps" for n in at)], ["constant"], ["window of 60 steps"], ["its share of the gain"]]
    for n in at:
        raw, window = (np.array([log[n][y] for log in logs]) for y in ("val_loss", "val_loss_window"))
        cooled = over_seeds(rows, lr=0.004, total_steps=n, **COOLDOWN)
        shares[n] = share_of_gain(raw, window, cooled)
        for row, cell in zip(table[1:], (spread(raw), spread(window), shares[n]), strict=True):
            row.append(cell)
    return table, shares


def label(row):
    """cooldown over 40%, 6,000 steps, 4e-3"""
    kind = f"cooldown over {row['cooldown_frac']:.0%}" if row["schedule"] == "wsd" else "cosine to zero"
    return f"{kind}, {row['total_steps']:,.0f} steps, {power(row['lr'])}"


class Errors(NamedTuple):
    same: float  # mean absolute error of a final loss, in nats, of runs with the peak that was fitted
    other: float  # and with another one


def laws(rows):
    """(table, {law: its Errors}): final losses that two laws predict from constant runs and their cooldowns alone."""
    table = [["not seen by the fit", "measured", "annealing law: predicted minus measured", "multi-power law"]]
    tests = {law: load(f"far/{law}.json")["tests"] for law in ("annealing", "multi_power")}
    by_name, alike, off = {row["name"]: row for row in rows}, {}, {law: {True: [], False: []} for law in tests}
    for path in tests["annealing"]:
        if path != "mean":
            alike.setdefault(Path(path).name.rpartition("_")[0], []).append(path)
    for paths in alike.values():
        runs = [by_name[Path(path).name] for path in paths]
        final = {law: np.array([tests[law][path]["final"] for path in paths]) for law in tests}
        for law, errors in final.items():
            off[law][runs[0]["lr"] == 0.004] += [*np.abs(errors)]
        table.append([label(runs[0]), spread([row["val_loss"] for row in runs]), *map(gap, final.values())])
    return table, {law: Errors(np.mean(errors[True]), np.mean(errors[False])) for law, errors in off.items()}


def far():
    rows = read("far")
    first, cooldowns = trunks(rows)
    second, best = schedules(rows)
    merge_table, merged = merges(rows)
    average_table, shown = averages(rows)
    law_table, errors = laws(rows)
    price = cooldowns[0.008][FAR] - cooldowns[0.004][FAR]
    cosine = best["cosine to zero"] - best["cooldown, 1-sqrt"]
    longer = over_seeds(rows, lr=0.004, total_steps=FAR, **COOLDOWN | dict(cooldown_frac=0.4))
    most = max(round(row["tokens"] / row["n_params"]) for row in rows)
    late = f"minus one over 40% it is {gap(best['cosine to zero'] - longer)}"
    phrases = [
        f"{size(rows[0]['n_params'])} parameters, up to {most} tokens per parameter",
        cost(rows),
        f"costs {gap(price)} at {FAR:,} steps",
        f"cosine minus cooldown is {gap(cosine)}; {late}",
        f"The window shows {listed(shown.values())} of the gain",
        f"the best merge {listed(merged.values())}",
        f"The mean error of a final loss is {errors['annealing'].same:.3f} and {errors['multi_power'].same:.3f}",
        f"to {errors['annealing'].other:.3f} and {errors['multi_power'].other:.3f} at another peak",
    ]
    tables = {
        "far_trunks": first,
        "far": second,
        "far_averages": average_table,
        "far_merges": merge_table,
        "far_laws": law_table,
    }
    answer = f"nearly: its cooldown at {FAR:,} steps is {gap(price)} from that of the better peak"
    claims = [
        ("Does a trunk last ten times as long as its peak was tuned for?", answer, "trunks of up to 200,000 steps"),
        ("Is it still as good as a cosine then?", f"cosine to zero minus cooldown is {gap(cosine)}; {late}", "equal"),
    ]
    readme = [
        f"a peak tuned for 600 steps costs {gap(price, '.3f')} at {FAR:,} steps",
        f"cosine to zero is {gap(-cosine, '.3f')} ahead of a cooldown over 20%, and level with one over 40%",
    ]
    return Study(
        "far", "A trunk used ten times as far", "study.py configs/far.py", rows, phrases, tables, claims, readme
    )
