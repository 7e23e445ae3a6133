"""Tables of runs: results.csv of studies and the logs of runs as rows; rows as words, as means over seeds, as text.

python tables.py runs/demo results/demo        # keeps a study's results.csv and its logs, thinned: small to commit

rows = read_results(["runs/demo"], only=["schedule=wsd"])      # dicts; numbers where there are numbers
training, evaluation, name = read_log("runs/demo/cosine")      # or "results/demo/cosine": the same, thinned
mean_lines(rows, x="total_steps")                              # means over seeds, a line for equal settings
"""

import csv
import functools
import gzip
import inspect
import io
import json
import math
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

import schedules
from config import Mistake, Parser, main, mistakes

ARCHIVE = "logs.jsonl.gz"  # in the folder of a study's results: the logs of all its runs, thinned
SHAPE = inspect.signature(schedules.wsd).parameters["cooldown_shape"].default  # of a cooldown whose config names none

# Columns of results.csv: text, results, seeds; all others are settings, and runs that differ in one are different runs
TEXT = ("name", "schedule", "cooldown_shape", "dataset", "cooldown_dataset", "val_dataset", "optimizer")
AVERAGES = {"val_loss": "weights as they are", "val_loss_window": "window", "val_loss_ema": "EMA"}
RESULTS = ("flops", "flops_paid", "train_s", "train_s_paid", "train_loss", "window_steps", *AVERAGES)
SEEDS = ("seed", "data_seed")
ALWAYS = ("name", "schedule", "total_steps", "lr", "seed", "n_params", "tokens", *RESULTS[:4])
# What compared runs have in common
CELL = ("dataset", "cooldown_dataset", "n_params", "n_layer", "n_embd", "total_steps", "tokens")
COSINES = ("cosine", "onecycle")
SCHEDULES = {"onecycle": "cosine (OneCycle)", "wsd": "cooldown"}  # the others are called by their names
FIRST = ("n_params", "total_steps", "cooldown_frac", "lr")  # settings that a label says before all others


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def settings(rows):
    """The columns that say how runs were made."""
    columns, others = dict.fromkeys(c for row in rows for c in row), ("name", *SEEDS, *RESULTS)
    return [c for c in columns if c not in others and not c.startswith(("val_loss", "epochs"))]


def val_sets(rows):
    """Names of the further validation sets that the losses of rows are on: "b" of a column "val_loss/b"."""
    further = (c.partition("/")[2] for row in rows for c in row if c.startswith("val_loss") and "/" in c)
    return list(dict.fromkeys(further))


def measured_on(rows, val_set):
    """Rows with the losses on a further validation set in place of those on the first; as they are for None."""
    if val_set is None:
        return rows
    if val_set not in val_sets(rows):
        there = ", ".join(val_sets(rows)) or "none"
        raise Mistake(f"--val_dataset={val_set}: these runs have no losses on it; further validation sets: {there}")
    found = []
    for row in rows:
        losses = {c: v for c, v in row.items() if c.startswith("val_loss")}
        others = {c: v for c, v in row.items() if c not in losses}
        here = {c: v for c, v in losses.items() if c.partition("/")[2] == val_set}
        found.append(others | {c.partition("/")[0]: v for c, v in here.items()})
    return found


def grouped(rows, columns):
    """{values of the columns: rows}, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row.get(c) for c in columns), []).append(row)
    return groups


def read_lines(path):
    """Lines of a text file, unpacked if its name ends in .gz; a byte-order mark goes."""
    unpacked = gzip.open if str(path).endswith(".gz") else open
    try:
        with unpacked(path, "rt", newline="", encoding="utf-8-sig") as f:
            lines = f.readlines()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise Mistake(f"{path}: no such file, and no run's folder") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise Mistake(f"{path} is not a whole .gz file; copy it again") from None
    except UnicodeDecodeError:
        lines = ["\0"]
    if any("\0" in line for line in lines):  # as in UTF-16
        raise Mistake(f"{path} is not text in UTF-8; save it as UTF-8, or give a CSV or .jsonl")
    return lines


def read_rows(path):
    """Rows of a CSV (comma, semicolon or tab), of JSON lines, of what evaluate.py --json prints, or of a run.

    -> [(where, dict)]; a run as of `find_log`.

    A last line of JSON that a crash cut off is passed over, and stderr says so. Mistake for what else is no row.
    """
    file, run = find_log(path)
    if run is not None:
        return archived(file)[run]
    if file.suffix == ".json":
        return evaluated(file)
    return json_rows(file) if file.name.endswith((".jsonl", ".jsonl.gz")) else csv_rows(file)


def evaluated(file):
    """The rows that evaluate.py --json printed."""
    try:
        rows = json.loads("".join(read_lines(file)))["rows"]
        return [(f"{file} row {i}", dict(row)) for i, row in enumerate(rows, 1)]
    except (ValueError, KeyError, TypeError):
        raise Mistake(f"{file}: expected what evaluate.py --json prints, an object with rows") from None


def csv_rows(file):
    lines = [line if line.strip() else "\n" for line in read_lines(file)]
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    delimiter = max(",;\t", key="".join(lines[first : first + 1]).count)
    reader = csv.DictReader(lines[first:], delimiter=delimiter, skipinitialspace=True)
    names = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    for name in names:
        if name and names.count(name) > 1:
            raise Mistake(f"{file}: column {name!r} stands twice in the header; rename one")
    rows = []
    for row in reader:
        where = f"{file} line {first + reader.line_num}"
        if not any(row.values()):  # spreadsheets write empty rows
            continue
        if None in row or None in row.values():  # where DictReader puts what is too much, and what is missing
            raise Mistake(f"{where}: {'more' if None in row else 'fewer'} cells than the header has; is it whole?")
        rows.append((where, row))
    return rows


def json_rows(file):
    rows = []
    lines = [(f"{file} line {i}", line) for i, line in enumerate(read_lines(file), 1) if line.strip()]
    for where, line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
            if where == lines[-1][0] and line.lstrip().startswith("{"):
                print(f"{where} is cut off, and passed over", file=sys.stderr)
                break
        if not isinstance(row, dict):
            raise Mistake(f"{where} is not a JSON object")
        rows.append((where, row))
    return rows


@functools.cache
def archived(archive):
    """{run: its rows, as of `read_rows`} of an archive, in its order."""
    runs = {}
    for where, row in json_rows(archive):
        runs.setdefault(row.pop("run", ""), []).append((where, row))
    return runs


def find_log(path):
    """(file, None) for the log of a run's folder and for any other path, (archive, run) for a run kept in an archive.

    An archive, logs.jsonl.gz, has the lines of all runs of a study. So results/demo/cosine is as good as a folder.
    """
    path = Path(path)
    file = path / "log.jsonl" if path.is_dir() else path
    if file.is_file():
        return file, None
    for archive in (parent / ARCHIVE for parent in path.parents):
        run = path.relative_to(archive.parent).as_posix().removesuffix("/log.jsonl")
        if archive.is_file() and run in archived(archive):
            return archive, run
    return path, None


def read_log(path):
    """(training lines, evaluation lines, name) of a run's folder, its log.jsonl, or of a run in an archive."""
    file, _ = find_log(path)
    if not file.is_file() or ".jsonl" not in file.suffixes:
        raise Mistake(f"{path}: no log.jsonl there; give folders of runs, or their logs")
    path, lines = Path(path), [row for _, row in read_rows(path) if "step" in row]
    name = path.absolute().parent.name if path.name == "log.jsonl" else path.name.removesuffix(".jsonl")
    training, evaluation = [x for x in lines if "train_loss" in x], [x for x in lines if "val_loss" in x]
    if not evaluation:
        raise Mistake(f"{path}: no val_loss in it; train with --eval_every above 0, or leave it out")
    return training, evaluation, name


def refuse_twice(paths):
    """Mistake if two paths name the same file, or the same run."""
    known = {}
    for path in paths:
        file, run = find_log(path)
        twin = (file.resolve(), run)
        if twin in known:
            raise Mistake(f"{known[twin]} and {path} are the same: give it once")
        known[twin] = path


def find_runs(paths):
    """The runs' folders: those given, and in place of a folder that is no run the runs in it, by name."""
    found = []
    for path in map(Path, paths):
        kept = [path / run for run in archived(path / ARCHIVE)] if (path / ARCHIVE).is_file() else []
        found += sorted(log.parent for log in path.glob("*/log.jsonl")) or kept or [path]
    return found


def read_settings(path):
    """{option: value} of a run, from its config.json or its row in the results.csv of its study; {} without either."""
    path = Path(path)
    folder = path.parent if path.name == "log.jsonl" else path
    config = folder / "config.json"
    if config.is_file():
        with mistakes(config):
            record = json.loads("".join(read_lines(config)))
        if record.get("schedule") == "wsd" and not record.get("cooldown_shape"):
            record["cooldown_shape"] = SHAPE
        told = dict.fromkeys(["schedule", "cooldown_shape", "total_steps", "lr", *record.get("not_default", ())])
        told.pop("init_from", None)  # the name of the run's folder says it better
        return {option: record[option] for option in told if isinstance(record.get(option), str | int | float)}
    study = next((p for p in folder.parents if (p / "results.csv").is_file()), None)
    found = [row for row in read_table(study) if study / row["name"] == folder] if study else []
    return {column: found[0].get(column) for column in (*settings(found), *SEEDS)} if found else {}


def read_cell(column, text, where):
    """A number where one is due or can be read, else text; None if empty."""
    if column in TEXT or not text.strip():
        return text.strip() or None
    try:
        return float(text)
    except ValueError:
        if column in ALWAYS or column in RESULTS:
            raise Mistake(f"{where}: {column}={text!r} is not a number") from None
        return text


def read_table(path):
    """The rows of a results.csv, or of the one in a study's folder."""
    path = Path(path)
    file = path / "results.csv" if path.is_dir() else path
    rows = [{c: read_cell(c, str(text), where) for c, text in row.items()} for where, row in read_rows(file)]
    missing = [c for c in ALWAYS if any(row.get(c) is None for row in rows)]
    if missing:
        raise Mistake(f"{file}: not every run has {', '.join(missing)}; this needs what study.py writes")
    if not rows:
        raise Mistake(f"{file}: no run in it; let study.py finish one")
    return rows


def to_csv(rows):
    """Dicts as the text of a CSV; what a row lacks stays empty, and a tuple is its items with blanks between."""
    columns, text = list(dict.fromkeys(column for row in rows for column in row)), io.StringIO()
    writer = csv.DictWriter(text, columns or ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def read_results(paths, only=(), all_runs=False):
    """The rows of all results.csv that every condition of `only` lets through; those without a loss if `all_runs`."""
    rows = [row for path in paths for row in read_table(path)]
    for condition in only:
        column, _, values = condition.partition("=")
        if not values or not any(column in row for row in rows):
            raise Mistake(f"--only {condition}: expected COLUMN=VALUE,... with one of {', '.join(rows[0])}")
        wanted = [read_cell(column, value, f"--only {condition}") for value in values.split(",")]
        rows = [row for row in rows if row.get(column) in wanted]
        if not rows:
            raise Mistake(f"--only {condition}: no run is left; loosen it")
    ended = [row for row in rows if all_runs or (row.get("val_loss") is not None and math.isfinite(row["val_loss"]))]
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
# Words and text


def called(row):
    """What a run is called in every table and figure: its schedule, and its cooldown's shape: "cooldown, 1-sqrt".

    Where runs differ in their optimizer it comes first: "muon, cooldown, 1-sqrt".
    """
    name = SCHEDULES.get(row["schedule"], row["schedule"])
    return ", ".join(part for part in (row.get("optimizer"), name, row.get("cooldown_shape")) if part)


def span(values, unit):
    """From the least to the most of whole numbers: "1 seed", "60 to 2,000 steps"."""
    low, high = min(values), max(values)
    number = f"{low:,.0f} to {high:,.0f}" if low < high else f"{high:,.0f}"
    return f"{number} {unit}{'s' * (high > 1)}"


def averaged(loss, rows):
    """Whose losses the column `loss` of the rows has: "weights as they are", "window of 60 steps", "EMA, on b"."""
    loss, _, val_set = loss.partition("/")
    if val_set:
        return f"{averaged(loss, rows)}, on {val_set}"
    steps = [row["window_steps"] for row in rows if row.get("window_steps")]
    if loss != "val_loss_window" or not steps:
        return AVERAGES[loss]
    return f"window of {span(steps, 'step')}"


def in_words(column, value):
    """A setting for a legend: 1.2M parameters, 1,980 steps, 20 tokens per parameter, over the last 20%, lr 0.001."""
    if column == "n_params":
        unit, letter = next((u, s) for u, s in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, "")) if value >= u or u == 1)
        return f"{value / unit:.3g}{letter} parameters"
    if column == "cooldown_frac":
        return f"over the last {100 * value:.3g}%"
    forms = {"total_steps": "{:,.0f} steps", "tokens_per_param": "{:g} tokens per parameter"}
    forms |= {"cooldown_steps": "over the last {:,.0f} steps", "dataset": "{}", "cooldown_dataset": "then {}"}
    return forms.get(column, f"{column} {{{':g' * isinstance(value, float)}}}").format(value)


def labels(keys):
    """Words for each of the {column: value}: what it is called, and as many settings as tell it from the rest."""
    parts = [((None, called(key)),) for key in keys]
    for column in dict.fromkeys([*FIRST, *(c for key in keys for c in key)]):
        finer = [(*part, (column, key.get(column))) for part, key in zip(parts, keys, strict=True)]
        if len(set(finer)) > len(set(parts)):
            parts = finer
    return [", ".join([name, *(in_words(c, v) for c, v in part if v is not None)]) for (_, name), *part in parts]


def print_table(rows, form=str):
    """Print dicts as an aligned table of form(value), names left, numbers right; what a row lacks stays empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns] + [[form(row[column]) if column in row else "" for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *rest in cells:
        right = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *right]).rstrip())


# ----------------------------------------------------------------------------------------------------------------------
# Means and standard deviations over seeds


class Line(NamedTuple):
    kind: str  # what its runs are called, or the column of an average: what decides the looks
    label: str
    x: list
    mean: np.ndarray
    std: np.ndarray  # of single runs; nan where there is only one
    n: list  # seeds
    rows: list  # of all its runs


def std(values):
    """The standard deviation of single values, nan where there is only one."""
    return np.std(values, ddof=1) if len(values) > 1 else math.nan


def mean_error(differences):
    """The mean of differences, one for each pair of runs, and its standard error, nan where there is only one."""
    return np.mean(differences), std(differences) / math.sqrt(len(differences))


def where(rows, **wanted):
    """The rows that have these values, at least one."""
    found = [row for row in rows if all(row.get(column) == value for column, value in wanted.items())]
    if not found:
        raise Mistake(f"no run has {wanted}")
    return found


def over_seeds(rows, y="val_loss", **wanted):
    """y of the rows that have these values, one for each seed and in their order: what differences are taken of."""
    found = sorted(where(rows, **wanted), key=lambda row: row["seed"])
    if len({row["seed"] for row in found}) < len(found):
        raise Mistake(f"several runs of one seed have {wanted}: name more of their settings")
    return np.array([row[y] for row in found])


def at_best(rows, y="val_loss", same=None):
    """Of rows alike in the columns `same` (all settings but lr) those of lowest mean y, among those of most seeds."""
    rows, chosen = [row for row in rows if row.get(y) is not None], []
    for alike in grouped(rows, same or [c for c in settings(rows) if c != "lr"]).values():
        runs = grouped(alike, settings(alike)).values()
        chosen += min(runs, key=lambda group: (-len(group), np.mean([row[y] for row in group])))
    return chosen


def with_length(rows):
    """The settings that follow from a run's length: tokens, and the cooldown's length in steps, or else as a share."""
    steps, shares = ({row.get(c) for row in rows} for c in ("cooldown_steps", "cooldown_frac"))
    return "total_steps", "tokens", "cooldown_frac" if len(steps) < len(shares) else "cooldown_steps"


def mean_lines(rows, x, y="val_loss", ignore=(), average=None):
    """Lines of y over x, one for all runs of equal settings but for x and `ignore`; `average`: words for y."""
    rows = [row for row in rows if row.get(y) is not None]
    columns = [c for c in settings(rows) if c not in (x, *ignore)]
    groups = grouped(rows, columns)
    for one, *twins in grouped(rows, (*settings(rows), *SEEDS)).values():
        if twins:
            raise Mistake(f"{one['name']} and {twins[0]['name']} have equal seed and settings: leave one out")
    names = labels([dict(zip(columns, key, strict=True)) for key in groups])
    found = []
    for label, alike in zip(names, groups.values(), strict=True):
        points = {at: [run[y] for run in runs] for (at,), runs in sorted(grouped(alike, [x]).items())}
        means, stds = (np.array([of(values) for values in points.values()]) for of in (np.mean, std))
        kind, label = (called(alike[0]), label) if y == "val_loss" else (y, f"{label}, {average or averaged(y, alike)}")
        found.append(Line(kind, label, list(points), means, stds, [*map(len, points.values())], alike))
    return sorted(found, key=lambda line: [line.rows[0][c] for c in ("n_params", "total_steps", "lr")])


def paired(rows, cosines, y):
    """(y, cosine loss) of rows and cosine rows of equal seed, size, data and length: an array (pairs, 2)."""
    losses = {tuple(map(row.get, CELL + SEEDS)): row["val_loss"] for row in cosines}
    pairs = [(row[y], losses.get(tuple(map(row.get, CELL + SEEDS)))) for row in rows]
    return np.array([pair for pair in pairs if pair[1] is not None]).reshape(-1, 2)


# ----------------------------------------------------------------------------------------------------------------------
# What is worth keeping of a study


def keep(source, target, points=60):
    """Copy results.csv, and into one archive the evaluations and about `points` training lines of each log."""
    source, target, kept = Path(source), Path(target), []
    if source.resolve() == target.resolve():
        raise Mistake(f"{source} and {target} are one folder: keep it in another")
    rows = read_table(source)
    for name in (row["name"] for row in rows):
        training, evaluation, _ = read_log(source / name)
        thinned = training[:: max(1, math.ceil(len(training) / points))] + training[-1:]
        lines = sorted(thinned + evaluation, key=lambda line: line["step"])
        kept += dict.fromkeys(json.dumps({"run": name} | line) + "\n" for line in lines)
    target.mkdir(parents=True, exist_ok=True)
    (target / "results.csv").write_bytes((source / "results.csv").read_bytes())
    (target / ARCHIVE).write_bytes(gzip.compress("".join(kept).encode(), mtime=0))  # the same bytes every time
    print(f"{target / 'results.csv'}: {len(rows)} runs\n{target / ARCHIVE}: {len(kept)} lines of their logs")


def run(args=None):
    parser = Parser(description=__doc__)
    parser.add_argument("study", help="folder of a study that is trained, such as runs/demo")
    parser.add_argument("target", help="folder to keep its results.csv and thinned logs in, such as results/demo")
    args = parser.parse_args(args)
    keep(args.study, args.target)


if __name__ == "__main__":
    main(run)
