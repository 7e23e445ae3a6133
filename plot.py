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
Haegele et al., NeurIPS 2024 (arXiv 2405.18392). `make figures` draws those of results/. The functions are in figures/.
"""

from pathlib import Path

import config
from config import Mistake
from figures.looks import plt
from figures.runs import plot_certificate, plot_curves, plot_downstream, plot_interpolation, plot_schedules
from figures.studies import (
    plot_averages,
    plot_cooldown_length,
    plot_cooldown_shape,
    plot_cost,
    plot_diagonal,
    plot_envelope,
    plot_lr,
    plot_methods,
    plot_mix,
)  # fmt: skip

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
