"""Faults, in real processes and on real files: whatever happens to a run, it ends in the bits of one left alone.

    python -m pytest tests/test_faults.py              # the quick part, in `make test`
    python -m pytest tests/test_faults.py -m long -s   # `make test-long`: many more, and what they came to

The code under test has no hooks. A run is a process of its own, which a test kills, or which first replaces a function
by one that kills it, fills its disk or spoils its numbers. Every proof has a control: the fault without the remedy.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # which optimizers import when the first is made: once here, not in every process
import torch.nn.functional as F
from conftest import BASE, DEVICE, ENV, HERE, command, lines, newest, same, tensors, torchrun, two_ranks, write_bins

import bins
import checkpoint
import data
import evaluate
import export
import prepare_data
import sample
import sealed
import text_sources
import tracking
from config import main
from model import Llama, Shape
from start import FORMAT
from train import Config, train

# 12 steps in 0.2 s; an epoch is 10 sequences: it ends within steps 3 and 8, and with steps 5 and 10
SMALL = BASE | dict(
    dataset="short", n_layer=1, n_embd=16, global_batch_size=4, total_steps=12, warmup_steps=2, cooldown_steps=4,
    eval_every=4, eval_tokens=200, log_every=1, save_every=2, window_horizon=4,
)  # fmt: skip
SECRET = "c0ffee-not-to-be-found"
FORKS = multiprocessing.get_context("forkserver")  # of a process that has imported torch, and has no threads yet
os.environ["PYTHONPATH"] = str(HERE / "tests")  # where that process finds us
FORKS.set_forkserver_preload(["test_faults"])
long = pytest.mark.long


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    text = np.frombuffer((HERE / "train.py").read_bytes(), np.uint8)
    folder = tmp_path_factory.mktemp("data")
    write_bins(folder / "short", text[: 32 * 11 + 5 + 4000])
    return folder


class Lab:
    """A folder for runs, each in processes of its own."""

    def __init__(self, path, data_dir):
        self.path, self.said_in, self.data_dir, self.processes = path, path, data_dir, []

    def start(self, name, *faults, ranks=1, env=(), **options):
        """Start a run, one process per rank, with faults: functions that are called before it."""
        options = {**SMALL, "name": name, "out_dir": str(self.path / "runs"), "data_dir": str(self.data_dir), **options}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        processes = []
        for rank in range(ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} | ports if ranks > 1 else {}
            args = options, self.said_in / f"{name}.{rank}.out", {**place, **dict(env)}, faults
            processes.append(FORKS.Process(target=work, args=args))
            processes[-1].start()
        self.processes += processes
        return processes

    def run(self, *args, **options):
        """Start a run, and wait for its end: the exit code, or a list of those of its ranks."""
        return ends(self.start(*args, **options))

    def said(self, name, rank=0):
        return (self.said_in / f"{name}.{rank}.out").read_text()

    def step(self, name):
        """That of the newest good checkpoint; 0 if there is none yet."""
        found = checkpoint.load_latest(self.path / "runs" / name / "ckpt", warn=False)
        return found[0]["progress"]["step"] if found else 0

    def files(self, name):
        return {p: p.read_bytes() for p in sorted((self.path / "runs" / name).rglob("*")) if p.is_file()}


def work(options, output, env, faults):
    """What a process of a run does: as `python train.py`, after the faults."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.update(env)
    for fault in faults:
        fault()
    main(lambda: train(Config(**options)))


def ends(processes, seconds=300):
    """Exit codes of processes, negative for signals; None for one that hangs."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(until - time.monotonic())
    codes = [process.exitcode for process in processes]
    return codes[0] if len(codes) == 1 else codes


def cpu_seconds(process):
    """Of another process, by the clock that clock_getcpuclockid(3) finds on Linux; inf if it is over."""
    try:
        return time.clock_gettime(~process.pid << 3 | 2)
    except OSError:
        return math.inf


def wait_for(process, seconds):
    """Wait until a process has had so many seconds of a core, which is as far into a run on a busy machine, too."""
    while cpu_seconds(process) < seconds:
        time.sleep(0.001)


@pytest.fixture
def lab(tmp_path, data_dir):
    lab = Lab(tmp_path, data_dir)
    yield lab
    for process in lab.processes:
        process.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """A run left alone, the measure of all others: the lab of run "run", and the seconds of a core that it took."""
    lab = Lab(tmp_path_factory.mktemp("whole"), data_dir)
    lab.seconds = took(*lab.start("run", save_every=1))
    return lab


def took(process):
    """Seconds of a core that a process takes to its end."""
    seconds = 0.0
    while process.is_alive() and (now := cpu_seconds(process)) < math.inf:
        seconds = max(seconds, now)
        time.sleep(0.001)
    assert ends([process]) == 0
    return seconds


def assert_whole(lab, name, whole):
    """It ended in the same weights, moments, averages, losses and log as one left alone, and left nothing behind."""
    a, b = lab.path / "runs" / name, whole.path / "runs" / "run"
    assert same(newest(lab.path, name), newest(whole.path, "run"))
    assert lines(lab.path, name) == lines(whole.path, "run")
    results = [json.loads((run / "result.json").read_text()) | {"name": "", "train_s": 0} for run in (a, b)]
    assert results[0] == results[1]
    files = [{p.relative_to(run) for p in run.rglob("*") if "ckpt" not in p.parent.parts} for run in (a, b)]
    files[0].discard(Path("code/sharding.py"))  # of a model in shards
    saved = [p.name for p in (a / "ckpt").iterdir()]
    assert files[0] == files[1] and len(saved) <= 2 and all(map(checkpoint.NAME.fullmatch, saved)), saved


# ----------------------------------------------------------------------------------------------------------------------
# Faults: given as functools.partial of these, as they have to reach another process


def wrap(target, nth, before=None, after=None):
    """Replace the function "module.name" by one that calls `before` and `after` around its nth call (0: every one)."""
    owner, _, name = target.rpartition(".")
    owner = functools.reduce(getattr, owner.split(".")[1:], sys.modules[owner.partition(".")[0]])
    real, calls = getattr(owner, name), itertools.count(1)

    def wrapped(*args, **kwargs):
        now = next(calls) == nth or not nth
        if now and before:
            before(*args, **kwargs)
        result = real(*args, **kwargs)
        if now and after:
            after(*args, **kwargs)
        return result

    setattr(owner, name, wrapped)


def at(target, nth, before=None, after=None):
    return functools.partial(wrap, target, nth, before, after)


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(state, path):
    """As torch.save, but the process is killed in the middle."""
    torch.serialization.save(state, path)
    os.truncate(path, path.stat().st_size // 2)
    die()


# What a save is made of, in order: a crash before or after each
POINTS = {
    "nothing written": ("torch.save", die, None),
    "half written": ("torch.save", half_written, None),
    "not synced": ("os.fsync", die, None),
    "not renamed": ("os.replace", die, None),
    "renamed": ("os.replace", None, die),
    "not pruned": ("checkpoint.list_steps", die, None),
    "pruned": ("checkpoint.save", None, die),
}


def crash(point, nth):
    """Kill the process at a point of its nth save."""
    target, before, after = POINTS[point]
    if target == "checkpoint.save":
        wrap(target, nth, before, after)
    else:
        wrap("checkpoint.save", nth, lambda *args: wrap(target, 1, before, after))


def power_cut():
    """From now on a kill takes with it what was not synced: torch.save's files are empty until os.fsync."""
    kill, synced, written = os.kill, set(), []

    def lose(pid, number):
        for path in written:
            for there in (path, path.with_name(path.name[1:].removesuffix(".tmp"))):  # before and after its renaming
                if there.exists() and there.stat().st_ino not in synced:
                    os.truncate(there, 0)
        kill(pid, number)

    os.kill = lose
    wrap("os.fsync", 0, after=lambda file: synced.add(os.fstat(file).st_ino))
    wrap("torch.save", 0, before=lambda state, path: written.append(path))


def no_sync():
    os.fsync = lambda file: None


def in_place():
    """Save as most scripts do: torch.save to the one name of the checkpoint."""

    def save(folder, step, state, *_):
        folder.mkdir(exist_ok=True)
        torch.save(state, folder / "step_00000001.pt")

    checkpoint.save = save


# ----------------------------------------------------------------------------------------------------------------------
# Resuming


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=long)])
def test_resumed_at_every_step(lab, whole, dtype):
    """At each one alone and at all in a chain: within an epoch, at its end, behind it; in processes of their own."""
    assert lab.run("run", dtype=dtype) == 0
    assert dtype != "float32" or assert_whole(lab, "run", whole) is None
    for k in range(1, 12):
        for name in (f"at {k}", "chain"):
            assert lab.run(name, dtype=dtype, stop_at=k) == 0 and lab.step(name) == k
        assert lab.run(f"at {k}", dtype=dtype) == 0
        assert_whole(lab, f"at {k}", lab)
    assert lab.run("chain", dtype=dtype) == 0
    assert_whole(lab, "chain", lab)


@long
def test_resumed_when_compiled(lab):
    for name, stop_at in (("run", None), ("parts", 7), ("parts", None)):
        assert ends(lab.start(name, compile=True, stop_at=stop_at)) == 0
    assert_whole(lab, "parts", lab)


# ----------------------------------------------------------------------------------------------------------------------
# Kills


def kill_at_random(lab, name, rng, seconds, *faults, kills):
    """Start a run, which takes so many seconds, again and again, and kill it at random times, at most `kills` times.

    Returns what each kill left: the step of the newest good checkpoint, or None if there are only bad ones, which ends
    it; and whether it came in the middle of a save.
    """
    left, ckpt = [], lab.path / "runs" / name / "ckpt"
    while len(left) < kills and (not left or left[-1][0] is not None):
        (process,) = lab.start(name, *faults, save_every=1)
        wait_for(process, rng.uniform(0.2, 0.8) * seconds)  # before that it starts
        process.kill()
        if ends([process]) == 0:
            break
        assert process.exitcode == -signal.SIGKILL, lab.said(name)
        try:
            left.append((lab.step(name), any(ckpt.glob(".*.tmp"))))
        except ValueError:
            left.append((None, True))
    return left


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=long)])
def test_killed_at_random_times(lab, whole, kills):
    rng, left, runs = random.Random(0), [], 0
    while len(left) < kills:
        name, runs = f"{runs}", runs + 1
        left += kill_at_random(lab, name, rng, whole.seconds, kills=min(5, kills - len(left)))
        assert (None, True) not in left, lab.said(name)
        assert lab.run(name, save_every=1) == 0, lab.said(name)
        assert_whole(lab, name, whole)
    steps, halves = {step for step, _ in left}, sum(half for _, half in left)
    print(
        f"\n{kills} kills at {len(steps)} steps, {halves} within a save: {runs} of {runs} runs ended in the same bits"
    )


@pytest.mark.parametrize("runs", [1, pytest.param(10, marks=long)])
def test_killed_at_random_times_saves_in_place_lose_runs(lab, whole, runs):
    """The control: the same, with torch.save to the final name; goes on beyond `runs` until it has lost one."""
    rng, left, lost, done = random.Random(0), [], 0, 0
    seconds = took(*lab.start("alone", in_place, save_every=1))
    while done < runs or not lost and done < 50:
        now = kill_at_random(lab, f"{done}", rng, seconds, in_place, kills=5)
        if (None, True) in now:
            lost += 1
            assert lab.run(f"{done}") == 1 and "no checkpoint in " in lab.said(f"{done}")
        left, done = left + now, done + 1
    assert lost > 0
    print(f"\nthe same with torch.save in place: {len(left)} kills, {lost} of {done} runs lost")


SAVES = [1, 3, 6]  # of 6; the last one too, behind which nothing is saved


@pytest.mark.parametrize("cut", [False, pytest.param(True, marks=long)])
def test_killed_at_every_point_of_a_save(lab, whole, cut):
    for i, (point, nth) in enumerate(itertools.product(POINTS, SAVES)):
        faults = [functools.partial(crash, point, nth)] + [power_cut] * cut
        assert lab.run(f"{i}", *faults) == -signal.SIGKILL, (point, nth)
        saved = list(POINTS).index(point) >= list(POINTS).index("renamed")
        assert lab.step(f"{i}") == 2 * (nth - (not saved)), (point, nth)
        assert lab.run(f"{i}") == 0, lab.said(f"{i}")
        assert_whole(lab, f"{i}", whole)
    print(
        f"\n{i + 1} crash points in saving{', each with a power cut' * cut}: {i + 1} of {i + 1} ended in the same bits"
    )


def test_killed_in_a_save_in_place_the_run_is_lost(lab):
    """The controls: in place, and without syncing."""
    for name, *faults in (("in place", in_place), ("not synced", power_cut, no_sync)):
        point = "half written" if name == "in place" else "renamed"
        assert lab.run(name, *faults, functools.partial(crash, point, 1)) == -signal.SIGKILL
        before = lab.files(name)
        assert lab.run(name) == 1 and lab.files(name) == before
        assert "no checkpoint in" in lab.said(name).splitlines()[-1]


def half_a_line(self, entry, left_s=None):
    self.stream.write('{"step": 4, "tra')
    self.stream.flush()
    die()


def test_killed_while_other_files_are_written(lab, whole):
    faults = {
        "config": at("tracking.written", 1, die),
        "log": at("tracking.written", 2, die),
        "result": at("tracking.written", 3, die),
        "before the rename": at("os.replace", 2, die),
        "line": at("tracking.RunFolder.log", 5, half_a_line),
        "code": at("shutil.copy", 3, die),
        "end": at("tracking.RunFolder.finish", 1, None, die),
    }
    for name, fault in faults.items():
        assert lab.run(name, fault) == -signal.SIGKILL
        if name in ("config", "log", "before the rename"):
            assert lab.run(name, stop_at=6) == 0  # there is a log now: again
            assert lab.run(name, fault) == -signal.SIGKILL
            assert lab.step(name) == 6
        assert lab.run(name) == 0
        assert_whole(lab, name, whole)


@two_ranks
def test_killed_rank_ends_the_others(lab, whole):
    for rank in (0, 1):
        name = f"rank {rank}"
        processes = lab.start(name, ranks=2, save_every=1)
        while lab.step(name) < 3:
            assert all(process.is_alive() for process in processes), lab.said(name)
        processes[rank].kill()
        codes = ends(processes)
        assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 1, codes
        assert 3 <= lab.step(name) < 12 and lab.run(name, ranks=2) == [0, 0]
        assert_whole(lab, name, whole)


@two_ranks
@long
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_ends_torchrun(lab, whole, rank):
    call = torchrun(2, lab.path, lab.data_dir, "run", **SMALL | {"save_every": 1})
    process = subprocess.Popen(call, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(process, "step      3  loss")
    began = time.monotonic()
    os.kill(workers(process)[rank], signal.SIGKILL)
    process.stdout.read()
    assert process.wait(60) == 1
    print(f"\nrank {rank} of 2 killed: torchrun ended after {time.monotonic() - began:.1f} s")
    assert 2 <= lab.step("run") < 12  # step 3 was printed, and perhaps not saved yet
    assert lab.run("run", ranks=2) == [0, 0]
    assert_whole(lab, "run", whole)


def until(process, begin):
    for line in process.stdout:
        if line.startswith(begin):
            return
    raise AssertionError(f"it ended before {begin!r}")


def workers(launcher):
    """Process ids of torchrun's workers, by rank."""
    ranks = {}
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        env = dict(v.partition("=")[::2] for v in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        ranks[int(env.get("RANK", -1))] = int(pid)
    return ranks


# ----------------------------------------------------------------------------------------------------------------------
# Signals


def raise_signal(file, number, *args, **kwargs):
    """Send this process a signal, as a scheduler does, and write down when."""
    file.write_text(str(time.monotonic()))
    os.kill(os.getpid(), number)


WHILE = {"evaluating": "train.chunk_losses", "saving": "torch.save", "reading": "data.TrainStream.batch"}
WHILE |= {"updating": "train.optim.set_lr", "averaging": "averaging.swapped", "logging": "tracking.RunFolder.log"}


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_at_any_moment_saves_the_last_finished_step(lab, whole, number, status):
    seconds = []
    for name, target in WHILE.items():
        sent = lab.path / "sent"
        fault = at(target, 3, functools.partial(raise_signal, sent, number))
        assert lab.run(name, fault, save_every=2) == status, lab.said(name)
        seconds.append(time.monotonic() - float(sent.read_text()))
        finished = [x["step"] for x in lines(lab.path, name) if "train_loss" in x]
        assert 1 <= lab.step(name) < 12 and finished == list(range(1, lab.step(name) + 1)), name  # none was lost
        assert f"stopped by a signal at step {finished[-1]}" in lab.said(name)
        assert lab.run(name) == 0
        assert_whole(lab, name, whole)
    assert max(seconds) < 5
    print(
        f"\n{signal.Signals(number).name} at {len(WHILE)} moments: saved, ended within {max(seconds):.1f} s, none lost"
    )


@pytest.mark.parametrize("signals", [5, pytest.param(30, marks=long)])
def test_signals_at_random_times(lab, whole, signals):
    """Only they save: what one run finished, the next one goes on behind. Before step 0 there is nothing to save."""
    rng, seconds, saved, latest = random.Random(0), [], 0, whole.seconds
    while len(seconds) < signals or not saved and len(seconds) < 50:
        name = f"{len(seconds) // 3}"
        (process,) = lab.start(name, save_every=0)
        wait_for(process, rng.uniform(0, latest))
        before, sent = lab.step(name), time.monotonic()
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)
        else:
            latest *= 0.8  # it took less than the one that was timed
        code = ends([process])
        seconds.append(time.monotonic() - sent)
        assert code in (0, 143, -signal.SIGTERM), lab.said(name)
        shown = [line.split()[1] for line in lab.said(name).splitlines() if line.startswith("step") and "loss" in line]
        assert lab.step(name) >= max([before, *(int(step) for step in shown)]), lab.said(name)
        saved += code == 143
    for name in {f"{i // 3}" for i in range(len(seconds))}:
        assert lab.run(name, save_every=1) == 0
        assert_whole(lab, name, whole)
    assert max(seconds) < 5 and saved > 0
    within = f"all ended within {max(seconds):.1f} s, none lost"
    print(f"\n{len(seconds)} SIGTERMs at random times: {saved} in the loop, {within}")


def stuck(*args, **kwargs):
    """A step that does not end, in which two signals come: the second one, too late to be the first again, is meant."""
    sys.modules["tracking"].REPEAT_S = 0.0
    os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.01), os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def test_second_signal_ends_what_is_stuck(lab, whole):
    assert lab.run("run", at("train.optim.set_lr", 6, stuck)) == -signal.SIGTERM
    assert lab.step("run") == 4  # saved every 2: step 5 is lost, and made again
    assert lab.run("run") == 0
    assert_whole(lab, "run", whole)


@two_ranks
def test_signal_to_one_of_two_ranks_stops_both(lab, whole):
    for rank in (0, 1):
        name, sent = f"rank {rank}", lab.path / "sent"
        fault = functools.partial(on_rank, rank, at("train.optim.set_lr", 4, functools.partial(raise_signal, sent, 15)))
        assert lab.run(name, fault, ranks=2, save_every=0) == [143, 143]
        assert time.monotonic() - float(sent.read_text()) < 5
        assert lab.step(name) == 4 and [p.name for p in lab.files(name) if p.suffix == ".pt"] == ["step_00000004.pt"]
        assert lab.run(name, save_every=1) == 0  # on one
        assert_whole(lab, name, whole)


def on_rank(rank, fault):
    if os.environ.get("RANK", "0") == str(rank):
        fault()


@long
@two_ranks
def test_signal_to_torchrun(lab, whole):
    for name, to in (("torchrun", None), ("worker", 1)):
        call = torchrun(2, lab.path, lab.data_dir, name, **SMALL | {"save_every": 0})
        process = subprocess.Popen(call, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        until(process, "step      3  loss")
        began = time.monotonic()
        os.kill(process.pid if to is None else workers(process)[to], signal.SIGTERM)
        said = process.stdout.read()
        assert process.wait(60) == 1  # its own way, whatever the workers return
        finished = [x["step"] for x in lines(lab.path, name) if "train_loss" in x]
        assert 3 <= lab.step(name) == finished[-1] < 12 and f"stopped by a signal at step {finished[-1]}" in said
        print(f"\nSIGTERM to {name}: saved, and torchrun ended after {time.monotonic() - began:.1f} s")
        assert lab.run(name, save_every=1, ranks=2) == [0, 0]
        assert_whole(lab, name, whole)


# ----------------------------------------------------------------------------------------------------------------------
# Damaged files


def flip(path, rng):
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


@pytest.fixture
def halfway(lab):
    """A run that was stopped at step 8, with checkpoints of steps 6 and 8; again(name) makes a copy of it."""
    assert lab.run("run", stop_at=8) == 0

    def again(name):
        shutil.copytree(lab.path / "runs/run", lab.path / "runs" / name)
        return lab.path / "runs" / name / "ckpt/step_00000008.pt"

    return again


def test_truncated_checkpoint_is_passed_over(lab, halfway, whole):
    size = (lab.path / "runs/run/ckpt/step_00000008.pt").stat().st_size
    sizes = [0, *(int(size * share) for share in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)), size - 1]
    for size in sizes:
        os.truncate(halfway(f"{size}"), size)
        assert lab.run(f"{size}") == 0
        said = lab.said(f"{size}")
        assert said.startswith("warning: ") and said.count("warning: ") == 1 and "from: step 6 of " in said
        assert_whole(lab, f"{size}", whole)
    print(f"\n{len(sizes)} of {len(sizes)} truncations: the checkpoint before it was used, same bits at the end")


@pytest.mark.parametrize("flips", [5, pytest.param(100, marks=long)])
def test_flipped_bit_is_caught(lab, halfway, whole, flips):
    rng = random.Random(0)
    for i in range(flips):
        flip(halfway(f"{i}"), rng)
        assert lab.run(f"{i}") == 0 and "from: step 6 of " in lab.said(f"{i}")
        assert_whole(lab, f"{i}", whole)
    print(f"\n{flips} of {flips} flipped bits: caught, the checkpoint before it was used, same bits at the end")


def test_flipped_bit_goes_unnoticed_without_verifying(lab, halfway, whole, monkeypatch):
    """The control: torch.load takes it, and the run ends in other bits."""
    path = halfway("x")
    raw = bytearray(path.read_bytes())
    weights = checkpoint.load(path)["model"]["norm.weight"].numpy().tobytes()
    raw[raw.index(weights) + 2] ^= 1
    path.write_bytes(raw)
    assert lab.run("x", no_verify) == 0 and "from: step 8 of " in lab.said("x")
    assert not same(newest(lab.path, "x"), newest(whole.path, "run"))


def no_verify():
    sealed.verify = lambda path: None


def test_with_no_good_checkpoint_it_stops_and_touches_nothing(lab, halfway):
    path = halfway("x")
    os.truncate(path, 1000), flip(path.with_name("step_00000006.pt"), random.Random(0))
    before = lab.files("x")
    assert lab.run("x") == 1 and lab.files("x") == before
    *warnings, error = lab.said("x").splitlines()
    assert [line.partition(": ")[0] for line in warnings] == ["warning", "warning"]
    assert error.startswith(f"error: no checkpoint in {path.parent} is good: restore one, or choose another name")


class Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_code_in_a_checkpoint_is_not_run(lab):
    """Neither in one to branch from nor in the run's own, sealed and named as ours are."""
    marker, evil = lab.path / "marker", lab.path / "runs/own/ckpt/step_00000002.pt"
    evil.parent.mkdir(parents=True)
    torch.save({"format": FORMAT, "model": Evil(marker)}, evil)
    sealed.seal(evil)
    for name in ("own", "branch"):
        assert lab.run(name, init_from=str(evil)) == 1 and "error: " in lab.said(name).splitlines()[-1]
        assert not marker.exists()
    torch.load(evil, weights_only=False)
    assert marker.exists()  # the control


# ----------------------------------------------------------------------------------------------------------------------
# Full disks


def small_disk(failing):
    """The saves of these numbers find no room: no file can grow beyond 100 kB, an error like that of a full disk."""
    limits, saves = resource.getrlimit(resource.RLIMIT_FSIZE), itertools.count(1)

    def shrink(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if next(saves) in failing else limits[0], limits[1]))

    wrap("checkpoint.save", 0, shrink)
    wrap("checkpoint.try_save", 0, None, lambda *args: resource.setrlimit(resource.RLIMIT_FSIZE, limits))


def test_full_disk_for_a_while(lab, whole):
    assert lab.run("run", functools.partial(small_disk, {2, 3, 5})) == 0
    said = lab.said("run").splitlines()
    warnings = [line for line in said if line.startswith("warning: could not save the checkpoint of step ")]
    assert len(warnings) == 3 and all(line.endswith("; training goes on") for line in warnings)
    assert_whole(lab, "run", whole)


def test_full_disk_for_long(lab, whole):
    assert lab.run("run", functools.partial(small_disk, {2, 3, 4})) == 1
    (error,) = [line for line in lab.said("run").splitlines() if line.startswith("error: ")]
    assert "step 8" in error and "MB free on disk" in error and "the earlier ones are whole: make room" in error
    assert "Traceback" not in lab.said("run") and lab.step("run") == 2
    assert [p.name for p in (lab.path / "runs/run/ckpt").iterdir()] == ["step_00000002.pt"]
    assert lab.run("run") == 0
    assert_whole(lab, "run", whole)


@pytest.fixture
def disk(tmp_path):
    """disk(size) makes a file system of this size, such as "1m", or changes it, and returns its folder."""
    folder = tmp_path / "disk"

    def mount(options):
        what = "remount," if folder.exists() else ""
        folder.mkdir(exist_ok=True)
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", what + options, "none", folder], capture_output=True
        ).returncode:
            pytest.skip("needs the right to mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", "-l", folder], capture_output=True)


@long
def test_truly_full_disk(lab, whole, disk):
    """1 MB holds a checkpoint of 0.5 MB and not two: three saves later one line ends it, and with room it goes on."""
    lab.path = disk("size=1m")
    assert lab.run("run") == 1
    *said, error = lab.said("run").splitlines()
    warnings = [line for line in said if line.startswith("warning: could not save the checkpoint of step ")]
    assert len(warnings) == 2 and error.startswith("error: could not save ") and "make room" in error, error
    assert os.listdir(lab.path / "runs/run/ckpt") == ["step_00000002.pt"] and lab.step("run") == 2
    disk("size=9m")
    assert lab.run("run") == 0
    assert_whole(lab, "run", whole)


@long
def test_disk_full_to_the_last_byte(lab, whole, disk):
    """Hardly a line of the log finds room: one line says so, and the next start goes on from all there was."""
    lab.path = disk("size=9m")
    assert lab.run("within", at("train.optim.set_lr", 4, functools.partial(fill_up, lab.path))) == 1
    (lab.path / "filler").unlink()
    assert lab.run("between", stop_at=2) == 0
    fill_up(lab.path)
    assert lab.run("between") == 1
    (lab.path / "filler").unlink()
    for name in ("within", "between"):
        said = lab.said(name)
        assert said.splitlines()[-1].startswith("error: ") and "Traceback" not in said, said
        assert lab.step(name) == 2 and lab.run(name) == 0
        assert_whole(lab, name, whole)


def fill_up(folder, *args):
    with open(folder / "filler", "wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


@long
def test_read_only_disk(lab, preparing, disk, tmp_path):
    lab.path = disk("size=1m")
    disk("ro")
    assert lab.run("run") == 1
    assert lab.said("run").startswith("error: ") and lab.said("run").count("\n") == 1
    assert ends([preparing("x", data_dir=lab.path)]) == 1
    error = (tmp_path / "out").read_text()
    assert error.count("error: ") == 1 and "Read-only file system" in error.splitlines()[-1]


# ----------------------------------------------------------------------------------------------------------------------
# Preparing data


@pytest.fixture
def preparing(tmp_path):
    """preparing(name, *faults) starts to prepare the same 200 documents, in 3 shards, in a process of its own."""
    words = (HERE / "train.py").read_text().split()
    texts = [" ".join(words[i : i + 40]) for i in range(200)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def start(name, *faults, data_dir=tmp_path):
        args = ["--tokenizer=bytes", "--val_frac=0.2", "--procs=1", f"--data_dir={data_dir}", f"--name={name}"]
        process = FORKS.Process(target=prepare, args=([str(tmp_path / "in.jsonl"), *args], tmp_path / "out", faults))
        process.start()
        return process

    start.seconds = took(start("whole"))
    return start


def prepare(args, output, faults):
    """What a process does: as `python prepare_data.py`, after the faults."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    text_sources.CHUNK_CHARS, prepare_data.SHARD_TOKENS = 4000, 20_000
    for fault in faults:
        fault()
    main(lambda: prepare_data.run(args))


def taken_for_whole(folder):
    """Whether the reader takes the bins in a folder; if so they have to be those of a preparation left alone."""
    try:
        data.open_bin(folder, "train"), data.open_bin(folder, "val")
    except ValueError:
        return False
    assert all((folder / name).read_bytes() == (folder.parent / "whole" / name).read_bytes() for name in BINS)
    return True


BINS = ("train.bin", "val.bin", "meta.json")
FILES = 6  # written by a preparation: 3 shards, and these


def assert_made_whole(folder, preparing):
    """The same command goes on, and ends in the same bytes, with nothing beside them."""
    assert ends([preparing(folder.name)]) == 0 and taken_for_whole(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(BINS)


def cut_off(file):
    """As if half of a file had reached the disk."""
    os.ftruncate(file, os.fstat(file).st_size // 2)
    die()


def test_preparation_killed_at_every_point(tmp_path, preparing):
    points = {  # each file is synced, renamed, and its folder synced
        "half written": lambda file: at("os.fsync", 2 * file - 1, cut_off),
        "written": lambda file: at("os.replace", file, die),
        "renamed": lambda file: at("os.replace", file, None, die),
    }
    for i, (point, file) in enumerate(itertools.product(points, range(1, FILES + 1))):
        folder = tmp_path / f"{i}"
        assert ends([preparing(folder.name, points[point](file))]) == -signal.SIGKILL, (point, file)
        assert taken_for_whole(folder) == ((point, file) == ("renamed", FILES))
        assert_made_whole(folder, preparing)
    print(f"\n{i + 1} crash points in preparing: bins taken for whole only when they were, same bytes in the end")


def test_preparation_in_place_leaves_bins_that_look_whole(tmp_path, preparing):
    """The control: files written under their final names, and what is there taken for done, as many scripts do."""
    folder = tmp_path / "x"
    assert ends([preparing("x", write_in_place, at("prepare_data.write_meta", 1, die))]) == -signal.SIGKILL
    shutil.rmtree(folder / "shards.tmp"), os.truncate(folder / "train.bin", 1000), bins.adopt(folder, "bytes")
    with pytest.raises(AssertionError):
        taken_for_whole(folder)


def write_in_place():
    prepare_data.written = bins.written = lambda path: open(path, "wb")


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=long)])
def test_preparation_killed_at_random_times(tmp_path, preparing, kills):
    rng, killed, name = random.Random(0), 0, 0
    while killed < kills:
        folder, name = tmp_path / f"{name}", name + 1
        for _ in range(5):
            process = preparing(folder.name)
            wait_for(process, rng.uniform(0, preparing.seconds))
            process.kill()
            killed += ends([process]) == -signal.SIGKILL
            assert not folder.exists() or taken_for_whole(folder) == (folder / "meta.json").exists()
        assert_made_whole(folder, preparing)
    print(f"\n{killed} kills of {name} preparations at random times: the same bytes in the end")


@long
def test_preparation_on_a_full_disk(tmp_path, preparing, disk):
    """At every size that is too small one line says so; once there is room, the same command goes on."""
    for kilobytes in (4, 16, 32, 64, 96, 128):
        folder = disk(f"size={kilobytes}k") / "x"
        assert ends([preparing("x", data_dir=folder.parent)]) == 1
        errors = [line for line in (tmp_path / "out").read_text().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "No space left on device" in errors[0]
        assert not folder.exists() or not (folder / "meta.json").exists()
    disk("size=9m")
    assert ends([preparing("x", data_dir=folder.parent)]) == 0
    assert all((folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in BINS)


def slowly(*args, **kwargs):
    time.sleep(1)


@two_ranks
def test_no_rank_ends_before_the_checkpoint_is_written(lab):
    """Launchers kill the others when one has ended with an error, which a signal is to them."""
    stopped = functools.partial(
        on_rank, 0, at("train.optim.set_lr", 6, functools.partial(raise_signal, lab.path / "sent", 15))
    )
    slow = functools.partial(on_rank, 0, at("sealed.write", 1, slowly))
    processes = lab.start("run", stopped, slow, ranks=2, save_every=0)
    assert ends(processes[1:]) == 143 and lab.step("run") == 6  # it is there when the other rank has ended
    assert ends(processes) == [143, 143]


FAKE_SLURM = """#!{python}
import os, signal, subprocess, sys
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "scontrol":
    print("127.0.0.1" if args[0] == "show" else "requeued")
    sys.exit()
tasks = []
for i in ("0", "1"):
    place = {{"SLURM_PROCID": i, "SLURM_LOCALID": i, "SLURM_NTASKS": "2"}}
    tasks.append(subprocess.Popen(args[2:], env=os.environ | place, cwd={root!r}))
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])  # what --signal=TERM does
sys.exit(max(task.wait() for task in tasks))
"""


@two_ranks
def test_slurm_requeues_what_its_time_limit_stopped(lab, whole):
    """With a scheduler of our own, which starts two ranks as SLURM does, and signals them."""
    for name in ("srun", "scontrol"):
        (lab.path / name).write_text(FAKE_SLURM.format(python=sys.executable, root=str(HERE)))
        (lab.path / name).chmod(0o755)
    place = {"PATH": f"{lab.path}:{os.environ['PATH']}", "PYTHON": sys.executable, "SLURM_JOB_ID": str(os.getpid())}
    options = [f"--{key}={value}" for key, value in (SMALL | {"name": "run", "save_every": 0}).items() if value != ()]
    options = [x.replace("(", "").replace(",)", "") for x in options]
    options += [f"--out_dir={lab.path / 'runs'}", f"--data_dir={lab.data_dir}"]
    call = ["bash", str(HERE / "configs/slurm.sh"), *options]
    settings = dict(env=ENV | place | {"SLURM_JOB_NODELIST": "here"}, text=True, start_new_session=True)

    job = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)
    until(job, "step      3  loss")
    (srun,) = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(srun), signal.SIGTERM)
    said = job.stdout.read()
    assert job.wait() == 143 and said.endswith("requeued\n") and "stopped by a signal" in said, said
    again = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)
    assert again.returncode == 0 and "requeued" not in again.stdout, again.stdout
    assert same(newest(lab.path, "run"), newest(whole.path, "run"))
    assert lines(lab.path, "run") == lines(whole.path, "run")


@two_ranks
@long
def test_a_machine_that_dies_ends_the_others(lab):
    """Two torchruns, as on two machines; one and its rank are killed, the other ends, and both together go on."""
    long_run = dict(save_every=1, total_steps=100)
    assert lab.run("one", **long_run) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *meet, "--rdzv_id=1", "--max-restarts=0"]
    call = command(lab.path, lab.data_dir, "run", *launcher, **SMALL | long_run)
    settings = dict(env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    machines = [subprocess.Popen(call, **settings) for _ in range(2)]
    while lab.step("run") < 3:
        assert all(machine.poll() is None for machine in machines)
    for pid in (machines[1].pid, *workers(machines[1]).values()):
        os.kill(pid, signal.SIGKILL)
    assert machines[0].wait(120) == 1
    assert 3 <= lab.step("run") < 100
    machines = [subprocess.Popen(call, **settings) for _ in range(2)]
    assert [machine.wait(300) for machine in machines] == [0, 0]
    assert same(newest(lab.path, "run"), newest(lab.path, "one"))
    assert lines(lab.path, "run") == lines(lab.path, "one")


# ----------------------------------------------------------------------------------------------------------------------
# Numbers, and what is consumed


def spoil(value, parameters, *args):
    parameters[0].grad[0] = value


@two_ranks
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_gradient_on_one_rank_is_skipped_on_both(lab, value):
    """As on one rank that has the same sequences; nothing of it gets into weights, moments or averages."""
    bad = functools.partial(spoil, value)
    assert lab.run("one", at("parallel.add_by_halves", (2 * 4 + 1) * 3 + 1, bad), eval_every=0) == 0
    fault = functools.partial(on_rank, 1, at("parallel.add_by_halves", 4 * 3 + 1, bad))
    assert lab.run("two", fault, ranks=2, eval_every=0) == [0, 0]
    one, two = newest(lab.path, "one"), newest(lab.path, "two")
    assert same(one, two) and lines(lab.path, "one") == lines(lab.path, "two")
    assert one["progress"]["skipped"] == 1 == two["progress"]["skipped"] and two["progress"]["step"] == 12
    assert all(torch.isfinite(t).all() for t in tensors(two).values())
    assert lab.run("good", eval_every=0) == 0 and not same(newest(lab.path, "good"), two)


def small_chunks():
    data.ValSet.CHUNK_TOKENS = 96


@two_ranks
def test_validation_is_a_mean_over_tokens_on_any_ranks(lab, data_dir):
    """Of 500 tokens in 6 chunks, the last one of 20: on one rank, on two, and all at once, against a sum by hand."""
    for name, faults, ranks in (("one", [small_chunks], 1), ("two", [small_chunks], 2), ("at once", [], 1)):
        lab.run(name, *faults, ranks=ranks, eval_tokens=500)
    logged = {
        name: json.loads((lab.path / "runs" / name / "result.json").read_text()) for name in ("one", "two", "at once")
    }
    assert logged["one"]["val_loss"] == logged["two"]["val_loss"] and lines(lab.path, "one") == lines(lab.path, "two")
    model = Llama(Shape(257, n_layer=1, n_head=2, n_embd=16, seq_len=32))
    model.load_state_dict(newest(lab.path, "one")["model"])
    tokens = torch.from_numpy(np.fromfile(data_dir / "short/val.bin", "<u2").astype(np.int64))
    pieces = [(tokens[i : min(i + 32, 500)], tokens[i + 1 : min(i + 32, 500) + 1]) for i in range(0, 500, 32)]
    with torch.no_grad():
        losses = [F.cross_entropy(model(x[None])[0].double(), y, reduction="none") for x, y in pieces]
    for name in logged:
        assert logged[name]["val_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)  # fp32 there
    of_means = torch.stack([x.mean() for x in losses]).mean().item()
    assert logged["one"]["val_loss"] != pytest.approx(of_means, rel=1e-5)  # the control


def consume(self, file, position, count):
    """Write down what a rank takes: each position, and a hash of its tokens."""
    rows = self.untold(position, count)
    hashes = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in rows]
    os.write(file, "".join(f"{position + i} {h}\n" for i, h in enumerate(hashes)).encode())
    return rows


def tell(path):
    """Write down all that this process consumes."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    data.TrainStream.untold = data.TrainStream.batch
    data.TrainStream.batch = functools.partialmethod(consume, file)


def skip_one():
    """A reader that is one sequence off: the control."""
    real = data.TrainStream.untold
    data.TrainStream.untold = lambda self, position, count: real(self, position + 1, count)


def consumed(attempts):
    """Hashes of the sequences that the weights have seen, in order; attempts: [(file, its first step)]."""
    seen = {}
    for path, first in attempts:
        seen = {position: h for position, h in seen.items() if position < 4 * first}  # what a kill lost is made again
        now = [(int(p), h) for p, h in (line.split() for line in path.read_text().splitlines())]
        assert len(now) == len(dict(now)) and min(dict(now)) == 4 * first  # none twice, none left out before it
        seen |= dict(now)
    assert sorted(seen) == list(range(48))
    return [seen[position] for position in range(48)]


@two_ranks
def test_order_consumed_over_kills_and_ranks(lab, whole, data_dir):
    """1, 2, 1, 2, 1 ranks, all but the last killed: every position once, its text that of a reader left alone."""
    rows = data.TrainStream(data_dir, [(0, "short")], 32, Config.data_seed).batch(0, 48)
    expected = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in rows]
    assert len(set(expected)) > 40  # epochs cut the text elsewhere
    attempts = []
    for i, ranks in enumerate((1, 2, 1, 2, 1)):
        attempts.append((lab.path / f"seen {i}", lab.step("run")))
        killed = functools.partial(on_rank, 0, at("checkpoint.try_save", 3, die))  # of three steps the last is lost
        faults = [functools.partial(tell, attempts[-1][0])] + [killed] * (i < 4)
        codes = lab.run("run", *faults, ranks=ranks, save_every=1)
        assert codes in ([-signal.SIGKILL, 1], -signal.SIGKILL) if i < 4 else codes == 0
    assert_whole(lab, "run", whole)
    assert consumed(attempts) == expected
    path = lab.path / "control"
    lab.run("control", functools.partial(tell, path), skip_one)
    assert consumed([(path, 0)]) != expected


# ----------------------------------------------------------------------------------------------------------------------
# Models in shards: each rank keeps some rows of the weights, of the optimizer's state and of the averages

four_ranks = pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 4, reason="four ranks need four GPUs")


WIDE = dict(n_embd=64, micro_batch_size=1)  # four ranks have 16 numbers of a norm


def shards(lab, name, ranks, *faults, parallel="shard", **options):
    """Run on ranks that share a model, and require that all end well."""
    codes = lab.run(name, *faults, ranks=ranks, parallel=parallel, **options)
    assert codes == [0] * ranks, "".join(lab.said(name, rank) for rank in range(ranks))


@four_ranks
@pytest.mark.parametrize(
    "options",
    [
        WIDE,
        WIDE | dict(global_batch_size=12),  # three passes per rank, or six: their gradients go as one
        WIDE | dict(dtype="bfloat16", checkpoint_activations=True, tied=False, loss_rows=40),
        pytest.param(WIDE | dict(compile=True), marks=long),
    ],
)
def test_shards_have_the_bits_of_one_rank(lab, options):
    lab.run("one", **options)
    for name, ranks, parallel in (("two", 2, "shard"), ("four", 4, "shard"), ("pairs", 4, "shard:2")):
        shards(lab, name, ranks, parallel=parallel, **options)
        assert same(newest(lab.path, name), newest(lab.path, "one")), name
        assert lines(lab.path, name) == lines(lab.path, "one"), name
    shards(lab, "other sums", 4, exact_sums=False, **options)  # the control
    assert not same(newest(lab.path, "other sums"), newest(lab.path, "one"))


@long
@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 8, reason="eight ranks need eight GPUs")
def test_eight_ranks_have_the_bits_of_one(lab):
    options = dict(n_embd=128, micro_batch_size=1, global_batch_size=8)
    lab.run("one", **options)
    for parallel in ("replicate", "shard", "shard:4"):
        shards(lab, parallel, 8, parallel=parallel, **options)
        assert same(newest(lab.path, parallel), newest(lab.path, "one")), parallel
        assert lines(lab.path, parallel) == lines(lab.path, "one"), parallel
    shards(lab, "other sums", 8, exact_sums=False, parallel="shard", **options)  # the control
    assert not same(newest(lab.path, "other sums"), newest(lab.path, "one"))


def round_all():
    """Norms and the embedding travel in bf16, too."""
    import sharding

    real = sharding.GatherRounded
    sharding.GatherRounded = lambda sizes, rounded: real(sizes, [True] * len(sizes))


@four_ranks
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(tied=False, loss_rows=40, checkpoint_activations=True, global_batch_size=12, n_inner=33),
        pytest.param(dict(compile=True), marks=long),
    ],
)
def test_matrices_that_travel_in_bf16_change_no_bit(lab, options):
    options = WIDE | dict(dtype="bfloat16", n_layer=2) | options
    shards(lab, "fp32", 2, **options)
    for name, ranks, parallel in (("two", 2, "shard"), ("four", 4, "shard"), ("pairs", 4, "shard:2")):
        shards(lab, name, ranks, parallel=parallel, gather_dtype="bfloat16", **options)
        assert same(newest(lab.path, name), newest(lab.path, "fp32")), name
        assert lines(lab.path, name) == lines(lab.path, "fp32"), name
    shards(lab, "all", 2, round_all, gather_dtype="bfloat16", **options)  # the control
    assert not same(newest(lab.path, "all"), newest(lab.path, "fp32"))


@two_ranks
def test_uneven_shards(lab):
    """Three ranks have 6, 6 and 4 of 16 rows: the weights are those of one rank until the first sum."""
    options = dict(global_batch_size=6, micro_batch_size=1)
    shards(lab, "three", 3, **options, save_at=(1,))
    lab.run("copies", ranks=3, **options)
    lab.run("one", **options)
    begin = [
        next(x["val_loss"] for x in lines(lab.path, name) if x["step"] == 0) for name in ("three", "copies", "one")
    ]
    assert begin == [begin[0]] * 3
    ends = [newest(lab.path, name)["progress"]["losses"]["val_loss"] for name in ("three", "copies", "one")]
    assert ends == pytest.approx([ends[0]] * 3, rel=1e-5)


@four_ranks
def test_shards_are_resumed_by_any_number_of_ranks(lab):
    """1, 4 with shards, 2 without, 2 with, 4 in pairs, 1; and branches off a folder of shards, and into one."""
    lab.run("run", **WIDE)
    lab.run("moved", **WIDE, stop_at=2)
    shards(lab, "moved", 4, **WIDE, stop_at=4)
    assert checkpoint.path_of(lab.path / "runs/moved/ckpt", 4).is_dir()
    assert lab.run("moved", ranks=2, **WIDE, stop_at=6) == [0, 0]
    shards(lab, "moved", 2, **WIDE, stop_at=8)
    shards(lab, "moved", 4, parallel="shard:2", **WIDE, stop_at=10, save_at=(10,))
    assert lab.run("moved", **WIDE) == 0
    assert same(newest(lab.path, "moved"), newest(lab.path, "run"))
    assert lines(lab.path, "moved") == lines(lab.path, "run")

    source = str(lab.path / "runs/moved/ckpt/step_00000010")
    assert lab.run("branch", **WIDE, init_from=source, total_steps=16) == 0
    shards(lab, "in shards", 4, **WIDE, init_from=f"{source}.pt", total_steps=16)  # as if it were a file
    assert same(newest(lab.path, "in shards"), newest(lab.path, "branch"))
    assert lines(lab.path, "in shards") == lines(lab.path, "branch")  # with those of the run before
    assert lab.run("branch", **WIDE, init_from=f"{source}/manifest.pt", total_steps=16) == 0  # the same again
    assert "is finished" in lab.said("branch")
    assert lab.run("ckpt", ranks=2, init_from=str(Path(source).parent)) == [1, 1]
    for rank in (0, 1):
        (error,) = lab.said("ckpt", rank).splitlines()
        assert "is a folder of checkpoints: give one of them, such as " in error
    lab.run("direct", **WIDE, total_steps=16, cooldown_steps=6)
    assert not same(newest(lab.path, "direct"), newest(lab.path, "branch"))  # its cooldown began before step 10


def no_bf16():
    """A machine that does not compute in bf16 itself."""
    torch.cpu.get_capabilities = dict
    torch.cuda.is_bf16_supported = lambda including_emulation: False


@two_ranks
def test_mistakes_about_shards_are_told(lab):
    said = {
        "parts": (dict(parallel="parts"), "parallel='parts': expected replicate, shard, or shard:8"),
        "three": (dict(parallel="shard:3"), "parallel='shard:3': groups of 3 ranks cannot be made of 2"),
        "whole": (dict(parallel="shard", optimizer="muon"), "optimizer='muon' looks at whole matrices"),
        "sparse": (dict(parallel="shard", density=0.5), "density=0.5: sparse models are not made in shards"),
        "copies": (dict(gather_dtype="bfloat16"), "a model is gathered only from shards: add --parallel=shard"),
        "fp32": (dict(parallel="shard", gather_dtype="bfloat16"), "this run computes in float32: add --dtype=bfloat16"),
        "auto": (dict(parallel="shard", gather_dtype="bfloat16", dtype="auto"), "this run computes in float32"),
    }
    for name, (options, message) in said.items():
        assert lab.run(name, no_bf16, ranks=2, **options) == [1, 1]
        assert message in lab.said(name).splitlines()[-1] and "Traceback" not in lab.said(name)


# What a save of shards is made of, in order: the rank where it is killed, the function, before or after its nth call
SHARD_POINTS = [
    (0, "checkpoint.make_room", 1, die, None),
    (0, "checkpoint.make_room", 1, None, die),
    (1, "torch.save", 1, half_written, None),
    (0, "torch.save", 2, half_written, None),
    (1, "os.fsync", 2, die, None),
    (1, "sealed.write", 3, None, die),
    (0, "torch.save", 4, half_written, None),  # the manifest
    (0, "sealed.write", 4, None, die),
    (0, "sealed.sync_folder", 5, die, None),  # renamed from here on
    (0, "checkpoint.prune", 1, die, None),
    (1, "checkpoint.save", 1, None, die),
]


def crash_in_shards(rank, target, nth, before, after):
    """Kill a rank at its second save."""
    fault = at("checkpoint.save", 2, None, die) if target == "checkpoint.save" else None
    fault = fault or at("checkpoint.save", 2, lambda *args: wrap(target, nth, before, after))
    on_rank(rank, fault)


@two_ranks
def test_ranks_killed_at_every_point_of_a_save_of_shards(lab, whole):
    for i, point in enumerate(SHARD_POINTS):
        codes = lab.run(f"{i}", functools.partial(crash_in_shards, *point), ranks=2, parallel="shard")
        assert codes[point[0]] == -signal.SIGKILL and codes[1 - point[0]] in (1, -signal.SIGABRT), (point, codes)
        assert lab.step(f"{i}") == (4 if i >= 8 else 2), point
        shards(lab, f"{i}", 2)
        assert_whole(lab, f"{i}", whole)


@two_ranks
def test_a_full_disk_of_one_rank_ends_no_run(lab, whole):
    full = functools.partial(on_rank, 1, at("torch.save", 2 * 3 + 2, no_room))  # in its third save
    shards(lab, "once", 2, full)
    assert "could not save the checkpoint of step 6" in lab.said("once") and "rank 1: " in lab.said("once")
    assert_whole(lab, "once", whole)
    shards(lab, "ever", 2, stop_at=2)
    full = functools.partial(on_rank, 1, at("torch.save", 0, no_room))
    assert lab.run("ever", full, ranks=2, parallel="shard") == [1, 1]
    assert "make room, and run again" in lab.said("ever").splitlines()[-1]
    assert [path.name for path in (lab.path / "runs/ever/ckpt").iterdir()] == ["step_00000002"]
    shards(lab, "ever", 2)
    assert_whole(lab, "ever", whole)


@two_ranks
def test_a_full_disk_at_the_end_is_told_by_all_ranks(lab, whole):
    """Where each has the whole model, too, and only the first one writes."""
    assert lab.run("run", functools.partial(on_rank, 0, at("torch.save", 6, no_room)), ranks=2) == [1, 1]
    for rank in (0, 1):
        error = lab.said("run", rank).splitlines()[-1]
        assert "could not save the checkpoint of step 12" in error and "make room, and run again" in error, error
        assert "Traceback" not in lab.said("run", rank)
    assert lab.step("run") == 10 and lab.run("run", ranks=2) == [0, 0]
    assert_whole(lab, "run", whole)


def denied(*args):
    raise PermissionError(errno.EACCES, "Permission denied")


@two_ranks
def test_old_shards_that_cannot_be_removed_end_no_run(lab, whole):
    shards(lab, "run", 2, functools.partial(on_rank, 0, at("checkpoint.remove", 0, denied)), save_every=3)
    warnings = [line for line in lab.said("run").splitlines() if line.startswith("warning: ")]
    assert warnings == [
        f"warning: {n} old checkpoint(s) could not be removed, and stay: [Errno 13] Permission denied" for n in (1, 2)
    ]
    assert checkpoint.list_steps(lab.path / "runs/run/ckpt") == [3, 6, 9, 12]
    assert same(newest(lab.path, "run"), newest(whole.path, "run"))


@two_ranks
def test_what_is_in_the_way_of_shards_is_told_by_all_ranks(lab, whole):
    """A file of this name, or a folder that holds something else; an empty one is in nobody's way."""
    path = lab.path / "runs/run/ckpt/step_00000012"
    path.parent.mkdir(parents=True), path.write_text("mine")
    for _ in range(2):
        assert lab.run("run", ranks=2, parallel="shard") == [1, 1]
        for rank in (0, 1):
            error = lab.said("run", rank).splitlines()[-1]
            assert f"{path} is in the way, as it is no checkpoint; the earlier ones are whole: move that away" in error
            assert "Traceback" not in lab.said("run", rank)
        path.unlink() if path.is_file() else shutil.rmtree(path)
        (path / "notes").mkdir(parents=True)
    (path / "notes").rmdir()
    shards(lab, "run", 2)
    assert_whole(lab, "run", whole)


@two_ranks
def test_what_one_rank_refuses_all_of_them_tell(lab):
    """A folder that another process trains in, as the first rank finds, and data that only the other one lacks."""
    folder = lab.path / "runs/locked"
    folder.mkdir(parents=True)
    handle = tracking.lock(folder)
    elsewhere = functools.partial(on_rank, 1, at("train.open_data", 1, functools.partial(go_to, lab.path)))
    data_dir = os.path.relpath(lab.data_dir)
    for parallel in ("replicate", "shard"):
        for name, fault, said in (
            ("locked", (), "is being trained by another process: wait, or choose another --name"),
            ("no data", (elsewhere,), "dataset 'short' is not in"),
        ):
            assert lab.run(name, *fault, ranks=2, parallel=parallel, data_dir=data_dir) == [1, 1]
            for rank in (0, 1):
                *others, error = lab.said(name, rank).splitlines()
                assert said in error and "error: " in error, error
                assert all(line.startswith("shards: ") for line in others), others  # about bits
    os.close(handle)


def go_to(path, *args):
    os.chdir(path)


def no_room(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@two_ranks
def test_damaged_shards_are_passed_over_by_all_ranks(lab, whole):
    """Wherever a bit flips, or if a file is missing, or of another save: the ranks go on from the step before."""
    shards(lab, "run", 2, stop_at=8)
    folder, rng = lab.path / "runs/run/ckpt/step_00000008", random.Random(0)
    good = {path: path.read_bytes() for path in folder.iterdir()}
    assert {path.name for path in good} == {
        "manifest.pt", *(f"{part}_0000{i}.pt" for part in ("model", "optimizer", "averages") for i in (0, 1))
    }  # fmt: skip
    for i in range(100):
        path = sorted(good)[i % len(good)]
        flipped = bytearray(good[path])
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError):
            checkpoint.load(folder)
        path.write_bytes(good[path])
    assert checkpoint.load(folder)["progress"]["step"] == 8
    other, older = folder / "model_00001.pt", folder.with_name("step_00000006") / "model_00001.pt"
    for replace in (other.unlink, lambda: shutil.copy(older, other)):
        replace()
        with pytest.raises(ValueError, match="model_00001.pt"):
            checkpoint.load(folder)
    shards(lab, "run", 2)
    assert "warning: " in lab.said("run") and "from: step 6 of" in lab.said("run")
    assert_whole(lab, "run", whole)


@two_ranks
def test_ranks_that_see_different_folders_do_not_start(lab):
    shards(lab, "run", 2, stop_at=4)
    elsewhere = functools.partial(on_rank, 1, functools.partial(os.chdir, lab.path))
    relative = os.path.relpath(lab.path / "runs")
    codes = lab.run("run", elsewhere, ranks=2, parallel="shard", out_dir=relative)
    assert codes == [1, 1] and "do all of them see the same folder?" in lab.said("run")


@two_ranks
def test_a_signal_or_a_bad_gradient_on_one_rank_of_a_shard(lab, whole):
    """While they evaluate, too, where ranks compute together: they stop at the same step, and go on from there."""
    for name, target, nth in (("in a step", "optim.set_lr", 3), ("evaluating", "parallel.chunk_losses", 2)):
        fault = functools.partial(on_rank, 1, at(target.replace("parallel", "train"), nth, signal_itself))
        codes = lab.run(name, fault, small_chunks, ranks=2, parallel="shard")
        assert codes == [143, 143], lab.said(name)
        shards(lab, name, 2)
        assert same(newest(lab.path, name), newest(whole.path, "run"))
    bad = functools.partial(spoil, math.nan)
    fault = functools.partial(on_rank, 1, at("parallel.add_by_halves", 4 * 2 + 1, bad))
    shards(lab, "bad", 2, fault)
    end = newest(lab.path, "bad")
    assert end["progress"]["skipped"] == 1 and all(torch.isfinite(t).all() for t in tensors(end).values())


def signal_itself(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)


@two_ranks
def test_who_reads_shards_gets_the_model(lab, capsys):
    """evaluate.py of one process: raw weights, averages, merges; sample.py and export.py."""
    shards(lab, "run", 2, save_at=(6,))
    lab.run("one", save_at=(6,))
    folder, file = (checkpoint.path_of(lab.path / f"runs/{name}/ckpt", 12) for name in ("run", "one"))
    assert folder.is_dir() and file.is_file()
    for args in ([], ["--average=window"], ["--average=ema"]):
        shown = []
        for path in (folder, file):
            evaluate.run([str(path), *args, "--json"])
            rows = json.loads(capsys.readouterr().out)["rows"]
            shown.append([row | {"checkpoint": ""} for row in rows])
        assert shown[0] == shown[1]
    merged = []
    for path in (folder, file):
        evaluate.run(["--merge", *map(str, path.parent.glob("step_*")), "--json"])
        merged.append(json.loads(capsys.readouterr().out)["rows"])
    assert merged[0] == merged[1] and merged[0][0]["merge"] == "3 checkpoints, uniform"
    for path in (f"{folder}.pt", f"{folder}/manifest.pt"):  # a name that is a little off
        evaluate.run([path, "--json"])
        assert json.loads(capsys.readouterr().out)["rows"][0]["checkpoint"] == str(folder)
    for name, path in (("run", folder), ("one", file)):
        sample.run([str(path / "manifest.pt" if path is folder else path), "--tokens=40", "--device=cpu"])
        print(end="", flush=True)
        export.run([str(path.with_suffix(".pt")), f"--out={lab.path / 'exported' / name}", "--average=ema"])
    first, second = capsys.readouterr().out.split(" is whole: ")[:2]
    assert first.splitlines()[:-1] == second.splitlines()[1:-1]
    weights = [(lab.path / "exported" / name / "model.safetensors").read_bytes() for name in ("run", "one")]
    assert weights[0] == weights[1]


@two_ranks
def test_schedule_free_in_shards_counts_as_elsewhere(lab, capsys):
    options = dict(optimizer="schedule_free", schedule="constant", cooldown_steps=None, window_horizon=0)
    options |= dict(ema_half_life=(), n_embd=32)
    shards(lab, "run", 2, **options)
    logged = lines(lab.path, "run")[-1]["val_loss"]
    evaluate.run([str(lab.path / "runs/run/ckpt/step_00000012"), "--tokens=200", "--json"])
    assert json.loads(capsys.readouterr().out)["rows"][0]["val_loss"] == logged


LIMIT_MB = 700  # of memory beyond what a process has that has imported torch


def little_memory(megabytes=LIMIT_MB):
    """From now on this process gets so much more memory and no more."""
    of_this = Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]
    most = (int(of_this) << 10) + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def evaluate_with_little_memory(path, said):
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    little_memory()
    evaluate.run([str(path), "--tokens=200", "--json"])


def export_with_little_memory(path, out):
    little_memory()
    export.run([str(path), f"--out={out}"])


@long
@four_ranks
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured as on Linux")
def test_a_model_too_large_for_one_process(lab):
    """57 million parameters: weights, gradients, moments and an EMA are 1.1 GB, and 0.3 GB on each of four ranks."""
    large = dict(n_layer=32, n_embd=384, n_head=6, total_steps=3, save_every=0, warmup_steps=1, cooldown_steps=1)
    large |= dict(micro_batch_size=1, window_horizon=0, eval_every=0)
    assert lab.run("one", little_memory, **large) == 1
    assert "Cannot allocate memory" in lab.said("one")  # the control
    shards(lab, "four", 4, little_memory, **large)
    folder = lab.path / "runs/four/ckpt/step_00000003"
    process = FORKS.Process(target=evaluate_with_little_memory, args=(folder, lab.path / "said"))
    process.start()
    assert ends([process]) == 0, (lab.path / "said").read_text()
    found = json.loads((lab.path / "said").read_text())["rows"][0]["val_loss"]
    assert found == json.loads((lab.path / "runs/four/result.json").read_text())["val_loss"]
    process = FORKS.Process(target=export_with_little_memory, args=(folder, lab.path / "out"))
    process.start()
    assert ends([process]) == 0 and (lab.path / "out/model.safetensors").stat().st_size > 2e8


# ----------------------------------------------------------------------------------------------------------------------
# Secrets and leaks


def test_no_secret_of_the_environment_is_written(lab):
    secrets = {"WANDB_API_KEY": SECRET, "HF_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
    assert lab.run("run", env=secrets) == 0
    files = [p for p in lab.path.rglob("*") if p.is_file()]
    assert len(files) > 10 and not any(SECRET.encode() in p.read_bytes() for p in files)
    assert lab.run("x", env=secrets, init_from=SECRET) == 1 and SECRET in lab.said("x")  # the control: it is searched


def measure(path, *args):
    """Write down the open files, the memory that is this process's own in kB, and the checkpoints."""
    memory = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    here = len(os.listdir("/proc/self/fd")), int(memory.split()[1]), len(os.listdir(args[0]))
    with open(path, "a") as file:
        file.write("{} {} {}\n".format(*here))


def leak(*args):
    hoard.append((os.open("/dev/null", os.O_RDONLY), bytearray(os.urandom(100_000))))


hoard = []


@pytest.mark.parametrize("steps", [60, pytest.param(200, marks=long)])
def test_nothing_leaks(lab, steps):
    """Open files, memory and checkpoints of a run that saves at each step: at the end as after the first 20."""
    for name, faults in (("run", []), ("leaking", [at("checkpoint.try_save", 0, leak)])):
        path = lab.path / f"{name} measured"
        fault = at("checkpoint.try_save", 0, None, functools.partial(measure, path))
        assert lab.run(name, fault, *faults, total_steps=steps, save_every=1, eval_every=0, log_every=0) == 0
        measured = [tuple(map(int, line.split())) for line in path.read_text().splitlines()]
        files, kilobytes, saved = (last - first for last, first in zip(measured[-1], measured[19], strict=True))
        assert len(measured) == steps and saved == 0
        assert (files > 0, kilobytes > 2500) == ((False, False) if name == "run" else (True, True)), (files, kilobytes)
    print(f"\n{steps} saves, each with its step: no file, no checkpoint, no memory more than after 20")
