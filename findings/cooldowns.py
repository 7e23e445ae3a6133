"""Cooldowns against cosines: two branches by hand, and their peak, shape and length."""

import numpy as np

from tables import over_seeds, read_log, where

from .ladder import ladder_cells

from .text import (  # isort: skip
    FOLDER, Study, bold, cost, counted, gap, listed, listed_steps, power, ratios, read, size,
    spread, values,
)  # fmt: skip


def tiny():
    logs = [read_log(FOLDER / "tiny" / name)[1] for name in ("trunk", "300-steps", "400-steps")]
    trunk, short, long = ({row["step"]: row for row in log} for log in logs)
    at, lengths = (100, 200, 300, 400), [max(log) for log in (trunk, short, long)]
    starts = [n - n // 5 for n in lengths[1:]]
    own = sum(n // 5 for n in lengths[1:])
    windows = {trunk[step]["window_steps"] for step in at}
    table = [["loss after", "100 steps", "200", "300", "400"]]
    table.append(["constant", *(f"{trunk[step]['val_loss']:.3f}" for step in at)])
    name = f"constant, window of {min(windows)} to {max(windows)} steps"
    table.append([name, *(f"{trunk[step]['val_loss_window']:.3f}" for step in at)])
    table.append(["constant, EMA", *(f"{trunk[step]['val_loss_ema']:.3f}" for step in at)])
    ends = [f"{short[300]['val_loss']:.3f}", f"{long[400]['val_loss']:.3f}"]
    table.append(["cooldown, 1-sqrt", "", "", *ends])
    phrases = [
        f"a constant run of {lengths[0]} steps, and 1-sqrt cooldowns from its steps {starts[0]} and {starts[1]} to the "
        f"steps {lengths[1]} and {lengths[2]}"
    ]
    losses = [f"{trunk[step]['val_loss']:.3f}" for step in (300, 400)]
    readme = [
        f"three minutes on two CPU cores, loss {ends[1]}",
        f"The trunk has a loss of {losses[0]} after 300 steps and of {losses[1]} after 400",
        f"The cooldowns, over the last fifth, end at {listed(ends)}",
        f"All three took {lengths[0] + own} updates instead of {sum(lengths):,}",
    ]
    section = "A trunk and two branches by hand"
    return Study("tiny", section, "train.py configs/tiny.py", [], phrases, {"tiny": table}, [], readme)


def lr_sensitivity():
    rows = read("lr_sensitivity")
    table = [["peak", "cosine (OneCycle)", "cooldown, linear", "cooldown, 1-sqrt"]]
    table[0] += ["linear minus cosine", "1-sqrt minus linear"]
    means = {}
    for lr in values(rows, "lr"):
        cosine = over_seeds(rows, lr=lr, schedule="onecycle")
        linear, root = (over_seeds(rows, lr=lr, cooldown_shape=shape) for shape in ("linear", "1-sqrt"))
        means[lr] = [np.mean(losses) for losses in (cosine, linear, root)]
        table.append(
            [power(lr), *map(spread, (cosine, linear, root)), gap(linear - cosine), gap(root - linear, "+.4f")]
        )
    (best,) = {min(means, key=lambda lr: means[lr][i]) for i in range(3)}  # one for all three, as the text says
    for row in table:
        row[0] = bold(row[0], row[0] == power(best))
    phrases = [
        f"{size(rows[0]['n_params'])} parameters, {listed_steps(rows)} steps ({ratios(rows)}), "
        f"{counted(rows, 'lr', 'peak')}, {counted(rows, 'seed', 'seed')}",
        cost(rows),
        f"The best of these peaks is {power(best)} for all three",
    ]
    cells = ladder_cells(read("ladder"))
    times = [cooldown[0]["lr"] / cosine[0]["lr"] for cosine, cooldown in cells.values()]
    answer = f"{power(best)} for both at {size(rows[0]['n_params'])} parameters, of peaks a factor of two apart; "
    answer += f"{min(times):g} to {max(times):g} times cosine's over the sizes of `ladder`"
    claims = [("Which peak learning rate is best?", answer, "slightly below half of cosine's")]
    command = "study.py configs/lr_sensitivity.py"
    tables = {"lr_sensitivity": table}
    return Study("lr_sensitivity", "Peak learning rate", command, rows, phrases, tables, claims)


def cooldown_shape():
    rows, table = read("cooldown_shape"), [["shape", "loss", "above linear"]]
    linear = over_seeds(rows, cooldown_shape="linear")
    losses = {shape: over_seeds(rows, cooldown_shape=shape) for shape in values(rows, "cooldown_shape")}
    for shape, of_shape in sorted(losses.items(), key=lambda item: np.mean(item[1])):
        table.append([shape, spread(of_shape), gap(of_shape - linear, ".4f") if shape != "linear" else ""])
    above = {shape: of_shape - linear for shape, of_shape in losses.items() if shape != "linear"}
    low = where(read("lr_sensitivity"), lr=0.002)
    behind = over_seeds(low, cooldown_shape="1-sqrt") - over_seeds(low, cooldown_shape="linear")
    phrases = [
        f"at a peak of {power(rows[0]['lr'])}, cooldowns of {rows[0]['cooldown_steps']:.0f} steps, "
        f"{counted(rows, 'seed', 'seed')}",
        cost(rows),
        f"In these {rows[0]['total_steps']:,.0f} steps it does not",
        f"by {gap(behind, '.4f')} at an eighth of the best peak",
    ]
    root, others = gap(above["1-sqrt"], ".4f"), sorted(above.values(), key=np.mean)[1:]
    answer = f"linear and 1-sqrt alike, {root} apart; the others worse by {gap(others[0], '.3f')} to "
    answer += gap(others[-1], ".3f")
    claims = [("Which shape of the cooldown?", answer, "1-sqrt, by 0.002 to 0.010")]
    command, tables = "study.py configs/cooldown_shape.py", {"cooldown_shape": table}
    return Study("cooldown_shape", "Shape of the cooldown", command, rows, phrases, tables, claims)


def cooldown_length():
    rows, lengths = read("cooldown_length"), (660, 1980)
    table = [["share of the run", "660 steps", "minus cosine", "1,980 steps", "minus cosine"]]
    shares, cooled, minus = values(where(rows, schedule="wsd"), "cooldown_frac"), {}, {}
    cosines = {n: over_seeds(rows, total_steps=n, schedule="onecycle") for n in lengths}
    for n in lengths:
        for share in shares:
            cooled[n, share] = over_seeds(rows, total_steps=n, cooldown_frac=share)
            minus[n, share] = cooled[n, share] - cosines[n]
    best = {n: min(shares, key=lambda share: np.mean(cooled[n, share])) for n in lengths}
    for share in shares:
        cells = [[bold(spread(cooled[n, share]), share == best[n]), gap(minus[n, share])] for n in lengths]
        table.append([f"{share:.0%}", *cells[0], *cells[1]])
    table.append(["cosine (OneCycle)", spread(cosines[660]), "", spread(cosines[1980]), ""])
    gain = cooled[1980, 0.2] - cooled[1980, 0.4]
    ahead = next(share for share in shares if np.mean(minus[660, share]) < 0 < np.mean(minus[1980, share]))
    alike = [s for s in shares if np.mean(cooled[1980, s]) - np.mean(cooled[1980, best[1980]]) < 0.002]
    answer = f"{best[660]:.0%} of 660 steps, {' or '.join(f'{s:.0%}' for s in alike)} of 1,980"
    phrases = [
        f"the same model at {listed_steps(rows)} steps, 1-sqrt cooldowns from a peak of {power(rows[0]['lr'])}, "
        f"{counted(rows, 'seed', 'seed')}",
        cost(rows),
        f"where 40% ends {gap(gain, '.3f')} below 20%",
        f"Here {ahead:.0%} beats cosine at 660 steps, and is behind it at 1,980",
    ]
    told = f"{answer}, where 40% ends {gap(gain, '.3f')} below 20%"
    claims = [("How long a cooldown?", told, "20%, or less in longer runs")]
    command, tables = "study.py configs/cooldown_length.py", {"cooldown_length": table}
    section = "Length of the cooldown"
    return Study("cooldown_length", section, command, rows, phrases, tables, claims, [answer])
