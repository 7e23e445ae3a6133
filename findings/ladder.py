"""Four model sizes at three lengths each: cooldowns, cosines and averages, and a law of the losses."""

import numpy as np

from tables import mean_error, over_seeds, where

from .text import Study, best, gap, hours, left, listed, load, power, read, size, spread, values


def ladder_cells(rows):
    """{(parameters, steps): (runs of cosine at its best peak, runs of the cooldown at its)}"""
    return {
        (n, steps): tuple(best(rows, n_params=n, total_steps=steps, schedule=name) for name in ("onecycle", "wsd"))
        for n in values(rows, "n_params")
        for steps in values(where(rows, n_params=n), "total_steps")
    }


def ladder_minus(cells):
    """{parameters: cooldown minus cosine, an array (lengths, seeds)}"""
    found = {}
    for (n, _), (cosine, cooldown) in cells.items():
        found.setdefault(n, []).append(over_seeds(cooldown) - over_seeds(cosine))
    return {n: np.array(of) for n, of in found.items()}


def ladder_table(cells):
    table = [["parameters", "steps", "cosine (OneCycle)", "its peak", "cooldown", "its peak", "cooldown minus cosine"]]
    told = set()
    for (n, steps), pair in cells.items():
        table.append([size(n) if n not in told else "", f"{steps:,.0f}"])
        for runs in pair:
            table[-1] += [spread(over_seeds(runs)), power(runs[0]["lr"])]
        table[-1].append(gap(over_seeds(pair[1]) - over_seeds(pair[0])))
        told.add(n)
    return table


def ladder_averages(rows):
    """(table, shares): what the averages of the largest model's run at the lowest peak show."""
    rows = where(rows, n_params=max(values(rows, "n_params")), lr=0.004)
    lengths = values(rows, "total_steps")

    def means(y, schedule):
        return np.array([np.mean(over_seeds(rows, y, schedule=schedule, total_steps=n)) for n in lengths])

    constant, window = means("val_loss", "constant"), means("val_loss_window", "constant")
    cooldown = means("val_loss", "wsd")
    shares = (constant - window) / (constant - cooldown)
    steps = where(rows, schedule="constant")[0]["window_steps"]
    table = [[f"{size(rows[0]['n_params'])} parameters, peak 4e-3", f"{lengths[0]:,.0f} steps"]]
    table[0] += [f"{n:,.0f}" for n in lengths[1:]]
    lines = {"constant": constant, f"constant, window of {steps:.0f} steps": window, "cooldown, 1-sqrt": cooldown}
    table += [[name, *(f"{loss:.3f}" for loss in line)] for name, line in lines.items()]
    table.append(["the window's share of what the cooldown gains", *(f"{share:.0%}" for share in shares)])
    return table, sorted(shares)


def ladder_diagonal(cells, sizes):
    """1.124 x the cooldown's - 0.49: the line through the perplexities of pairs of these sizes."""
    pairs = [pair for (n, _), pair in cells.items() if n in sizes]
    cosine, cooldown = (np.exp(np.concatenate([over_seeds(pair[i]) for pair in pairs])) for i in (0, 1))
    slope, intercept = np.polyfit(cooldown, cosine, 1)
    return f"{slope:.3f}", f"{'-' if intercept < 0 else '+'} {abs(intercept):.2f}"


def ladder():
    rows = read("ladder")
    cells, largest = ladder_cells(rows), max(values(rows, "n_params"))
    minus, sizes = ladder_minus(cells), values(rows, "n_params")
    of_sizes = [gap(of.mean(axis=0)) for of in minus.values()]
    every = np.concatenate([*minus.values()])  # (sizes and lengths, seeds)
    big, by_peak = where(rows, n_params=largest), {}
    for lr in values(big, "lr"):
        for name in ("onecycle", "wsd"):
            lengths = [over_seeds(big, lr=lr, schedule=name, total_steps=n) for n in values(big, "total_steps")]
            by_peak[name, lr] = np.mean(lengths, axis=0)
    same = [gap(by_peak["wsd", lr] - by_peak["onecycle", lr]) for lr in (0.004, 0.008, 0.016)]
    no_choice = gap(by_peak["onecycle", 0.008] - by_peak["onecycle", 0.004], ".3f").removeprefix("-")
    averages, shares = ladder_averages(rows)
    saved = {name: 100 - left(where(rows, schedule=name)) for name in ("onecycle", "constant", "wsd")}
    law = load("ladder/chinchilla.json")
    low, high = law["intervals"]["alpha"]
    (slope, rest), (slope_2, rest_2) = ladder_diagonal(cells, sizes), ladder_diagonal(cells, sizes[2:])
    better = gap(-minus[largest].mean(axis=0), ".3f")
    phrases = [
        f"{size(sizes[0])} to {size(largest)} parameters, each at 10, 20 and 30 tokens per parameter",
        f"Its {len(rows)} runs took {hours(rows)} hours of training; sharing left {left(rows):.0f}% of their FLOPs",
        f"as a mean over the three lengths, is {listed(of_sizes)}, from the smallest size to the largest",
        f"Over all sizes it is {gap(every.mean(axis=0))}, or ± {mean_error(every.ravel())[1]:.3f} if the "
        f"{every.size} pairs are taken as independent",
        f"At {size(largest)} parameters cosine has no preference between 4e-3 and 8e-3",
        f"the losses differ by {no_choice}",
        f"The cooldown prefers 4e-3, by {gap(by_peak['wsd', 0.008] - by_peak['wsd', 0.004], '.3f')}",
        f"cooldown minus cosine is {same[0]} at 4e-3, {same[1]} at 8e-3 and {same[2]} at 1.6e-2",
        f"cosine's perplexity = {slope} x the cooldown's {rest}",
        f"the two larger ones alone have {slope_2} x {rest_2}",
        f"Sharing saves {saved['onecycle']:.0f}% of the FLOPs of the cosines, {saved['constant']:.0f}% of those of the "
        f"constant runs and {saved['wsd']:.0f}% of those of the cooldowns: {100 - left(rows):.0f}% in all",
        f"A Chinchilla law fits the {law['n_points']} cooldowns at 8e-3 with a scatter of {law['scatter']:.0%} of the",
        f"the exponent of the model's size is {law['params']['alpha']:.2f}, and 95% of the bootstrap lies between "
        f"{low:.1f} and {high:.1f}",
        f"A Chinchilla law and the {law['n_points']} cooldowns that it is fitted to",
    ]
    studies = ("demo", "lr_sensitivity", "cooldown_shape", "cooldown_length", "ladder")
    saves = sorted(100 - left(read(name)) for name in studies)
    saves = f"{saves[0]:.0f}% to {saves[-1]:.0f}%"
    gain = f"{shares[0]:.0%} to {shares[-1]:.0%} of what a cooldown gains, at {size(largest)} parameters"
    yes = f"yes at {size(largest)} parameters: better by {better}; smaller models differ by more, both ways"
    shared = f"{saves} of the FLOPs of a study, over {len(studies)} studies; {100 - left(rows):.0f}% of this one"
    claims = [
        ("Is a cooldown as good as a cosine?", yes, "equal: better by 0.0009, at most 0.008 apart"),
        ("What does sharing the long run save?", shared, "half"),
        ("What do averages show on the way?", gain, "74% to 90% of the way to cosine"),
    ]
    readme = [f"better by {better} at {size(largest)} parameters", f"{saves} of a study's FLOPs", gain]
    command, tables = "study.py configs/ladder.py", {"ladder": ladder_table(cells), "ladder_averages": averages}
    return Study("ladder", "Sizes and lengths", command, rows, phrases, tables, claims, readme)
