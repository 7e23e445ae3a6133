"""Schedules, cooldowns, averages and cycles over lengths of 4, 8 and 32 tokens per parameter."""

import numpy as np

from tables import over_seeds, where

from .text import Study, bold, cost, evaluations, gap, listed, power, read, size, spread, values

STEPS = (300, 600, 2400)
NAMES = {
    "cooldown, 1-sqrt": dict(schedule="wsd", cooldown_shape="1-sqrt", cooldown_frac=0.2),
    "linear to zero": dict(schedule="linear"),
    "cosine to zero": dict(schedule="cosine", final_lr_frac=0.0),
    "cosine to 10%": dict(schedule="cosine", final_lr_frac=0.1),
}


def at_peaks(rows, n, names=NAMES):
    """{schedule: {peak: losses over seeds}} of runs of n steps."""
    found = {}
    for name in names:
        runs = where(rows, total_steps=n, **NAMES[name])
        found[name] = {lr: over_seeds(runs, lr=lr) for lr in values(runs, "lr")}
    return found


def best_of(peaks):
    """(peak, losses) of the lowest mean."""
    return min(peaks.items(), key=lambda item: np.mean(item[1]))


def schedules_table(losses, best):
    table = [["schedule"]]
    for n in losses:
        table[0] += [f"{n:,} steps", "its peak", "minus cooldown"]
    for name in NAMES:
        row = [name]
        for n in losses:
            (lr, here), (_, cooldown) = best[n][name], best[n]["cooldown, 1-sqrt"]
            row += [spread(here), power(lr), "" if here is cooldown else gap(here - cooldown)]
        table.append(row)
    return table


def peaks_table(losses):
    table = [["steps", "peak", *NAMES, "linear to zero minus cosine to 10%"]]
    for n, of in losses.items():
        for lr in of["linear to zero"]:
            gained = of["linear to zero"][lr] - of["cosine to 10%"][lr]
            table.append([f"{n:,}", power(lr), *(spread(of[name][lr]) for name in NAMES), gap(gained)])
    return table


def shapes(rows):
    """(table, {(shape, steps): losses})"""
    found, table = {}, [["shape", "600 steps", "above linear", "2,400 steps", "above linear"]]
    for shape in ("linear", "power:0.7", "1-sqrt", "power:0.3"):
        row = [shape]
        for n in (600, 2400):
            runs = where(rows, lr=0.008, total_steps=n, schedule="wsd", cooldown_shape=shape, cooldown_frac=0.2)
            found[shape, n] = over_seeds(runs)
            above = found[shape, n] - found["linear", n]
            row += [spread(found[shape, n]), gap(above, "+.4f") if shape != "linear" else ""]
        table.append(row)
    return table, found


def shares(rows):
    """(table, {steps: {share: losses}})"""
    runs = where(rows, lr=0.008, schedule="wsd", cooldown_shape="1-sqrt")
    found = {
        n: {s: over_seeds(runs, total_steps=n, cooldown_frac=s) for s in (0.05, 0.1, 0.2, 0.4, 0.6)} for n in STEPS
    }
    table = [["share of the run", *(cell for n in STEPS for cell in (f"{n:,} steps", "minus 20%"))]]
    for share in found[300]:
        row = [f"{share:.0%}"]
        for n in STEPS:
            here, usual = found[n][share], found[n][0.2]
            row += [
                bold(f"{np.mean(here):.3f}", share == best_of(found[n])[0]),
                "" if share == 0.2 else gap(here - usual),
            ]
        table.append(row)
    return table, found


def averages(rows, best):
    """What the window of the last 60 steps is worth on top of each schedule at its best peak."""
    table = [["window minus the weights as they are", *(f"{n:,} steps" for n in STEPS)]]
    for name, wanted in NAMES.items():
        row = [name]
        for n in STEPS:
            runs = where(rows, total_steps=n, lr=best[n][name][0], **wanted)
            row.append(gap(over_seeds(runs, "val_loss_window") - over_seeds(runs), "+.4f"))
        table.append(row)
    return table


def cycles(rows):
    """WSD-S, and what a trunk and three cooldowns reach with as many updates in all."""
    logs = evaluations("lengths", rows, schedule="wsd_s")
    linear = where(rows, lr=0.008, schedule="wsd", cooldown_shape="linear")
    table = [["", "first", "second", "third", "updates in all"]]
    ends, lengths = (600, 1200, 2400), (522, 1044, 2088)
    cycle = [np.array([log[end]["val_loss"] for log in logs]) for end in ends]
    branch = [over_seeds(linear, total_steps=n) for n in lengths]
    table.append(["steps of the cycles", *(f"{end:,}" for end in ends), f"{ends[-1]:,}"])
    table.append(["WSD-S", *map(spread, cycle), ""])
    table.append(
        [
            "steps of the branches",
            *(f"{n:,}" for n in lengths),
            f"{lengths[-1] - lengths[-1] // 5 + sum(n // 5 for n in lengths):,}",
        ]
    )
    table.append(["a trunk and cooldowns", *map(spread, branch), ""])
    table.append(["WSD-S minus these", *(gap(a - b) for a, b in zip(cycle, branch, strict=True)), ""])
    return table


def lengths():
    rows = read("lengths")
    losses = {n: at_peaks(rows, n) for n in STEPS}
    best = {n: {name: best_of(peaks) for name, peaks in of.items()} for n, of in losses.items()}
    tables = {
        "lengths": schedules_table(losses, best),
        "lengths_peaks": peaks_table(losses),
        "lengths_shapes": shapes(rows)[0],
        "lengths_shares": shares(rows)[0],
        "lengths_averages": averages(rows, best),
        "lengths_cycles": cycles(rows),
    }
    cooldown = {n: of["cooldown, 1-sqrt"][1] for n, of in best.items()}
    minus = {name: gap(cooldown[2400] - best[2400][name][1]) for name in NAMES}
    linear, ten = (losses[2400][name] for name in ("linear to zero", "cosine to 10%"))
    cosine = losses[2400]["cosine to zero"]
    of_shapes, of_shares = shapes(rows)[1], shares(rows)[1]
    root = {n: of_shapes["1-sqrt", n] - of_shapes["linear", n] for n in (600, 2400)}
    longest, top = of_shares[2400], [best_of(of_shares[n])[0] for n in STEPS]
    ours = {lr: losses[2400]["cooldown, 1-sqrt"][lr] for lr in (0.004, 0.008)}
    phrases = [
        f"{size(rows[0]['n_params'])} parameters at {listed([f'{n:,}' for n in STEPS])} steps",
        cost(rows),
        f"cooldown minus cosine to zero is {minus['cosine to zero']} at 2,400 steps",
        f"and minus linear to zero {minus['linear to zero']}",
        f"at one peak for both, 8e-3, {gap(ours[0.008] - cosine[0.008])}",
        f"its two peaks differ by {gap(ours[0.008] - ours[0.004], '.3f')}",
        f"at 8e-3 linear to zero is ahead of cosine to 10% by {gap(ten[0.008] - linear[0.008], '.3f')} at 2,400 steps",
        f"At 2e-3 it ends at {spread(losses[2400]['cooldown, 1-sqrt'][0.002])}",
        f"at 4e-3 it is not: {gap(linear[0.004] - ten[0.004])}",
        f"1-sqrt ends {gap(-root[2400], '.4f')} below linear at 2,400 steps",
        f"and {gap(root[600], '.4f')} above it at 600",
        f"the best share grows with the run: {listed([f'{share:.0%}' for share in top])}",
        f"the best cooldown grows from {top[0] * STEPS[0]:.0f} to {top[-1] * STEPS[-1]:.0f}",
        f"40% ends {gap(longest[0.2] - longest[0.4], '.3f')} below 20% at 2,400 steps",
        f"10% ends {gap(longest[0.1] - cosine[0.008], '+.3f')} from the cosine to zero of the same peak",
    ]
    answer = f"1-sqrt is {gap(-root[2400], '.4f')} below linear at 2,400 steps, {gap(root[600], '.4f')} above it at 600"
    claims = [
        (
            "Cooldown or cosine, each at its best peak?",
            f"cooldown, by {gap(best[2400]['cosine to zero'][1] - cooldown[2400])} at 2,400 steps",
            "equal",
        ),
        ("Which shape, in longer runs?", answer, "1-sqrt, by 0.002 to 0.010"),
        (
            "Does linear decay to zero beat a cosine to 10%?",
            f"by {gap(ten[0.008] - linear[0.008], '.3f')} at 2,400 steps; not in shorter runs or at a peak too low",
            "not asked; others: yes, more in longer runs",
        ),
    ]
    readme = [f"1-sqrt by {gap(-root[2400], '.4f')} over linear in longer ones"]
    readme += [f"by {gap(ten[0.008] - linear[0.008], '.3f')} in the longest runs", "a cosine to 10%"]
    command = "study.py configs/lengths.py"
    return Study("lengths", "Schedules over lengths", command, rows, phrases, tables, claims, readme)
