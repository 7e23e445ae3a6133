"""The paper's figures, one command each, from a study's results.csv and from the logs of runs.

    python plot.py schedules cosine wsd:linear wsd:1-sqrt           # learning rates, from their formulas (Figure 2)
    python plot.py curves runs/trunk runs/branch --from_step=100    # loss and learning rate over steps (1, 3, 10)
    python plot.py lr results.csv --out=lr.svg                      # final loss against peak learning rate (3, 21)
    python plot.py cooldown_length results.csv                      # ... against the cooldown's length (5, 19, 20)
    python plot.py cooldown_shape results.csv                       # ... by the cooldown's shape (16-18)
    python plot.py averages results.csv                             # ... of averages and cooldowns by length (10, 26)
    python plot.py interpolation line.json                          # of evaluate.py --interpolate A B --json (7)
    python plot.py envelope results.csv --runs runs/*               # loss against FLOPs, over model sizes (12 left)
    python plot.py diagonal results.csv                             # cosine against cooldown (12 right)
    python plot.py bars results.csv --only schedule=cosine,wsd      # final losses; --only takes some rows (23)
    python plot.py cost results.csv                                 # what sharing prefixes saves (13, 24, 25)

Lines differ in marker and dash as well as in colour, to be told apart in grey. Runs that differ in their seeds alone
become a mean with the standard deviation of single runs around it, as a band; the legend says how many they are.
Numbers in brackets are the figures of Haegele et al., NeurIPS 2024 (arXiv 2405.18392).
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend that needs no screen)
import numpy as np  # noqa: E402
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter  # noqa: E402

import schedules  # noqa: E402
from config import Mistake, main  # noqa: E402
from tables import (  # noqa: E402
    AVERAGES,
    CELL,
    COSINES,
    SEEDS,
    at_best,
    at_best_lr,
    find_runs,
    front,
    grouped,
    in_words,
    labels,
    mean_and_error,
    paired,
    pick,
    read_cell,
    read_log,
    read_results,
    series,
    settings,
    with_length,
)

COLORS = ("#1b4f72", "#c0392b", "#7d6608", "#5b2c6f", "#0e6655", "#626567")  # of similar depth, for print
MARKERS = "osD^vP"
DASHES = ("-", "--", "-.", (0, (1, 1.2)), (0, (6, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "xx", "\\\\\\", "++", "oo")
LOSS = "validation loss (nats a token)"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
plt.rcParams.update({"legend.frameon": False, "legend.fontsize": 8, "legend.title_fontsize": 8})
plt.rcParams.update({"axes.axisbelow": True, "axes.titlesize": 9, "lines.markersize": 5, "legend.handlelength": 3.5})
plt.rcParams.update({"figure.constrained_layout.use": True, "figure.titlesize": 11, "svg.hashsalt": "cooldown"})

# ----------------------------------------------------------------------------------------------------------------------
# Lines -> axes


def style(i):
    """Looks of line i; no two of the first 30 are alike in grey."""
    return {"color": COLORS[(i + i // 6) % 6], "marker": MARKERS[i % 6], "linestyle": DASHES[i % 5]}


def seeds(n):
    low, high = min(n), max(n)
    return f"{low} to {high} seeds" if low < high else f"{high} seed{'s' * (high > 1)}"


def draw(axes, lines, styles=None):
    """Means with their bands; equal labels look the same wherever `styles` is shared."""
    styles = {} if styles is None else styles
    for line in lines:
        look = style(styles.setdefault(line.label, len(styles)))
        bars = axes.errorbar(line.x, line.mean, np.nan_to_num(line.std), elinewidth=0.8, capsize=2, **look)
        bars.set_label(f"{line.label} ({seeds(line.n)})")
        axes.fill_between(line.x, line.mean - line.std, line.mean + line.std, color=look["color"], alpha=0.13, lw=0)


def spread(lines):
    several = any(n > 1 for line in lines for n in line.n)
    return "mean over seeds ± 1 standard deviation" if several else "one seed each: spread unknown"


def log_axis(axis, values):
    """A logarithmic axis with ticks to read: the values if they are few, powers of 10 if they span much."""
    values = sorted(set(values))
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    if len(values) <= 7 or values[-1] < 30 * values[0]:
        axis.set_major_locator(MaxNLocator(6))
        if len(values) <= 7:
            axis.set_ticks(values)
        axis.set_major_formatter("{x:.3g}")
        axis.set_minor_locator(NullLocator())


def panel_a_size(rows):
    """A figure with a panel for each model size: (figure, [(axes, rows of that size)])."""
    sizes = sorted(grouped(rows, ["n_params"]).items())
    across = min(3 if len(sizes) != 4 else 2, len(sizes))
    down = math.ceil(len(sizes) / across)
    figure, panels = plt.subplots(down, across, figsize=(max(6.5, 3.8 * across), 3.3 * down + 1.6), squeeze=False)
    for axes, ((size,), _) in zip(panels.flat, sizes, strict=False):
        axes.set(title=in_words("n_params", size), ylabel=LOSS if axes in panels[:, 0] else "")
    for axes in panels.flat[len(sizes) :]:
        axes.set_axis_off()
    return figure, [(axes, here) for axes, (_, here) in zip(panels.flat, sizes, strict=False)]


def finish(figure, title, caption="", columns=2, axes=None, where="center"):
    """Title, and one legend of all axes, or of some, below, where it covers nothing; the caption is its heading."""
    handles = {}
    for each in axes or figure.axes:
        handles |= dict(zip(*reversed(each.get_legend_handles_labels()), strict=True))
    if not handles:
        raise Mistake("nothing to draw: lower --from_step, or give other runs")
    look = {"ncols": min(columns, len(handles)), "title": caption, "loc": f"outside lower {where}"}
    figure.suptitle(title)
    figure.legend(handles.values(), handles.keys(), **look)
    return figure


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def parse_schedule(text, steps, warmup_steps):
    """The schedule of name, wsd:shape or name:option=value,option=value; what it needs besides has a default."""
    name, _, rest = text.partition(":")
    needs = {"cosine_inf": {"cosine_steps": 6 * steps // 10}, "power": {"knee_steps": steps // 4}}
    needs["wsd_s"] = {"cycle_ends": (steps // 4, steps // 2)}
    options = {"total_steps": steps, "warmup_steps": warmup_steps, **needs.get(name, {})}
    for option, value in (pair.partition("=")[::2] for pair in rest.split(",") if pair):
        option, value = (option, value) if value else ("cooldown_shape", option)
        value = read_cell(option, value, text)
        options[option] = int(value) if option.endswith("_steps") else value
    if options.get("cooldown_shape") in schedules.POSITIVE:
        options.setdefault("final_lr_frac", 0.1)  # these never reach 0
    return schedules.build(name, **options)


def plot_schedules(args):
    """Learning rate over steps, of schedules by name (Figure 2)."""
    figure, axes = plt.subplots(figsize=(6.5, 4))
    steps = np.unique(np.linspace(0, args.steps, 1001).round().astype(int)).tolist()
    for i, text in enumerate(args.schedules):
        schedule = parse_schedule(text, args.steps, args.warmup_steps)
        look = style(i) | {"markevery": (25 + 37 * i, 150), "ms": 4, "lw": 1.6}  # markers beside, not upon, each other
        axes.plot(steps, [args.lr * schedule(step) for step in steps], label=text, **look)
    axes.set(xlabel="step", ylabel="learning rate" if args.lr != 1 else "learning rate / its peak", ylim=(0, None))
    return finish(figure, f"Learning rate of a run of {args.steps:,} steps, {args.warmup_steps:,} of them warmup")


def plot_curves(args):
    """Validation losses of runs and of their averages over steps, learning rate below (Figures 1, 3 left, 10)."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=(3, 1))
    seen = {}  # what is drawn already: a branch begins where it leaves the run that it is of

    def new(key, points):
        """The points from the last one on that an earlier run shares."""
        first = next((i for i, point in enumerate(points) if point not in seen.get(key, ())), len(points))
        seen[key] = seen.get(key, set()) | set(points)
        return points[max(0, first - 1) :]

    families = {}  # a study's names begin with the schedule, which says the colour
    for i, path in enumerate(find_runs(args.runs)):
        training, evaluation, name = read_log(path)
        look = style(families.setdefault(name.split("_")[0], len(families)))
        for key, dash in zip(AVERAGES, ("-", "--", ":"), strict=True):
            points = new(key, [(x["step"], x[key]) for x in evaluation if key in x and x["step"] >= args.from_step])
            if points and (key == "val_loss" or i == 0 or args.all_averages):
                dots = MARKERS[i % 6] if key == "val_loss" else ""
                label = name if key == "val_loss" else f"{name}: {AVERAGES[key]}"
                top.plot(*zip(*points, strict=True), dash, color=look["color"], marker=dots, ms=4, label=label)
        points = new("lr", [(x["step"], x["lr"]) for x in training])
        if points:
            bottom.plot(*zip(*points, strict=True), color=look["color"], linestyle=look["linestyle"], lw=2, alpha=0.8)
    top.set_ylabel(LOSS)
    bottom.set(xlabel="step", ylabel="learning rate", ylim=0)
    return finish(figure, "Validation loss and learning rate over training")


def plot_lr(args):
    """Final loss against peak learning rate, a panel a model size, a line a schedule (Figures 3 right, 21)."""
    rows = read_results(args.results, args.only)
    several = len({row["n_params"] for row in rows}) > 1
    if several:  # they have lengths in tokens a parameter in common, rather than in steps
        rows = [row | {"tokens_per_param": float(f"{row['tokens'] / row['n_params']:.2g}")} for row in rows]
    figure, panels = panel_a_size(rows)
    styles, lines = {}, []
    for axes, here in panels:
        draw(axes, drawn := series(here, "lr", ignore=with_length(rows) if several else ()), styles)
        for line in drawn:
            best = int(np.argmin(line.mean))
            name = f"{axes.get_title()}, {line.label}" if several else line.label
            print(f"{name}: best of {len(line.x)} at lr {line.x[best]:g}, loss {line.mean[best]:.4f}")
            axes.plot(line.x[best], line.mean[best], "o", ms=13, mfc="none", mec=COLORS[0], mew=0.8)
        log_axis(axes.xaxis, [x for line in drawn for x in line.x])
        axes.set(xlabel="peak learning rate")
        lines += drawn
    return finish(figure, "Final loss against peak learning rate (ring: the best)", spread(lines))


def plot_cooldown_length(args):
    """Final loss against the cooldown's length, as a share and in steps; cosine as a level (Figures 5, 19, 20)."""
    rows = read_results(args.results, args.only, ("cooldown_frac", "cooldown_steps"))
    lengths = {"cooldown_frac": "cooldown, as a share of the run", "cooldown_steps": "cooldown (steps)"}
    cosines = at_best([row for row in rows if row["schedule"] in COSINES], "val_loss", CELL)
    figure, panels = plt.subplots(1, 2, figsize=(9, 5), sharey=True)
    for axes, (column, words) in zip(panels, lengths.items(), strict=True):
        lines = series(pick(rows, "wsd"), column, ignore=lengths)
        draw(axes, lines)
        ends = [min(min(line.x) for line in lines), max(max(line.x) for line in lines)]
        first = {tuple(map(line.row.get, CELL)): i for i, line in reversed(list(enumerate(lines)))}
        for cell, alike in grouped(cosines, CELL).items():
            if cell in first:  # in the looks of the first line of that length
                label = f"best cosine, {in_words('total_steps', alike[0]['total_steps'])}, lr {alike[0]['lr']:g}"
                look = style(first[cell]) | {"linestyle": ":", "mfc": "white"}
                level = np.mean([row["val_loss"] for row in alike])
                axes.plot(ends, [level, level], label=f"{label} ({seeds([len(alike)])})", **look)
        axes.set_xlabel(words)
    panels[0].set(ylabel=LOSS)
    panels[0].xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return finish(figure, "Final loss against the length of the cooldown", spread(lines))


def plot_cooldown_shape(args):
    """The shapes of cooldowns, and the final loss of each (Figures 16-18)."""
    rows = pick(read_results(args.results, args.only, ("cooldown_steps", "cooldown_shape")), "wsd")
    shapes = {shape: runs for (shape,), runs in grouped(rows, ["cooldown_shape"]).items()}
    best_first = sorted(shapes, key=lambda shape: np.mean([row["val_loss"] for row in shapes[shape]]))
    alike = [c for c in (*settings(rows), *SEEDS) if c != "cooldown_shape"]
    best = {tuple(map(row.get, alike)): row["val_loss"] for row in shapes[best_first[0]]}
    above = [(row, best.get(tuple(map(row.get, alike)))) for row in rows]  # of the same seed: most of the noise cancels
    lines = series([row | {"val_loss": row["val_loss"] - low} for row, low in above if low], "cooldown_shape")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 5.2))
    for i, shape in enumerate(best_first):
        steps = int(shapes[shape][0]["cooldown_steps"])
        given = {"cooldown_steps": steps, "final_lr_frac": shapes[shape][0].get("final_lr_frac")}
        factor = schedules.wsd(steps, cooldown_shape=shape, **given)
        at = np.unique(np.linspace(0, steps, 101).astype(int)).tolist()
        look = style(i) | {"markevery": (0.05 + 0.02 * i, 0.2)}
        left.plot([k / steps for k in at], [factor(k) for k in at], label=shape, **look)
    for i, line in enumerate(lines):
        at = [best_first.index(shape) + 0.2 * (i - (len(lines) - 1) / 2) for shape in line.x]
        look = {"color": "0.1", "marker": MARKERS[i % 6], "linestyle": "", "capsize": 3, "elinewidth": 1}
        right.errorbar(line.mean, at, xerr=np.nan_to_num(line.std), label=f"{line.label} ({seeds(line.n)})", **look)
    left.set(xlabel="share of the cooldown that is over", ylabel="learning rate / its peak")
    right.set_yticks(range(len(best_first)), best_first)
    right.set(
        xlabel=f"{LOSS}, above {best_first[0]} of the same seed",
        title="lowest on top",
        ylim=(len(best_first) - 0.5, -0.5),
    )
    finish(figure, "", "shapes", axes=[left], where="left")
    return finish(figure, "Shapes of the cooldown, and the final loss of each", spread(lines), 1, [right], "right")


def plot_interpolation(args):
    """Loss on the straight line between the weights of two checkpoints (Figure 7)."""
    figure, axes = plt.subplots(figsize=(6.5, 4.4))
    for i, path in enumerate(map(Path, args.files)):
        try:
            rows = json.loads(path.read_text())["rows"]
            t, losses = zip(*[(row["t"], row["val_loss"]) for row in rows], strict=True)
        except (ValueError, KeyError, TypeError):  # not JSON, no such rows, none
            raise Mistake(f"{path}: expected what evaluate.py --interpolate A B --json prints") from None
        axes.plot(t, losses, label=path.stem, **style(i))
    axes.set(xlabel="share t of the way from the first checkpoint to the second", ylabel=LOSS)
    return finish(figure, "Loss on the straight line between two checkpoints")


def plot_envelope(args):
    """Loss against training FLOPs over model sizes, with the lower envelope of each schedule (Figure 12 left)."""
    rows = read_results(args.results, args.only)
    named = {row["name"]: row for row in rows}
    looks = {size: style(i) for i, size in enumerate(sorted({row["n_params"] for row in rows}))}
    reached = {row["schedule"]: [] for row in rows}  # (FLOPs, loss) of all sizes
    faces = {schedule: ("0.25", "white", "0.75")[i % 3] for i, schedule in enumerate(reached)}
    figure, axes = plt.subplots(figsize=(7.5, 6))
    for size, look in looks.items():
        axes.plot([], [], label=in_words("n_params", size), **look | {"linestyle": ""})
    for path in find_runs(args.runs):
        _, evaluation, name = read_log(path)
        if name not in named:
            raise Mistake(f"{path}: no run of that name in {', '.join(args.results)}; leave it out of --runs")
        points = [(line["flops"], line["val_loss"]) for line in evaluation if line["flops"] > 0]
        axes.plot(*zip(*points, strict=True), color=looks[named[name]["n_params"]]["color"], lw=0.7)
        reached[named[name]["schedule"]] += points
    best = at_best_lr(rows)
    ends = list(grouped(best, settings(best)).values())
    for runs in ends:
        point = np.mean([run["flops"] for run in runs]), np.mean([run["val_loss"] for run in runs])
        reached[runs[0]["schedule"]].append(point)
        look = {"linestyle": "", "mfc": faces[runs[0]["schedule"]], "zorder": 3, "ms": 7}
        axes.plot(*point, **looks[runs[0]["n_params"]] | look)
    for i, (schedule, points) in enumerate(reached.items()):
        look = {"color": "0.25", "linestyle": DASHES[i % 5], "lw": 1.4, "zorder": 2}
        axes.plot(*zip(*front(points), strict=True), **look)
        axes.plot([], [], label=f"{schedule}: lower envelope", marker="o", mfc=faces[schedule], **look)
    log_axis(axes.xaxis, [x for points in reached.values() for x, _ in points])
    log_axis(axes.yaxis, np.linspace(*axes.get_ylim(), 9))
    axes.set(xlabel="training FLOPs of the whole run", ylabel=LOSS)
    caption = f"dots: ends of runs at their best learning rate, mean of {seeds([len(runs) for runs in ends])}"
    return finish(figure, "Loss against training FLOPs", caption, columns=3)


def plot_diagonal(args):
    """Cosine against cooldown and averages at equal size and length, in perplexity (Figure 12 right)."""
    rows = read_results(args.results, args.only)
    cosines = at_best(pick(rows, *COSINES), "val_loss", CELL)
    figure, axes = plt.subplots(figsize=(6, 6.2))
    seen = []
    for schedule, y in (("wsd", "val_loss"), ("constant", "val_loss_window"), ("constant", "val_loss_ema")):
        runs = at_best_lr([row for row in rows if row["schedule"] == schedule], y)
        cells = grouped(runs, CELL).values()  # what goes with a size or a length tells no runs apart
        columns = [c for c in settings(runs) if any(len({run.get(c) for run in cell}) > 1 for cell in cells)]
        columns = [c for c in columns if c != "lr"]
        groups = grouped(runs, columns)
        name = schedule if y == "val_loss" else f"{schedule}: {AVERAGES[y]}"
        names = labels([dict(zip(columns, key, strict=True)) for key in groups], name)
        for name, alike in zip(names, groups.values(), strict=True):
            pairs = paired(alike, cosines, y)
            if not len(pairs):
                continue
            mean, error = mean_and_error(pairs[:, 0] - pairs[:, 1])
            x, cosine = np.exp(pairs.T)
            look, ends = style(len(seen)) | {"mfc": "none"}, np.array([x.min(), x.max()])
            slope, intercept = np.polyfit(x, cosine, 1) if len(set(x)) > 1 else (math.nan, math.nan)
            label = f"{name}: cosine = {slope:.3f} x {intercept:+.2f}"
            print(f"{label}; its loss - cosine's {mean:+.4f} ± {error:.4f} nats (standard error, {len(x)} pairs)")
            axes.plot(x, cosine, **look | {"linestyle": ""})
            axes.plot(ends, slope * ends + intercept, **look | {"marker": ""})
            axes.plot([], [], label=label, **look)
            seen.append((min(*x, *cosine), max(*x, *cosine)))
    if not seen:
        raise Mistake("no cosine run has another of equal seed, size, data and length; add such pairs to the study")
    span = [np.min(seen), np.max(seen)]
    axes.plot(span, span, color="0.6", lw=0.8, label="y = x: equal")
    axes.set(xlabel="perplexity of the alternative", ylabel="perplexity of cosine", aspect="equal")
    return finish(figure, "Final perplexity of cosine against its alternatives", "a dot: one seed of each", columns=1)


def plot_averages(args):
    """Raw weights, averages and cooldowns over the length of the run, a panel a model size (Figures 10, 26)."""
    rows = read_results(args.results, args.only)
    sizes = {row["n_params"] for row in pick(rows, "constant")}
    figure, panels = panel_a_size([row for row in rows if row["n_params"] in sizes])
    styles, lines = {}, []
    for axes, here in panels:
        for schedule, y in [("constant", y) for y in AVERAGES] + [(s, "val_loss") for s in ("wsd", *COSINES)]:
            runs = at_best_lr([row for row in here if row["schedule"] == schedule], y)
            name = f"constant: {AVERAGES[y]}" if schedule == "constant" else schedule
            lines += (drawn := series(runs, "total_steps", y, name, ("lr", *with_length(rows))))
            draw(axes, drawn, styles)
        axes.set_xlabel("steps of the run")
    return finish(figure, "Final loss over the length of the run, each at its best learning rate", spread(lines))


def plot_bars(args):
    """Final losses of schedules and averages as bars, by length, a panel a model size (Figure 23)."""
    rows = read_results(args.results, args.only)
    figure, panels = panel_a_size(rows)
    styles, everything = {}, []
    for axes, here in panels:
        lines = []
        for y, (schedule,) in itertools.product(AVERAGES, grouped(here, ["schedule"])):
            if y == "val_loss" or schedule in ("constant", *COSINES):
                runs = at_best_lr([row for row in here if row["schedule"] == schedule], y)
                name = f"{schedule}: {AVERAGES[y]}" if y != "val_loss" else schedule
                lines += series(runs, "total_steps", y, name, ("lr", *with_length(rows)))
        lengths = sorted({steps for line in lines for steps in line.x})
        width = 0.84 / len(lines)
        for i, line in enumerate(lines):
            at = [lengths.index(steps) - 0.42 + (i + 0.5) * width for steps in line.x]
            j = styles.setdefault(line.label, len(styles))
            look = {"color": "white", "edgecolor": COLORS[j % 6], "hatch": HATCHES[j % 7], "width": 0.9 * width}
            label = f"{line.label} ({seeds(line.n)})"
            axes.bar(at, line.mean, yerr=np.nan_to_num(line.std), label=label, capsize=2, **look)
        values = np.concatenate([line.mean for line in lines])
        start = values.min() - 0.25 * (np.ptp(values) or 0.1 * values.min())
        axes.set(ylim=(start, None), title=f"{axes.get_title()} (axis from {start:.3g}, not 0)")
        axes.set(xlabel="steps of the run", xticks=range(len(lengths)), xticklabels=[f"{n:.0f}" for n in lengths])
        axes.grid(axis="x", visible=False)
        axes.plot([0, 0], [0.012, 0.03], "_", ms=14, color="black", transform=axes.transAxes, clip_on=False)  # cut
        everything += lines
    return finish(figure, "Final loss, each at its best learning rate", spread(everything), columns=3)


def plot_cost(args):
    """FLOPs and time of a study, with each run alone and with prefixes shared (Figures 13, 24, 25)."""
    rows = read_results(args.results, args.only, all_runs=True)
    sizes = {in_words("n_params", n): runs for (n,), runs in sorted(grouped(rows, ["n_params"]).items())}
    sizes |= {"all sizes": rows} if len(sizes) > 1 else {}
    figure, panels = plt.subplots(1, 2, figsize=(max(7, 1.6 * len(sizes) + 3), 4.6))
    power = math.floor(math.log10(sum(run["flops"] for run in rows)))
    units = {"flops": (10**power, f"training FLOPs (1e{power})"), "train_s": (3600, "training time (hours)")}
    for axes, (column, (unit, words)) in zip(panels, units.items(), strict=True):
        for i, (cost, label) in enumerate(((column, "each run alone"), (column + "_paid", "shared prefixes once"))):
            total = [sum(run[cost] for run in runs) / unit for runs in sizes.values()]
            look = {"color": "white", "edgecolor": COLORS[i], "hatch": HATCHES[i], "width": 0.38, "label": label}
            bars = axes.bar(np.arange(len(sizes)) + 0.4 * i - 0.2, total, **look)
            axes.bar_label(bars, fmt="{:.3g}", fontsize=7, padding=2)
        share = 100 * total[-1] * unit / sum(run[column] for run in rows)
        print(f"{words}: {total[-1]:.4g} with prefixes shared, {share:.1f} % of each run alone")
        axes.set(ylabel=words, title=f"shared: {share:.0f} % of alone")
        axes.set_xticks(range(len(sizes)), [size.replace(" ", "\n") for size in sizes])
        axes.grid(axis="x", visible=False)
    return finish(figure, f"Cost of a study of {len(rows)} runs")


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def add_figure(commands, plot):
    """The command of a figure: plot_lr is `lr`; its first docstring line is its help."""
    name = plot.__name__.removeprefix("plot_")
    parser = commands.add_parser(name, help=plot.__doc__, description=plot.__doc__)
    parser.add_argument("--out", default=f"{name}.png", help="file to write; its suffix says the format: .png, .svg")
    parser.set_defaults(plot=plot)
    return parser


def run(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="FIGURE")

    names = add_figure(commands, plot_schedules)
    names.add_argument("schedules", nargs="*", default=["cosine", "wsd:linear", "wsd:1-sqrt"], help="of schedules.py")
    names.add_argument("--steps", type=int, default=1000, help="length of the run")
    names.add_argument("--warmup_steps", type=int, default=50)
    names.add_argument("--lr", type=float, default=1.0, help="peak")

    curves = add_figure(commands, plot_curves)
    curves.add_argument("runs", nargs="+", help="folders of runs, their log.jsonl, or a folder of such folders")
    curves.add_argument("--from_step", type=int, default=0, help="leave out losses before this step")
    curves.add_argument("--all_averages", action="store_true", help="draw those of every run, not of the first only")

    add_figure(commands, plot_interpolation).add_argument("files", nargs="+", help="a line in the figure each")

    finals = (plot_lr, plot_cooldown_length, plot_cooldown_shape, plot_averages, plot_envelope, plot_diagonal)
    for plot in (*finals, plot_bars, plot_cost):
        figure = add_figure(commands, plot)
        figure.add_argument("results", nargs="+", help="results.csv of a study, or its folder; several are joined")
        figure.add_argument("--only", nargs="+", default=[], metavar="COLUMN=VALUE,...", help="take these rows only")
        if plot is plot_envelope:
            figure.add_argument("--runs", nargs="+", default=[], help="draw these runs' losses on their way, too")

    args = parser.parse_args(args)
    if Path(args.out).suffix not in (".png", ".svg", ".pdf"):
        raise Mistake(f"--out={args.out}: its suffix says the format, .png, .svg or .pdf")
    figure = args.plot(args)
    figure.savefig(args.out, dpi=150, metadata={"Date": None} if args.out.endswith(".svg") else None)
    plt.close("all")
    print(args.out)


if __name__ == "__main__":
    main(run)
