"""Certificates of options, and optimizers at theirs."""

import numpy as np

from tables import over_seeds, where

from .text import (  # isort: skip
    Study, bold, counted, gap, listed, listed_steps, load, minutes, power, ratios, read, size, spread, updates, values,
)  # fmt: skip


def above_centre(near, form="+.3f"):
    """How far a neighbour in a certificate is above the centre."""
    return f"{near['difference']:{form}} ± {near['standard_error']:{form.removeprefix('+')}}"


def tune_small():
    rows, found = read("tune_small"), load("tune_small/certificate.json")
    table = [["one change", "loss", f"above the centre's {found['loss']:.3f}"]]
    for near in found["neighbours"]:
        what = f"peak {power(near['value'])}" if near["option"] == "lr" else f"weight decay {near['value']:g}"
        table.append([what if near["value"] else "no weight decay", f"{near['loss']:.3f}", above_centre(near, ".3f")])
    table[1:] = sorted(table[1:], key=lambda row: [name in row[0] for name in ("decay 0.4", "no weight", "3.2e-2")])
    centre = found["centre"]
    phrases = [
        f"{size(rows[0]['n_params'])} parameters, {rows[0]['total_steps']:.0f} steps, linear cooldowns, "
        f"{counted(rows, 'seed', 'seed')}",
        f"it moved once, to {power(centre['lr'])}, and ended there",
        f"Its {len(rows)} runs took {minutes(rows)} minutes of training",
    ]
    none = above_centre(next(near for near in found["neighbours"] if near["value"] == 0), ".3f")
    answer = f"{centre['weight_decay']:g} at {rows[0]['total_steps']:.0f} steps; no decay is worse by {none}"
    command, tables = "tune.py configs/tune_small.py", {"tune_small": table}
    claims = [("Which weight decay?", answer, "")]
    return Study("tune_small", "Tuning to a certificate", command, rows, phrases, tables, claims)


OPTIMIZERS = {  # names as in the text, and what was fixed while they were tuned
    "adamw": ("AdamW", ""),
    "nadamw": ("NAdamW", ""),
    "cautious": ("Cautious AdamW", ""),
    "mars": ("MARS", " (gamma 0.025)"),
    "lion": ("Lion", " (beta2 0.95)"),
    "muon": ("Muon", " (betas 0.8, 0.95)"),
    "scion": ("Scion", ""),
    "soap": ("SOAP", " (bases at every tenth step)"),
    "kron": ("Kron", " (betas 0.8, 0.95)"),
    "schedule_free": ("Schedule-Free", ""),
}


SPEEDUPS = ("soap", "kron", "muon", "scion")  # those of the table of AdamW's tokens


def centre_of(certificate):
    """peak 1.6e-2, betas 0.8, 0.95: the options of a certificate's centre."""
    found = dict(certificate["centre"])
    lr, other = found.pop("lr"), found.pop("lr_other", None)
    told = [f"peaks {power(lr)} and {power(other)}" if other else f"peak {power(lr)}"]
    if "beta2" in found:
        told.append(f"betas {found.pop('beta1'):g}, {found.pop('beta2'):g}")
    return ", ".join([*told, *(f"{option.replace('_', ' ')} {value:g}" for option, value in found.items())])


def optimizers_tuned(certificates):
    table = [["optimizer (what was fixed)", "options that hold", "loss at 400 steps", "closest neighbour", "runs"]]
    lowest = min(certificates.values(), key=lambda found: found["loss"])
    for name, found in certificates.items():
        near = min(found["neighbours"], key=lambda near: near["difference"])
        value = power(near["value"]) if near["option"].startswith("lr") else f"{near['value']:g}"
        option = {"lr_other": "second peak", "lr": "peak"}.get(near["option"], near["option"])
        runs = len(read(f"optimizers/tune/{name}"))
        table.append(["".join(OPTIMIZERS[name]), centre_of(found), bold(f"{found['loss']:.3f}", found is lowest)])
        table[-1] += [f"{option} {value}: {above_centre(near)}", f"{runs}"]
    return table


def step_ms(rows):
    """Milliseconds of training per step."""
    return 1000 * sum(row["train_s_paid"] for row in rows) / updates(rows)


def optimizers_table(rows, lengths):
    table = [["", *(cell for n in lengths for cell in (f"{n:,} steps", "minus AdamW")), "time of a step"]]
    losses = {o: {n: over_seeds(rows, optimizer=o, total_steps=n) for n in lengths} for o in values(rows, "optimizer")}
    for name in [name for name in OPTIMIZERS if name in losses]:
        table.append([OPTIMIZERS[name][0]])
        for n in lengths:
            lowest = min(losses, key=lambda other: np.mean(losses[other][n]))
            minus = gap(losses[name][n] - losses["adamw"][n]) if name != "adamw" else ""
            table[-1] += [bold(spread(losses[name][n]), name == lowest), minus]
        ms, base = (step_ms(where(rows, optimizer=o)) for o in (name, "adamw"))
        words = {"adamw": f"{ms:.1f} ms", "nadamw": f"{ms / base:.2f} times"}
        table[-1].append(words.get(name, f"{ms / base:.2f}"))
    return table


def speedups(names, lengths):
    """{(optimizer, steps): (least, most)}: times its tokens that AdamW needs, over the intervals of all seeds."""
    rows, found = load("optimizers/speedup.json")["speedups"], {}
    for name in names:
        for n in lengths:
            here = [row for row in rows if row["by"] == name and round(row["D"] / 1024) == n]
            found[name, n] = min(row["low"] for row in here), max(row["high"] for row in here)
    return found


def speedup_table(rows, worth, lengths):
    longest = max(row["total_steps"] for row in where(rows, optimizer="adamw"))
    table = [["AdamW's tokens", *(f"{n:,} steps" for n in lengths)]]
    for name in SPEEDUPS:
        table.append([OPTIMIZERS[name][0], *("{:.2f} to {:.2f}".format(*worth[name, n]) for n in lengths)])
        if worth[name, lengths[-1]][1] * lengths[-1] > longest:
            table[-1][-1] += " (beyond AdamW's runs)"
    table[1][1] += " times"
    return table


def tuning_phrases(certificates):
    """What the text says of how the options were found."""
    steps = listed_steps([row for name in certificates for row in read(f"optimizers/tune/{name}")])
    neighbours = certificates["adamw"]["neighbours"]
    beta1 = next(near for near in neighbours if (near["option"], near["value"]) == ("beta1", 0.9))
    lead = certificates["adamw"]["loss"] - certificates["soap"]["loss"]
    return [
        f"each optimizer was tuned at {steps} steps",
        f"better by more than {certificates['muon']['tolerance']:g}, as a mean over three seeds",
        f"A beta1 of 0.8 instead of 0.9, the default here, is worth {above_centre(beta1, '.3f')} to AdamW at {steps}",
        f"more than half of SOAP's lead of {lead:.3f}",
        f"All options were found at {steps} steps",
    ]


def optimizers():
    rows, lengths = read("optimizers"), (660, 1320, 2640)
    certificates = {name: load(f"optimizers/tune/{name}/certificate.json") for name in OPTIMIZERS}
    worth = speedups(SPEEDUPS, lengths)
    soap, kron, adamw = (where(rows, optimizer=name) for name in ("soap", "kron", "adamw"))
    only = [f"{n:,.0f}" for n in values(adamw, "total_steps") if n not in lengths]
    slower = {name: step_ms(of) / step_ms(adamw) for name, of in (("soap", soap), ("kron", kron))}
    time = [slower[name] / tokens for name in slower for tokens in worth[name, 1320]]
    ends = [tokens for name in slower for n in (660, 1320) for tokens in worth[name, n]]
    span = f"AdamW needs {min(ends):.1f} to {max(ends):.1f} times"
    phrases = [
        f"{size(rows[0]['n_params'])} parameters at {listed_steps(soap)} steps ({ratios(soap)}), linear cooldowns of "
        f"{rows[0]['cooldown_frac']:.0%}, {counted(rows, 'seed', 'seed')}; AdamW also at {listed(only)} steps",
        f"Its {len(rows)} runs took {minutes(rows)} minutes of training",
        f"sharing left {100 * updates(rows) / updates(rows, alone=True):.0f}% of their updates",
        "Muon and Scion lead at {:,} steps, are level at {:,}, and fall behind at {:,}".format(*lengths),
        f"but for NAdamW at {lengths[0]} steps",
        f"a step takes {slower['soap']:.2f} and {slower['kron']:.2f} times as long as with AdamW, so at 1,320 steps "
        f"both need {min(time):.1f} to {max(time):.1f} of AdamW's time for the same loss",
        f"One model of {size(rows[0]['n_params'])} parameters",
        *tuning_phrases(certificates),
    ]
    answer = f"SOAP or Kron: {span} their tokens at 660 and 1,320 steps; Muon and Scion lead at 660 only"
    claims = [("Which optimizer?", answer, "")]
    readme = [f"{span} the tokens of SOAP and Kron, at 10 and 20 tokens per parameter"]
    tables = {"optimizers_tuned": optimizers_tuned(certificates), "optimizers": optimizers_table(rows, lengths)}
    tables["optimizers_speedup"] = speedup_table(rows, worth, lengths)
    command = "study.py configs/optimizers.py"
    return Study("optimizers", "Optimizers", command, rows, phrases, tables, claims, readme)


def schedule_free():
    own, others, lengths = read("schedule_free"), read("optimizers"), (660, 1320, 2640)
    kinds = {
        "AdamW, cooldown, linear": [r for r in where(others, optimizer="adamw") if r["total_steps"] in lengths],
        "AdamW, cosine (OneCycle)": where(own, schedule="onecycle"),
        "Schedule-Free AdamW": where(own, optimizer="schedule_free"),
    }
    losses = [[over_seeds(rows, total_steps=n) for n in lengths] for rows in kinds.values()]
    table = [["", "660 steps", "1,320", "2,640", "updates per seed for all three"]]
    for (name, rows), line in zip(kinds.items(), losses, strict=True):
        table.append([name, *map(spread, line), f"{round(updates(rows) / 3):,}"])
    for i, name in enumerate(("cooldown", "cosine")):
        minus = [gap(a - b) for a, b in zip(losses[2], losses[i], strict=True)]
        table.append([f"Schedule-Free minus {name}", *minus, ""])
    share = 100 * updates(own) / updates(own, alone=True)
    tuned = where(read("optimizers/tune/schedule_free"), lr=0.032)
    worse = over_seeds(tuned, beta1=0.95, beta2=0.95) - over_seeds(tuned, beta1=0.9, beta2=0.8)
    phrases = [
        f"Of its {len(own)} runs, sharing left {share:.0f}% of the updates",
        f"with betas of 0.95 and 0.95 it is behind by {gap(worse, '.3f')} at 400 steps and the same peak",
    ]
    minus = [gap(a - b) for a, b in zip(losses[2], losses[0], strict=True)]
    answer = f"yes, within the error, once its betas are tuned: {listed(minus)} at {listed_steps(own)} steps"
    claims = [("Does Schedule-Free match a cooldown?", answer, "matched or worse")]
    command, tables = "study.py configs/schedule_free.py", {"schedule_free": table}
    return Study("schedule_free", "Schedule-Free", command, own, phrases, tables, claims, timed=False)
