"""What a cooldown should train on."""

import numpy as np

from tables import grouped, mean_error, over_seeds

from .text import Study, counted, gap, left, listed_steps, minutes, power, read, spread


def mixes(rows):
    """{(share of target in it, share of the run that has it): rows} of the study of mixes, in their order."""
    found = {}
    for (dataset, cooldown), alike in grouped(rows, ["dataset", "cooldown_dataset"]).items():
        parts = dict(part.partition(":")[::2] for part in (cooldown or dataset).split(","))  # {name: share, "" for all}
        share = float(parts.get("docstrings-bytes", "0") or 1)
        found[share, rows[0]["cooldown_frac"] if cooldown else 1] = alike
    return found


def cooldown_or_spread(losses, tokens):
    """(table, differences on both texts): target in the cooldown minus as much, or more, spread over the run."""
    pairs = [((0.25, 0.2), (0.05, 1)), ((0.5, 0.2), (0.1, 1)), ((1, 0.2), (0.2, 1)), ((0.25, 0.2), (0.2, 1))]
    minus = [[a - b for a, b in zip(losses[x], losses[y], strict=True)] for x, y in pairs]
    seen = [f"{share * tokens:,.0f}" for share in (0.05, 0.1, 0.2)]
    names = [f"{seen[0]} bytes of target", *seen[1:], f"{seen[0]} in the cooldown, {seen[2]} over the run"]
    table = [["in the cooldown minus spread over the run", "general text", "target"]]
    return table + [[name, *map(gap, both)] for name, both in zip(names, minus, strict=True)], minus


def cooldown_mix():
    rows = read("cooldown_mix")
    (general, target), run = ("val_loss", "val_loss/docstrings-bytes"), rows[0]
    losses = {key: [over_seeds(of, y) for y in (general, target)] for key, of in mixes(rows).items()}
    none = losses[0, 1]
    table = [["target is", "bytes of it", "general text", "minus none", "target", "minus none"]]
    for (share, part), both in losses.items():
        told = f"{share:.0%} of the {'run' if part == 1 else 'cooldown'}".replace("100%", "all") if share else "none"
        table.append([told, f"{share * part * run['tokens']:,.0f}"])
        table[-1] += [x for y, n in zip(both, none, strict=True) for x in (spread(y), gap(y - n) if share else "")]
    beside, minus = cooldown_or_spread(losses, run["tokens"])
    gains = [gap(-on_target, ".3f") for _, on_target in (minus[0], minus[2])]
    all_of_it = [np.mean(a - b) for a, b in zip(losses[1, 0.2], losses[0.5, 0.2], strict=True)]
    mean, error = mean_error(losses[0.05, 1][0] - none[0])
    odd = sorted(losses[0.1, 1][0], reverse=True)
    most = max(row.get("epochs/docstrings-bytes") or 0 for row in rows)
    phrases = [
        f"{listed_steps(rows)} steps and a linear cooldown of {run['cooldown_steps']:.0f} from a peak of "
        f"{power(run['lr'])}, {counted(rows, 'seed', 'seed')}",
        f"The {len(rows)} runs took {minutes(rows)} minutes of training",
        f"sharing left {left(rows):.0f}% of their FLOPs",
        f"It loses {all_of_it[0]:.3f} of general text beside a half and half, and gains {-all_of_it[1]:.3f} of",
        f"That 5% of target over the run helps general text, by {-mean / error:.1f} times its error",
        "What is told of 10% over the run is unsure",
        f"one of its seeds ends at {odd[0]:.3f} on general text, the others at {odd[1]:.3f} and {odd[2]:.3f}",
        f"at most {most:.2%} of it were seen",
    ]
    answer = (
        f"on text of the kind that counts: it is predicted better by {gains[0]} to {gains[1]} than with as "
        "much of it spread over the run; other text gets worse"
    )
    claims = [("What should a cooldown train on?", answer, "not asked")]
    command, tables = "study.py configs/cooldown_mix.py", {"cooldown_mix": table, "cooldown_or_spread": beside}
    return Study("cooldown_mix", "Data of the cooldown", command, rows, phrases, tables, claims)
