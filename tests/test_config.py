"""Tests of config.py: files and flags onto a dataclass, and what is said of mistakes.

python -m pytest tests/test_config.py
"""

import ast
import dataclasses
import errno
import importlib
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from conftest import HERE

import scaling
import schedules
import train
from config import (
    Mistake,
    Parser,
    check_values,
    from_record,
    load,
    main,
    mistakes,
    names,
    number,
    option,
    to_record,
    typed,
    whole,
)


@dataclasses.dataclass(frozen=True)
class Options:
    lr: float = 1e-3
    total_steps: int = 100
    compile: bool = True
    name: str = "run"
    schedule: str = option("wsd", "schedule", choices=("constant", "wsd"))
    cooldown_frac: float | None = 0.2
    stop_at: int | None = 50
    save_at: tuple[int, ...] = (7,)
    cycle_ends: tuple[int, ...] | None = (8,)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(name, text) makes a file in the working directory, which is a folder far from the code."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
        return name

    return write


def mistake(args):
    """The one line that `load` says of `args`."""
    with pytest.raises(ValueError) as caught:
        load(Options, args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CODE = "__import__('os').system('touch ran')"
FLAGS = [
    ("lr=1", 1.0), ("lr=5e-4", 5e-4), ("lr=1_000", 1000.0), ("total_steps=1e4", 10_000), ("total_steps=25_000", 25_000),
    ("total_steps=-3", -3), ("compile=False", False), ("compile=true", True), ("compile=0", False),
    ("compile=1", True), ("name=1e4", "1e4"), ("name=a=b", "a=b"), ("name=none", "none"), ("name=", ""),
    (f"name={CODE}", CODE), ("schedule=constant", "constant"), ("cooldown_frac=none", None), ("cooldown_frac=0", 0.0),
    ("stop_at=None", None), ("stop_at=3", 3), ("save_at=", ()), ("save_at=1", (1,)), ("save_at=1,2e3,3", (1, 2000, 3)),
    ("cycle_ends=none", None), ("cycle_ends=4,5", (4, 5)),
]  # fmt: skip
ASSIGNMENTS = [
    ("lr = 1", 1.0), ("total_steps = 1e4", 10_000), ("total_steps = 4 * 25", 100), ("compile = False", False),
    ("lr = np.float32(0.5)", 0.5), ("total_steps = np.int64(7)", 7),
    ("stop_at = None", None), ("save_at = [1, 2]", (1, 2)), ("save_at = 5", (5,)), ("cycle_ends = ()", ()),
]  # fmt: skip


@pytest.mark.parametrize("text, value", FLAGS)
def test_flag(text, value, write):
    check(load(Options, [f"--{text}"]), text.partition("=")[0], value)
    assert not Path("ran").exists()  # text of a flag is never run


@pytest.mark.parametrize("text, value", ASSIGNMENTS)
def test_assignment_in_a_file(text, value, write):
    check(load(Options, [write("x.py", "import numpy as np\n" + text)]), text.partition(" =")[0], value)


def check(got, name, value):
    assert got == dataclasses.replace(Options(), **{name: value}) and type(getattr(got, name)) is type(value)


def test_flags_win_over_files_and_later_over_earlier(write):
    args = [write("a.py", "lr = 2\nname = 'a'\nstop_at = 3"), write("b.py", "lr = 4\nname = 'b'"), "--lr=6", "--lr=7"]
    for order in itertools.permutations(args):
        last_file = max(order.index("a.py"), order.index("b.py"))
        last_flag = max(order.index("--lr=6"), order.index("--lr=7"))
        lr = float(order[last_flag][-1])
        assert load(Options, order) == Options(lr=lr, name=order[last_file][0], stop_at=3)
    assert load(Options, []) == Options()


def test_what_a_file_may_hold_besides_options(write):
    text = "import math, functools\nfrom math import sqrt\n_half = 0.5\ndef twice(x): return 2 * x\nclass A: pass\n"
    assert load(Options, [write("x.py", text + "lr = twice(sqrt(4)) * _half")]) == Options(lr=2.0)


def test_files_are_found_from_any_directory_and_build_on_others(write, monkeypatch):
    elsewhere = [p for p in sys.path if Path(p or ".").resolve() != HERE]
    monkeypatch.setattr(sys, "path", elsewhere)  # as if train.py were imported from another project
    for name in [n for n in sys.modules if n.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    tiny = load(train.Config, ["configs/tiny.py"])
    assert tiny.name == "tiny" and tiny.n_embd == 128
    mine = write("mine.py", "from configs.tiny import *\nlr = lr / 2\nn_layer *= 2")
    assert load(train.Config, [mine]) == dataclasses.replace(tiny, lr=tiny.lr / 2, n_layer=2 * tiny.n_layer)
    write("configs/tiny.py", "lr = 9")  # the working directory comes first
    assert load(train.Config, ["configs/tiny.py"]) == train.Config(lr=9.0)


@pytest.mark.parametrize("model", scaling.PAPER_MODELS, ids=lambda model: model.name)
def test_the_papers_configs_are_those_of_its_table(model):
    """Each config is the longest run at a constant LR; configs/README.md has its row of paper_models.csv."""
    config = load(train.Config, [f"configs/{model.name.lower()}.py"])
    assert train.Shape.of(config, scaling.PAPER_VOCAB) == model.shape and config.name == model.name.lower()
    assert (config.schedule, config.total_steps) == ("constant", model.steps_as_run[-1])
    assert (config.lr, config.global_batch_size) == (model.lr_cosine / 2, model.global_batch_size)
    starts = [steps - steps // 5 for steps in model.steps_as_run]  # of cooldowns over the last 20%
    cells = [scaling.num_params(model.shape), model.shape.n_layer, model.shape.n_head, model.shape.n_embd]
    cells = [f"`{config.name}.py`", *(f"{cell:,}" for cell in cells)]
    cells += [", ".join(f"{steps:,}" for steps in lengths) for lengths in (model.steps_as_run, starts)]
    cells += [f"{1000 * model.lr_cosine:g}e-3"]
    assert f"| {' | '.join(cells)} |\n" in (HERE / "configs/README.md").read_text()


@pytest.mark.parametrize(
    "flag, parts",
    [
        ("--total_step=5", ["--total_step:", "total_steps"]),
        ("--qqqq=5", ["--qqqq:", "no such option", "--help"]),
        ("--=5", ["no such option"]),
        ("--lr=fast", ["--lr='fast'", "number"]),
        ("--lr=", ["--lr=''", "number"]),
        ("--total_steps=1.5", ["--total_steps='1.5'", "whole number"]),
        ("--total_steps=inf", ["--total_steps='inf'", "whole number"]),
        ("--total_steps=none", ["--total_steps='none'", "whole number"]),
        ("--compile=maybe", ["--compile='maybe'", "True or False"]),
        ("--schedule=wds", ["--schedule='wds'", "one of constant, wsd"]),
        ("--stop_at=soon", ["--stop_at='soon'", "whole number or none"]),
        ("--save_at=1,x", ["--save_at='1,x'", "whole number, several with commas between"]),
        (f"--lr={CODE}", ["--lr=", CODE, "number"]),
        ("--lr", ["--lr", "--lr=VALUE"]),
        ("lr=1", ["lr=1: no such config file", "--key=value"]),
        ("no/such.py", ["no/such.py: no such config file", ".py"]),
    ],
)
def test_mistake_in_a_flag(flag, parts, write):
    said = mistake([flag])
    assert [part for part in parts if part not in said] == []
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "text, parts",
    [
        ("name = 'a'\ntotal_step = 5", ["x.py:2: total_step:", "total_steps"]),
        ("\n\nlr = 'fast'", ["x.py:3: lr='fast'", "number"]),
        ("lr = '1'", ["x.py:1: lr='1'", "number"]),  # in Python a text is no number
        ("lr = True", ["x.py:1: lr=True", "number"]),
        ("total_steps = True", ["x.py:1: total_steps=True", "whole number"]),
        ("total_steps = 1.5", ["x.py:1: total_steps=1.5", "whole number"]),
        ("compile = 1", ["x.py:1: compile=1", "True or False"]),
        ("name = None", ["x.py:1: name=None", "text"]),
        ("schedule = 'wds'", ["x.py:1: schedule='wds'", "one of constant, wsd"]),
        ("save_at = (1, 'b')", ["x.py:1: save_at=(1, 'b')", "whole number, several with commas between"]),
        ("save_at = '1,2'", ["x.py:1: save_at='1,2'"]),
        ("lr = 'fast'\ndef f():\n    lr = 1", ["x.py:1: lr='fast'"]),  # the line of the option, not of a local
        ("from half_base import *", ["x.py: lr='fast'", "number"]),
        ("lr = = 1", ["x.py:", "SyntaxError", "line 1"]),
        ("lr = 1 / 0", ["x.py:", "ZeroDivisionError"]),
        ("raise RuntimeError('two\\nlines')", ["x.py:", "RuntimeError", "two"]),
    ],
)
def test_mistake_in_a_file(text, parts, write, monkeypatch, tmp_path):
    write("half_base.py", "lr = 'fast'")
    monkeypatch.syspath_prepend(tmp_path)
    said = mistake([write("x.py", text), "--lr=1"])  # a flag does not hide it
    assert [part for part in parts if part not in said] == []


def test_a_file_of_another_kind_is_refused(write):
    assert "x.json: no such config file" in mistake([write("x.json", "{}")])


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Options with kinds and bounds."""

    width: int = option(4, "model", least=1)
    lr: float = option(1.0, "result", above=0, most=2.0)
    rule: str = option("a", "model", choices=("a", "b"))
    steps: tuple[int, ...] = option((), "free", least=1)
    stop_at: int | None = option(None, "free", least=1)


def test_bounds_and_choices():
    for good in (Bounded(), Bounded(lr=2.0), Bounded(steps=(1, 9)), Bounded(stop_at=10**9), Bounded(rule="b")):
        assert check_values(good) is None
    for name, value, limits in (
        ("stop_at", 0, "whole number at least 1 or none"), ("lr", 0.0, "number above 0 and at most 2.0"),
        ("lr", 2.1, "at most 2.0"), ("lr", math.nan, "number"), ("steps", (3, 0), "at least 1"),
        ("rule", "c", "one of a, b"),
    ):  # fmt: skip
        with pytest.raises(Mistake, match=f"^{name}={re.escape(repr(value))}: .*{limits}"):
            check_values(dataclasses.replace(Bounded(), **{name: value}))
    with pytest.raises(Mistake, match="^--lr='3': expected number above 0 and at most 2.0"):
        load(Bounded, ["--lr=3"])


def test_kinds_name_their_options():
    assert names(Bounded, "model") == ["width", "rule"] and names(Bounded, "free", "result") == [
        "lr",
        "steps",
        "stop_at",
    ]
    kinds = {field.metadata["kind"] for field in dataclasses.fields(train.Config)}
    assert kinds == {"model", "run", "schedule", "mix", "average", "result", "free"}


def test_records_of_other_versions(capsys):
    config = Bounded(lr=0.5, rule="b", steps=(3,))
    record = to_record(config)
    assert record["not_default"] == ["lr", "rule"]  # steps are free
    assert Bounded(**from_record(Bounded, json.loads(json.dumps(record)), "x")) == config
    del record["rule"]  # an option that was added since
    assert from_record(Bounded, record, "x")["rule"] == "a"
    gone = record | {"twist": 2}  # one that was taken out since, at its default then
    assert from_record(Bounded, gone, "x.pt") == from_record(Bounded, record, "x") and "twist" not in record
    assert "x.pt: twist=2 is no option here" in capsys.readouterr().err
    with pytest.raises(Mistake, match="x.pt was made with twist=2, an option that this code does not have"):
        from_record(Bounded, gone | {"not_default": ["twist"]}, "x.pt")


def test_help_shows_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        load(train.Config, ["no/such.py", "--lr=fast", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert not end.value.code
    source = Path(train.__file__).read_text().splitlines()
    (tree,) = [n for n in ast.parse("\n".join(source)).body if isinstance(n, ast.ClassDef) and n.name == "Config"]
    rows = {node.target.id: node for node in tree.body if isinstance(node, ast.AnnAssign)}
    assert list(rows) == [field.name for field in dataclasses.fields(train.Config)]
    for field in dataclasses.fields(train.Config):
        default = "" if field.default == () else field.default
        shown = [
            i for i, line in enumerate(lines) if re.match(rf"  --{field.name}={re.escape(str(default))}( |$)", line)
        ]
        assert len(shown) == 1, field.name
        _, _, comment = source[rows[field.name].end_lineno - 1].partition("  # ")
        assert comment and lines[shown[0]].endswith(f" {comment}")
        assert re.fullmatch(r"\s+\[.+\]", lines[shown[0] + 1])
    types = {line.strip() for line in lines}
    choices = ", ".join(schedules.SCHEDULES)
    assert {"[whole number at least 1]", "[number or none]", "[True or False]", f"[one of {choices}]"} <= types


@pytest.mark.parametrize(
    "kind, good, value",
    [
        (whole(least=0), "1e3", 1000), (whole(least=0), "0", 0), (whole(), "-5", -5), (number(above=0), "2", 2.0),
        (number(least=0, most=1), "1", 1.0), (typed(tuple[float, ...], above=0), "1,2e1", (1.0, 20.0)),
    ],
)  # fmt: skip
def test_numbers_of_flags(kind, good, value):
    parser = Parser()
    parser.add_argument("--n", type=kind)
    (read,) = vars(parser.parse_args([f"--n={good}"])).values()
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "kind, bad, words",
    [
        *((whole(least=0), text, "whole number at least 0") for text in ("-5", "1.5", "nan", "inf", "", "x", "1e400")),
        *((number(above=0), text, "number above 0") for text in ("0", "-1", "nan", "inf", "1,2", "none", "")),
        *(
            (typed(tuple[float, ...], above=0), text, "several with commas")
            for text in ("", ",", "1,nan", "1,-1", "1;2")
        ),
    ],
)
def test_numbers_of_flags_are_refused_as_those_of_options_are(kind, bad, words, capsys):
    parser = Parser()
    parser.add_subparsers().add_parser("x").add_argument("--n", type=kind)
    with pytest.raises(Mistake, match=f"^--n={re.escape(repr(bad))}: expected .*{words}"):
        parser.parse_args(["x", f"--n={bad}"])


def fail(error):
    raise error


@pytest.mark.parametrize("kind", [Mistake, OSError, FloatingPointError])
def test_main_says_our_errors_in_one_line(kind, capsys, monkeypatch):
    for rank, said in (("0", "error: lr=2: too large\n"), ("1", "rank 1: error: lr=2: too large\n")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end:
            main(lambda: fail(kind("lr=2: too\nlarge")))
        assert end.value.code == 1 and capsys.readouterr().err == said


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(lambda: fail(KeyboardInterrupt()))
    assert end.value.code == 130 and capsys.readouterr().err == "stopped\n"


def test_the_machines_faults_are_told_in_one_line(capsys):
    with pytest.raises(SystemExit):
        main(lambda: fail(OSError(errno.ENOSPC, "No space left on device", "x.pt")))
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'x.pt'\n"


def test_files_that_others_copy_raise_value_errors():
    with pytest.raises(Mistake, match="^total_steps=0: "), mistakes():
        schedules.cosine(0)


@pytest.mark.parametrize(
    "bug, kind",
    [
        (lambda: int("x"), ValueError),
        (lambda: Fraction("x"), ValueError),
        (lambda: fail(ValueError("x")), ValueError),
        (lambda: torch.optim.SGD([torch.zeros(1)], lr=-1), ValueError),
        (lambda: fail(KeyError("x")), KeyError),
        (lambda: open("/no/such/file"), FileNotFoundError),  # nobody looked whether it is there
    ],
)
def test_main_leaves_the_traceback_of_other_errors(bug, kind, capsys):
    with pytest.raises(kind):
        main(bug)
    assert capsys.readouterr().err == ""


def test_main_leaves_other_ends_alone():
    assert main(lambda: None) is None
    with pytest.raises(SystemExit) as end:
        main(lambda: sys.exit(143))
    assert end.value.code == 143


# ----------------------------------------------------------------------------------------------------------------------
# Terminals, locales, python -OO

ALL_COMMANDS = """
import os, runpy, sys
for command in {commands}:
    sys.argv = command = [os.fsdecode(word) for word in command]
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:  # no assert: this runs without them
            sys.exit(f"{{command}} ended with {{end.code}}")
    print("ended", *command)
"""


def test_a_terminal_that_cannot_show_a_character_stops_nothing(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    main(lambda: print("├─ 1.0 ± 0.1 \udcc3"))  # the last stands for a byte of a file's name that is no UTF-8
    out.flush()
    assert out.buffer.getvalue() == b"?? 1.0 ? 0.1 ?\n"


def test_all_commands_work_under_oo_and_in_a_plain_locale(tmp_path):
    (tmp_path / "würfel.py").write_text("# ±\nlr = 1e-3\n", encoding="utf-8")
    names = "train evaluate study plot tables scaling bench prepare_data laws export".split()
    commands = [[name, "--help"] for name in names]
    commands += [["laws", "asymptote", "--help"], ["scaling", "plan", "--flops=1e26"]]
    commands += [["study", str(tmp_path / "würfel.py"), "--print"]]
    names = [name for name in os.environ if name.startswith(("LC_", "PYTHON")) or name == "LANG"]
    plain = {name: value for name, value in os.environ.items() if name not in names}
    plain |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    code = ALL_COMMANDS.format(commands=[[os.fsencode(word) for word in command] for command in commands])
    done = subprocess.run([sys.executable, "-OO", "-c", code], cwd=HERE, env=plain, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("ended") == len(commands), done.stderr
