"""`python script.py [file.py ...] [--key=value ...]` -> one flat dataclass, checked.

    config = load(Config, sys.argv[1:])      # files in their order, then flags: later values win, flags always

A config file is Python that assigns the fields' names (`lr = 1e-3`); it is run, so read it before you use it. Names
with a leading underscore, modules and functions are its own. Files are looked for in the working directory, then beside
this one. A mistake is a ValueError of one line: the option, where it stood, what was given, what would do.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import os
import runpy
import sys
import traceback
import types
import typing
from pathlib import Path

HERE = Path(__file__).resolve().parent
ALIASES = {  # what others call it, to say what it is called here
    "learning_rate": "lr",
    "max_lr": "lr",
    "block_size": "seq_len",
    "batch_size": "global_batch_size",
    "max_iters": "total_steps",
    "iterations": "total_steps",
    "wd": "weight_decay",
}


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
            raise ValueError(f"{arg}: write a value behind it, as in {arg}=VALUE")
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
        raise ValueError(
            f"{path}: no such config file; expected a .py file, such as configs/tiny.py, and --key=value flags"
        )
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))  # for `from configs.base import *`
    try:
        namespace = runpy.run_path(str(found))
        tree = ast.parse(found.read_text())
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
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
        raise ValueError(
            f"{where}: no such option; " + (f"did you mean {near[0]}?" if near else "--help lists them all")
        )
    try:
        return convert(hints[name], value, text)
    except (ValueError, OverflowError):
        raise ValueError(f"{where}={value!r}: expected {describe(hints[name])}") from None


def convert(kind, value, text):
    """Return `value` as an int, float, bool, str, Literal, tuple[kind, ...] or `kind | None`, or raise ValueError."""
    args = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None or text and value.lower() == "none":
            return None
        return convert(next(a for a in args if a is not type(None)), value, text)
    if typing.get_origin(kind) is typing.Literal:
        if value not in args:
            raise ValueError
        return value
    if typing.get_origin(kind) is tuple:
        items = [v for v in value.split(",") if v] if text else value if isinstance(value, (tuple, list)) else [value]
        return tuple(convert(args[0], item, text) for item in items)
    if kind is bool and text:
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if kind in (int, float) and text:
        value = float(value) if not value.lstrip("+-").replace("_", "").isdigit() else int(value)
    if kind is float and type(value) is int or kind is int and type(value) is float and value.is_integer():
        value = kind(value)  # 1 for a float, 1e4 for an int
    if type(value) is not kind:
        raise ValueError
    return value


def describe(kind):
    """Say what a type takes, for messages and --help."""
    args = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if typing.get_origin(kind) is tuple:
        return f"{describe(args[0])}s with commas between"
    if args:
        return " or ".join("none" if a is type(None) else describe(a) for a in args)
    return {int: "whole number", float: "number", bool: "True or False", str: "text"}[kind]


def check_ranges(config, ranges):
    """Hold options against {"name name ...": (lowest, highest)}, both allowed."""
    for names, (low, high) in ranges.items():
        for name in names.split():
            if not low <= getattr(config, name) <= high:
                limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                raise ValueError(f"{name}={getattr(config, name)}: expected a number {limits}")


def main(run):
    """Call `run()`; end with one line on stderr and status 1 for a user's mistake, a full disk, or divergence.

    Only errors that this code raises are taken for that; others keep their traceback.
    """
    try:
        run()
    except BrokenPipeError:  # as in `... | head`; what is still in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, FloatingPointError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(frame.filename).resolve().parent == HERE and (frame.line or "").startswith("raise ")
        if not ours and not isinstance(error, OSError):
            raise
        rank = os.environ.get("RANK", "0")
        print("error: " if rank == "0" else f"rank {rank}: error: ", error, sep="", file=sys.stderr)
        sys.exit(1)


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
            out.append(" " * 35 + f"[{describe(hints[name])}]")
        elif comment:
            out.append(f"\n{comment.strip()}" if not code else comment)
    return "\n".join(out)
