"""Tests of tracking.py: a log that is always whole, one process to a folder, and wandb that cannot harm a run.

python -m pytest tests/test_tracking.py
"""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from conftest import HERE

import tracking
from config import Mistake
from tracking import RunFolder, caught_signals, check_folder, clock, lines_up_to

CONFIG = {"name": "x", "init_from": None, "wandb": "off", "lr": 1e-3, "save_at": (1, 2)}
SECRET = "c0ffee-not-to-be-found"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def start(tmp_path):
    """start(name, log_from, step) opens a run's folder; all are closed at the end."""
    opened = []

    def start(name="run", log_from="run", step=0, **options):
        folder = RunFolder(tmp_path / name, CONFIG | options, tmp_path / log_from / "log.jsonl", step)
        opened.append(folder)
        return folder

    yield start
    for folder in opened:
        if not folder.stream.closed:
            folder.close()


def test_folder_of_a_run(start, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "study", raising=False)  # as in a process that does not use it
    folder, run = start(), tmp_path / "run"
    folder.log({"step": 1, "train_loss": 2.5})
    assert lines_of(run / "log.jsonl") == [{"step": 1, "train_loss": 2.5}]  # readable while the run goes on
    assert json.loads((run / "config.json").read_text()) == CONFIG | {"save_at": [1, 2]}
    code = {p.name for p in (run / "code").iterdir()}
    assert code >= {"tracking.py", "sealed.py", "config.py"} and "study.py" not in code  # what is used, no more
    assert (run / "code" / "tracking.py").read_bytes() == (HERE / "tracking.py").read_bytes()
    folder.finish({"val_loss": 2.0})
    assert json.loads((run / "result.json").read_text()) == {"val_loss": 2.0}
    folder.close()
    start(step=1)
    assert not (run / "result.json").exists()  # it goes on: it has no result yet
    assert {p.name for p in run.iterdir()} == {"config.json", "log.jsonl", "code"}  # nothing left behind


def test_numbers_that_are_not_finite_are_null(start, tmp_path):
    start().log({"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0})
    (line,) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None, "c": None, "d": 0.0}


def test_lines_for_people(start, capsys):
    folder = start()
    folder.log(
        {"step": 1, "tokens": 9, "train_loss": 2.5, "lr": 1e-3, "grad_norm": 0.126, "tokens_per_s": 1234.6}, 3725
    )
    folder.log({"step": 20, "val_loss": 3.14159})
    folder.log({"step": 20, "val_loss": 3.2, "val_loss_window": 3.1, "window_steps": 500, "val_loss_ema": 3.0})
    folder.log({"step": 20, "val_loss": 3.2, "val_loss/my_texts": 3.3, "val_loss_ema_2/my_texts": 3.1})
    folder.log({"step": 3, "train_loss": math.nan, "mfu": 0.4567, "skipped": 2})
    assert capsys.readouterr().out.splitlines() == [
        "step      1  loss 2.5000  lr 1.00e-03  norm 0.13  1,235 tokens/s  1:02:05 left",
        "step     20  val loss 3.1416",
        "step     20  val loss 3.2000  window 3.1000  over 500 steps  ema 3.0000",
        "step     20  val loss 3.2000  val loss/my_texts 3.3000  ema 2/my_texts 3.1000",
        "step      3  loss nan  mfu 45.7%  SKIPPED, as the gradient is not finite",
    ]
    assert [clock(s) for s in (0, 59.9, 60, 3600, 90_061)] == ["0:00:00", "0:00:59", "0:01:00", "1:00:00", "25:01:01"]


def test_log_is_cut_to_the_step_a_run_starts_from(start, tmp_path):
    folder = start()
    entries = [{"step": step, "train_loss": step / 2} for step in range(10, 60, 10)] + [{"step": 50, "val_loss": 1.0}]
    for entry in entries:
        folder.log(entry)
    folder.close()
    with open(tmp_path / "run" / "log.jsonl", "a") as f:
        f.write('{"step": 60, "train_l')  # cut off by a kill
    assert [json.loads(line) for line in lines_up_to(tmp_path / "run" / "log.jsonl", 100)] == entries
    assert lines_up_to(tmp_path / "none.jsonl", 100) == []

    branch = start("branch", step=30)
    branch.log({"step": 31})
    assert lines_of(tmp_path / "branch" / "log.jsonl") == [*entries[:3], {"step": 31}]
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 7  # the ancestor's is as it was
    resumed = start(step=50)
    resumed.log({"step": 60, "train_loss": 30.0})
    assert lines_of(tmp_path / "run" / "log.jsonl") == [*entries, {"step": 60, "train_loss": 30.0}]
    resumed.log({"step": 0, "val_loss": 9.0})
    resumed.close()
    start(step=0)  # from new weights, which are evaluated again
    assert lines_of(tmp_path / "run" / "log.jsonl") == []


def test_a_run_stays_in_its_out_dir(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("a", "a/b", "link/a", "x..y"):  # a link may lead to another disk
        check_folder(str(tmp_path / "runs"), name)
        check_folder(str(tmp_path / "no" / "such"), "a")
    for name in ("", ".", "..", "../a", "../../a", "a/../..", "/tmp/a", str(tmp_path)):
        with pytest.raises(ValueError, match="^name=.*within out_dir"):
            check_folder(str(tmp_path / "runs"), name)
    (tmp_path / "read_only").mkdir(mode=0o555)
    for place in ("file", "file/runs", "read_only", "read_only/runs"):
        with pytest.raises(ValueError, match="^out_dir=.*cannot write to .*--out_dir"):
            check_folder(str(tmp_path / place), "a")
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "file", "read_only"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_caught(number, monkeypatch):
    before, kill, ended = signal.getsignal(number), os.kill, []
    with caught_signals() as received:
        kill(os.getpid(), number)
        kill(os.getpid(), number)  # at once again: the scheduler's and torchrun's
        assert received == [number, number] and signal.getsignal(number) not in (before, signal.SIG_DFL)
        monkeypatch.setattr(tracking, "REPEAT_S", -1.0)
        monkeypatch.setattr(os, "kill", lambda *args: ended.append(args))
        signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL and ended == [(os.getpid(), number)]  # meant
    assert signal.getsignal(number) == before
    with pytest.raises(ZeroDivisionError), caught_signals() as received:
        1 / 0  # noqa: B018
    assert signal.getsignal(number) == before and received == []


def test_one_process_to_a_folder(start, tmp_path):
    run, code = tmp_path / "run", "import sys, pathlib, tracking; run = pathlib.Path(sys.argv[1]); "
    code += (
        "tracking.RunFolder(run, {'wandb': 'off'}, run / 'log.jsonl', 0); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=HERE, text=True)
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "open\n"
        before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
        with pytest.raises(ValueError, match=f"{run} is being trained by another process.*--name"):
            start()
        start("elsewhere")
        assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
        other.kill()
    folder = start()  # the lock went with the process
    with pytest.raises(ValueError, match="another process"):
        start()
    folder.close()
    start()


@pytest.fixture
def wandb(monkeypatch):
    """A module `wandb` that writes down its calls; a name in `broken` raises or hangs."""
    calls, broken, never = [], {}, threading.Event()

    def method(name):
        def call(*args, **kwargs):
            calls.append((name, args, kwargs))
            if broken.get(name) == "raises":
                raise RuntimeError(f"no {name}")
            if broken.get(name) == "hangs":
                never.wait()
            return module

        return call

    module = SimpleNamespace(calls=calls, broken=broken, **{name: method(name) for name in ("init", "log", "finish")})
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(tracking, "WANDB_FINISH_S", 0.1)
    yield module
    never.set()


def whole_run(start, **options):
    folder = start(**options)
    for step in (1, 2):
        folder.log({"step": step, "train_loss": 3.0 / step})
    folder.finish({"val_loss": 2.0})
    folder.close()


def test_wandb_gets_what_the_log_gets(start, wandb, tmp_path):
    whole_run(start)
    assert wandb.calls == []  # off unless asked for
    whole_run(start, wandb="offline")
    (name, _, init), *logs, finish = wandb.calls
    assert (name, init["mode"], init["name"], init["dir"]) == ("init", "offline", "x", tmp_path / "run")
    assert init["config"] == CONFIG | {"wandb": "offline"}
    expected = [("log", ({"step": s, "train_loss": 3.0 / s},), {"step": s}) for s in (1, 2)]
    assert logs == expected and finish == ("finish", (), {})


def test_a_run_that_goes_on_is_the_same_wandb_run(start, wandb, tmp_path):
    def inits():
        return [init for call, _, init in wandb.calls if call == "init"]

    whole_run(start, wandb="online")
    whole_run(start, wandb="online", step=1)
    first, again = inits()
    assert first["id"] == again["id"] and first["resume"] == again["resume"] == "allow" and first["group"] == "x"
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    whole_run(start, name="copy", wandb="online")  # of the same name still: the folder has moved
    assert inits()[-1]["id"] == first["id"]
    folder = RunFolder(tmp_path / "copy", CONFIG | {"name": "y", "wandb": "online"}, tmp_path / "copy/log.jsonl", 0)
    folder.close()
    assert inits()[-1]["id"] != first["id"]


def test_a_branch_is_a_wandb_run_of_its_own_in_the_group_of_its_trunk(start, wandb, tmp_path):
    def begin(folder, source=None):
        options = {"name": folder, "wandb": "online"}
        options["init_from"] = source and str(tmp_path / source / "ckpt" / "step_00000001.pt")
        opened = RunFolder(tmp_path / folder, CONFIG | options, tmp_path / folder / "log.jsonl", 0)
        opened.close()
        return [init for call, _, init in wandb.calls if call == "init"][-1]

    trunk, branch, twig, again = begin("trunk"), begin("a", "trunk"), begin("b", "a"), begin("b", "a")
    assert len({trunk["id"], branch["id"], twig["id"]}) == 3 and again == twig
    assert [run["group"] for run in (trunk, branch, twig)] == ["trunk"] * 3
    assert begin("c", "quiet")["group"] == "quiet"  # a trunk that was not tracked gives its name


@pytest.mark.parametrize(
    "name, how, called",
    [
        ("init", "raises", ["init"]),
        ("log", "raises", ["init", "log"]),
        ("finish", "raises", ["init", "log", "log", "finish"]),
        ("finish", "hangs", ["init", "log", "log", "finish"]),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_wandb_never_stops_a_run(name, how, called, start, wandb, tmp_path, capsys):
    wandb.broken[name] = how
    whole_run(start, wandb="online")
    assert [call for call, *_ in wandb.calls] == called
    assert [line["step"] for line in lines_of(tmp_path / "run" / "log.jsonl")] == [1, 2]
    assert (tmp_path / "run" / "result.json").is_file()
    if name != "finish":
        assert capsys.readouterr().err == f"warning: wandb failed and is off: no {name}\n"


def test_a_missing_wandb_is_a_warning(start, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # how Python marks what cannot be imported
    whole_run(start, wandb="online")
    assert len(lines_of(tmp_path / "run" / "log.jsonl")) == 2
    assert capsys.readouterr().err.startswith("warning: wandb failed and is off: ")


def test_secrets_of_the_environment_stay_there(start, wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    whole_run(start, wandb="offline")
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 5 and not any(SECRET.encode() in p.read_bytes() for p in files)
    assert SECRET not in repr(wandb.calls)


def test_a_folder_in_training_is_locked(tmp_path):
    run = tmp_path / "run"
    assert not tracking.is_locked(run)
    folder = RunFolder(run, {"wandb": "off"}, run / "log.jsonl", 0)
    assert tracking.is_locked(run)
    folder.close()
    assert not tracking.is_locked(run) and not tracking.is_locked(run)  # looking takes no lock


def test_a_file_system_without_locks_is_told(start, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(tracking.fcntl, "flock", flock)
    with pytest.raises(Mistake, match="is on a file system without locks .*: choose an --out_dir on another"):
        start()
