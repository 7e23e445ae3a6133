"""A run's folder: where it starts; config.json, log.jsonl, the code that ran, result.json; and wandb, if asked.

    start = find_start(config, run)                         # its newest checkpoint, one to branch from, or neither
    folder = RunFolder(run, config, log_from=run / "log.jsonl", start=1000)   # ValueError if another process trains it
    folder.log({"step": 1010, "train_loss": 3.2})
    folder.finish(result)

log.jsonl has one JSON object a line. It begins with the lines of `log_from` up to step `start`: those of the run itself
when it resumes, those of its ancestor when it is a branch. So it is always whole, without a line twice.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import checkpoint
from checkpoint import written
from config import HERE, Mistake, from_record, mistakes, names

FORMAT = 1  # of what train.py saves
WANDB_PROJECT = "cooldown"
REPEAT_S = 2.0  # signals that come closer together are one
WANDB_FINISH_S = 60  # without a network wandb may hang at the end: no longer than this


def check_folder(out_dir, name):
    """Raise ValueError unless the run's folder lies in `out_dir` and can be written to; write nothing."""
    run = Path(out_dir) / name
    if Path(out_dir).resolve() not in run.resolve().parents:
        raise Mistake(f"name={name!r}: the run's folder has to lie within out_dir={out_dir!r}")
    there = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK) or not there.stat().st_mode & 0o222:
        raise Mistake(f"out_dir={out_dir!r}: cannot write to {there}; choose another --out_dir")


# ----------------------------------------------------------------------------------------------------------------------
# Where a run starts

NEW = {"progress": {"step": 0}, "averages": {}, "data": {"history": [], "sha256": {}}}  # as a checkpoint would say it


@dataclasses.dataclass
class Start:
    """Where a run starts: with new weights, from its own newest checkpoint, or as a branch of another run."""

    how: str  # "new", "resumed" or "branch"
    log: Path  # whose lines up to this step are those of the run, too
    state: dict = dataclasses.field(default_factory=lambda: NEW)  # what the checkpoint holds
    path: Path | None = None  # the checkpoint
    options: dict = dataclasses.field(default_factory=dict)  # those it was trained with
    result: dict | None = None  # what result.json says, if the run is finished

    def __post_init__(self):
        self.step = self.state["progress"]["step"]

    def changes(self, config):
        """[(option, before, now)] of the options that a run changes when it resumes."""
        if self.how != "resumed":
            return []
        pairs = [(name, before, getattr(config, name)) for name, before in self.options.items()]
        return [(name, before, now) for name, before, now in pairs if before != now and name != "stop_at"]


def find_start(config, run, warn=True):
    """Find where a run starts; what its own folder holds goes before `config.init_from`.

    config   options of train.py
    warn     whether to tell on stderr of damaged checkpoints and unknown options: one rank's is enough
    Mistake if it may not go on from there, as its options or its length do not allow it.
    """
    with mistakes():
        own = checkpoint.load_latest(run / "ckpt", warn)
        if own is None and config.init_from is None:
            return Start("new", run / "log.jsonl")
        state, path = own or (checkpoint.load(config.init_from), Path(config.init_from))
    if state.get("format") != FORMAT:
        raise Mistake(f"{path} is not a checkpoint of this code (format {FORMAT})")
    options = from_record(type(config), state["config"], path, warn)
    for name in names(type(config), "model", "run") if own else names(type(config), "model"):
        before, now = options[name], getattr(config, name)
        if before != now:
            remedy = f"choose another --name, or delete {run}" if own else "a branch has to keep it"
            raise Mistake(f"{name}={now!r}, but {path} was trained with {before!r}: {remedy}")
    step = state["progress"]["step"]
    if step > config.total_steps - (own is None):
        raise Mistake(f"total_steps={config.total_steps}: {path} is past it already; train longer")
    if config.stop_at is not None and step > config.stop_at:
        raise Mistake(f"stop_at={config.stop_at}: {path} is past it already")
    if not own:
        return Start("branch", path.parent.parent / "log.jsonl", state, path, options)
    result = read_result(config, run, options) if step == config.total_steps else None
    return Start("resumed", run / "log.jsonl", state, path, options, result)


def read_result(config, run, options):
    """What the result.json of a run says that was trained with `options`; None if there is none.

    Mistake if `config` asks for another result, which would be for nothing.
    """
    if not (run / "result.json").is_file():
        return None
    for name, before in options.items():
        now = getattr(config, name)
        if before != now and name not in names(type(config), "free"):
            raise Mistake(f"{name}={now!r}, but {run} is finished with {before!r}: choose another --name")
    return json.loads((run / "result.json").read_text())


# ----------------------------------------------------------------------------------------------------------------------
# The folder


class RunFolder:
    """The open folder of a run, of which there is one: on rank 0.

    config     dict of the run's options
    evaluated  whether the evaluation at `start` is done; if not, a line of it is left out, as it will be written again
    """

    def __init__(self, path, config, log_from, start, evaluated=True):
        self.path, self.wandb = path, None
        path.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError:
            os.close(self.lock)
            raise Mistake(f"{path} is being trained by another process: wait, or choose another --name") from None
        (path / "result.json").unlink(missing_ok=True)
        with written(path / "config.json") as file:
            file.write((json.dumps(config, indent=1) + "\n").encode())
        lines = read_log(log_from, start, evaluated)
        with written(path / "log.jsonl") as file:
            file.write("".join(lines).encode())
        self.stream = open(path / "log.jsonl", "a", buffering=1)  # each line goes out at once
        keep_code(path / "code")
        if config["wandb"] != "off":
            with self.optional_wandb():
                import wandb

                mode, name = config["wandb"], config["name"]
                self.wandb = wandb.init(project=WANDB_PROJECT, name=name, dir=path, mode=mode, config=config)

    @contextlib.contextmanager
    def optional_wandb(self):
        """Tracking must not stop a run: its failure switches it off."""
        try:
            yield
        except Exception as error:
            self.wandb = None
            print(f"warning: wandb failed and is off: {error}", file=sys.stderr, flush=True)

    def log(self, entry, left_s=None):
        """Append one line, and print it; numbers that are not finite become null, as JSON has none."""
        print(describe(entry, left_s), flush=True)
        entry = {k: v if math.isfinite(v) else None for k, v in entry.items()}
        self.stream.write(json.dumps(entry) + "\n")
        if self.wandb:
            with self.optional_wandb():
                self.wandb.log(entry, step=entry["step"])

    def finish(self, result):
        """Write result.json, which says that the run reached its end."""
        with written(self.path / "result.json") as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())

    def close(self):
        self.stream.close()
        os.close(self.lock)
        if self.wandb:
            finish = threading.Thread(target=self.wandb.finish, daemon=True)
            finish.start()
            finish.join(WANDB_FINISH_S)


def keep_code(folder):
    """Copy the files of ours that this process uses."""
    folder.mkdir(exist_ok=True)
    loaded = {
        Path(module.__file__).resolve() for module in [*sys.modules.values()] if getattr(module, "__file__", None)
    }
    for file in loaded & {*HERE.glob("*.py")}:
        if HERE != folder.resolve():
            shutil.copy(file, folder)


def is_locked(path):
    """Whether a process is training in a run's folder."""
    if not path.is_dir():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def caught_signals():
    """List that SIGTERM and Ctrl-C are put into, as numbers, instead of ending the process.

    Another one ends it, but not in the first seconds: schedulers and torchrun both send theirs to each worker.
    """
    received, began = [], time.monotonic()

    def receive(number, frame):
        nonlocal began
        if not received:
            began = time.monotonic()
        received.append(number)
        if len(received) > 1 and time.monotonic() - began > REPEAT_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(entry, left_s=None):
    """A log line for people."""
    forms = {
        "train_loss": "loss {:.4f}",
        "z_loss": "z-loss {:.4f}",
        "lr": "lr {:.2e}",
        "grad_norm": "norm {:.2f}",
        "tokens_per_s": "{:,.0f} tokens/s",
    }
    forms |= {"mfu": "mfu {:.1%}", "skipped": "SKIPPED, as the gradient is not finite", "val_loss": "val loss {:.4f}"}
    forms |= {"val_loss_window": "window {:.4f}", "window_steps": "over {} steps", "val_loss_ema": "ema {:.4f}"}
    parts = [form.format(entry[name]) for name, form in forms.items() if name in entry]
    return "  ".join([f"step {entry['step']:>6}", *parts] + ([] if left_s is None else [f"{clock(left_s)} left"]))


def clock(seconds):
    """h:mm:ss"""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def read_log(path, last_step, evaluated=True):
    """Lines of a log.jsonl up to step `last_step` (none for 0), without one that a kill cut off."""
    lines = []
    for line in path.read_text().splitlines() if last_step and path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            again = entry["step"] == last_step and "val_loss" in entry and not evaluated
            if entry["step"] <= last_step and not again:
                lines.append(line + "\n")
    return lines
