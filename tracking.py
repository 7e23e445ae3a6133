"""A run's folder: where it starts; config.json, log.jsonl, the code that ran, result.json; and wandb, if asked.

    start = find_start(config, run)                         # its newest checkpoint, one to branch from, or neither
    folder = RunFolder(run, config, log_from=run / "log.jsonl", start=1000)   # Mistake if another process trains it
    folder.log({"step": 1010, "train_loss": 3.2})
    folder.finish(result)

log.jsonl has a JSON object per line. It begins with the lines of `log_from` up to step `start`: those of the run itself
when it resumes, those of its ancestor when it is a branch. So it is always whole, without a line twice.
"""

import contextlib
import dataclasses
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

import checkpoint
from checkpoint import written
from config import HERE, Mistake, from_record, mistakes, names

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1  # of what train.py saves
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
# What a checkpoint holds

PARTS = ("model", "optimizer", "averages", "progress", "data", "config")  # dicts all of them


def check_state(state, path, parts=PARTS):
    """Mistake, which says what a file holds instead or what it lacks, unless it is a checkpoint with these parts."""
    remedy = "give a checkpoint that train.py saved"
    if not isinstance(state, dict):
        raise Mistake(f"{path} holds a {type(state).__name__}, not a checkpoint: {remedy}")
    if state and all(hasattr(value, "shape") for value in state.values()):
        raise Mistake(f"{path} holds weights alone, such as {next(iter(state))}: {remedy}")
    missing = [part for part in parts if not isinstance(state.get(part), dict)]
    inside = {"progress": "step", "config": "dataset"}
    missing += [name for part, name in inside.items() if part not in missing and name not in state[part]]
    if missing:
        kind = "a checkpoint of nanoGPT" if "model_args" in state else "no checkpoint of this code"
        raise Mistake(f"{path} is {kind}, and lacks {', '.join(missing)}: {remedy}")
    if state.get("format") != FORMAT:
        raise Mistake(f"{path} has format {state.get('format')}, and this code reads {FORMAT}: {remedy}")
    odd = [name for name, value in state["model"].items() if not hasattr(value, "shape")]
    if odd or not state["model"]:
        raise Mistake(f"{path} has no weights in its model{f', but {odd[0]}' if odd else ''}: {remedy}")


# ----------------------------------------------------------------------------------------------------------------------
# Where a run starts

NEW = {"progress": {"step": 0}, "averages": {}, "data": {"history": [], "sha256": {}}}  # as a checkpoint would say it
EVIDENT = ("name", "init_from", "stop_at")  # options whose change says itself


@dataclasses.dataclass
class Start:
    """Where a run starts: with new weights, from its own newest checkpoint, or as a branch of another run."""

    how: str  # "new", "resumed" or "branch"
    log: Path | None  # whose lines up to this step are those of the run, too; None: no log is known to be
    state: dict = dataclasses.field(default_factory=lambda: NEW)  # what the checkpoint holds
    path: Path | None = None  # the checkpoint
    options: dict = dataclasses.field(default_factory=dict)  # those it was trained with
    result: dict | None = None  # what result.json says, if the run is finished

    def __post_init__(self):
        self.step = self.state["progress"]["step"]
        self.merged_from = len(self.state.get("merged", {}).get("paths", ()))  # checkpoints, by evaluate.py --merge
        self.computed = self.state.get("versions", {})  # with what

    def changes(self, config):
        """[(option, before, now)] of the options that are other than those of the checkpoint."""
        pairs = [(name, before, getattr(config, name)) for name, before in self.options.items()]
        return [(name, before, now) for name, before, now in pairs if before != now and name not in EVIDENT]

    def first_change_of_lr(self, config, make_schedule):
        """(step, lr then, lr now) of the first update made so far that would have another learning rate now, or None.

        None means that what follows is the rest of the schedule that began at step 0.
        """
        if not self.options:
            return None
        before = type(config)(**self.options)
        then, now = make_schedule(before), make_schedule(config)
        peaks = [(before.lr, config.lr), (before.lr_other or before.lr, config.lr_other or config.lr)]
        for step in range(self.step):
            for peak_then, peak_now in peaks:
                lrs = peak_then * then(step), peak_now * now(step)
                if not math.isclose(*lrs, rel_tol=1e-9):
                    return step, *lrs
        return None

    def tell(self, config, computed, lr_change, begun):
        """Print where the run starts, and all that is other than the checkpoint's run would have it."""
        print(f"from: {f'step {self.step} of {self.path}' if self.path else 'new weights'}")
        if self.merged_from:
            print(f"merged: its weights are of {self.merged_from} checkpoints, the optimizer's moments of the last one")
        for name, before, now in self.changes(config):
            print(f"changed: {name}={now!r}, until step {self.step} it was {before!r}")
        for name, now in computed.items():
            if self.computed and (before := self.computed.get(name)) != now:
                print(
                    f"computed with {name} {now}, until step {self.step} with {before}: bits are not those of one run"
                )
        if lr_change:
            print(
                "warning: from step {} on this is not the rest of its schedule: update {} was made at lr {:.4g}, "
                "here its lr is {:.4g}".format(self.step, *lr_change)
            )
        for name in begun:
            print(f"{name}: this average begins at step {self.step}; {self.path} has none like it")
        if self.how == "branch" and self.log is None:
            print(f"log: it begins at step {self.step}, as no log beside {self.path} is known to be of its run")


def find_start(config, run, warn=True):
    """Find where a run starts; what its own folder holds goes before `config.init_from`.

    config   options of train.py
    warn     whether to tell on stderr of damaged checkpoints and unknown options: one rank's is enough
    Mistake if it may not go on from there, as its options or its length do not allow it.
    """
    with mistakes():
        own = checkpoint.load_latest(run / "ckpt", warn)
    if own:
        return resume(config, run, *own, warn)
    if (run / "result.json").is_file():  # its checkpoints were removed to save space
        options = from_record(type(config), read_json(run / "config.json"), run / "config.json", warn)
        return Start("resumed", run / "log.jsonl", options=options, result=read_result(config, run, options))
    if config.init_from is None:
        check_begun(config, run, start=0)
        return Start("new", None)
    state, path = read_checkpoint(config.init_from), Path(config.init_from)
    check_begun(config, run, state["progress"]["step"])
    options = from_record(type(config), state["config"], path, warn)
    kept = names(type(config), "model") + (["seed"] if config.density < 1 else [])  # of what is 0
    check_kept(config, options, kept, path, "a branch has to keep it")
    check_length(config, state, path, least=1)
    return Start("branch", log_of(path, options), state, path, options)


def resume(config, run, state, path, warn):
    """The start of a run from its own checkpoint."""
    check_state(state, path)
    if "merged" in state:
        raise Mistake(f"{path} was merged from others, and is not this run's own: move it away, and branch from it")
    options = from_record(type(config), state["config"], path, warn)
    check_kept(config, options, names(type(config), "model", "run"), path, "choose another --name")
    check_length(config, state, path, least=0)
    finished = state["progress"]["step"] == config.total_steps and (run / "result.json").is_file()
    result = read_result(config, run, options) if finished else None
    return Start("resumed", run / "log.jsonl", state, path, options, result)


def read_checkpoint(path):
    """Read and check a checkpoint of train.py; Mistake says in one line what else a file is."""
    with mistakes():
        state = checkpoint.load(path)
    check_state(state, path)
    return state


def check_kept(config, before, kept, path, remedy):
    """Raise Mistake if an option that has to stay as it was is another."""
    for name in kept:
        now = getattr(config, name)
        if before[name] != now and not (name == "init_from" and same_file(before[name], now)):
            raise Mistake(f"{name}={now!r}, but {path} was trained with {before[name]!r}: {remedy}")


def same_file(a, b):
    return None not in (a, b) and Path(a).resolve() == Path(b).resolve()


def check_length(config, state, path, least):
    """Raise Mistake unless at least so many steps are left."""
    step = state["progress"]["step"]
    if step > config.total_steps - least:
        raise Mistake(f"total_steps={config.total_steps}: {path} is past it already; train longer")
    if config.stop_at is not None and step > config.stop_at:
        raise Mistake(f"stop_at={config.stop_at}: {path} is past it already")


def check_begun(config, run, start):
    """Raise Mistake if a folder without a checkpoint holds the log of a run that had one, after its `start`."""
    lines = lines_up_to(run / "log.jsonl", math.inf)
    if not lines:
        return
    then = from_record(type(config), read_json(run / "config.json"), run / "config.json", warn=False)
    saves = [*then["save_at"], then["stop_at"] or then["total_steps"]]
    if then["save_every"]:
        saves.append((start // then["save_every"] + 1) * then["save_every"])
    step = json.loads(lines[-1])["step"]
    if step > min((save for save in saves if save > start), default=math.inf):
        raise Mistake(
            f"{run} holds the log of a run up to step {step:,}, but no checkpoint: restore its ckpt/, "
            "or choose another --name"
        )


def log_of(path, options):
    """The log of the run that a checkpoint is of, if it lies where that run left it; else None."""
    run = path.absolute().parent.parent
    if path.absolute().parent.name != "ckpt" or not (run / "config.json").is_file():
        return None
    try:
        there = read_json(run / "config.json")
    except Mistake:
        return None
    alike = all(there.get(name) == options[name] for name in ("name", "seed", "data_seed", "dataset", "n_embd"))
    return run / "log.jsonl" if alike else None


def read_json(path):
    """Read a JSON object; Mistake if it is damaged or missing."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, FileNotFoundError):
        found = None
    if not isinstance(found, dict):
        raise Mistake(f"{path} is missing or damaged: restore it from a copy, or choose another --name")
    return found


def read_result(config, run, options):
    """What the result.json of a finished run says that was trained with `options`.

    Mistake if `config` asks for another result, which would be for nothing; FloatingPointError if it diverged.
    """
    free = names(type(config), "free")
    check_kept(
        config, options, [name for name in options if name not in free], f"the finished {run}", "choose another --name"
    )
    result = read_json(run / "result.json")
    check_result(result, run)
    return result


def check_result(result, run):
    """Raise FloatingPointError if a run ended without a loss that is a number."""
    if result["val_loss"] is None:
        raise FloatingPointError(
            f"{run} has ended at step {result['step']}, and its validation loss is not a number: training diverged; "
            "lower --lr, and choose another --name"
        )


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
            parts.append(f"{name.removeprefix('val_loss_').replace('_', ' ')} {value:.4f}")
        elif name in FORMS:
            parts.append(FORMS[name].format(value))
    return "  ".join(parts + ([] if left_s is None else [f"{clock(left_s)} left"]))


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
