"""What each recipe makes of limited data: its loss, and how much more data the standard recipe would need for that.

    python limited.py runs/data_limited runs/distilled
    python limited.py results/data_limited results/distilled     # the same, of what tables.py keeps

Reads the results.csv of studies whose datasets are limits, NAME@TOKENS, alone or mixed with samples. Models alike but
for their seeds are evaluated as an ensemble, too, if there are four or more: ensembles/*.json in the study's folder is
what `evaluate.py --ensemble --json` says. Prints a table, and writes it (recipes.csv) and three figures.

After Kim et al. 2025, "Pre-training under infinite compute" (arXiv 2509.14786):

    standard       weight decay 0.1, at the best of the epochs and learning rates that were tried
    regularized    the same with other weight decays
    ensemble       of K models, best settings for K models or for as many as one likes
    student of x   trained on samples x beside the real data

Limits are of the law A/x^b + C, for more and more parameters N or members K. Data efficiency is D'/D: by the law of its
losses over D, the standard recipe's largest model would need D' for that loss.
"""

import contextlib
import io
import json
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import config
import laws
import tables
from config import Mistake
from figures.looks import LOSS, OTHERS, finish, log_axis
from tables import grouped, in_words, print_table, read_results, read_rows

STANDARD = 0.1  # weight decay
MEMBERS = 4  # of an ensemble at least: its law has three parameters


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def limit_of(dataset):
    """(tokens of the limit, the source of samples or None) of a@65536, or of a@65536:0.25,samples:0.75."""
    first, *others = (part.partition(":")[0] for part in dataset.split(","))
    tokens = first.partition("@")[2]
    if not tokens.isdigit() or len(others) > 1:
        raise Mistake(f"dataset {dataset}: expected NAME@TOKENS, with the tokens as a whole number, or with samples")
    return int(tokens), (others or [None])[0]


def evaluate_ensembles(folder):
    """Evaluate the ensembles of a study whose checkpoints are there, unless ensembles/ has them already."""
    rows = read_results([folder])
    for models in grouped(rows, tables.settings(rows)).values():
        file = Path(folder) / "ensembles" / f"{re.sub(r'_seed[0-9]+$', '', models[0]['name'])}.json"
        saved = {Path(folder) / row["name"] / "ckpt": int(row["total_steps"]) for row in models}
        if len(models) < MEMBERS or file.is_file() or not all(map(Path.is_dir, saved)):
            continue
        import checkpoint  # and with it torch, which a look at tables does not need
        import evaluate

        ends = [checkpoint.find(ckpt, step) for ckpt, step in saved.items()]
        if None in ends:
            continue
        with contextlib.redirect_stdout(io.StringIO()) as text:
            options = json.loads((ends[0].parents[1] / "config.json").read_text())
            n_tokens = options["eval_tokens"]  # which the losses of single models are of
            evaluate.run(["--ensemble", *map(str, ends), f"--tokens={n_tokens}", "--json"])
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.getvalue())
        print(file)


def read(folders):
    """(runs, ensembles): rows of results.csv and of ensembles/*.json, with `D` and `recipe`."""
    runs, ensembles = [], []
    for row in read_results(folders):
        (D, samples), first = limit_of(row["dataset"]), row["dataset"].partition(":")[0]
        row |= {"epochs": row.get("epochs") or row.get(f"epochs/{first}")}  # of the real data
        plain = "standard" if row.get("weight_decay", STANDARD) == STANDARD else "regularized"
        runs.append(row | {"D": D, "recipe": f"student of {samples}" if samples else plain})
    for path in (path for folder in folders for path in sorted(Path(folder).glob("ensembles/*.json"))):
        rows = [row for _, row in read_rows(path)]
        if missing := [name for name in ("dataset", "n_params", "weight_decay") if name not in rows[0]]:
            raise Mistake(f"{path}: its models differ in {missing[0]}; an ensemble here is of models of one kind")
        ensembles.append({**rows[0], "D": limit_of(rows[0]["dataset"])[0], "losses": [r["val_loss"] for r in rows]})
    return runs, ensembles


def best_of(runs):
    """Of runs of one recipe, size and D those with the best settings, by their mean over three seeds or more."""
    groups = list(grouped(runs, ("lr", "weight_decay", "total_steps")).values())
    n = min(3, max(map(len, groups)))
    return min((g for g in groups if len(g) >= n), key=lambda g: np.mean([run["val_loss"] for run in g]))


# ----------------------------------------------------------------------------------------------------------------------
# The table


def row_of(recipe, D, n_params, losses, settings=None):
    """A row of the table: `losses` of single runs, or one of an ensemble."""
    row = {"recipe": recipe, "D": D, "n_params": n_params, "loss": np.mean(losses), "std": tables.std(losses)}
    row["n"] = len(losses)
    return row | {name: settings[name] for name in ("epochs", "lr", "weight_decay") if settings and settings.get(name)}


def limit_row(recipe, D, n_params, fit):
    """A row for the limit of a law; its loss is nan where the points do not tell it."""
    row = {"recipe": recipe, "D": D, "n_params": n_params}
    if "C" in fit.unidentified:
        return row | {"loss": math.nan, "note": "not identified"}
    low, high = fit.intervals["C"]
    return row | {"loss": fit.params["C"], "low": low, "high": high}


def trained_rows(runs):
    """The best of every recipe, size and D, with its difference from the standard one, seed by seed."""
    rows, standard = [], {}
    for (D, recipe, n_params), of_kind in grouped(runs, ("D", "recipe", "n_params")).items():
        best = best_of(of_kind)
        rows.append(row_of(recipe, D, n_params, [run["val_loss"] for run in best], best[0]) | {"runs": best})
        if recipe == "standard":
            standard[D, n_params] = {run["seed"]: run["val_loss"] for run in best}
    for row in rows:
        base = standard.get((row["D"], row["n_params"]), {})
        above = [run["val_loss"] - base[run["seed"]] for run in row.pop("runs") if run["seed"] in base]
        if above and row["recipe"] != "standard":
            row["minus_standard"], row["error"] = tables.mean_error(above)
    return sorted(rows, key=lambda row: (row["D"], row["n_params"]))


def best_ensembles(ensembles):
    """{(D, n_params): (the ensemble of the lowest loss, that of the lowest limit, its law)}"""
    found = {}
    for key, of_kind in grouped(ensembles, ("D", "n_params")).items():
        fits = [laws.asymptote(range(1, 1 + len(e["losses"])), e["losses"]) for e in of_kind]
        order = sorted(range(len(fits)), key=lambda i: fits[i].params["C"])
        found[key] = min(of_kind, key=lambda e: e["losses"][-1]), of_kind[order[0]], fits[order[0]]
    return found


def all_rows(runs, ensembles):
    """The table: what was trained, ensembles of it, and limits."""
    rows, best = trained_rows(runs), best_ensembles(ensembles)
    for D in sorted({row["D"] for row in rows}):
        single = [row for row in rows if row["D"] == D and row["recipe"] == "regularized"]
        if len(single) >= 3:
            fit = laws.asymptote([row["n_params"] for row in single], [row["loss"] for row in single])
            rows.append(limit_row("regularized, N to infinity", D, math.inf, fit))
        here = {n: found for (d, n), found in sorted(best.items()) if d == D}
        for n, (with_all, _, fit) in here.items():
            k = len(with_all["losses"])
            rows.append(row_of(f"ensemble of {k}", D, n, with_all["losses"][-1:], with_all))
            rows.append(limit_row("ensemble, K to infinity", D, n, fit))
        if len(here) >= 3:
            points = [(n, k, loss) for n, (_, e, _) in here.items() for k, loss in enumerate(e["losses"], 1)]
            rows.append(
                limit_row("ensemble, K, then N to infinity", D, math.inf, laws.joint(*zip(*points, strict=True))[1])
            )
    return rows


def add_efficiency(rows):
    """Give each row its data efficiency, by the law of the standard recipe's largest model; that law's Fit, or None."""
    n = max(row["n_params"] for row in rows if row["recipe"] == "standard")
    base = [row for row in rows if row["recipe"] == "standard" and row["n_params"] == n]
    if len(base) < 4:
        print(f"no data efficiency: the law needs the standard recipe at four sizes of data, and there are {len(base)}")
        return None
    others = [row for row in rows if not any(row is b for b in base) and math.isfinite(row["loss"])]
    D, losses = ([row[name] for row in base + others] for name in ("D", "loss"))
    by = ["standard"] * len(base) + [str(i) for i in range(len(others))]
    fit, found = laws.speedup(D, losses, by, "standard")
    for row, worth in zip(others, found, strict=True):
        row |= {"efficiency": worth["speedup"], "efficiency_low": worth["low"], "efficiency_high": worth["high"]}
    return fit


def show(rows, fit):
    """Print the table, and the law that data efficiency rests on."""
    for D in sorted({row["D"] for row in rows}):
        table = []
        for row in (row for row in rows if row["D"] == D):
            cells = {f"D = {D:,}": row["recipe"]}
            cells["N"] = "" if math.isinf(row["n_params"]) else f"{row['n_params']:,.0f}"
            cells |= {name: f"{row[name]:g}" for name in ("epochs", "lr", "weight_decay") if name in row}
            error = "" if math.isnan(row.get("std", math.nan)) else f" ± {row['std']:.4f}"
            cells["loss"] = row["note"] if row.get("note") else f"{row['loss']:.4f}{error}"
            if "low" in row:
                cells["loss"] += f" [{row['low']:.3f}, {row['high']:.3f}]"
            if "minus_standard" in row:
                cells["minus standard"] = f"{row['minus_standard']:+.4f} ± {row['error']:.4f}"
            if "efficiency" in row:
                span = f"[{row['efficiency_low']:.2f}, {row['efficiency_high']:.2f}]"
                cells["D'/D"] = f"{row['efficiency']:.2f} {span}"
            table.append(cells)
        print_table(table)
        print()
    if fit:
        law = ", ".join(
            f"{name} {fit.params[name]:.4g} [{low:.4g}, {high:.4g}]" for name, (low, high) in fit.intervals.items()
        )
        open_ended = f"; not identified: {', '.join(fit.unidentified)}" if fit.unidentified else ""
        print(f"standard recipe over D, {fit.n_points} sizes of data: {law}{open_ended}")
    print("±: standard deviation over seeds; of differences, seed by seed, the standard error; [95% of the bootstrap]")


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def panels_of(cells, across=3, width=3.6):
    """(figure, axes) with a panel for each cell."""
    down = math.ceil(len(cells) / across)
    figure, panels = plt.subplots(down, across, figsize=(width * across, 3.1 * down + 1), squeeze=False)
    for axes in panels.flat[len(cells) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel(LOSS)
    return figure, panels.flat[: len(cells)]


def look_of(i, **others):
    color, dash, marker = OTHERS[i]
    return {"color": color, "linestyle": dash, "marker": marker} | others


def plot_epochs(runs):
    """Loss over epochs, a panel for each D and N: the standard recipe at its best peaks, and the regularized one."""
    plain = [run for run in runs if not run["recipe"].startswith("student")]
    cells = sorted(grouped(plain, ("D", "n_params")).items())
    cells = [(key, here) for key, here in cells if len({run["recipe"] for run in here}) == 2]
    figure, panels = panels_of(cells)
    for axes, ((D, n), here) in zip(panels, cells, strict=True):
        axes.set(title=f"{D:,} tokens, {in_words('n_params', n)}", xlabel="epochs")
        lines = {recipe: [run for run in here if run["recipe"] == recipe] for recipe in ("standard", "regularized")}
        best = best_of(lines["regularized"])[0]
        lines["regularized"] = [
            r for r in lines["regularized"] if (r["lr"], r["weight_decay"]) == (best["lr"], best["weight_decay"])
        ]
        for i, (recipe, of_recipe) in enumerate(lines.items()):
            points = []
            for at in grouped(of_recipe, ["total_steps"]).values():
                losses = [run["val_loss"] for run in best_of(at)]
                points.append((round(at[0]["epochs"]), np.mean(losses), np.nan_to_num(tables.std(losses))))
            x, means, stds = zip(*sorted(points), strict=True)
            axes.errorbar(x, means, stds, capsize=2.5, elinewidth=0.9, label=recipe, **look_of(i))
        log_axis(axes.xaxis, sorted({round(run["epochs"]) for run in sum(lines.values(), [])}))
    caption = "mean over seeds ± 1 standard deviation; standard: at the best peak for each length"
    return finish(figure, "Loss over epochs of limited data", caption)


def plot_ensembles(ensembles):
    """Loss over members, with the law of each ensemble, and beside it the limits over N: a row of panels for each D."""
    cells = sorted(grouped(ensembles, ["D"]).items())
    figure, panels = panels_of([side for cell in cells for side in (cell, cell)], across=2, width=4.6)
    for i, ((D,), here) in enumerate(cells):
        left, right = panels[2 * i], panels[2 * i + 1]
        left.set(title=f"{D:,} tokens", xlabel="models in the ensemble, K")
        right.set(title=f"{D:,} tokens: limit for K to infinity", xlabel="parameters of each, N")
        for j, ((n,), of_size) in enumerate(sorted(grouped(here, ["n_params"]).items())):
            for i_th, e in enumerate(sorted(of_size, key=lambda e: -e["weight_decay"])):
                k, losses = np.arange(1, 1 + len(e["losses"])), np.array(e["losses"])
                fit, fine = laws.asymptote(k, losses), np.linspace(1, k[-1], 100)
                law, limit = laws.evaluate(laws.LAWS["asymptote"], fit.params, {"x": fine}), fit.params["C"]
                look = look_of(j, fillstyle=("full", "none", "left", "right")[i_th % 4], linestyle="")
                label = f"{in_words('n_params', n)}, weight decay {e['weight_decay']:g}, {e['total_steps']:,.0f} steps"
                left.plot(k, losses, label=label, **look)
                left.plot(fine, law, color=look["color"], lw=0.9, linestyle=("-", ":", "--", "-.")[i_th % 4])
                error = np.abs(np.array(fit.intervals["C"])[:, None] - limit)
                right.errorbar([n], [limit], error, capsize=2.5, elinewidth=0.9, **look)
        log_axis(right.xaxis, sorted({e["n_params"] for e in here}))
        right.xaxis.set_major_formatter(lambda x, _: in_words("n_params", x).removesuffix(" parameters"))
        left.set_xticks(range(1, 1 + max(len(e["losses"]) for e in here)))
    caption = "lines: A/K^b + C; bars on the right: 95% of the bootstrap"
    return finish(figure, "Ensembles of models trained on limited data", caption)


def plot_recipes(rows):
    """Bars of every recipe's loss, a panel for each D, at the largest model; limits are hatched."""
    n = max(row["n_params"] for row in rows if row["recipe"] == "regularized")
    rows = [row for row in rows if row["n_params"] in (n, math.inf) and math.isfinite(row["loss"])]
    cells = grouped(rows, ["D"])
    cells = sorted((D, here) for D, here in cells.items() if len(here) > 1)
    figure, panels = panels_of(cells, across=len(cells), width=4.6)
    for axes, ((D,), here) in zip(panels, cells, strict=True):
        losses = [row["loss"] for row in here]
        for i, row in enumerate(here):
            look = {"hatch": "///", "color": "white"} if "low" in row else {"color": "0.8"}
            axes.barh(i, row["loss"], edgecolor="0.25", xerr=np.nan_to_num(row.get("std", 0.0)), capsize=2.5, **look)
            axes.text(0.01, i, f" {row['loss']:.3f}", va="center", fontsize=8, transform=axes.get_yaxis_transform())
        axes.set_yticks(range(len(here)), [row["recipe"] for row in here], fontsize=8)
        axes.set(title=f"{D:,} tokens", xlabel=LOSS, ylabel="", xlim=(min(losses) - 0.08, max(losses) + 0.04))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    figure.suptitle(f"Recipes for limited data, {in_words('n_params', n)} (hatched: limits of laws)")
    return figure


def run(args=None):
    parser = config.Parser(description=__doc__)
    parser.add_argument("folders", nargs="+", help="of studies, as study.py leaves them or as tables.py keeps them")
    parser.add_argument("--out", help="folder for the table and the figures; default: the first one")
    args = parser.parse_args(args)
    out = Path(args.out or args.folders[0])
    if not out.is_dir():
        raise Mistake(f"--out={out}: there is no such folder")
    for folder in args.folders:
        evaluate_ensembles(folder)
    runs, ensembles = read(args.folders)
    if not any(run["recipe"] == "standard" for run in runs):
        raise Mistake(f"no run has a weight decay of {STANDARD}, which the others are compared with: add some")
    rows = all_rows(runs, ensembles)
    show(rows, add_efficiency(rows))
    (out / "recipes.csv").write_text(tables.to_csv(rows))
    print(out / "recipes.csv")
    for name, draw, of in (
        ("epochs", plot_epochs, runs),
        ("ensembles", plot_ensembles, ensembles),
        ("recipes", plot_recipes, rows),
    ):
        if of and (of is not runs or any(run["recipe"] == "regularized" for run in runs)):
            draw(of).savefig(out / f"{name}.png", dpi=150)
            plt.close("all")
            print(out / f"{name}.png")


if __name__ == "__main__":
    config.main(run, (Mistake, laws.Mistake))
