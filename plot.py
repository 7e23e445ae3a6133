"""The paper's figures, one command each, from a study's results.csv and from the logs of runs.

    python plot.py schedules cosine wsd:linear wsd:1-sqrt           # learning rates, from their formulas (Figure 2)
    python plot.py curves runs/trunk runs/branch --from_step=100    # loss and learning rate over steps (1, 3, 10)
    python plot.py lr results.csv --out=lr.svg                      # final loss against peak learning rate (3, 21)
    python plot.py cooldown_length results.csv                      # ... against the cooldown's length (5, 19, 20)
    python plot.py cooldown_shape results.csv                       # ... by the cooldown's shape (16-18)
    python plot.py averages results.csv                             # ... by schedule, average and length (10, 23, 26)
    python plot.py interpolation line.json                          # of evaluate.py --interpolate A B --json (7)
    python plot.py envelope results.csv                             # loss against FLOPs, over model sizes (12 left)
    python plot.py diagonal results.csv                             # cosine against cooldown (12 right)
    python plot.py methods results.csv --baseline=adamw             # loss over length, and minus a baseline's (11)
    python plot.py mix results.csv                                  # ... on all validation sets, by what was trained on
    python plot.py cost results.csv                                 # what sharing prefixes saves (13, 24, 25)
    python plot.py certificate runs/tune_small                      # of tune.py: loss around the best settings
    python plot.py downstream at-*.json cooled.json                 # of evaluate.py --tasks --json: error and loss

Runs that differ in their seeds alone become a mean, with the standard deviation of single runs as a bar. Of runs with
several validation sets, losses are on the first, or on that of --val_dataset. Numbers in brackets are the figures of
Haegele et al., NeurIPS 2024 (arXiv 2405.18392). `make figures` draws those of results/.
"""

import json
import math
import re
from itertools import cycle, pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

import config
import schedules
import tables
from config import Mistake
from tables import AVERAGES, called, grouped, in_words, labels, mean_lines, read_results, settings, span

plt.switch_backend("Agg")  # which needs no screen
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
plt.rcParams.update({"legend.frameon": False, "legend.fontsize": 8, "legend.title_fontsize": 8})
plt.rcParams.update({"axes.axisbelow": True, "axes.titlesize": 9, "lines.markersize": 5, "legend.handlelength": 3.5})
plt.rcParams.update({"figure.constrained_layout.use": True, "figure.titlesize": 11, "svg.hashsalt": "cooldown"})

# Colour, dash and marker of a line by its kind, which is what tables.called says, or the column of an average. Lengths
# and sizes differ in marker and shade. So lines are told apart in grey, too, and by the colour-blind (Okabe and Ito).
LOOKS = {
    "constant": ("#303030", "-", "o"),
    "val_loss_window": ("#009e73", (0, (3, 1.2)), "s"),
    "val_loss_ema": ("#cc79a7", (0, (1, 1.2)), "D"),
    "cooldown, 1-sqrt": ("#0072b2", (0, (9, 1.2, 1.5, 1.2)), "^"),
    "cooldown, linear": ("#56b4e9", (0, (4, 1, 1, 1, 1, 1)), "v"),
    "cosine (OneCycle)": ("#d55e00", (0, (6, 2)), "P"),
    "cosine": ("#8c2d04", (0, (6, 1, 1, 1, 1, 1, 1, 1)), "X"),
}
OTHERS = (("#b8860b", "-", "<"), ("#5b2c6f", "--", ">"), ("#626567", "-.", "p"), ("#0e6655", ":", "h"))
OTHERS += (("#a93226", (0, (8, 1.5)), "*"), ("#7d6608", (0, (3, 1, 1, 1)), "d"), ("#1f77b4", "-", "s"))
OTHERS += (("#e377c2", "--", "D"), ("#2ca02c", "-.", "^"), ("#17202a", ":", "v"), ("#e67e22", (0, (8, 1.5)), "X"))
OTHERS += (("#16a0b5", (0, (3, 1, 1, 1)), "P"),)
MARKERS = "osD^vPX<>ph*d"  # of lines of one kind
LOSS = "validation loss (nats per token)"


# ----------------------------------------------------------------------------------------------------------------------
# Looks


def rows_of(args):
    """The rows of the results that a command asks for."""
    return tables.measured_on(read_results(args.results, args.only), args.val_dataset)


def styles(lines):
    """{label: its look} of (kind, label, ...): the kind says colour and dash, its label's place marker and shade."""
    kinds, others, found = {}, cycle(OTHERS), {}
    for kind, label, *_ in lines:
        kinds.setdefault(kind, {})[label] = None
    for kind, of_kind in kinds.items():
        color, dash, marker = LOOKS[kind] if kind in LOOKS else next(others)
        for i, label in enumerate(of_kind):
            found[label] = {"color": color, "linestyle": dash, "marker": marker}
            if len(of_kind) > 1:
                pale = 0.55 * (1 - i / (len(of_kind) - 1))  # the last is the darkest
                found[label]["color"] = tuple(c + (1 - c) * pale for c in to_rgb(color))
                found[label]["marker"] = MARKERS[i % len(MARKERS)]
    return found


def draw(axes, lines, look):
    """Draw means with their standard deviations, each in the look of its label."""
    for line in lines:
        std = np.nan_to_num(line.std) if max(line.n) > 1 else None
        axes.errorbar(line.x, line.mean, std, label=line.label, elinewidth=0.9, capsize=2.5, **look[line.label])


def spread(lines):
    """What dots and bars are, for the legend's heading."""
    return spread_of([n for line in lines for n in line.n])


def spread_of(n):
    return f"mean over {span(n, 'seed')} ± 1 standard deviation" if max(n) > 1 else "one seed each: spread unknown"


def log_axis(axis, values):
    """A logarithmic axis with ticks to read: the values if they are few, powers of 10 if they span much."""
    values = sorted(set(values))
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    if len(values) <= 7 or values[-1] < 30 * values[0]:
        axis.set_major_locator(FixedLocator(values) if len(values) <= 7 else MaxNLocator(6))
        axis.set_major_formatter("{x:.3g}")
        axis.set_minor_locator(NullLocator())


def panels_for(rows, columns):
    """A figure with a panel for each setting of the columns: (figure, [(axes, rows of that setting)])."""
    groups = sorted(grouped(rows, columns).items())
    across = 2 if len(groups) == 4 else min(3, len(groups))
    down = math.ceil(len(groups) / across)
    figure, panels = plt.subplots(down, across, figsize=(max(6.5, 3.8 * across), 3.3 * down + 1.2), squeeze=False)
    for axes, (key, _) in zip(panels.flat, groups, strict=False):
        axes.set(title=", ".join(map(in_words, columns, key)), ylabel=LOSS if axes in panels[:, 0] else "")
    for axes in panels.flat[len(groups) :]:
        axes.set_axis_off()
    return figure, [(axes, here) for axes, (_, here) in zip(panels.flat, groups, strict=False)]


def finish(figure, title, caption="", look=()):
    """Title, and below one legend of all axes, in the order of `look`; the caption is its heading."""
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if not handles:
        raise Mistake("nothing to draw: lower --from_step, or give other runs")
    names = [label for label in look or handles if label in handles]
    across = int(figure.get_figwidth() / (0.7 + 0.058 * max(map(len, names))))  # inches: of the handle, of a letter
    down = math.ceil(len(names) / max(1, across))
    place = {"title": caption, "loc": "outside lower center", "ncols": math.ceil(len(names) / down)}
    figure.legend([handles[name] for name in names], names, **place)
    figure.suptitle(title)
    return figure


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def parse_schedule(text, steps, warmup_steps):
    """(schedule, its settings) of name, wsd:shape or name:option=value,...; what it needs besides has a default."""
    name, _, rest = text.partition(":")
    given = {"cooldown_shape": tables.SHAPE} if name == "wsd" else {}
    for pair in filter(None, rest.split(",")):
        option, equals, value = pair.partition("=")
        if equals:
            value = tables.read_cell(option, value, text)
            given[option] = int(value) if isinstance(value, float) and value.is_integer() else value
        else:
            given["cooldown_shape"] = option
    needs = {"cosine_inf": {"cosine_steps": 6 * steps // 10}, "power": {"knee_steps": steps // 4}}
    needs["wsd_s"] = {"cycle_ends": (steps // 4, steps // 2)}
    options = {"total_steps": steps, "warmup_steps": warmup_steps, **needs.get(name, {}), **given}
    if options.get("cooldown_shape") in schedules.POSITIVE:
        options.setdefault("final_lr_frac", 0.1)  # these never reach 0
    with config.mistakes():
        return schedules.build(name, **options), {"schedule": name, **given}


def plot_schedules(args):
    """Learning rate over steps, of schedules by name (Figure 2); what each update weighs in the end, with --lr.

    The weights of AdamW are a moving average of its updates: see schedules.update_shares.
    """
    if (args.lr is None) != (args.weight_decay is None):
        raise Mistake("--lr and --weight_decay: give both, for the shares of the updates, or neither")
    down = 1 if args.lr is None else 2
    figure, panels = plt.subplots(down, 1, figsize=(6.5, 1.4 + 2.6 * down), sharex=True, squeeze=False)
    top, *below = panels[:, 0]
    steps = np.unique(np.linspace(0, args.steps, 1001).round().astype(int)).tolist()
    built, given = zip(*[parse_schedule(text, args.steps, args.warmup_steps) for text in args.schedules], strict=True)
    names = labels(given)
    look = styles(zip(map(called, given), names, strict=True))
    for i, (schedule, name) in enumerate(zip(built, names, strict=True)):
        beside = {"markevery": (25 + 37 * i, 150), "ms": 4, "lw": 1.6}  # markers beside, not upon, each other
        top.plot(steps, list(map(schedule, steps)), label=name, **look[name], **beside)
        for bottom in below:
            rates = [args.lr * schedule(k) for k in range(args.steps)]
            *shares, first = schedules.update_shares(rates, args.weight_decay)
            bottom.plot(steps[:-1], [shares[k] for k in steps[:-1]], **look[name], **beside)
            last = sum(shares[-(args.steps // 5) :])
            print(
                f"{name}: of the last weights {last:.1%} are updates of the last fifth, {first:.1%} the first weights"
            )
    top.set(ylabel="learning rate / its peak", ylim=(0, None))
    for bottom in below:
        bottom.set(ylabel="share of an update in the last weights", ylim=(0, None))
        bottom.yaxis.set_major_formatter(PercentFormatter(1))
    panels[-1, 0].set(xlabel="step")
    panels[-1, 0].xaxis.set_major_formatter("{x:,.0f}")
    return finish(figure, f"Learning rate of a run of {args.steps:,} steps, {args.warmup_steps:,} of them warmup")


def name_runs(paths, names):
    """[(kind, label)] of runs: words for their settings, and their folders' names where those are unknown or alike.

    Runs that differ in their seeds only have one label.
    """
    told = [tables.read_settings(path) or {"schedule": name} for path, name in zip(paths, names, strict=True)]
    seeds = [{column: settings.pop(column, None) for column in tables.SEEDS} for settings in told]
    said = labels(told)
    one = [said.index(label) for label in said]  # the first run of each label
    alike = [i != j and (told[i] != told[j] or seeds[i] == seeds[j]) for i, j in enumerate(one)]
    unclear = {said[i] for i, same in enumerate(alike) if same}
    told_apart = [f"{x} ({name})" if x in unclear else x for x, name in zip(said, names, strict=True)]
    return list(zip(map(called, told), told_apart, strict=True))


def from_branch(points, seen):
    """The points from the last one on that an earlier run, all of whose points are in `seen`, has too."""
    first = next((i for i, point in enumerate(points) if point not in seen), len(points))
    seen.update(points)
    return points[max(0, first - 1) :]


def rates_of(training, start):
    """[(step, lr)] of a branch that begins at step `start`, from where the learning rate leaves its trunk's on."""
    rates = [(x["step"], x["lr"]) for x in training if x["step"] >= start and "lr" in x]
    leaves = next((i for i, (a, b) in enumerate(pairwise(rates)) if a[1] != b[1]), 0)
    return rates[leaves:] if start > 0 else rates


def bands(curves):
    """{(kind, label): [(step, mean, least, greatest loss)]} of [(kind, label, [(step, loss)])], at steps of all."""
    found = {}
    for kind, label, points in curves:
        found.setdefault((kind, label), []).append(dict(points))
    for key, runs in found.items():
        steps = sorted(set.intersection(*map(set, runs)))
        losses = [[run[step] for run in runs] for step in steps]
        found[key] = [(step, np.mean(x), min(x), max(x)) for step, x in zip(steps, losses, strict=True)]
    return found


def plot_curves(args):
    """Validation losses of runs and of the first one's averages; learning rates below (Figures 1, 3 left, 10).

    Of runs that differ in their seeds only: the mean, and a band from the least loss to the greatest.
    """
    paths = tables.find_runs(args.runs)
    logs = [tables.read_log(path) for path in paths]
    logs = [(training, tables.measured_on(losses, args.val_dataset), name) for training, losses, name in logs]
    named = name_runs(paths, [name for *_, name in logs])
    kinds = [kind for kind, _ in named]
    order = sorted(range(len(logs)), key=lambda i: (kinds.index(kinds[i]), logs[i][1][-1]["step"]))  # shorter first
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 6), sharex=True, height_ratios=(3, 1))
    curves, rates = [], {}  # (kind, label, points), {label: points}
    seen = set()  # a branch begins where it leaves the run that it is of
    for i in order:
        (training, evaluation, _), (kind, label) = logs[i], named[i]
        own = from_branch([(x["step"], x["val_loss"]) for x in evaluation if "val_loss" in x], seen)
        curves.append((kind, label, [point for point in own if point[0] >= args.from_step]))
        rates.setdefault(label, rates_of(training, own[0][0]))
        for loss in AVERAGES if named[i] == named[order[0]] else ():
            measured = [x for x in evaluation if loss in x and x["step"] >= args.from_step]
            if measured and loss != "val_loss":
                points = [(x["step"], x[loss]) for x in measured]
                curves.append((loss, f"{kind}, {tables.averaged(loss, measured)}", points))
    look, seeds = styles(curves), [name for _, name in named]
    for (kind, label), points in bands(curves).items():
        if points:
            mark = {"marker": ""} if kind in AVERAGES else {"ms": 3.5}
            steps, means, least, greatest = zip(*points, strict=True)
            top.plot(steps, means, lw=1.4, label=label, **look[label] | mark)
            if least != greatest:
                top.fill_between(steps, least, greatest, color=look[label]["color"], alpha=0.18, lw=0)
    for label, points in rates.items():
        bottom.plot(*np.array(points).reshape(-1, 2).T, lw=1.8, **look[label] | {"marker": ""})
    top.set_ylabel(LOSS)
    bottom.set(xlabel="step", ylabel="learning rate", ylim=0)
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    n = max(map(seeds.count, seeds))
    caption = f"mean over {n} seeds, and from the least to the greatest" if n > 1 else ""
    return finish(figure, "Validation loss and learning rate over training", caption, look)


def plot_lr(args):
    """Final loss against peak learning rate, a panel per size and density, a line per schedule (Figures 3, 21)."""
    rows = rows_of(args)
    several = len({row["n_params"] for row in rows}) > 1
    if several:  # they have lengths in tokens per parameter in common, rather than in steps
        rows = [row | {"tokens_per_param": float(f"{row['tokens'] / row['n_params']:.2g}")} for row in rows]
    columns = [column for column in ("n_params", "density") if any(column in row for row in rows)]
    figure, panels = panels_for(rows, columns)
    drawn = [mean_lines(here, "lr", ignore=tables.with_length(rows) if several else ()) for _, here in panels]
    look = styles(sum(drawn, []))
    for (axes, _), lines in zip(panels, drawn, strict=True):
        draw(axes, lines, look)
        for line in lines:
            best = int(np.argmin(line.mean))
            name = f"{axes.get_title()}, {line.label}" if len(panels) > 1 else line.label
            print(f"{name}: best of {len(line.x)} at lr {line.x[best]:g}, loss {line.mean[best]:.4f}")
            axes.plot(line.x[best], line.mean[best], "o", ms=13, mfc="none", mec="0.2", mew=0.8)
        log_axis(axes.xaxis, [x for line in lines for x in line.x])
        axes.set(xlabel="peak learning rate")
    return finish(figure, "Final loss against peak learning rate (ring: the best)", spread(sum(drawn, [])), look)


def plot_cooldown_length(args):
    """Final loss against the cooldown's length, a panel per length of the run; cosine's level (Figures 5, 19, 20)."""
    rows = rows_of(args)
    length = ["n_params", "total_steps"]
    lengths = grouped(tables.pick(rows, "wsd"), length)
    figure, panels = panels_for([row for row in rows if tuple(map(row.get, length)) in lengths], length)
    drawn, levels = [], []
    for _, here in panels:
        cosines = [row for row in here if row["schedule"] in tables.COSINES]
        drawn.append(mean_lines(tables.pick(here, "wsd"), "cooldown_frac", ignore=("cooldown_steps",)))
        levels.append(mean_lines(tables.at_best(cosines, same=tables.CELL), "lr"))
    look = styles(sum(drawn + levels, []))
    for (axes, _), lines, level in zip(panels, drawn, levels, strict=True):
        draw(axes, lines, look)
        ends = [min(min(line.x) for line in lines), max(max(line.x) for line in lines)]
        for line in level:
            own, std = look[line.label] | {"marker": ""}, np.nan_to_num(line.std)
            axes.plot(ends, [*line.mean, *line.mean], label=line.label, **own)
            axes.fill_between(ends, line.mean - std, line.mean + std, color=own["color"], alpha=0.15, lw=0)
        axes.set_xlabel("cooldown, as a share of the run")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    return finish(figure, "Final loss against the length of the cooldown", spread(sum(drawn + levels, [])), look)


def plot_cooldown_shape(args):
    """The shapes of cooldowns, and the final loss of each (Figures 16-18)."""
    rows = tables.pick(rows_of(args), "wsd")
    shapes = {shape: runs for (shape,), runs in grouped(rows, ["cooldown_shape"]).items()}
    best_first = sorted(shapes, key=lambda shape: np.mean([row["val_loss"] for row in shapes[shape]]))
    alike = [c for c in (*settings(rows), *tables.SEEDS) if c != "cooldown_shape"]
    best = {tuple(map(row.get, alike)): row["val_loss"] for row in shapes[best_first[0]]}
    above = [(row, best.get(tuple(map(row.get, alike)))) for row in rows]  # of the same seed: most of the noise cancels
    lines = mean_lines([row | {"val_loss": row["val_loss"] - low} for row, low in above if low], "cooldown_shape")
    look = styles([(called(shapes[shape][0]), shape) for shape in best_first])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.6))
    for i, shape in enumerate(best_first):
        steps = int(shapes[shape][0]["cooldown_steps"])
        given = {"cooldown_steps": steps, "final_lr_frac": shapes[shape][0].get("final_lr_frac")}
        factor = schedules.wsd(steps, cooldown_shape=shape, **given)
        at = np.unique(np.linspace(0, steps, 101).astype(int)).tolist()
        beside = {"markevery": (0.05 + 0.02 * i, 0.2)}
        left.plot([k / steps for k in at], [factor(k) for k in at], label=shape, **look[shape], **beside)
    for i, line in enumerate(lines):
        at = [best_first.index(shape) + 0.2 * (i - (len(lines) - 1) / 2) for shape in line.x]
        dots = {"color": "0.1", "marker": MARKERS[i % len(MARKERS)], "linestyle": "", "capsize": 3, "elinewidth": 1}
        name = line.label if len(lines) > 1 else None
        right.errorbar(line.mean, at, xerr=np.nan_to_num(line.std), label=name, **dots)
    left.set(xlabel="share of the cooldown that is over", ylabel="learning rate / its peak")
    right.set_yticks(range(len(best_first)), best_first)
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.set(xlabel=f"nats per token above {best_first[0]} of the same seed", ylim=(len(best_first) - 0.5, -0.5))
    return finish(figure, "Shapes of the cooldown, and the final loss of each", spread(lines))


def plot_interpolation(args):
    """Loss on the straight line between the weights of two checkpoints (Figure 7)."""
    figure, axes = plt.subplots(figsize=(6.5, 4.4))
    look = styles([(path, path) for path in args.files])
    for path in args.files:
        text = "".join(tables.read_lines(path))
        try:
            t, losses = zip(*[(row["t"], row["val_loss"]) for row in json.loads(text)["rows"]], strict=True)
        except (ValueError, KeyError, TypeError):  # not JSON, no such rows, none
            raise Mistake(f"{path}: expected what evaluate.py --interpolate A B --json prints") from None
        axes.plot(t, losses, label=Path(path).stem, **look[path])
    axes.set(xlabel="share t of the way from the first checkpoint to the second", ylabel=LOSS)
    return finish(figure, "Loss on the straight line between two checkpoints")


def name_row(row, where):
    """(kind, label) of a row of evaluate.py --tasks: the run that its checkpoint is of, or an average of weights."""
    if "checkpoint" in row:
        run = Path(row["checkpoint"]).absolute().parent.parent
        told = tables.read_settings(run) if run.is_dir() else {}
        name = called(told) if "schedule" in told else run.name
        return name, name
    name = str(row.get("average", where))
    kinds = {"raw": "constant", "window": "val_loss_window", "ema": "val_loss_ema"}
    kind = kinds.get(re.split("[ _]", name)[0], name)
    if kind == "val_loss_window":
        name = tables.averaged(kind, [{"window_steps": row["steps"]}])
    return kind, name.replace("ema", "EMA")


def plot_downstream(args):
    """Error on tasks and loss over training, and one against the other: raw weights, averages, cooled runs."""
    lines = {}
    for path in args.files:
        for where, row in tables.read_rows(path):
            if not all(isinstance(row.get(column), int | float) for column in ("step", "error", "val_loss")):
                raise Mistake(
                    f"{where} has no step, error and val_loss: expected what evaluate.py --tasks --json prints"
                )
            point = (row["step"], row["error"], row["val_loss"], row.get("error_stderr") or math.nan)
            lines.setdefault(name_row(row, path), set()).add(point)
    look = styles(lines)
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.8))
    for (_, label), points in lines.items():
        steps, errors, losses, bars = zip(*sorted(points), strict=True)
        style = {"label": label, "lw": 1.4, "elinewidth": 0.8, "capsize": 2} | look[label]
        panels[0].errorbar(steps, errors, np.nan_to_num(bars), **style)
        panels[1].plot(steps, losses, label=label, lw=1.4, **look[label])
        panels[2].plot(losses, errors, **look[label] | {"linestyle": ""})
    for axes in panels[:2]:
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    panels[0].set_ylabel("mean error on the tasks")
    panels[1].set_ylabel(LOSS)
    panels[2].set(xlabel=LOSS, ylabel="mean error on the tasks")
    caption = "bars: standard errors over the questions"
    return finish(figure, "Error on tasks, and loss, over training", caption, look)


def plot_envelope(args):
    """Loss against training FLOPs over model sizes, with the lower envelope of each schedule (Figure 12 left)."""
    rows = rows_of(args)
    sizes, reached = sorted({row["n_params"] for row in rows}), {called(row): [] for row in rows}  # (FLOPs, loss)
    look = styles([(kind, (kind, size)) for kind in reached for size in sizes])
    figure, axes = plt.subplots(figsize=(6.5, 5.4))
    best = tables.at_best(rows)
    ends = list(grouped(best, settings(best)).values())
    for runs in ends:
        point = np.mean([run["flops"] for run in runs]), np.mean([run["val_loss"] for run in runs])
        reached[called(runs[0])].append(point)
        axes.plot(*point, **look[called(runs[0]), runs[0]["n_params"]] | {"linestyle": "", "zorder": 3, "ms": 6.5})
    for kind, points in reached.items():
        line = look[kind, sizes[-1]] | {"marker": "", "lw": 1.3, "zorder": 2}
        points.sort()
        lowest = [(x, y) for i, (x, y) in enumerate(points) if all(y < low for _, low in points[:i])]
        axes.plot(*zip(*lowest, strict=True), label=kind, **line)
    for size in sizes:
        marker = look[next(iter(reached)), size]["marker"]
        axes.plot([], [], linestyle="", color="0.4", marker=marker, label=in_words("n_params", size))
    log_axis(axes.xaxis, [x for points in reached.values() for x, _ in points])
    log_axis(axes.yaxis, np.linspace(*axes.get_ylim(), 9))
    axes.set(xlabel="training FLOPs of the whole run", ylabel=LOSS)
    caption = f"lines: lower envelopes; dots: runs at their best learning rate, {span([*map(len, ends)], 'seed')} each"
    return finish(figure, "Loss against training FLOPs", caption)


def plot_diagonal(args):
    """Cosine against cooldown and averages at equal size and length, in perplexity (Figure 12 right)."""
    rows = rows_of(args)
    cosines = tables.at_best(tables.pick(rows, *tables.COSINES), same=tables.CELL)
    named = " and ".join({called(row): 0 for row in cosines})
    found = []
    for schedule, loss in (("wsd", "val_loss"), ("constant", "val_loss_window"), ("constant", "val_loss_ema")):
        runs = tables.at_best([row for row in rows if row["schedule"] == schedule], loss)
        cells = grouped(runs, tables.CELL).values()  # what is one in each cell goes with a size or a length
        alike = [c for c in settings(runs) if all(len({row.get(c) for row in cell}) == 1 for cell in cells)]
        for line in mean_lines(runs, "total_steps", loss, ignore={"lr", *alike} - {*tables.TEXT}):
            pairs = tables.paired(line.rows, cosines, loss)
            found += [(line.kind, line.label, pairs)] if len(pairs) else []
    if not found:
        raise Mistake("no cosine run has another of equal seed, size, data and length; add such pairs to the study")
    look = styles(found)
    figure, axes = plt.subplots(figsize=(6, 6.4))
    for _, name, pairs in found:
        above = pairs[:, 0] - pairs[:, 1]
        mean, error = tables.mean_error(above)
        x, cosine = np.exp(pairs.T)
        slope, intercept = np.polyfit(x, cosine, 1) if len(set(x)) > 1 else (math.nan, math.nan)
        label = f"{name}: cosine = {slope:.3f} x {'-' if intercept < 0 else '+'} {abs(intercept):.2f}"
        print(f"{label}; its loss minus cosine's {mean:+.4f} ± {error:.4f} nats (standard error, {len(x)} pairs)")
        ends = np.array([x.min(), x.max()])
        axes.plot(x, cosine, **look[name] | {"linestyle": "", "mfc": "none"})
        axes.plot(ends, slope * ends + intercept, **look[name] | {"marker": ""})
        axes.plot([], [], label=label, **look[name] | {"mfc": "none"})
    every = np.exp(np.concatenate([pairs.ravel() for *_, pairs in found]))
    whole = [every.min(), every.max()]
    axes.plot(whole, whole, color="0.6", lw=0.8, label="y = x: equal")
    axes.set(xlabel="perplexity x of the alternative", ylabel=f"perplexity of {named}", aspect="equal")
    return finish(figure, "Final perplexity of cosine against its alternatives", "a dot: one seed of each")


def plot_averages(args):
    """Final losses of schedules and averages over the run's length, a panel per model size (Figures 10, 23, 26)."""
    rows = rows_of(args)
    others = [(schedule, "val_loss") for (schedule,) in grouped(rows, ["schedule"]) if schedule != "constant"]
    figure, panels = panels_for(rows, ["n_params"])
    drawn = [[] for _ in panels]
    for schedule, loss in [*(("constant", loss) for loss in AVERAGES), *others]:
        runs = [row for row in rows if row["schedule"] == schedule and row.get(loss) is not None]
        average = tables.averaged(loss, runs)  # of all sizes, which have windows of their own
        for found, (_, here) in zip(drawn, panels, strict=True):
            best = tables.at_best([row for row in runs if row["n_params"] == here[0]["n_params"]], loss)
            found += mean_lines(best, "total_steps", loss, ("lr", *tables.with_length(rows)), average)
    look = styles(sum(drawn, []))
    for (axes, _), found in zip(panels, drawn, strict=True):
        draw(axes, found, look)
        lengths = sorted({steps for line in found for steps in line.x})
        axes.set_xlabel("steps of the run")
        axes.set_xticks(lengths if len(lengths) <= 5 else axes.get_xticks())
        axes.xaxis.set_major_formatter("{x:,.0f}")
    title = "Final loss over the length of the run, each at its best learning rate"
    return finish(figure, title, spread(sum(drawn, [])), look)


def plot_methods(args):
    """Final losses of optimizers and schedules over the run's length, and minus a baseline's, seed by seed (Figure 11).

    A method is what its runs are called; a part of that all have in common is left out.
    """
    rows = rows_of(args)
    names = {called(row): called(row).split(", ") for row in rows}
    common = set.intersection(*map(set, names.values())) if len(names) > 1 else set()
    names = {name: ", ".join(part for part in parts if part not in common) for name, parts in names.items()}
    lines = mean_lines(rows, "total_steps", ignore=tables.with_length(rows))
    lines = [
        line._replace(kind=names[line.kind], label=line.label.replace(line.kind, names[line.kind])) for line in lines
    ]
    base = [line for line in lines if line.label == args.baseline]
    if not base:
        raise Mistake(f"--baseline={args.baseline}: expected one of {', '.join(line.label for line in lines)}")
    look = styles(lines)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.8), sharex=True)
    draw(left, lines, look)
    lengths = sorted({steps for line in lines for steps in line.x})
    for line in lines:
        steps, differences, errors = [], [], []
        for length in line.x:
            here = [row for row in line.rows if row["total_steps"] == length]
            pairs = tables.paired(here, base[0].rows, "val_loss")
            if line is base[0] or not len(pairs):
                continue
            above = pairs[:, 0] - pairs[:, 1]
            mean, error = tables.mean_error(above)
            steps.append(length)
            differences.append(mean)
            errors.append(error)
            told = f"{mean:+.4f} ± {error:.4f} (standard error, {span([len(above)], 'pair')})"
            print(f"{line.label}, {length:,.0f} steps: {told}")
        bars = {"elinewidth": 0.9, "capsize": 2.5, "label": line.label}
        right.errorbar(steps, differences, np.nan_to_num(errors), **bars | look[line.label])
    right.axhline(0, color="0.3", lw=0.8)
    for axes in (left, right):
        log_axis(axes.xaxis, lengths)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("steps of the run")
    left.set(ylabel=LOSS)
    right.set(title=f"minus {args.baseline}, seed by seed", ylabel="difference (nats, ± standard error)")
    return finish(figure, "Final loss over the length of the run", f"left: {spread(lines)}", look)


def plot_mix(args):
    """Final losses on all validation sets by the data of runs and of their cooldowns, and minus the trunk's.

    The trunk's are those of runs that cool down on what they began with, as other runs did that have other data then.
    """
    rows = rows_of(args)
    variants = grouped(rows, ["dataset", "cooldown_dataset"])
    trunks = [(dataset, None) for dataset in dict.fromkeys(dataset for dataset, cooldown in variants if cooldown)]
    if len(trunks) != 1 or trunks[0] not in variants:
        raise Mistake("expected runs of one dataset, some with a cooldown_dataset and some without: choose by --only")
    alike = [c for c in (*settings(rows), *tables.SEEDS) if c not in ("dataset", "cooldown_dataset")]
    trunk = {tuple(map(row.get, alike)): row for row in variants[trunks[0]]}
    order = sorted(variants, key=lambda variant: (variant not in trunks, variant[1] is None))
    names = [dataset + (f",\nthen {cooldown}" if cooldown else "") for dataset, cooldown in order]
    losses = ["val_loss", *(f"val_loss/{name}" for name in tables.val_sets(rows))]
    figure, panels = plt.subplots(len(losses), 2, figsize=(11.5, 1 + 2.8 * len(losses)), sharey=True, squeeze=False)
    dots = {"color": "0.1", "marker": "o", "capsize": 3, "elinewidth": 1}
    for (left, right), loss in zip(panels, losses, strict=True):
        for i, (variant, name) in enumerate(zip(order, names, strict=True)):
            values = [row[loss] for row in variants[variant]]
            pairs = [(row, trunk.get(tuple(map(row.get, alike)))) for row in variants[variant]]
            above = [row[loss] - other[loss] for row, other in pairs if other and other is not row]
            left.errorbar(np.mean(values), i, xerr=np.nan_to_num(tables.std(values)), **dots)
            told = f"{' '.join(name.split())}: {loss} {np.mean(values):.4f} ± {tables.std(values):.4f}"
            if above:
                mean, error = tables.mean_error(above)
                right.errorbar(mean, i, xerr=np.nan_to_num(error), **dots)
                told += f", minus the trunk's {mean:+.4f} ± {error:.4f}"
                told += f" (standard error, {span([len(above)], 'pair')})"
            print(told)
        left.set(xlabel=f"{loss} (nats per token)")
        right.set(xlabel="minus the first, seed by seed (± standard error)")
        right.axvline(0, color="0.3", lw=0.8)
        left.set_yticks(range(len(names)), names, fontsize=8)
    panels[0, 0].invert_yaxis()
    bars = spread_of([len(runs) for runs in variants.values()])
    figure.suptitle(f"Final loss by the data of the run and of its cooldown\nleft: {bars}", fontsize=10)
    return figure


def plot_cost(args):
    """FLOPs and time of a study, with each run alone and with prefixes shared (Figures 13, 24, 25)."""
    rows = read_results(args.results, args.only, all_runs=True)
    sizes = {in_words("n_params", n): runs for (n,), runs in sorted(grouped(rows, ["n_params"]).items())}
    sizes |= {"all sizes": rows} if len(sizes) > 1 else {}
    figure, panels = plt.subplots(1, 2, figsize=(max(7, 1.2 * len(sizes) + 4), 4.4))
    power = math.floor(math.log10(sum(run["flops"] for run in rows)))
    units = {"flops": (10**power, f"training FLOPs (1e{power})"), "train_s": (3600, "training time (hours)")}
    for axes, (column, (unit, words)) in zip(panels, units.items(), strict=True):
        for i, (cost, label) in enumerate(((column, "each run alone"), (column + "_paid", "shared prefixes once"))):
            total = [sum(run[cost] for run in runs) / unit for runs in sizes.values()]
            look = {"color": ("0.85", "white")[i], "edgecolor": "0.25", "hatch": ("", "///")[i], "width": 0.4}
            bars = axes.bar(np.arange(len(sizes)) + 0.4 * i - 0.2, total, label=label, **look)
            axes.bar_label(bars, fmt="{:.2g}", fontsize=7, padding=2)
        share = 100 * total[-1] * unit / sum(run[column] for run in rows)
        print(f"{words}: {total[-1]:.4g} with prefixes shared, {share:.1f}% of each run alone")
        axes.set(xlabel="parameters", ylabel=words, title=f"shared: {share:.0f}% of alone")
        axes.set_xticks(range(len(sizes)), [size.removesuffix(" parameters") for size in sizes])
        axes.grid(axis="x", visible=False)
    return finish(figure, f"Cost of a study of {len(rows)} runs")


def plot_certificate(args):
    """Loss against each option through the centre of a certificate, over the values of its grid."""
    path = Path(args.certificate)
    file = path / "certificate.json" if path.is_dir() else path
    with config.mistakes(file):
        found = json.loads("".join(tables.read_lines(file)))
    grid, centre, n = found["grid"], found["centre"], len(found["seeds"])
    figure, panels = plt.subplots(1, len(grid), figsize=(max(6.5, 3.2 * len(grid)), 4), squeeze=False, sharey=True)
    for axes, (option, values) in zip(panels.flat, grid.items(), strict=True):
        rows = [{"value": centre[option], "losses": found["losses"]}]
        rows += [row for row in found["neighbours"] if row["option"] == option]
        points = sorted((values.index(row["value"]), row["losses"]) for row in rows)
        ended = [(at, losses) for at, losses in points if None not in losses]
        x, losses = zip(*ended, strict=True)
        bars = [tables.std(of_seeds) for of_seeds in losses] if n > 1 else None
        look = {"color": "0.2", "marker": "o", "elinewidth": 0.9, "capsize": 2.5, "label": "one option changed"}
        axes.errorbar(x, [np.mean(of_seeds) for of_seeds in losses], bars, **look)
        axes.plot(values.index(centre[option]), found["loss"], "o", ms=13, mfc="none", mec="0.2", mew=0.8)
        for at in (at for at, losses in points if None in losses):
            cross = {"color": OTHERS[4][0], "clip_on": False, "linestyle": "", "ms": 8}
            axes.plot(at, 0.97, "x", transform=axes.get_xaxis_transform(), label="no loss", **cross)
        axes.set_xticks(range(len(values)), [f"{v:g}" if isinstance(v, float) else str(v) for v in values])
        axes.set(xlabel=option, xlim=(-0.5, len(values) - 0.5), ylabel=LOSS if axes is panels[0, 0] else "")
    best = ", ".join(map(in_words, centre, centre.values()))
    return finish(figure, f"{found['name']}: final loss around {best} (ring)", spread_of([n]))


# ----------------------------------------------------------------------------------------------------------------------
# Command line


FIGURES = (plot_schedules, plot_curves, plot_interpolation, plot_lr, plot_cooldown_length, plot_cooldown_shape)
FIGURES += (plot_averages, plot_envelope, plot_diagonal, plot_methods, plot_mix, plot_cost, plot_certificate)
FIGURES += (plot_downstream,)


def run(args=None):
    parser = config.Parser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="FIGURE")
    further = "draw the losses on this validation set, a further one of runs that have several; default: the first"
    for plot in FIGURES:  # plot_lr is the command `lr`
        name = plot.__name__.removeprefix("plot_")
        figure = commands.add_parser(name, help=plot.__doc__, description=plot.__doc__)
        figure.set_defaults(plot=plot)
        figure.add_argument("--out", default=f"{name}.png", help="file to write: .png, .svg or .pdf")
        if plot is plot_schedules:
            default = ["cosine", "wsd:linear", "wsd:1-sqrt"]
            text = "names of schedules.py, with options: wsd:linear, inverse_sqrt:cooldown_frac=0.2"
            figure.add_argument("schedules", nargs="*", default=default, help=text)
            figure.add_argument("--steps", type=config.whole(least=1, most=10**9), default=1000, help="of the run")
            figure.add_argument("--warmup_steps", type=config.whole(least=0), default=50, help="of these")
            figure.add_argument(
                "--lr", type=config.number(above=0), help="peak, for the updates' shares in AdamW's weights"
            )
            figure.add_argument("--weight_decay", type=config.number(above=0), help="for the same")
        elif plot is plot_curves:
            figure.add_argument("runs", nargs="+", help="folders of runs, their log.jsonl, or a folder of such folders")
            figure.add_argument("--from_step", type=config.whole(least=0), default=0, help="leave out losses before it")
            figure.add_argument("--val_dataset", help=further)
        elif plot is plot_certificate:
            figure.add_argument("certificate", help="certificate.json of tune.py, or its folder")
        elif plot is plot_downstream:
            figure.add_argument("files", nargs="+", help="of evaluate.py --tasks --json, with --average or without")
        elif plot is plot_interpolation:
            figure.add_argument("files", nargs="+", help="a line in the figure each")
        else:
            figure.add_argument("results", nargs="+", help="results.csv of a study, or its folder; several are joined")
            if plot is plot_methods:
                figure.add_argument("--baseline", required=True, help="as the legend calls it, such as adamw")
            figure.add_argument("--val_dataset", help=further)
            figure.add_argument("--only", nargs="+", default=[], metavar="COLUMN=VALUE,...", help="these rows only")

    args = parser.parse_args(args)
    out = Path(args.out)
    if out.suffix not in (".png", ".svg", ".pdf") or not out.parent.is_dir():
        raise Mistake(f"--out={out}: expected a .png, .svg or .pdf in a folder that is there")
    figure = args.plot(args)
    if getattr(args, "val_dataset", None):
        figure.suptitle(f"{figure.get_suptitle()}, on {args.val_dataset}")
    figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close("all")
    print(out)


if __name__ == "__main__":
    config.main(run)
