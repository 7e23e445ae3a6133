"""Tables, logs and laws in files -> what the laws take. The folder's only tie to the rest of the project."""

import json
import math
import re

import numpy as np

from tables import find_log, read_lines, read_rows, refuse_twice

from .curves import Curve, check_curve, check_lrs
from .final import LAWS
from .fitting import Fit, Mistake, to_theta

MAX_STEPS = 10**7  # of a curve: its learning rates are held for every step


# ----------------------------------------------------------------------------------------------------------------------
# Rows


def is_log(path):
    """Whether a path is read as JSON lines, as a run's log is: .jsonl, .jsonl.gz, or a run's folder."""
    file, _ = find_log(path)
    return file.name.endswith((".jsonl", ".jsonl.gz"))


def text_in(row, column, where):
    if column not in row:
        raise Mistake(f"{where}: no column {column!r}; there are {', '.join(map(str, row))}")
    return row[column]


def label_in(row, columns, where):
    return "/".join(str(text_in(row, column, where)) for column in columns.split(","))


def number_in(row, column, where, positive=False):
    """The number in a column, or in a product and quotient of columns and numbers such as batch*steps/2."""
    parts = [column] if column in row else re.split(r"([*/])", column)
    value = 1.0
    for operator, part in zip(["*", *parts[1::2]], parts[::2], strict=True):
        literal = re.fullmatch(r"[\d.]+(e[+-]?\d+)?", part)
        text = part if literal and part not in row else text_in(row, part, where)
        try:
            value = value * float(text) if operator == "*" else value / float(text)
        except (TypeError, ValueError, ZeroDivisionError):
            raise Mistake(f"{where}: {part} is {text!r}; it must be a number such as 1234.5") from None
    if positive and not 0 < value < math.inf:  # nan, too
        raise Mistake(f"{where}: {column} is {value:g}; it must be positive and finite")
    return value


def meets(row, condition, where):
    """Whether a row meets column=value (the same text or number), column!=value, column<value or column>value.

    What is not a number is neither smaller nor larger.
    """
    match = re.fullmatch(r"([^=!<>]+)(=|!=|<|>)([^=!<>]*)", condition)
    if not match:
        raise Mistake(f"--where={condition} must be column=value, column!=value, column<value or column>value")
    column, operator, value = match.groups()
    cell = text_in(row, column, where)
    try:
        x, y = float(cell), float(value)
    except (TypeError, ValueError):
        x, y = str(cell), value
        if operator in "<>":
            return False
    return {"=": x == y, "!=": x != y, "<": x < y, ">": x > y}[operator]


def read_points(paths, columns, conditions=(), labels=()):
    """Read numbers and labels from the rows that meet all conditions -> ({name: array}, {label: array of text}).

    Of the columns or expressions of each name the first that is there counts. A label a,b joins two columns as a/b. Of
    a log only the lines with the loss count, after step 0: the evaluations of a run.
    """
    refuse_twice(paths)
    rows = [(is_log(path), where, row) for path in paths for where, row in read_rows(path)]
    there = {column for *_, row in rows for column in row}
    columns = {name: next((c for c in usual if c in there), usual[0]) for name, usual in columns.items()}
    loss = columns["loss"]
    rows = [(where, row) for log, where, row in rows if not log or (loss in row and row.get("step") != 0)]
    rows = [(where, row) for where, row in rows if all(meets(row, condition, where) for condition in conditions)]
    if not rows:
        raise Mistake(f"{', '.join(paths)}: no rows with {' and '.join([repr(loss), *conditions])}")
    points = {
        name: np.array([number_in(row, c, where, positive=True) for where, row in rows]) for name, c in columns.items()
    }
    return points, {label: np.array([label_in(row, label, where) for where, row in rows]) for label in labels}


# ----------------------------------------------------------------------------------------------------------------------
# Curves


def read_curve(path, loss=None, lr="lr", warmup_steps=None) -> Curve:
    """Read a loss curve, after its warmup, from a run's log or from a CSV with the columns step, lr and loss.

    A row may lack the loss or the learning rate. Between rows the learning rate is linear, but a change between two
    constant stretches is a jump at the later row; to be exact, add a row without a loss where it bends. `warmup_steps`:
    if rows begin later, the learning rate rose linearly from 0 over so many steps, then stayed.
    """
    if loss is None:
        loss = "val_loss" if is_log(path) else "loss"
    rows = read_rows(path)
    lrs, losses = filled_in(rows, lr, path), filled_in(rows, loss, path)
    dense = dense_lrs(lrs, max(*lrs, *losses), warmup_steps, path)
    known = sorted(lrs)
    for before, left, right, after in zip(known, known[1:], known[2:], known[3:], strict=False):
        if lrs[before] == lrs[left] != lrs[right] == lrs[after] and right - left <= left - before:
            dense[left:right] = lrs[left]
    steps = np.array(sorted(step for step in losses if step >= max(1, np.argmax(dense))), dtype=int)
    return check_curve(Curve(dense, steps, np.array([losses[step] for step in steps])), path)


def read_lrs(text, warmup_steps=None):
    """Learning rates of a planned run, for every step, from knots step:lr or from a file with step and lr."""
    known = {}
    for knot in text.split(",") if ":" in text else ():
        try:
            step, lr = map(float, knot.split(":"))
        except ValueError:
            raise Mistake(f"{text}: {knot!r} must be step:lr, as in 0:0,300:1e-3,9000:1e-3,10000:0") from None
        add_once(known, step, lr, text)
    known = known or filled_in(read_rows(text), "lr", text)
    return dense_lrs(known, max(known), warmup_steps, text)


def filled_in(rows, column, path):
    """{step: value} of the rows that hold a value in the column."""
    known = {}
    for where, row in rows:
        if row.get(column) not in (None, ""):
            add_once(known, number_in(row, "step", where), number_in(row, column, where), where)
    if not known:
        raise Mistake(f"{path} has no {column!r} in any row; a curve needs the columns step, lr and loss")
    return known


def add_once(known, step, value, where):
    """known[step] = value, if the step is whole and has no other value yet."""
    if not step.is_integer():  # nan, too
        raise Mistake(f"{where}: step is {step:g}; it must be a whole number")
    if step in known and known[step] != value:
        raise Mistake(f"{where}: step {step:g} stands twice, with {known[step]:g} and with {value:g}")
    known[int(step)] = value


def dense_lrs(known, last, warmup_steps, where):
    """Learning rates of steps 0 .. last from known ones {step: lr}, linear between them, 0 before the first update."""
    steps = sorted(known)
    values = check_lrs([known[step] for step in steps], where)
    if steps[0] < 0:
        raise Mistake(f"{where}: step {steps[0]} must not be negative")
    if last > MAX_STEPS:
        raise Mistake(f"{where}: {last:.3g} steps are more than {MAX_STEPS:.0e}; count larger steps")
    if warmup_steps is None and len(steps) > 1 and steps[0] > 2 * (steps[1] - steps[0]):
        raise Mistake(f"{where} begins at step {steps[0]}: give --warmup_steps, 0 if the learning rate was constant")
    if warmup_steps and not 0 < warmup_steps <= steps[0]:
        raise Mistake(f"{where}: warmup_steps={warmup_steps} must be from 0 to {steps[0]}, its first step")
    lrs = np.interp(np.arange(last + 1), steps, values)
    if warmup_steps:
        lrs[:warmup_steps] = np.linspace(0, values[0], warmup_steps)
    lrs[0] = 0
    return lrs


# ----------------------------------------------------------------------------------------------------------------------
# Fits


def to_json(x):
    """Plain data, with None for what is not finite."""
    text = json.dumps(x, default=lambda array: array.tolist())
    return json.loads(text, parse_constant=lambda constant: None)


def read_fit(path) -> Fit:
    """Read a Fit that --json wrote, or a published law: {"law": ..., "params": {...}}, which has no intervals."""
    text = "".join(read_lines(path))
    try:
        data = json.loads(text)
        fit = Fit(**{name: data[name] for name in Fit._fields if name in data})
        fit = fit._replace(ranges={name: (float(low), float(high)) for name, (low, high) in fit.ranges.items()})
        for params in (fit.params, *fit.draws):
            if not np.isfinite(to_theta(LAWS[fit.law], params)).all():
                raise ValueError(f"{params} must be finite")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        kind = type(error).__name__
        raise Mistake(f"{path} is not what `python -m laws LAW ... --json` writes ({kind}: {error})") from None
    return fit
