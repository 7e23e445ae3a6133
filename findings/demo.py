"""The demo, and whether it shows what it says with other seeds and in bf16."""

import numpy as np

from tables import over_seeds, std, where

from .text import (
    WORDS,
    Study,
    cost,
    counted,
    evaluations,
    gap,
    listed,
    load,
    ratios,
    read,
    share_of_gain,
    size,
    updates,
)

LENGTHS = (300, 600, 900)
AVERAGES = ("window", "ema")
# {kind of arithmetic: (folder in results/, what its runs have in common)}
KINDS = {
    "fp32": ("demo_seeds", {"dtype": "float32"}),
    "bf16": ("demo_seeds", {"dtype": "bfloat16"}),
    "fp32, AVX2": ("demo_avx2", {}),
}


def losses_of(study, rows):
    """{name of a line: {steps: losses over seeds}}; of the constant runs they are on the way."""
    ends = {
        name: {n: over_seeds(rows, total_steps=n, schedule=schedule) for n in LENGTHS}
        for name, schedule in (("cosine", "onecycle"), ("cooldown", "wsd"))
    }
    logs, columns = evaluations(study, rows, schedule="constant"), {"constant": "val_loss"}
    columns |= {name: f"val_loss_{name}" for name in AVERAGES}
    return ends | {
        name: {n: np.array([log[n][column] for log in logs]) for n in LENGTHS} for name, column in columns.items()
    }


def losses_by_kind():
    """{kind of arithmetic: what `losses_of` finds}"""
    return {kind: losses_of(study, where(read(study), **common)) for kind, (study, common) in KINDS.items()}


def apart(by_kind, kind):
    """How far the cooldowns of one seed end from those in fp32, next to how seeds scatter there;"""
    here, fp32 = (by_kind[k]["cooldown"][LENGTHS[-1]] for k in (kind, "fp32"))
    return f"{np.sqrt(np.mean((here - fp32) ** 2)):.4f}", f"{std(fp32):.3f}"


def outcomes(by_kind):
    """(table of the demo's outcomes over seeds and kinds of arithmetic, all differences in a dict)"""
    table, found = [["arithmetic", "seeds", "steps"]], {}
    table[0] += ["cooldown minus cosine", "most", "window minus constant", "most", "EMA minus constant", "most"]
    for kind, losses in by_kind.items():
        for n in LENGTHS:
            minus = {"cooldown": losses["cooldown"][n] - losses["cosine"][n]}
            minus |= {name: losses[name][n] - losses["constant"][n] for name in AVERAGES}
            found[kind, n] = minus
            cells = [cell for d in minus.values() for cell in (gap(d), f"{max(d):+.3f}")]
            table.append([kind, str(len(minus["cooldown"])), str(n), *cells])
    return table, found


def demo():
    rows = read("demo")
    losses = losses_of("demo", rows)
    table = [["loss after", *(f"{n} steps" for n in LENGTHS), "updates"]]
    paid = {name: f"{updates(where(rows, schedule=name)):,}" for name in ("onecycle", "constant", "wsd")}
    for name, line, n in (
        ("cosine (OneCycle)", "cosine", paid["onecycle"]),
        ("constant", "constant", f"{paid['constant']}, shared"),
        ("constant, window of 60 steps", "window", "none"),
        ("constant, EMA", "ema", "none"),
        ("cooldown, 1-sqrt", "cooldown", f"{paid['wsd']} more"),
    ):
        table.append([name, *(f"{np.mean(losses[line][k]):.3f}" for k in LENGTHS), n])
    for name, a, b in (
        ("cooldown minus cosine", "cooldown", "cosine"),
        ("window minus constant", "window", "constant"),
    ):
        table.append([name, *(gap(losses[a][k] - losses[b][k]) for k in LENGTHS), ""])
    shares = [share_of_gain(*(losses[line][n] for line in ("constant", "window", "cooldown"))) for n in LENGTHS]
    line = {row["t"]: f"{row['val_loss']:.3f}" for row in load("demo/interpolation.json")["rows"]}
    alone = f"{updates(rows, alone=True):,}"
    by_kind = losses_by_kind()
    seeds, minus = outcomes(by_kind)
    (other_cpu, scatter), (bf16, _) = (apart(by_kind, kind) for kind in ("fp32, AVX2", "bf16"))
    least = {name: max(max(d[name]) for d in minus.values()) for name in ("cooldown", "window")}
    n = len(next(iter(minus.values()))["cooldown"])
    phrases = [
        f"{size(rows[0]['n_params'])} parameters at {ratios(rows)}, {counted(rows, 'seed', 'seed')}",
        f"{cost(rows)}: {updates(rows):,} of {alone} updates are left",
        f"The window shows {listed(shares)} of what the cooldown gains",
        f"from {line[0.0]} over {line[0.5]} in the middle to {line[1.0]}",
        f"with {WORDS[n]} seeds in fp32 and in bf16",
        f"ends {other_cpu} from itself after {LENGTHS[-1]} steps (root mean square), in bf16 {bf16}, and seeds scatter "
        f"by {scatter}",
        f"by {-least['cooldown']:.3f} or more, and the window below the constant run by {-least['window']:.3f} or more",
    ]
    readme = [f"The {len(rows)} runs of ` would be {alone} updates alone; {updates(rows):,} are left to train"]
    tables = {"demo": table, "demo_seeds": seeds}
    return Study("demo", "The demo", "study.py configs/demo.py", rows, phrases, tables, [], readme)
