"""Figures of studies: of the final losses and costs in their results.csv."""

import math

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

import schedules
import tables
from config import Mistake
from tables import AVERAGES, called, grouped, in_words, mean_lines, read_results, settings, span

from .looks import LOSS, MARKERS, draw, finish, log_axis, panels_for, plt, spread, spread_of, styles


def rows_of(args):
    """The rows of the results that a command asks for."""
    return tables.measured_on(read_results(args.results, args.only), args.val_dataset)


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
