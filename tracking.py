"""A run's folder: config.json, log.jsonl, the code that ran, result.json; and wandb, if asked.

    folder = RunFolder(run, config, log_from=run / "log.jsonl", start=1000)   # Mistake if another process trains it
    folder.log({"step": 1010, "train_loss": 3.2})
    folder.finish(result)

log.jsonl has a JSON object per line. It begins with the lines of `log_from` up to step `start`: those of the run itself
when it resumes, those of its ancestor when it is a branch. So it is always whole, without a line twice.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from pathlib import Path

from config import HERE, Mistake
from sealed import written

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

WANDB_PROJECT = "cooldown"
REPEAT_S = 2.0  # signals that come closer together are one
WANDB_FINISH_S = 60  # without a network wandb may hang at the end: no longer than this


def check_folder(out_dir, name):
    """Raise Mistake unless the run's folder lies in `out_dir` and can be written to; write nothing."""
    run = Path(out_dir) / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:  # a link may lead elsewhere
        raise Mistake(f"name={name!r}: the run's folder has to lie within out_dir={out_dir!r}")
    there = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK) or not there.stat().st_mode & 0o222:
        raise Mistake(f"out_dir={out_dir!r}: cannot write to {there}; choose another --out_dir")


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
        self.lock = lock(path)
        if self.lock is None:
            raise Mistake(f"{path} is being trained by another process: wait, or choose another --name")
        (path / "result.json").unlink(missing_ok=True)
        with written(path / "config.json") as file:
            file.write((json.dumps(config, indent=1) + "\n").encode())
        lines = lines_up_to(log_from, start, evaluated)
        with written(path / "log.jsonl") as file:
            file.write("".join(lines).encode())
        self.stream = open(path / "log.jsonl", "a", buffering=1)  # each line goes out at once
        keep_code(path / "code")
        if config["wandb"] != "off":
            with self.optional_wandb():
                self.wandb = start_wandb(path, config)

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
        print(for_people(entry, left_s), flush=True)
        entry = finite(entry)
        self.stream.write(json.dumps(entry) + "\n")
        if self.wandb:
            with self.optional_wandb():
                self.wandb.log(entry, step=entry["step"])

    def finish(self, result):
        """Write result.json, which says that the run reached its end; numbers that are not finite become null."""
        with written(self.path / "result.json") as file:
            file.write((json.dumps(finite(result), indent=1) + "\n").encode())

    def close(self):
        self.stream.close()
        os.close(self.lock)
        if self.wandb:
            finish = threading.Thread(target=self.wandb.finish, daemon=True)
            finish.start()
            finish.join(WANDB_FINISH_S)


def start_wandb(path, config):
    """The wandb run of a run's folder: the same one whenever it goes on, in one group with the run it branched from.

    wandb.json holds its id, and whose it is: a copy of the folder under another name gets a run of its own.
    """
    import wandb

    def kept(folder):
        return json.loads((folder / "wandb.json").read_text()) if (folder / "wandb.json").is_file() else {}

    known, name = kept(path), config["name"]
    if known.get("name") != name:
        known = {"name": name, "id": uuid.uuid4().hex[:12], "group": name}
        if config["init_from"]:
            trunk = Path(config["init_from"]).parent.parent
            known["group"] = kept(trunk).get("group", trunk.name)
        with written(path / "wandb.json") as file:
            file.write((json.dumps(known) + "\n").encode())
    which = {"name": name, "id": known["id"], "group": known["group"], "resume": "allow"}
    return wandb.init(project=WANDB_PROJECT, dir=path, mode=config["wandb"], config=config, **which)


def keep_code(folder):
    """Copy the files of ours that this process uses."""
    folder.mkdir(exist_ok=True)
    loaded = {
        Path(module.__file__).resolve() for module in [*sys.modules.values()] if getattr(module, "__file__", None)
    }
    for file in loaded & {*HERE.glob("*.py")}:
        if HERE != folder.resolve():
            shutil.copy(file, folder)


def lock(path):
    """Lock a folder for this process, until that ends, however it does: a handle to close; None if another has it."""
    if fcntl is None:  # Windows has other locks: two processes at one run are not noticed there
        return os.open(os.devnull, os.O_RDONLY)
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        raise Mistake(f"{path} is on a file system without locks ({error}): choose an --out_dir on another") from None


def is_locked(path):
    """Whether a process is training in a run's folder."""
    if not path.is_dir():
        return False
    handle = lock(path)
    if handle is not None:
        os.close(handle)
    return handle is None


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


def finite(entry):
    """A dict with None for numbers that are not finite, as JSON has none."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}


FORMS = {
    "train_loss": "loss {:.4f}",
    "z_loss": "z-loss {:.4f}",
    "lr": "lr {:.2e}",
    "grad_norm": "norm {:.2f}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "mfu": "mfu {:.1%}",
    "skipped": "SKIPPED, as the gradient is not finite",
    "window_steps": "over {} steps",
}


def for_people(entry, left_s=None):
    """A log line for people: known numbers in their forms, all losses by their names."""
    parts = [f"step {entry['step']:>6}"]
    for name, value in entry.items():
        if name.startswith("val_loss"):
            loss, slash, dataset = name.partition("/")
            parts.append(f"{loss.removeprefix('val_loss_').replace('_', ' ')}{slash}{dataset} {value:.4f}")
        elif name in FORMS:
            parts.append(FORMS[name].format(value))
    return "  ".join(parts + ([] if left_s is None else [f"{clock(left_s)} left"]))


class Speed:
    """Of the steps of this process, evaluations and saves left out."""

    def __init__(self):
        self.n_steps, self.of_interval, self.seconds, self.step_s = 0, 0, 0.0, 0.0

    def add(self, seconds):
        """Count a step, and return its seconds."""
        self.n_steps, self.of_interval, self.seconds = self.n_steps + 1, self.of_interval + 1, self.seconds + seconds
        if self.n_steps <= 2:
            self.step_s = seconds  # the first one compiles, so the second takes its place
        else:
            self.step_s = 0.9 * self.step_s + 0.1 * seconds
        return seconds

    def per_second(self):
        """Steps per second, since this was asked last."""
        per_second = self.of_interval / self.seconds
        self.of_interval, self.seconds = 0, 0.0
        return per_second


def read_json(path):
    """Read a JSON object; Mistake if it is damaged or missing."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, FileNotFoundError):
        found = None
    if not isinstance(found, dict):
        raise Mistake(f"{path} is missing or damaged: restore it from a copy, or choose another --name")
    return found


def clock(seconds):
    """h:mm:ss"""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def lines_up_to(path, last_step, evaluated=True):
    """Lines of a log.jsonl, if there is one, up to step `last_step` (none for 0), without one that a kill cut off."""
    lines = []
    if not last_step or not path or not path.is_file():
        return lines
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            again = entry["step"] == last_step and "val_loss" in entry and not evaluated
            if entry["step"] <= last_step and not again:
                lines.append(line + "\n")
    return lines
