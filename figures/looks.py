"""How all figures look: of lines by their kind, of panels, axes, spreads and legends."""

import math
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from config import Mistake
from tables import grouped, in_words, span

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
