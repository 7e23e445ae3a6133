"""Figures from the logs of runs.

    python plot.py curves runs/trunk runs/branch --out=curves.png      # losses over steps, learning rate below; or .svg
    python plot.py curves runs/trunk runs/branch --from_step=100       # without the beginning

Runs differ in marker as well as in colour, and averages in dash, so that they can be told apart in grey.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend that needs no screen)

from config import main  # noqa: E402

COLORS = ("#1b4f72", "#c0392b", "#7d6608", "#5b2c6f", "#0e6655", "#626567")  # of similar depth, for print
MARKERS = "osD^vP"
KINDS = {"val_loss": ("-", "weights as they are"), "val_loss_window": ("--", "window"), "val_loss_ema": (":", "EMA")}


def read_log(path):
    """(training lines, evaluation lines, name) of a run's folder or its log.jsonl."""
    path = Path(path)
    file = path / "log.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: no log.jsonl there; give folders of runs, or their logs")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    name = file.parent.name if file.name == "log.jsonl" else file.stem
    return [x for x in lines if "train_loss" in x], [x for x in lines if "val_loss" in x], name


def plot_curves(args):
    """Validation losses of runs and of their averages over steps, learning rate below (the paper's Figures 1, 10)."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 5.5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    seen = {}  # what is drawn already: a branch begins where it leaves the run that it is of

    def new(key, points):
        """The points from the last one on that an earlier run shares."""
        first = next((i for i, point in enumerate(points) if point not in seen.get(key, ())), len(points))
        seen[key] = seen.get(key, set()) | set(points)
        return points[max(0, first - 1) :]

    for i, path in enumerate(args.runs):
        training, evaluation, name = read_log(path)
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        for key, (dash, label) in KINDS.items():
            points = new(key, [(x["step"], x[key]) for x in evaluation if key in x and x["step"] >= args.from_step])
            if points and (key == "val_loss" or i == 0 or args.all_averages):
                dots = marker if key == "val_loss" else ""
                top.plot(*zip(*points, strict=True), dash, color=color, marker=dots, ms=4, label=f"{name}: {label}")
        points = new("lr", [(x["step"], x["lr"]) for x in training])
        bottom.plot(*zip(*points, strict=True), color=color, lw=2, alpha=0.8)
    top.set_ylabel("validation loss (nats a token)")
    top.legend(frameon=False, fontsize=8)
    bottom.set(xlabel="step", ylabel="learning rate", ylim=0)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(args.out, dpi=150)
    print(args.out)


def run():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="FIGURE")
    curves = commands.add_parser("curves", help="losses and learning rate over steps")
    curves.add_argument("runs", nargs="+", help="folders of runs, or their log.jsonl")
    curves.add_argument("--out", default="curves.png", help="file to write; its suffix says the format")
    curves.add_argument("--from_step", type=int, default=0, help="leave out losses before this step")
    curves.add_argument("--all_averages", action="store_true", help="draw those of every run, not of the first only")
    curves.set_defaults(plot=plot_curves)
    args = parser.parse_args()
    args.plot(args)


if __name__ == "__main__":
    main(run)
