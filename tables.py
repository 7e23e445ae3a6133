"""Tables of runs: results.csv of studies, and the logs of runs, as rows; rows as lines, with means over seeds.

    python tables.py runs/demo results/demo        # keeps a study's results.csv and its logs, thinned: small to commit

    rows = read_results(["runs/demo"], only=["schedule=wsd"])      # dicts; numbers where there are numbers
    lines = series(rows, x="total_steps", y="val_loss")            # mean and standard deviation over the seeds

A column that is neither a result nor a seed is a setting, and rows that differ in one are different runs.
"""

import csv
import functools
import gzip
import json
import math
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import Mistake, main

ARCHIVE = "logs.jsonl.gz"  # in the folder of a study's results: the logs of all its runs, thinned
AVERAGES = {"val_loss": "weights as they are", "val_loss_window": "window", "val_loss_ema": "EMA"}
COSINES = ("cosine", "onecycle")  # onecycle is the paper's cosine

# Columns of results.csv: text, results, seeds; all others are settings, and runs that differ in one are different runs
TEXT = ("name", "schedule", "cooldown_shape", "dataset")
RESULTS = ("flops", "flops_paid", "train_s", "train_s_paid", "train_loss", "window_steps", *AVERAGES)
SEEDS = ("seed", "data_seed")
ALWAYS = ("name", "schedule", "total_steps", "lr", "seed", "n_params", "tokens", *RESULTS[:4], "val_loss")
CELL = ("dataset", "n_params", "n_layer", "n_embd", "total_steps", "tokens")  # what compared runs have in common


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_lines(path):
    """Lines of a text file, unpacked if its name ends in .gz; a byte-order mark goes."""
    unpacked = gzip.open if str(path).endswith(".gz") else open
    try:
        with unpacked(path, "rt", newline="", encoding="utf-8-sig") as f:
            return f.readlines()
    except (FileNotFoundError, NotADirectoryError):
        raise Mistake(f"{path}: no such file") from None
    except IsADirectoryError:
        raise Mistake(f"{path} is a folder, and not that of a run: give a CSV, a .jsonl or a run") from None
    except UnicodeDecodeError:
        raise Mistake(f"{path} is not text in UTF-8; save it as UTF-8, or give a CSV or .jsonl") from None


def read_rows(path):
    """Rows of a CSV (comma, semicolon or tab), or of JSON lines -> [(where, dict)], `where` for messages.

    path    .csv, .jsonl, the folder of a run, or that of a run whose log is kept in an archive: see `find_log`
    Mistake for what csv.DictReader lets pass: a name twice in the header, more cells than the header has.
    """
    file, run = find_log(path) or (Path(path), None)
    lines = read_lines(file)
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        filled = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
        rows = [(f"{file} line {i}", json_object(line, file, i, len(lines))) for i, line in filled]
        return [(where, row) for where, row in rows if run is None or row.pop("run", None) == run]
    header = lines[0] if lines else ""
    reader = csv.DictReader(lines, delimiter=max(",;\t", key=header.count), restval="", skipinitialspace=True)
    names = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    for name in names:
        if name and names.count(name) > 1:
            raise Mistake(f"{path}: column {name!r} stands twice in the header; rename one")
    rows = []
    for row in reader:
        if None in row:
            raise Mistake(f"{path} line {reader.line_num}: more cells than the header has; a comma in a number?")
        if any(row.values()):  # spreadsheets write empty rows
            rows.append((f"{path} line {reader.line_num}", row))
    return rows


def json_object(line, path, i, n):
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        hint = "; if a crash cut it off, delete it" if i == n else ""
        raise Mistake(f"{path} line {i} is not a JSON object{hint}") from None


def find_log(path):
    """(file, None) for the log of a run's folder or for a log itself, (archive, run's name) for one kept in an archive.

    An archive is a study's logs.jsonl.gz: the lines of all its runs, each with its "run". So results/demo/cosine is
    read as runs/demo/cosine is, and so is results/demo/cosine/log.jsonl. None if there is no such run.
    """
    path = Path(path)
    file = path / "log.jsonl" if path.is_dir() else path
    if file.is_file():
        return file, None
    archive = next((p / ARCHIVE for p in path.parents if (p / ARCHIVE).is_file()), None)
    if not archive:
        return None
    run = path.relative_to(archive.parent).as_posix().removesuffix("/log.jsonl")
    return (archive, run) if run in runs_in(archive) else None


@functools.cache
def runs_in(archive):
    """Names of the runs whose lines an archive holds, in their order."""
    return list(dict.fromkeys(json.loads(line)["run"] for line in read_lines(archive)))


def read_log(path):
    """(training lines, evaluation lines, name) of a run's folder, its log.jsonl, or of a run in an archive."""
    if not find_log(path):
        raise Mistake(f"{path}: no log.jsonl there; give folders of runs, or their logs")
    path, lines = Path(path), [row for _, row in read_rows(path)]
    name = path.parent.name if path.name == "log.jsonl" else path.name.removesuffix(".jsonl")
    training, evaluation = [x for x in lines if "train_loss" in x], [x for x in lines if "val_loss" in x]
    if not evaluation:
        raise Mistake(f"{path}: no val_loss in it; train with --eval_every above 0, or leave it out")
    return training, evaluation, name


def find_runs(paths):
    """The runs' folders: those given, and in place of a folder that is no run the runs in it, by name."""
    found = []
    for path in map(Path, paths):
        inside = [] if (path / "log.jsonl").exists() else sorted(log.parent for log in path.glob("*/log.jsonl"))
        kept = [path / run for run in runs_in(path / ARCHIVE)] if (path / ARCHIVE).is_file() else []
        found += inside or kept or [path]
    return found


def read_cell(column, text, where):
    """A number where one is due or can be read, else text; None if empty."""
    if not text.strip():
        if column in ALWAYS and column != "val_loss":
            raise Mistake(f"{where}: {column} is empty; every run has one")
        return None
    try:
        return text if column in TEXT else float(text)
    except ValueError:
        if column in ALWAYS or column in RESULTS:
            raise Mistake(f"{where}: {column}={text!r} is not a number") from None
        return text


def read_table(path, columns):
    """The rows of a results.csv, or of the one in a study's folder."""
    path = Path(path)
    file = path / "results.csv" if path.is_dir() else path
    if not file.is_file():
        raise Mistake(f"{path}: no results.csv there; study.py writes one")
    with open(file, newline="") as f:
        table = csv.DictReader(f)
        missing = [c for c in (*ALWAYS, *columns) if c not in (table.fieldnames or ())]
        if missing:
            raise Mistake(f"{file}: no column {', '.join(missing)}; this figure needs what study.py writes")
        rows = []
        for row in table:
            where = f"{file}, line {table.line_num}"
            if None in row or None in row.values():
                raise Mistake(f"{where}: not {len(table.fieldnames)} cells, as its header has; is it whole?")
            rows.append({c: read_cell(c, text, where) for c, text in row.items()})
    if not rows:
        raise Mistake(f"{file}: no run in it; let study.py finish one")
    return rows


def read_results(paths, only=(), columns=(), all_runs=False):
    """The rows of all results.csv that every condition of `only` lets through; those without a loss if `all_runs`."""
    rows = [row for path in paths for row in read_table(path, columns)]
    for condition in only:
        column, _, values = condition.partition("=")
        if not values or not any(column in row for row in rows):
            raise Mistake(f"--only {condition}: expected COLUMN=VALUE,... with one of {', '.join(rows[0])}")
        wanted = [read_cell(column, value, f"--only {condition}") for value in values.split(",")]
        rows = [row for row in rows if row.get(column) in wanted]
        if not rows:
            raise Mistake(f"--only {condition}: no run is left; loosen it")
    ended = [row for row in rows if all_runs or row["val_loss"] is not None and math.isfinite(row["val_loss"])]
    left_out = ", ".join(row["name"] for row in rows if row not in ended)
    if not ended:
        raise Mistake(f"no run has a finite val_loss, not even one of {left_out}: let one finish, or loosen --only")
    if left_out:
        print(f"left out, as their val_loss is not finite: {left_out}", file=sys.stderr)
    return ended


def pick(rows, *names):
    """The rows of these schedules, at least one."""
    found = [row for row in rows if row["schedule"] in names]
    if not found:
        there = ", ".join(sorted({row["schedule"] for row in rows}))
        raise Mistake(f"no run of schedule {' or '.join(names)} among {there}: add some to the study")
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Runs -> lines: means and standard deviations over seeds


class Line(NamedTuple):
    label: str
    x: list
    mean: np.ndarray
    std: np.ndarray  # of single runs; nan where there is only one
    n: list  # seeds
    row: dict  # one of its runs


def settings(rows):
    """The columns that say how runs were made."""
    others = ("name", *SEEDS, *RESULTS)
    return list(dict.fromkeys(c for row in rows for c in row if c not in others and not c.startswith("val_loss")))


def grouped(rows, columns):
    """{values of the columns: rows}, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row.get(c) for c in columns), []).append(row)
    return groups


def at_best(rows, y, same):
    """Of rows alike in the columns `same` those of lowest mean y, among the settings with the most seeds."""
    rows, chosen = [row for row in rows if row.get(y) is not None], []
    for alike in grouped(rows, same).values():
        runs = grouped(alike, settings(alike)).values()
        chosen += min(runs, key=lambda group: (-len(group), np.mean([row[y] for row in group])))
    return chosen


def at_best_lr(rows, y="val_loss"):
    """Every run at the peak learning rate that turned out best for it."""
    return at_best(rows, y, [c for c in settings(rows) if c != "lr"])


def with_length(rows):
    """The settings that follow from a run's length: tokens, and the cooldown's length in steps, or else as a share."""
    steps, shares = ({row.get(c) for row in rows} for c in ("cooldown_steps", "cooldown_frac"))
    return "total_steps", "tokens", "cooldown_frac" if len(steps) < len(shares) else "cooldown_steps"


def in_words(column, value):
    """A setting for a legend: 1.2M parameters, 300 steps, lr 0.001, 20 % cooldown, linear."""
    if column == "n_params":
        unit, letter = next((u, s) for u, s in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, "")) if value >= u or u == 1)
        return f"{value / unit:.3g}{letter} parameters"
    if column in TEXT or not isinstance(value, float):
        return str(value) if column in TEXT else f"{column} {value}"
    if column == "tokens_per_param":
        return f"{value:g} tokens a parameter"
    if column == "cooldown_frac":
        return f"{100 * value:.3g} % cooldown"
    return f"{value:.0f} steps" if column == "total_steps" else f"{column} {value:g}"


def labels(keys, name=None):
    """Words for each of the {column: value}: the schedule, or `name`, and as many settings as tell it from the rest."""
    first = ["schedule", "cooldown_shape", "cooldown_frac", "n_params", "total_steps", "lr"]
    parts = [()] * len(keys)
    for column in dict.fromkeys([*first, *(c for key in keys for c in key)]):
        finer = [(*part, (column, key.get(column))) for part, key in zip(parts, keys, strict=True)]
        if len(set(finer)) > len(set(parts)) or column == "schedule" and not name:
            parts = finer
    words = [[in_words(c, v) for c, v in part if v is not None] for part in parts]
    return [", ".join([name] * bool(name) + w) for w in words]


def series(rows, x, y="val_loss", name=None, ignore=()):
    """Lines of y over the column x, one for all runs of equal settings but for x and those to `ignore`."""
    rows = [row for row in rows if row.get(y) is not None]
    columns = [c for c in settings(rows) if c not in (x, *ignore)]
    groups = grouped(rows, columns)
    names = labels([dict(zip(columns, key, strict=True)) for key in groups], name)
    lines = []
    for label, alike in zip(names, groups.values(), strict=True):
        points = {at: runs for (at,), runs in sorted(grouped(alike, [x]).items())}
        for one, *twins in (same for runs in points.values() for same in grouped(runs, SEEDS).values()):
            if twins:
                both = f"{one['name']} and {twins[0]['name']}"
                raise Mistake(f"{both} have equal seed and settings, as far as the table says: leave one out")
        values = [[run[y] for run in runs] for runs in points.values()]
        std = [np.std(v, ddof=1) if len(v) > 1 else math.nan for v in values]
        means = np.array([np.mean(v) for v in values])
        lines.append(Line(label, list(points), means, np.array(std), [len(v) for v in values], alike[0]))
    return sorted(lines, key=lambda line: [line.row[c] for c in ("n_params", "total_steps", "lr")])


def front(points):
    """The lower envelope of (x, y): the points with none at their left or below them that is as low."""
    lowest = []
    for x, y in sorted(points):
        if not lowest or y < lowest[-1][1]:
            lowest.append((x, y))
    return lowest


def paired(rows, cosines, y):
    """(y, cosine loss) of rows and cosine rows of equal seed, size, data and length: an array (pairs, 2)."""
    losses = {tuple(map(row.get, CELL + SEEDS)): row["val_loss"] for row in cosines}
    pairs = [(row[y], losses.get(tuple(map(row.get, CELL + SEEDS)))) for row in rows]
    return np.array([pair for pair in pairs if pair[1] is not None]).reshape(-1, 2)


def mean_and_error(values):
    """Mean and its standard error, nan for fewer than two."""
    return np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan


# ----------------------------------------------------------------------------------------------------------------------
# Rows -> text


def print_table(rows, form=str):
    """Print dicts as an aligned table: columns in the order in which they come up, names to the left, numbers right.

    form    value -> text; a column that a row lacks stays empty
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns] + [[form(row[column]) if column in row else "" for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *rest in cells:
        right = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *right]).rstrip())


# ----------------------------------------------------------------------------------------------------------------------
# What is worth keeping of a study


def keep(source, target, points=60):
    """Copy results.csv, and into one archive the evaluations and about `points` training lines of each log."""
    source, target = Path(source), Path(target)
    names = [row["name"] for row in read_table(source, ())]
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "results.csv", target)
    kept = []
    for name in names:
        training, evaluation, _ = read_log(source / name)
        thinned = training[:: math.ceil(len(training) / points)] + training[-1:]
        lines = sorted(thinned + evaluation, key=lambda line: line["step"])
        kept += dict.fromkeys(json.dumps({"run": name} | line) + "\n" for line in lines)
    (target / ARCHIVE).write_bytes(gzip.compress("".join(kept).encode(), mtime=0))  # the same bytes every time


if __name__ == "__main__":
    main(lambda: keep(*sys.argv[1:]) if len(sys.argv) == 3 else print(__doc__))
