"""Does a learning rate carry over to wider and to sparser models?"""

import numpy as np

from tables import over_seeds, where

from .text import (  # isort: skip
    Study, best, counted, gap, listed, listed_steps, minutes, power, read, size, spread, values,
)  # fmt: skip


def unhalted(rows, most):
    """96 of its 120 runs took 5.8 minutes of training: those of less than `most` seconds per run."""
    ended = [row for row in rows if row["train_s"] < most]
    return f"{len(ended)} of its {len(rows)} runs took {minutes(ended)} minutes of training"


def setup(rows):
    """250 steps of 512 tokens, linear cooldowns, three seeds"""
    steps = f"{listed_steps(rows)} steps of {rows[0]['tokens'] / rows[0]['total_steps']:.0f} tokens"
    return f"{steps}, linear cooldowns, {counted(rows, 'seed', 'seed')}"


def mup():
    rows = read("mup")
    table = [["channels", "parameters", "best peak", "loss", "with muP", "loss"]]
    table[0].append("muP minus standard, each at its best")
    channels, worse = values(rows, "n_embd"), []
    heads = sorted({row["n_embd"] / row["n_head"] for row in rows})
    for width in channels:
        here = where(rows, n_embd=width)
        plain, scaled = best(here, mup_base=None), best(here, mup_base=32)
        minus = over_seeds(scaled) - over_seeds(plain)
        table.append([f"{width:.0f}", size(here[0]["n_params"])])
        table[-1] += [x for runs in (plain, scaled) for x in (power(runs[0]["lr"]), spread(over_seeds(runs)))]
        table[-1].append(gap(minus) if np.any(minus) else "the same model")
        worse += [gap(minus, ".3f")] if np.any(minus) else []
    carried = over_seeds(here, mup_base=None, lr=0.008) - over_seeds(plain)
    phrases = [
        f"models of {channels[0]:.0f} to {channels[-1]:.0f} channels in heads of {heads[0]:.0f}, {setup(rows)}",
        unhalted(rows, 40),
        f"So a rate found at {channels[0]:.0f} channels is right for {channels[-1]:.0f} with muP, and costs "
        f"{gap(carried, '.3f')} without",
        f"but who can afford a sweep at {channels[-1]:.0f} channels",
    ]
    answer = f"with muP yes, but wider models are worse than without, each at its best, by {listed(worse)}"
    claims = [("Does a learning rate carry over to wider models?", answer, "")]
    section, command = "Learning rates over widths: muP", "study.py configs/mup.py"
    return Study("mup", section, command, rows, phrases, {"mup": table}, claims, timed=False)


def supar():
    rows, table = read("supar"), [["density", "best peak, scaled", "loss", "best peak, not scaled", "loss"]]
    gains, names = [], []
    for density in reversed(values(rows, "density")):
        here = where(rows, density=density)
        scaled = best(here, supar="True")
        names.append(f"1/{1 / density:.0f}" if density < 1 else "1")
        table.append([names[-1], power(scaled[0]["lr"]), spread(over_seeds(scaled))])
        if density == 1:
            dense, table[-1] = scaled, [*table[-1], "", ""]
            continue
        plain = best(here, supar="False")
        table[-1] += [power(plain[0]["lr"]), spread(over_seeds(plain))]
        gains.append(over_seeds(here, supar="False", lr=0.004) - over_seeds(here, supar="True", lr=0.004))
    behind, gains = over_seeds(scaled) - over_seeds(dense), listed([gap(gain, ".3f") for gain in gains])
    phrases = [
        f"of which all, {listed(names[1:])} of the blocks' weights are not 0",
        setup(rows),
        unhalted(rows, 30),
        f"At the dense model's best peak, {power(dense[0]['lr'])}, scaling is worth {gains}",
        f"the scaled model is behind the dense one by {gap(behind, '.3f')} only",
    ]
    section, command = "Learning rates over densities: SuPar", "study.py configs/supar.py"
    answer = f"with SuPar yes, which at the dense model's best peak is worth {gains}"
    claims = [("And to sparser ones?", answer, "")]
    return Study("supar", section, command, rows, phrases, {"supar": table}, claims, timed=False)
