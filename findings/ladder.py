"""Four model sizes at three lengths each: cooldowns, cosines and averages, and a law of the losses."""

import numpy as np

from tables import grouped, mean_error, over_seeds, where

from .text import (  # isort: skip
    WORDS, Study, best, from_to, gap, hours, left, listed, load, power, ratios, read, size, spread, values,
)  # fmt: skip


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
    """(table, shares of the shortest and the longest run): what the averages of the largest model show.

    Its peak is the lowest, which is the best of its cooldowns.
    """
    rows = where(rows, n_params=max(values(rows, "n_params")), lr=0.004)
    lengths = values(rows, "total_steps")

    def losses(y, schedule):
        return np.array([over_seeds(rows, y, schedule=schedule, total_steps=n) for n in lengths])  # (lengths, seeds)

    constant, window = losses("val_loss", "constant"), losses("val_loss_window", "constant")
    cooldown = losses("val_loss", "wsd")
    shares = (constant - window).mean(axis=1) / (constant - cooldown).mean(axis=1)
    by_seed = 100 * (constant - window) / (constant - cooldown)
    steps = where(rows, schedule="constant")[0]["window_steps"]
    table = [[f"{size(rows[0]['n_params'])} parameters, peak 4e-3", f"{lengths[0]:,.0f} steps"]]
    table[0] += [f"{n:,.0f}" for n in lengths[1:]]
    lines = {"constant": constant, f"constant, window of {steps:.0f} steps": window, "cooldown, 1-sqrt": cooldown}
    table += [[name, *(f"{np.mean(loss):.3f}" for loss in line)] for name, line in lines.items()]
    table.append(["the window's share of what the cooldown gains", *(f"{share:.0%}" for share in shares)])
    return table, [f"{share:.0%} ± {mean_error(of)[1]:.0f}%" for share, of in zip(shares, by_seed, strict=True)]


def ladder_diagonal(cells, sizes):
    """1.124 x the cooldown's - 0.49: the line through the perplexities of pairs of these sizes."""
    pairs = [pair for (n, _), pair in cells.items() if n in sizes]
    cosine, cooldown = (np.exp(np.concatenate([over_seeds(pair[i]) for pair in pairs])) for i in (0, 1))
    slope, intercept = np.polyfit(cooldown, cosine, 1)
    return f"{slope:.3f}", f"{'-' if intercept < 0 else '+'} {abs(intercept):.2f}"


def by_peak(rows):
    """{(schedule, peak): losses of the runs, an array over seeds of means over lengths}"""
    found = {}
    for schedule in ("onecycle", "wsd"):
        for lr in values(rows, "lr"):
            here = where(rows, schedule=schedule, lr=lr)
            found[schedule, lr] = np.mean(
                [over_seeds(here, total_steps=n) for n in values(here, "total_steps")], axis=0
            )
    return found


def peak_phrases(rows):
    """What the text says of the peaks of the largest model, whose runs these are."""
    losses = by_peak(rows)
    cosine, cooldown = (losses[name, 0.008] - losses[name, 0.004] for name in ("onecycle", "wsd"))
    same = [gap(losses["wsd", lr] - losses["onecycle", lr]) for lr in (0.004, 0.008, 0.016)]
    return [
        f"At {size(rows[0]['n_params'])} parameters cosine has no preference between 4e-3 and 8e-3",
        f"the losses differ by {gap(cosine * np.sign(np.mean(cosine)), '.3f')}",
        f"The cooldown prefers 4e-3, by {gap(cooldown, '.3f')}",
        f"cooldown minus cosine is {same[0]} at 4e-3, {same[1]} at 8e-3 and {same[2]} at 1.6e-2",
    ]


def law_phrases():
    """What the text says of the Chinchilla law: with few digits, as the last ones differ from CPU to CPU."""
    law = load("ladder/chinchilla.json")
    (low, high), n = law["intervals"]["alpha"], law["n_points"]
    return [
        f"A Chinchilla law fits the {n} cooldowns at 8e-3 with a scatter of {law['scatter']:.0%} of the loss",
        f"the exponent of the model's size is {law['params']['alpha']:.2f}, and 95% of the bootstrap lies between "
        f"{low:.1f} and {high:.1f}",
        f"A Chinchilla law and the {n} cooldowns that it is fitted to",
    ]


def holdout():
    """The table of the sizes held out, and what the text says of this and of two more tests of the law."""
    found = {name: load(f"ladder/holdout{name}.json")["held_out"] for name in ("", "_two", "_lengths")}
    n_params = found[""][0]["N"]
    table = [[f"{size(n_params)} parameters", "predicted", "95% for one run", "measured, mean of three seeds"]]
    for runs in grouped(found[""], ["D"]).values():
        one, measured = runs[0], np.mean([run["measured"] for run in runs])
        steps = f"{one['D'] / 1024:,.0f} steps"  # of 1,024 tokens, as of configs/small.py
        interval = f"{one['low']:.3f} to {one['high']:.3f}"
        table.append([steps, f"{one['predicted']:.3f}", interval, f"{measured:.3f}"])
    away = {name: [run["measured"] / run["predicted"] - 1 for run in runs] for name, runs in found.items()}
    inside = {name: sum(abs(run["off"]) <= 1 for run in runs) for name, runs in found.items()}
    wide = {name: np.mean([(r["high"] / r["low"] - 1) / 2 for r in runs]) for name, runs in found.items()}
    phrases = [
        f"All {WORDS[inside['']]} runs lie within the interval, and all {WORDS[sum(x < 0 for x in away[''])]} below "
        f"the prediction, by {-np.mean(away['']):.1%} on average",
        f"the interval goes {wide['']:.0%} to each side",
        f"they lie {-max(away['_two']):.0%} to {-min(away['_two']):.0%} below, and the interval goes "
        f"{wide['_two']:.0%}",
        f"the {inside['_lengths']} runs are off by {np.mean(away['_lengths']):+.0%} on average, within "
        f"{wide['_lengths']:.0%} to each side",
    ]
    return table, phrases


def saved(rows):
    """What sharing saves, in percent."""
    return f"{100 - left(rows):.0f}%"


def ladder():
    rows = read("ladder")
    sizes, cells = values(rows, "n_params"), ladder_cells(rows)
    minus, large = ladder_minus(cells), where(rows, n_params=sizes[-1])
    of_sizes = listed([gap(of.mean(axis=0)) for of in minus.values()])
    every = np.concatenate([*minus.values()])  # (sizes and lengths, seeds)
    alone = mean_error(every.ravel())[1]
    averages, shares = ladder_averages(rows)
    cosines, constants, cooldowns = (saved(where(rows, schedule=name)) for name in ("onecycle", "constant", "wsd"))
    (slope, rest), (slope_2, rest_2) = ladder_diagonal(cells, sizes), ladder_diagonal(cells, sizes[2:])
    phrases = [
        f"{size(sizes[0])} to {size(sizes[-1])} parameters, each at {ratios(rows)}",
        f"Its {len(rows)} runs took {hours(rows)} hours of training; sharing left {left(rows):.0f}% of their FLOPs",
        f"as a mean over the three lengths, is {of_sizes}, from the smallest size to the largest",
        f"Over all sizes it is {gap(every.mean(axis=0))}, or ± {alone:.3f} if the {every.size} pairs are taken",
        f"cosine's perplexity = {slope} x the cooldown's {rest}",
        f"the two larger ones alone have {slope_2} x {rest_2}",
        f"Sharing saves {cosines} of the FLOPs of the cosines, {constants} of those of the constant runs and "
        f"{cooldowns} of those of the cooldowns: {saved(rows)} in all",
    ]
    studies = ("demo", "lr_sensitivity", "cooldown_shape", "cooldown_length", "ladder")
    saves = from_to(sorted(saved(read(name)) for name in studies)[:: len(studies) - 1])
    n, (short, *_, long) = size(sizes[-1]), [f"{n:,.0f}" for n in values(large, "total_steps")]
    better = f"better by {gap(-minus[sizes[-1]].mean(axis=0), '.3f')}"
    gain = f"{shares[0]} of what a cooldown gains at {n} parameters after {short} steps, {shares[-1]} after {long}"
    yes = f"yes at {n} parameters: {better}; smaller models differ by more, both ways"
    shared = f"{saves} of the FLOPs of a study, over {len(studies)} studies; {saved(rows)} of this one"
    claims = [
        ("Is a cooldown as good as a cosine?", yes, "equal: better by 0.0009, at most 0.008 apart"),
        ("What does sharing the long run save?", shared, "half"),
        ("What do averages show on the way?", gain, "74% to 90% of the way to cosine"),
    ]
    readme = [f"{better} at {n} parameters", f"{saves} of a study's FLOPs", gain]
    predicted, said = holdout()
    tables = {"ladder": ladder_table(cells), "ladder_averages": averages, "holdout": predicted}
    command = "study.py configs/ladder.py"
    phrases += peak_phrases(large) + law_phrases() + said
    return Study("ladder", "Sizes and lengths", command, rows, phrases, tables, claims, readme)
