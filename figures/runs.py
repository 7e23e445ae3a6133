"""Figures of schedules, runs and checkpoints: from formulas, from logs, from what evaluate.py and tune.py print."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter

import config
import schedules
import tables
from config import Mistake
from tables import AVERAGES, called, in_words, labels

from .looks import LOSS, OTHERS, finish, plt, spread_of, styles


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
    rates = [(x["step"], x["lr"]) for x in training if "lr" in x]
    rates = [x for x in rates if x[0] < start][-1:] + [x for x in rates if x[0] >= start]  # thinned logs skip steps
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
    """Validation losses of runs, and of the averages of constant ones; learning rates below (Figures 1, 3 left, 10).

    Without a constant run they are the averages of the first.

    Of runs that differ in their seeds only: the mean, and a band from the least loss to the greatest.
    """
    paths = tables.find_runs(args.runs)
    logs = [tables.read_log(path) for path in paths]
    logs = [(training, tables.measured_on(losses, args.val_dataset), name) for training, losses, name in logs]
    named = name_runs(paths, [name for *_, name in logs])
    kinds = [kind for kind, _ in named]
    order = sorted(  # the constant ones, then as they came; the shorter first
        range(len(logs)), key=lambda i: (kinds[i] != "constant", kinds.index(kinds[i]), logs[i][1][-1]["step"])
    )
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
    """(kind, label) of a row of evaluate.py --tasks: an average of weights, or the run that its checkpoint is of."""
    average = str(row.get("average", "raw weights"))
    if average == "raw weights" and ("schedule" in row or "checkpoint" in row):
        name = called(row) if "schedule" in row else Path(row["checkpoint"]).absolute().parent.parent.name
        return name, name
    kinds = {"raw": "constant", "window": "val_loss_window", "ema": "val_loss_ema"}
    kind = kinds.get(re.split("[ _]", average)[0], where)
    if kind == "val_loss_window":
        average = tables.averaged(kind, [{"window_steps": row["steps"]}])
    return kind, average.replace("ema", "EMA")


def plot_downstream(args):
    """Error on tasks and loss over training, and one against the other: raw weights, averages, cooled runs.

    Of runs that differ in their seeds only: the mean over training, and all of them where error stands against loss.
    """
    lines = {}  # (kind, label): {step: [(error, loss, standard error)]}
    for path in args.files:
        for where, row in tables.read_rows(path):
            if not all(isinstance(row.get(column), int | float) for column in ("step", "error", "val_loss")):
                raise Mistake(
                    f"{where} has no step, error and val_loss: expected what evaluate.py --tasks --json prints"
                )
            point = (row["error"], row["val_loss"], row.get("error_stderr") or math.nan)
            found = lines.setdefault(name_row(row, path), {}).setdefault(row["step"], [])
            found += [point] if point not in found else []
    look = styles(lines)
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.8))
    for (_, label), at in lines.items():
        steps = sorted(at)
        errors, losses, bars = np.array([np.mean(at[step], 0) for step in steps]).T
        style = {"label": label, "lw": 1.4, "elinewidth": 0.8, "capsize": 2} | look[label]
        panels[0].errorbar(steps, errors, np.nan_to_num(bars), **style)
        panels[1].plot(steps, losses, label=label, lw=1.4, **look[label])
        errors, losses, _ = zip(*(point for step in steps for point in at[step]), strict=True)
        panels[2].plot(losses, errors, **look[label] | {"linestyle": ""})
    for axes in panels[:2]:
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    panels[0].set_ylabel("mean error on the tasks")
    panels[1].set_ylabel(LOSS)
    panels[2].set(xlabel=LOSS, ylabel="mean error on the tasks")
    n = max(len(points) for at in lines.values() for points in at.values())
    caption = "bars: standard errors over the questions" + (f"; means over {n} runs" if n > 1 else "")
    return finish(figure, "Error on tasks, and loss, over training", caption, look)


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
