"""`python script.py [file.py ...] [--key=value ...]` -> one flat dataclass, checked; and what all commands share.

    @dataclasses.dataclass(frozen=True)
    class Config:
        lr: float = option(5e-4, "result", above=0)  # peak

    config = load(Config, sys.argv[1:])      # files in their order, then flags: later values win, flags always
    main(lambda: train(config))              # ends with one line for a `Mistake`, with a traceback for a bug

A config file is Python that assigns the fields' names (`lr = 1e-3`); it is run, so read it before you use it. Names
with a leading underscore, modules and functions are its own. Files are looked for in the working directory, then beside
this one. A mistake is a `Mistake` of one line: the option, where it stood, what was given, what would do.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import errno
import functools
import inspect
import math
import os
import runpy
import sys
import types
import typing
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
MACHINE = "ENOSPC EDQUOT EACCES EPERM EROFS EIO ENOLCK EFBIG EMFILE ENFILE ENOMEM ENAMETOOLONG ESTALE".split()
MACHINE = {getattr(errno, name, None) for name in MACHINE} - {None}  # its faults: a full disk, a missing right, ...
ALIASES = {  # what others call it, to say what it is called here
    "learning_rate": "lr",
    "max_lr": "lr",
    "block_size": "seq_len",
    "batch_size": "global_batch_size",
    "max_iters": "total_steps",
    "iterations": "total_steps",
    "wd": "weight_decay",
}


class Mistake(ValueError):
    """A mistake of the user, found by a check: its text is one line that says what was given and what would do."""


@contextlib.contextmanager
def mistakes(where=None):
    """Take a ValueError for a Mistake, of the file `where`: around files that others copy, which know no Mistake."""
    try:
        yield
    except ValueError as error:
        raise Mistake(f"{where}: {error}" if where else str(error)) from error


# ----------------------------------------------------------------------------------------------------------------------
# Options


def option(default, kind, least=-math.inf, most=math.inf, above=-math.inf, below=math.inf, choices=()):
    """A field of a dataclass of options: its default, its kind (a word; see `names`) and the values that it takes.

    Bounds hold for a number and for each number of a tuple; None is within any bounds. `choices`, if there are any, are
    all the values that it takes.
    """
    limits = {"least": least, "most": most, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata={"kind": kind} | limits)


def names(cls, *kinds):
    """The options of these kinds, in their order."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata["kind"] in kinds]


def to_record(config):
    """{option: value} to write down, and under "not_default" the names of those that make this run what it is."""
    changed = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]
    return dataclasses.asdict(config) | {"not_default": sorted({*changed} - {*names(config, "free")})}


def from_record(cls, record, where, warn=True):
    """{option: value} of every option of `cls`, from a record: an option that it does not have yet has its default.

    An option of the record that `cls` does not have is named on stderr. Mistake if it was not at its default then.
    """
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    for name in record.keys() - fields.keys() - {"not_default"}:
        if name in record.get("not_default", ()):
            raise Mistake(f"{where} was made with {name}={record[name]!r}, an option that this code does not have")
        if warn:
            print(f"{where}: {name}={record[name]!r} is no option here; it was at its default", file=sys.stderr)
    found = {name: record.get(name, default) for name, default in fields.items()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def check_values(config):
    """Raise Mistake unless every option lies within its bounds and choices."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not allowed(value, field.metadata):
            raise Mistake(f"{field.name}={value!r}: expected {in_words(hints[field.name], field.metadata)}")


def allowed(value, limits):
    """Whether a value, or each of a tuple, is one of the choices or a finite number within the bounds."""
    if limits.get("choices"):
        return value is None or value in limits["choices"]  # the type says whether it may be none
    numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if type(x) in (int, float)]
    if not limits or not numbers:
        return True
    low, high = min(numbers), max(numbers)
    finite = all(map(math.isfinite, numbers))
    return (
        finite
        and low >= limits["least"]
        and low > limits["above"]
        and high <= limits["most"]
        and high < limits["below"]
    )


# ----------------------------------------------------------------------------------------------------------------------
# Files and flags


def load(cls, args):
    """Make a `cls` from its defaults, config files and --key=value flags; --help prints every option and exits."""
    if "--help" in args or "-h" in args:
        print(help_text(cls))
        sys.exit(0)
    values = {}
    for path in (a for a in args if not a.startswith("--")):
        values |= read_file(cls, path)
    for arg in (a for a in args if a.startswith("--")):
        name, equals, value = arg[2:].partition("=")
        if not equals:
            raise Mistake(f"{arg}: write a value behind it, as in {arg}=VALUE")
        values[name] = parse(cls, name, value, where=f"--{name}", text=True)
    return cls(**values)


def read_file(cls, path):
    """Run a config file: {field: checked value}."""
    values, lines = run_file(path)
    return {
        name: parse(cls, name, value, f"{path}:{lines[name]}: {name}" if name in lines else f"{path}: {name}")
        for name, value in values.items()
    }


def run_file(path):
    """Run a config file: ({name: value}, {name: line it was assigned on})."""
    found = next((p for p in (Path(path), HERE / path) if p.is_file()), None)
    if found is None or found.suffix != ".py":
        raise Mistake(
            f"{path}: no such config file; expected a .py file, such as configs/tiny.py, and --key=value flags"
        )
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))  # for `from configs.tiny import *`
    try:
        namespace = runpy.run_path(str(found))
        tree = ast.parse(found.read_bytes())  # in UTF-8 or as it says, whatever the locale
    except Exception as error:
        raise Mistake(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    lines = {}
    for statement in tree.body:
        if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):  # the names in there are not options
            stored = (n for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            lines |= {n.id: n.lineno for n in stored}
    own = {k for k, v in namespace.items() if k[0] == "_" or callable(v) or isinstance(v, types.ModuleType)}
    return {k: v for k, v in namespace.items() if k not in own}, lines


def parse(cls, name, value, where, text=False):
    """Check one value against the field's type, from text (a flag) or Python (a file), and return it as that type."""
    hints = typing.get_type_hints(cls)
    if name not in hints:
        known = {n: n for n in hints} | {alias: n for alias, n in ALIASES.items() if n in hints}
        near = [known[n] for n in difflib.get_close_matches(name, known, n=1, cutoff=0.5)]
        raise Mistake(f"{where}: no such option; " + (f"did you mean {near[0]}?" if near else "--help lists them all"))
    (limits,) = [field.metadata for field in dataclasses.fields(cls) if field.name == name]
    try:
        converted = convert(hints[name], value, text)
        if not allowed(converted, limits):
            raise ValueError
    except (ValueError, OverflowError):
        raise Mistake(f"{where}={value!r}: expected {in_words(hints[name], limits)}") from None
    return converted


def convert(kind, value, text):
    """Return `value` as an int, float, bool, str, tuple[kind, ...] or `kind | None`, or raise ValueError."""
    args = typing.get_args(kind)
    if types.NoneType in args:
        is_none = value is None or (text and value.lower() == "none")
        return None if is_none else convert(args[0], value, text)
    if typing.get_origin(kind) is tuple:
        if text:
            value = [item for item in value.split(",") if item]
        items = value if isinstance(value, (tuple, list)) else [value]
        return tuple(convert(args[0], item, text) for item in items)
    if text and kind is bool:
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if text and kind in (int, float):
        is_whole = value.lstrip("+-").replace("_", "").isdigit()
        value = int(value) if is_whole else float(value)
    if isinstance(value, np.generic):
        value = value.item()
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)  # 1e4
    if type(value) is not kind:
        raise ValueError
    return value


def in_words(kind, limits):
    """Say what an option takes, for messages and --help."""
    args = typing.get_args(kind)
    if types.NoneType in args:
        return f"{in_words(args[0], limits)} or none"
    if limits.get("choices"):
        return "one of " + ", ".join(limits["choices"])
    if typing.get_origin(kind) is tuple:
        return f"{in_words(args[0], limits)}, several with commas between"
    words = {int: "whole number", float: "number", bool: "True or False", str: "text"}[kind]
    bounds = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
    given = [f"{word} {limits[name]}" for name, word in bounds.items() if math.isfinite(limits.get(name, math.inf))]
    return " ".join([words, " and ".join(given)]).strip()


def help_text(cls):
    """Every option with its default, type and the comments beside it in the source of `cls`."""
    out = [(inspect.getdoc(sys.modules["__main__"]) or "").strip(), "\nOptions, in a config file or as --key=value:"]
    fields, hints = {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    for line in map(str.strip, inspect.getsource(cls).splitlines()):
        code, _, comment = line.partition("#")
        name = code.partition(":")[0].strip()
        if name in fields:
            default = fields[name].default
            out.append(f"  --{name}={'' if default == () else default}".ljust(34) + f" {comment.strip()}")
            out.append(" " * 35 + f"[{in_words(hints[name], fields[name].metadata)}]")
        elif comment:
            out.append(f"\n{comment.strip()}" if not code else comment)
    return "\n".join(out)


# ----------------------------------------------------------------------------------------------------------------------
# Commands


def typed(kind, **bounds):
    """The type of an argparse flag: int, float or a tuple[float, ...] with commas between, within bounds of `option`.

    So a flag takes and refuses what an option of this kind does: 1e3 is a whole number, and no number is nan or inf.
    """
    limits = option(None, "flag", **bounds).metadata

    def read(text):
        with contextlib.suppress(ValueError, OverflowError):
            value = convert(kind, text, text=True)
            if value != () and allowed(value, limits):
                return value
        raise argparse.ArgumentTypeError(f"={text!r}: expected {in_words(kind, limits)}")

    return read


whole, number = functools.partial(typed, int), functools.partial(typed, float)  # whole(least=0), number(above=0)


def token_count(text):
    """Read a number of tokens: 250000, 1e8, 100M, 1.5B."""
    exponent = {"K": "e3", "M": "e6", "B": "e9"}.get(text[-1:].upper())
    return whole(least=1)(text[:-1] + exponent if exponent else text)


class Parser(argparse.ArgumentParser):
    """An argument parser whose description is shown as it is written, and whose errors are Mistakes as of `load`."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message):
        raise Mistake(message.removeprefix("argument ").replace(": =", "=", 1))  # argument --lr: ='x': expected ...


def main(run, mistake=Mistake):
    """Call `run()`; end with one line on stderr and status 1 for a mistake, a fault of the machine, or divergence.

    All else is a bug, and keeps its traceback. An OSError is the machine's by its number, and our own if it has none.
    `mistake` is the class of mistakes, or a tuple of classes.
    """
    kinds = mistake if isinstance(mistake, tuple) else (mistake,)
    if hasattr(sys.stdout, "reconfigure"):  # what a terminal cannot show is a "?" there, as stderr does it by itself
        sys.stdout.reconfigure(errors="replace")
    try:
        run()
    except BrokenPipeError:  # as in `... | head`; what is still in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except (*kinds, OSError, FloatingPointError) as error:
        if isinstance(error, OSError) and error.errno not in (None, *MACHINE):
            raise
        rank = os.environ.get("RANK", "0")
        text = " ".join(str(error).split())  # one line, whatever a library says
        print("error: " if rank == "0" else f"rank {rank}: error: ", text, sep="", file=sys.stderr)
        sys.exit(1)
