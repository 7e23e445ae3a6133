"""Where a run starts: with new weights, from its own newest checkpoint, or as a branch of another run; how far it is.

    start = find_start(config, run)               # Mistake if it may not go on from what is there
    at = Progress(**start.state["progress"])
    begun = start.restore(model, optimizer, averages)
    start.tell(config, versions, lr_change, begun)

The last prints whatever is other than the checkpoint's run would have it.
"""

import dataclasses
import json
import math
from pathlib import Path

import checkpoint
import optim
from config import Mistake, from_record, mistakes, names, to_record
from model import load_weights
from tracking import lines_up_to, read_json

FORMAT = 1  # of what train.py saves
MAX_SKIPS = 10  # updates skipped in a row, before a run ends


@dataclasses.dataclass
class Progress:
    """How far a run is: all that changes from step to step, besides weights, optimizer and averages."""

    step: int = 0  # updates made
    position: int = 0  # sequences trained on
    skipped: int = 0  # updates skipped for gradients that were not finite
    skipped_in_a_row: int = 0
    train_s: float = 0.0  # seconds spent in updates
    train_loss: float | None = None  # of the last update
    lr_changed_at: int | None = None  # step from which on the learning rates are not those of one run from step 0
    losses: dict | None = None  # by name: val_loss, those of averages and further sets, if this step was evaluated


# ----------------------------------------------------------------------------------------------------------------------
# What a checkpoint holds

PARTS = ("model", "optimizer", "averages", "progress", "data", "config")  # dicts all of them


def state_of(weights, optimizer, averages, progress, stream, config):
    """What a checkpoint of a run holds, but for the versions it is computed with; of a model in shards this rank's."""
    history = [(first, mix) for first, mix in stream.history if first < progress.position]  # what is ahead may change
    return {
        "format": FORMAT,
        "model": weights.state_dict(),
        "shape": weights.shape.to_record(),
        "optimizer": optimizer.state_dict(),
        "averages": {name: average.state_dict() for name, average in averages.items()},
        "progress": dataclasses.asdict(progress),
        "data": {"history": history, "sha256": stream.sha256, "tokenizer": stream.tokenizer},
        "config": to_record(config),
    }


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
        self.imported_from = self.state.get("imported", {}).get("path")  # a folder, by export.py: no update was made
        self.computed = self.state.get("versions", {})  # with what

    def changes(self, config):
        """[(option, before, now)] of the options that are other than those of the checkpoint."""
        options = {} if self.imported_from else self.options
        pairs = [(name, before, getattr(config, name)) for name, before in options.items()]
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

    def restore(self, model, optimizer, averages):
        """Load what the checkpoint holds, and free its memory; names of averages that it has not, or not like these."""
        state, self.state, begun = self.state, None, []
        if self.how == "new":
            return begun
        with mistakes(self.path):
            load_weights(model, state["model"])
        optim.load_state(optimizer, state["optimizer"])
        for name, average in averages.items():
            saved = state["averages"].get(name, {})
            if average.settings.items() <= saved.items():
                average.load_state_dict(saved)
            else:
                begun.append(name)
        return begun

    def tell(self, config, computed, lr_change, begun):
        """Print where the run starts, and all that is other than the checkpoint's run would have it."""
        print(f"from: {f'step {self.step} of {self.path}' if self.path else 'new weights'}")
        if self.merged_from:
            print(f"merged: its weights are of {self.merged_from} checkpoints, the optimizer's moments of the last one")
        if self.imported_from:
            print(f"imported: its weights are those of {self.imported_from}, and the optimizer has no moments yet")
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
        if self.how == "branch" and self.log is None and not self.imported_from:
            print(f"log: it begins at step {self.step}, as no log beside {self.path} is known to be of its run")


def find_start(config, run, ranks=checkpoint.ALONE):
    """Find where a run starts; what its own folder holds goes before `config.init_from`.

    config   options of train.py
    ranks    that all call this; the main one tells on stderr of damaged checkpoints and unknown options
    Mistake if it may not go on from there, as its options or its length do not allow it.
    """
    warn = ranks.is_main
    with mistakes():
        own = checkpoint.load_latest(run / "ckpt", warn, ranks)
    if own:
        return resume(config, run, *own, warn)
    if (run / "result.json").is_file():  # its checkpoints were removed to save space
        options = from_record(type(config), read_json(run / "config.json"), run / "config.json", warn)
        return Start("resumed", run / "log.jsonl", options=options, result=read_result(config, run, options))
    if config.init_from is None:
        check_begun(config, run, start=0)
        return Start("new", None)
    with mistakes():
        path = checkpoint.together(lambda: checkpoint.meant(config.init_from), ranks, errors=(ValueError,))
    state = read_checkpoint(path, ranks)
    check_begun(config, run, state["progress"]["step"])
    options = from_record(type(config), state["config"], path, warn)
    kept = names(type(config), "model") + (["seed"] if config.density < 1 else [])  # of what is 0
    if "imported" in state:  # there are no moments, that another optimizer could not read
        kept.remove("optimizer")
    check_kept(config, options, kept, path, "a branch has to keep it")
    check_length(config, state, path, least=1)
    return Start("branch", log_of(path, options), state, path, options)


def resume(config, run, state, path, warn):
    """The start of a run from its own checkpoint."""
    check_state(state, path)
    for made in ("merged", "imported"):
        if made in state:
            raise Mistake(f"{path} was {made} from others, and is not this run's own: move it away, and branch from it")
    options = from_record(type(config), state["config"], path, warn)
    check_kept(config, options, names(type(config), "model", "run"), path, "choose another --name")
    check_length(config, state, path, least=0)
    finished = state["progress"]["step"] == config.total_steps and (run / "result.json").is_file()
    result = read_result(config, run, options) if finished else None
    return Start("resumed", run / "log.jsonl", state, path, options, result)


def read_checkpoint(path, ranks):
    """Read and check a checkpoint of train.py; Mistake says in one line what else a file is."""
    with mistakes():
        state = checkpoint.load(path, ranks=ranks)
    check_state(state, path)
    return state


def check_kept(config, before, kept, path, remedy):
    """Raise Mistake if an option that has to stay as it was is another."""
    for name in kept:
        now = getattr(config, name)
        if before[name] != now and not (name == "init_from" and same_file(before[name], now)):
            raise Mistake(f"{name}={now!r}, but {path} was trained with {before[name]!r}: {remedy}")


def same_file(a, b):
    with mistakes():
        return None not in (a, b) and checkpoint.meant(a).resolve() == checkpoint.meant(b).resolve()


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


def check_skips(progress, run):
    """Raise FloatingPointError if no gradient was finite for MAX_SKIPS updates."""
    if progress.skipped_in_a_row == MAX_SKIPS:
        raise FloatingPointError(
            f"{MAX_SKIPS} gradients in a row, up to step {progress.step}, were not finite: lower --lr; "
            f"the checkpoints in {run / 'ckpt'} are as they were"
        )


def check_result(result, run):
    """Raise FloatingPointError if a run ended without a loss that is a number."""
    if result["val_loss"] is None:
        raise FloatingPointError(
            f"{run} has ended at step {result['step']}, and its validation loss is not a number: training diverged; "
            "lower --lr, and choose another --name"
        )
