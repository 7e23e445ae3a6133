"""The command line of the laws: a subcommand for each, and predict. `python -m laws --help` prints laws/__init__.py."""

import argparse
import csv
import inspect
import json
import math
from pathlib import Path

import numpy as np

import config
import laws
from config import number, typed, whole
from tables import print_table, refuse_twice

from .curves import LAWS as CURVE_LAWS
from .files import read_curve, read_fit, read_lrs, read_points, to_json
from .final import checked
from .fitting import Mistake, quantiles

# ----------------------------------------------------------------------------------------------------------------------
# Commands: each returns what --json prints, and what is printed without it, as texts and as tables (lists of dicts)


def given(args, *names):
    """Those of the flags that were given, as keyword arguments: for the others the function's own defaults hold."""
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def report(args, fit, points):
    """Draw the fit if --plot asks for it -> its parameters, intervals and settings, to print."""
    if args.plot:
        laws.plot(fit, points, args.plot)
    rows = []
    for name, value in fit.params.items():
        low, high = fit.intervals[name]
        note = "not identified: wider than half the value" if name in fit.unidentified else ""
        rows.append({fit.law: name, "value": f"{value:.6g}", "95% from": f"{low:.4g}", "to": f"{high:.4g}", "": note})
    settings = {"points": fit.n_points, "objective": f"{fit.objective:.8g}", "scatter": f"{fit.scatter:.3g}"}
    settings |= {name: value for name, value in fit.settings.items() if name not in ("minima", "merge")}
    return [rows, ", ".join(f"{name} {cell(value)}" for name, value in settings.items())]


def points_of(args):
    """The columns of a command; of runs with equal N and D only those of the best value of --best, if it is given."""
    best = getattr(args, "best", None)
    columns = {name: getattr(args, name) for name in args.columns}
    points, texts = read_points(args.files, columns, args.where, [best] if best else ())
    if not best:
        return points
    losses = {}  # of each N and D: {value of --best: losses}
    for N, D, loss, value in zip(*(points[name] for name in ("N", "D", "loss")), texts[best], strict=True):
        losses.setdefault((N, D), {}).setdefault(value, []).append(loss)
    chosen = {at: min(of, key=lambda value: np.mean(of[value])) for at, of in losses.items()}
    kept = [chosen[N, D] == value for N, D, value in zip(points["N"], points["D"], texts[best], strict=True)]
    return {name: column[kept] for name, column in points.items()}


def final_command(args):
    points = points_of(args)
    fit = args.function(**points, **given(args, "delta", "noise", "draws", "seed"))
    out, shown = fit._asdict(), report(args, fit, points)
    if fit.law == "chinchilla":
        value, *draws = (p["beta"] / (p["alpha"] + p["beta"]) for p in (fit.params, *fit.draws))
        low, high = quantiles(draws) if draws else (-math.inf, math.inf)
        out["N_opt_exponent"] = [value, low, high]
        shown.append(f"N_opt goes with C^{value:.3f} [{low:.3f}, {high:.3f}], D_opt with the rest of the exponent")
    if getattr(args, "budgets", None):
        out["budgets"], notes = at_budgets(fit, points, args.budgets)
        shown += ["", out["budgets"], *notes]
    return out, shown


def at_budgets(fit, points, budgets):
    """The best run of each budget C = 6ND by a chinchilla law, with the interval of its loss: rows, and notes.

    The best of those with as many tokens per parameter as runs that were fitted: what lies beyond is where a law that
    the data do not pin down has the wildest optima.
    """
    ratios = points["D"] / points["N"]
    rows, chosen = [], np.geomspace(ratios.min(), ratios.max(), 200)
    for C in budgets:
        N = np.sqrt(C / 6 / chosen)
        value, low, high = laws.predict(fit, {"N": N, "D": chosen * N})
        i = value.argmin()
        rows.append({"C": C, "N": N[i], "D": chosen[i] * N[i], "D/N": chosen[i]})
        rows[-1] |= {"predicted loss": value[i], "95% from": low[i], "to": high[i]}
    at_edge = [f"{row['C']:g}" for row in rows if row["D/N"] in (chosen[0], chosen[-1])]
    notes = [f"for {', '.join(at_edge)} the best D/N lies at the edge of those fitted, or beyond"] if at_edge else []
    reach = {name: [row[name] for row in rows] for name in "ND"}
    return rows, notes + laws.beyond(fit, reach)


def holdout_command(args):
    points = points_of(args)
    fit, rows, notes = laws.holdout(**points, **given(args, "law", "by", "holdout", "delta", "draws", "seed"))
    fitted = ~laws.last(points["N"], points["D"], by=args.by, k=args.holdout)
    if args.plot:
        laws.plot_holdout(fit, {name: column[fitted] for name, column in points.items()}, rows, args.plot)
    table = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    shown = [row | {"off": f"{row['off']:+.2f}"} for row in table]
    return {"fit": fit._asdict(), "held_out": table, "notes": notes}, [shown, *notes]


def diagonal_command(args):
    match, pair = args.match.split(","), args.pair.split(",")
    points, texts = read_points(args.files, {"loss": args.loss}, args.where, (args.by, *match))
    losses = {label: {} for label in pair}  # of one and the other value of --by: {what the runs agree in: loss}
    for label, loss, *key in zip(texts[args.by], points["loss"], *(texts[name] for name in match), strict=True):
        if label in losses and losses[label].setdefault(tuple(key), loss) != loss:
            raise Mistake(f"two runs have {args.by}={label}, {args.match}={','.join(key)}: narrow with --where")
    shared = sorted(set.intersection(*map(set, losses.values())))
    if len(losses) != 2 or not shared:
        there = ", ".join(sorted(set(texts[args.by])))
        raise Mistake(f"--pair={args.pair} has no pairs; of {args.by} there are {there}")
    x, y = ([losses[label][key] for key in shared] for label in pair)
    fit = laws.diagonal(x, y, **given(args, "delta", "draws", "seed"))
    return fit._asdict(), report(args, fit, {"perplexity": np.exp(x), "perplexity_y": np.exp(y)})


def speedup_command(args):
    points, texts = read_points(args.files, {"D": args.D, "loss": args.loss}, args.where, (args.by,))
    by = texts[args.by]
    fit, rows = laws.speedup(**points, by=by, baseline=args.baseline, **given(args, "draws", "seed"))
    base = by == args.baseline
    shown = report(args, fit, {"x": points["D"][base], "loss": points["loss"][base]})
    table = []
    for row in rows:
        ratios = {name: f"{row[name]:.3f}" for name in ("speedup", "low", "high")}
        table.append({args.by: row["by"], "tokens": row["D"], "loss": f"{row['loss']:.4f}"} | ratios)
    return {"baseline": fit._asdict(), "speedups": rows}, [*shown, table]


def read_curves(args, paths):
    refuse_twice(paths)
    return [read_curve(path, **given(args, "loss", "lr", "warmup_steps")) for path in paths]


def joint_command(args):
    points, texts = read_points(
        args.files, {name: getattr(args, name) for name in args.columns}, args.where, (args.by,)
    )
    try:
        size = [float(text) for text in texts[args.by]]
    except ValueError:
        raise Mistake(f"--by={args.by} has {texts[args.by][0]}: the limits are over its numbers") from None
    fits, outer = laws.joint(size, **points, **given(args, "draws", "seed"))
    rows = []
    for n, fit in fits.items():
        low, high = fit.intervals["C"]
        note = "not identified" if "C" in fit.unidentified else ""
        rows.append(
            {args.by: f"{n:g}", "limit": f"{fit.params['C']:.4f}", "95% from": f"{low:.4f}", "to": f"{high:.4f}"}
        )
        rows[-1] |= {"points": fit.n_points, "": note}
    shown = report(args, outer, {"x": np.array([*fits]), "loss": np.array([f.params["C"] for f in fits.values()])})
    return {"limits": {str(n): fit._asdict() for n, fit in fits.items()}, "joint": outer._asdict()}, [rows, *shown]


def curves_command(args):
    curves = read_curves(args, args.files)
    fit = args.function(curves, **given(args, "lam", "warmup", "delta", "draws", "seed"))
    shown = report(args, fit, curves)
    errors, table = held_out(args, fit)
    return fit._asdict() | {"tests": errors}, shown + table


def held_out(args, fit):
    """Errors on the curves of --test, with their mean if there are several: {path: errors}, and a table."""
    paths = args.test or []
    all_errors = [laws.curve_errors(fit, curve) for curve in read_curves(args, paths)]
    errors = dict(zip(paths, all_errors, strict=True))
    if len(errors) > 1:
        errors["mean"] = {name: np.mean([error[name] for error in all_errors]) for name in all_errors[0]}
    return errors, [[{"test": path} | error for path, error in errors.items()]] if errors else []


def bound_command(args):
    out = []
    for text in args.files:
        _, bound, scale = laws.schedule_bound(read_lrs(text, args.warmup_steps)[1:])
        out.append({"schedule": text, "bound": bound, "scale": scale})
    out.sort(key=lambda row: row["bound"])
    out = [row | {"ratio": row["bound"] / out[0]["bound"]} for row in out]
    return {"schedules": out}, [f"{row['ratio']:.4f} x best  {row['schedule']}" for row in out]


def cell(value):
    return f"{value:.5g}" if isinstance(value, float) else str(value)


# ----------------------------------------------------------------------------------------------------------------------
# Predictions

INPUTS = {
    "chinchilla": ["N", "D"], "overtraining": ["N", "D"], "isoflop": ["C"],
    "asymptote": ["x"], "downstream": ["loss"], "diagonal": ["perplexity"],
}  # fmt: skip


def predict_command(args):
    fit = read_fit(args.file)
    is_curve = fit.law in CURVE_LAWS
    known = [*INPUTS[fit.law], "C"] if fit.law == "chinchilla" else INPUTS.get(fit.law)
    if is_curve:  # --loss is the column to test on
        known = ["lr", "warmup_steps", "test", "loss" if args.test else "every"]
    for name in given(args, "N", "D", "C", "x", "loss", "perplexity", "lr", "warmup_steps", "every", "test"):
        if name not in known:
            raise Mistake(f"{args.file} is a law of kind {fit.law}: here it has no --{name}, but --{' --'.join(known)}")
    if args.test:
        return held_out(args, fit)
    inputs, shown = planned_curve(fit, args) if is_curve else planned_points(fit, args)
    reach = {name: np.max(values) for name, values in shown.items()} if is_curve else shown  # its last step, its peak
    notes = laws.beyond(fit, reach)
    value, low, high = laws.predict(fit, inputs, **given(args, "seed"))
    columns = shown | {"predicted": value, "low": low, "high": high}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"law": fit.law} | columns | {"beyond": notes}, [rows, *notes]


def planned_points(fit, args):
    """Inputs for the law from the flags of predict, twice: for the law, and to show."""
    names, values = INPUTS[fit.law], given(args, "N", "D", "C", "x", "loss", "perplexity")
    for name, text in values.items():
        try:
            values[name] = [float(x) for x in text.split(",")]
        except ValueError:
            raise Mistake(f"--{name}={text} must be a number, or numbers a,b,c") from None
    if fit.law == "chinchilla" and "C" in values:
        if len(values) > 1:
            raise Mistake("give --N and --D, or --C for the best of both, not all")
        values["N"], values["D"], _ = laws.optimum(fit.params, *checked(C=values["C"]))
    if any(name not in values for name in names):
        raise Mistake(f"a law of kind {fit.law} needs {' and '.join(f'--{name}' for name in names)}")
    inputs = dict(zip(names, checked(**{name: values[name] for name in names}), strict=True))
    return inputs, inputs


def planned_curve(fit, args):
    """The curve that --lr plans, without its losses, for the law; its steps and learning rates to show."""
    if args.lr is None:
        raise Mistake(f"a law of kind {fit.law} needs --lr, knots step:lr or a file with step and lr, or --test")
    lrs = read_lrs(args.lr, args.warmup_steps)
    first, last = max(1, int(np.argmax(lrs))), len(lrs) - 1
    steps = np.unique([*range(first, last, args.every or math.ceil(last / 200)), last])
    return [laws.Curve(lrs, steps, np.ones(len(steps)))], {"step": steps, "lr": lrs[steps]}


# ----------------------------------------------------------------------------------------------------------------------
# Flags

COLUMNS = {  # argument of a law: what it is, and the usual names of its column, of which the first that is there counts
    "N": ("parameters", "params", "n_params"),
    "D": ("tokens", "tokens"),
    "C": ("training FLOPs", "flops"),
    "x": ("what grows", "tokens"),
    "loss": ("final loss in nats", "final_val_loss", "val_loss", "loss"),
    "error": ("mean error of the tasks", "error"),
}


def add_command(commands, function, run, parents, columns=()):
    """A subcommand named and described as the function, with flags for its columns and for the rows that count."""
    text = inspect.getdoc(function) or function.__name__  # python -OO drops docstrings
    summary = text.splitlines()[0].replace("%", "%%")
    command = commands.add_parser(function.__name__, help=summary, description=text, parents=parents)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run, function=function, columns=columns)
    for name in columns:
        meaning, *usual = COLUMNS[name]
        text = f"{meaning}: a column, or an expression such as steps*batch (default: {' or '.join(usual)})"
        command.add_argument(f"--{name}", metavar="COLUMN", type=lambda column: [column], default=usual, help=text)
    if columns:
        text = "COLUMN=VALUE, or with != < >: only such rows; may be repeated"
        command.add_argument("--where", action="append", default=[], metavar="CONDITION", help=text)
    return command


def picture(text):
    if Path(text).suffix not in (".png", ".svg", ".pdf") or not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} must end in .png, .svg or .pdf, and its folder must be there")
    return text


def shared_flags():
    """Parsers of flags that commands have in common: (of all fits, --delta, --warmup_steps, of loss curves)."""
    fits, delta, warmup = (config.Parser(add_help=False) for _ in range(3))
    fits.add_argument("files", nargs="+", help="CSV, .jsonl, or folders of runs")
    text = "bootstrap fits, 0 for no intervals (default: 400; multi_power: 100)"
    fits.add_argument("--draws", type=whole(least=0, most=10**6), help=text)
    fits.add_argument("--seed", type=whole(least=0), help="of the bootstrap (default: 0)")
    fits.add_argument("--plot", type=picture, metavar="FILE", help="draw points, fit, 95%% band and residuals")
    delta.add_argument("--delta", type=float, help="of Huber's loss (default: 1e-3 on logs; else inf, least squares)")
    warmup.add_argument("--warmup_steps", type=whole(least=0), help="linear warmup from 0, before a file's first row")
    curves = config.Parser(add_help=False, parents=[warmup])
    text = "column of the loss (default: val_loss of logs, loss of a CSV); to predict: nats"
    curves.add_argument("--loss", help=text)
    curves.add_argument("--lr", help="column of the learning rate (default: lr); to predict: knots step:lr, or a file")
    text = "curves to predict, to tell the errors; may be repeated"
    curves.add_argument("--test", type=lambda text: text.split(","), action="extend", metavar="FILE,...", help=text)
    return fits, delta, warmup, curves


def make_parser():
    parser = config.Parser(prog="python -m laws", description=laws.__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    fits, delta, warmup, curves = shared_flags()

    law = add_command(commands, laws.chinchilla, final_command, [fits, delta], ("N", "D", "loss"))
    text = "C=6ND in FLOPs: predict the best run of each, at the D/N that were fitted, with 95%% for its loss"
    law.add_argument("--budgets", type=typed(tuple[float, ...], above=0), metavar="C,...", help=text)
    over = add_command(commands, laws.overtraining, final_command, [fits, delta], ("N", "D", "loss"))
    add_command(commands, laws.asymptote, final_command, [fits, delta], ("x", "loss"))
    add_command(commands, laws.downstream, final_command, [fits, delta], ("loss", "error"))
    check = add_command(commands, laws.holdout, holdout_command, [fits, delta], ("N", "D", "loss"))
    check.add_argument("--law", help="chinchilla or overtraining (default: chinchilla)")
    check.add_argument("--holdout", type=whole(least=1), default=1, metavar="K", help="how many (default: 1)")
    check.add_argument("--by", default="N", help="N: the K largest sizes; D: the K longest of each size (default: N)")
    text = "of runs with equal N and D only those with the value of COLUMN that has the lowest mean loss, as --best=lr"
    for command in (law, over, check):
        command.add_argument("--best", metavar="COLUMN", help=text)
    law = add_command(commands, laws.isoflop, final_command, [fits], ("C", "N", "loss"))
    law.add_argument("--noise", type=number(above=0), help="standard deviation of ln loss (default: third differences)")

    diagonal = add_command(commands, laws.diagonal, diagonal_command, [fits, delta], ("loss",))
    speedup = add_command(commands, laws.speedup, speedup_command, [fits], ("D", "loss"))
    limits = add_command(commands, laws.joint, joint_command, [fits], ("x", "loss"))
    for law in (diagonal, speedup, limits):
        law.add_argument(
            "--by", required=True, metavar="COLUMN", help="the method, for joint the size; columns a,b give names a/b"
        )
    diagonal.add_argument("--pair", required=True, metavar="X,Y", help="two values of --by")
    diagonal.add_argument("--match", required=True, metavar="COLUMN,...", help="what the runs of a pair share")
    speedup.add_argument("--baseline", required=True, metavar="VALUE", help="the method to compare with")

    law = add_command(commands, laws.annealing, curves_command, [fits, delta, curves])
    law.add_argument("--lam", type=float, help="decay of the momentum in S2 (default: 0.999)")
    law.add_argument("--warmup", help="ramp or peak: how S1 counts the warmup (default: ramp)")
    add_command(commands, laws.multi_power, curves_command, [fits, delta, curves])
    bound = add_command(commands, laws.schedule_bound, bound_command, [warmup])
    bound.add_argument("files", nargs="+", help="knots step:lr (0:0,300:1e-3,10000:0), or files with step and lr")

    plan = add_command(commands, laws.predict, predict_command, [curves])
    plan.add_argument("file", help='what --json printed, or a published law: {"law": "chinchilla", "params": {...}}')
    for name in ("N", "D", "C", "x"):
        plan.add_argument(f"--{name}", metavar="VALUE,...", help=COLUMNS[name][0])
    plan.add_argument("--perplexity", metavar="VALUE,...", help="perplexity x of a diagonal law")
    plan.add_argument("--every", type=whole(least=1), help="steps between predicted points (default: 200 points)")
    plan.add_argument("--seed", type=whole(least=0), help="of the scatter of single runs (default: 0)")
    return parser


def run(argv=None):
    args = make_parser().parse_args(argv)
    out, shown = args.run(args)
    if args.json:
        shown = [json.dumps(to_json(out))]
    for part in shown:
        if isinstance(part, str):
            print(part)
        else:
            print_table(part, cell)


def main(argv=None):
    config.main(lambda: run(argv), (config.Mistake, Mistake, csv.Error))  # csv.Error: what is read as a CSV is none


if __name__ == "__main__":
    main()
