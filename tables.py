"""Tables of runs: results.csv of studies, and the logs of runs, as rows; rows as text.

    python tables.py runs/demo results/demo        # keeps a study's results.csv and its logs, thinned: small to commit

    rows = read_results(["runs/demo"], only=["schedule=wsd"])      # dicts; numbers where there are numbers
    training, evaluation, name = read_log("runs/demo/cosine")      # or "results/demo/cosine": the same, thinned

A column that is neither a result nor a seed is a setting, and rows that differ in one are different runs.
"""

import csv
import functools
import gzip
import inspect
import json
import math
import shutil
import sys
import zlib
from pathlib import Path

import schedules
from config import Mistake, Parser, main

ARCHIVE = "logs.jsonl.gz"  # in the folder of a study's results: the logs of all its runs, thinned
SHAPE = inspect.signature(schedules.wsd).parameters["cooldown_shape"].default  # of a cooldown whose config names none

# Columns of results.csv: text, results, seeds; all others are settings, and runs that differ in one are different runs
TEXT = ("name", "schedule", "cooldown_shape", "dataset")
AVERAGES = {"val_loss": "weights as they are", "val_loss_window": "window", "val_loss_ema": "EMA"}
RESULTS = ("flops", "flops_paid", "train_s", "train_s_paid", "train_loss", "window_steps", *AVERAGES)
SEEDS = ("seed", "data_seed")
ALWAYS = ("name", "schedule", "total_steps", "lr", "seed", "n_params", "tokens", *RESULTS[:4], "val_loss")


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_lines(path):
    """Lines of a text file, unpacked if its name ends in .gz; a byte-order mark goes."""
    unpacked = gzip.open if str(path).endswith(".gz") else open
    try:
        with unpacked(path, "rt", newline="", encoding="utf-8-sig") as f:
            lines = f.readlines()
    except (FileNotFoundError, NotADirectoryError):
        raise Mistake(f"{path}: no such file") from None
    except IsADirectoryError:
        raise Mistake(f"{path} is a folder, and not that of a run: give a CSV, a .jsonl or a run") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise Mistake(f"{path} is not a whole .gz file; copy it again") from None
    except UnicodeDecodeError:
        lines = ["\0"]
    if any("\0" in line for line in lines):  # as in UTF-16
        raise Mistake(f"{path} is not text in UTF-8; save it as UTF-8, or give a CSV or .jsonl")
    return lines


def read_rows(path):
    """Rows of a CSV (comma, semicolon or tab), or of JSON lines -> [(where, dict)], `where` for messages.

    path    .csv, .jsonl, the folder of a run, or that of a run whose log is kept in an archive: see `find_log`
    A last line of JSON that a crash cut off is passed over, and stderr says so. Mistake for what else is no row.
    """
    file, run = find_log(path) or (Path(path), None)
    if run is not None:
        return archived(file)[run]
    return json_rows(file) if file.name.endswith((".jsonl", ".jsonl.gz")) else csv_rows(file)


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
        if None in row:  # where DictReader puts what is too much
            raise Mistake(f"{where}: more cells than the header has; a comma in a number?")
        if any(row.values()):  # spreadsheets write empty rows
            if None in row.values():
                raise Mistake(f"{where}: fewer cells than the header has; is it whole?")
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
    return (archive, run) if run in archived(archive) else None


def read_log(path):
    """(training lines, evaluation lines, name) of a run's folder, its log.jsonl, or of a run in an archive."""
    found = find_log(path)
    if not found or ".jsonl" not in found[0].suffixes:
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
        file, run = find_log(path) or (Path(path), None)
        twin = (file.resolve(), run)
        if twin in known:
            raise Mistake(f"{known[twin]} and {path} are the same: give it once")
        known[twin] = path


def find_runs(paths):
    """The runs' folders: those given, and in place of a folder that is no run the runs in it, by name."""
    found = []
    for path in map(Path, paths):
        inside = [] if (path / "log.jsonl").exists() else sorted(log.parent for log in path.glob("*/log.jsonl"))
        kept = [path / run for run in archived(path / ARCHIVE)] if (path / ARCHIVE).is_file() else []
        found += inside or kept or [path]
    return found


def read_settings(path):
    """{option: value} of a run, from its config.json or its row in the results.csv of its study; {} without either."""
    path = Path(path)
    folder = path.parent if path.name == "log.jsonl" else path
    config = folder / "config.json"
    if config.is_file():
        text = "".join(read_lines(config))
        try:
            record = dict(json.loads(text))
        except (ValueError, TypeError):
            raise Mistake(f"{config} is not a JSON object; is it whole?") from None
        if record.get("schedule") == "wsd" and not record.get("cooldown_shape"):
            record["cooldown_shape"] = SHAPE
        told = dict.fromkeys(["schedule", "cooldown_shape", "total_steps", "lr", *record.get("not_default", ())])
        told.pop("init_from", None)  # the name of the run's folder says it better
        return {option: record[option] for option in told if isinstance(record.get(option), str | int | float)}
    study = next((p for p in folder.parents if (p / "results.csv").is_file()), None)
    found = [row for row in read_table(study, ()) if study / row["name"] == folder] if study else []
    return {column: found[0].get(column) for column in (*settings(found), *SEEDS)} if found else {}


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
    rows = read_rows(file)
    if not rows:
        raise Mistake(f"{file}: no run in it; let study.py finish one")
    missing = [c for c in (*ALWAYS, *columns) if c not in rows[0][1]]
    if missing:
        raise Mistake(f"{file}: no column {', '.join(missing)}; this needs what study.py writes")
    return [{c: read_cell(c, str(text), where) for c, text in row.items()} for where, row in rows]


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
# Rows


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
    source, target, kept = Path(source), Path(target), []
    if source.resolve() == target.resolve():
        raise Mistake(f"{source} and {target} are one folder: keep it in another")
    rows = read_table(source, ())
    for name in (row["name"] for row in rows):
        training, evaluation, _ = read_log(source / name)
        thinned = training[:: max(1, math.ceil(len(training) / points))] + training[-1:]
        lines = sorted(thinned + evaluation, key=lambda line: line["step"])
        kept += dict.fromkeys(json.dumps({"run": name} | line) + "\n" for line in lines)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "results.csv", target)
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
