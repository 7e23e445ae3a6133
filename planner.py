"""The runs that a study's config file describes, and the cheapest way to get them: every shared step once.

    study, runs = read_study("configs/demo.py")      # "demo", {run's name: Config}
    roots = plan(study, runs)                        # first segments of the trees that the runs form

Runs that differ in schedule and length only, and whose learning rates are equal up to some step, are one run up to
there; so are those whose cooldowns train on other data, up to the cooldown. A `Segment` is a piece of training between
two such partings; its last checkpoint is where the next ones start.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import statistics
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import optim
import scaling
from checkpoint import find, list_steps, path_of
from config import HERE, Mistake, from_record, names, parse, read_file, run_file
from data import ValSet, cooldown_start, first_dataset, read_meta, val_datasets
from model import Llama, Shape
from start import MAX_SKIPS
from tracking import lines_up_to, read_json
from train import Config, check, every, make_schedule, train
from vocab import TOKENIZERS

TRIAL_FLOPS, TRIAL_STEPS = 1e11, (4, 20)  # of a trial that shows what a model costs: a second or two on a CPU
NOT_FOR_A_STUDY = ("init_from", "stop_at", "save_at")  # it sets these itself


# ----------------------------------------------------------------------------------------------------------------------
# The runs that a config file describes


def read_study(path, flags=()):
    """(name of the study, {run's name: Config}) of a config file and --key=value flags, which win over it."""
    values, lines = run_file(path)
    study, start = take_name_and_base(path, values)
    grids = values.pop("grids", [{}])
    are_grids = isinstance(grids, list) and grids and all(isinstance(grid, dict) for grid in grids)
    if not are_grids or not all(isinstance(option, str) for grid in grids for option in grid):
        where = f"{path}:{lines.get('grids', '?')}"
        raise Mistake(f"{where}: grids={grids!r}: expected a list of dicts of options, one for each grid")

    def axis(name, value, where):
        """The checked values that one option takes."""
        if value == []:
            raise Mistake(f"{where}=[]: an empty list makes no run; give one value or more")
        return [read_value(name, v, where) for v in (value if isinstance(value, list) else [value])]

    common = {name: axis(name, v, f"{path}:{lines.get(name, '?')}: {name}") for name, v in values.items()}
    fixed = read_flags(flags)
    chosen = []  # {option: value} of each run, without what all start from
    for i, grid in enumerate(grids):
        axes = common | {name: axis(name, v, f"{path}: grids[{i}]: {name}") for name, v in grid.items()}
        axes |= {name: [value] for name, value in fixed.items()}
        chosen += [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    labels = name_runs(chosen)
    runs = {}
    for values, name in zip(chosen, labels, strict=True):
        if name in runs:
            raise Mistake(f"{path}: two runs with the name {name!r}: one value too often, or `name` given to several")
        if name.split("/")[0] == "shared":
            raise Mistake(f"{path}: name={name!r}: that folder is for shared segments; choose another")
        runs[name] = Config(**start | values | {"name": f"{study}/{name}"})
        try:
            check(runs[name])
        except ValueError as error:
            raise Mistake(f"{path}: run {name}: {error}") from None
    return study, runs


def take_name_and_base(path, values):
    """(name of the study, options of its base) of what a config file assigns; both are taken out of `values`."""
    study = values.pop("name", Path(path).stem)
    if not isinstance(study, str) or not study:
        raise Mistake(f"{path}: name={study!r}: expected one name, for the study")
    start = read_file(Config, str(values.pop("base"))) if "base" in values else {}
    if taken := [name for name in NOT_FOR_A_STUDY if name in start]:
        raise Mistake(f"{path}: its base sets {taken[0]}, which a study sets itself: leave it out there")
    return study, start


def read_value(name, value, where, text=False):
    """The checked value of an option of all runs or of some."""
    if name in NOT_FOR_A_STUDY:
        raise Mistake(f"{where}: a study sets {name} itself, so leave it out")
    return parse(Config, name, value, where, text)


def read_flags(flags):
    """{option: value} of flags --key=value."""
    fixed = {}
    for flag in flags:
        name, equals, value = flag[2:].partition("=")
        if not equals:
            raise Mistake(f"{flag}: write a value behind it, as in {flag}=VALUE")
        fixed[name] = read_value(name, value, f"--{name}", text=True)
    return fixed


def name_part(option, value):
    """What a value of an option adds to the name of a run: lr0.001, linear."""
    text = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return (text if isinstance(value, str) else option.replace("_", "-") + text).replace("/", "-")


def name_runs(chosen):
    """A name for each {option: value}: the schedule, and as many other options as it takes to tell all runs apart."""
    names = [[] for _ in chosen]
    first, last = ["schedule", "n_embd"], ["seed", "data_seed"]
    fields = [*first, *(f.name for f in dataclasses.fields(Config) if f.name not in first + last), *last]
    options = sorted({option for values in chosen for option in values}, key=fields.index)
    for option in options:
        kinds = {}
        for values, name in zip(chosen, names, strict=True):
            kinds.setdefault(tuple(name), set()).add(values.get(option))
        if any(len(kind) > 1 for kind in kinds.values()):
            for values, name in zip(chosen, names, strict=True):
                if (value := values.get(option)) is not None:
                    name.append(name_part(option, value))
    return [values.get("name") or "_".join(name) or "run" for values, name in zip(chosen, names, strict=True)]


def check_folder(folder, runs, path):
    """Raise ValueError if the study's folder holds runs that the config does not describe as they are."""
    if (folder / "config.json").is_file():
        raise Mistake(f"{folder} is the folder of a single run: give the study another name, as in name = 'x-study'")
    planned = {Path(config.out_dir) / config.name: config for config in runs.values()}
    for file in sorted(folder.rglob("config.json")):
        if folder / "shared" in file.parents:
            continue
        there, config = read_json(file), planned.get(file.parent)
        if config is None:
            raise Mistake(
                f"{folder} belongs to another study: {path} has no run {file.parent.relative_to(folder)}; "
                "give this one another name, or move that run's folder away"
            )
        before = from_record(Config, there, file)
        for name in options_of_result():
            if (now := getattr(config, name)) != before[name]:
                raise Mistake(
                    f"{folder} belongs to another study: its run {file.parent.name} has {name}={before[name]!r}, "
                    f"here it is {now!r}; give this one another name, or move that run's folder away"
                )


def options_of_result():
    """The options that make runs different, but for where they start: a study decides that."""
    kinds = "model", "run", "schedule", "mix", "average", "result"
    return [name for name in names(Config, *kinds) if name != "init_from"]


# ----------------------------------------------------------------------------------------------------------------------
# The tree


@dataclasses.dataclass(eq=False)
class Segment:
    """Updates start .. end - 1, trained by one process: up to the end of a run, or up to where several part."""

    start: int
    end: int
    config: Config  # what train.py is called with, but for init_from
    run: str | None  # name of the run that ends here; None: shared only
    first: str  # name of the first run that goes through: it pays
    parent: "Segment | None" = None
    children: list = dataclasses.field(default_factory=list)

    @property
    def folder(self):
        return Path(self.config.out_dir) / self.config.name

    @property
    def checkpoint(self):
        """The path of its last checkpoint, which need not be there."""
        return path_of(self.folder / "ckpt", self.end)

    @property
    def flops(self):
        return (self.end - self.start) * flops_per_step(self.config)

    def is_saved(self):
        """Whether others can start from here."""
        return find(self.folder / "ckpt", self.end) is not None

    def is_trained(self):
        return (self.folder / "result.json").is_file() if self.run else self.is_saved()

    def result(self):
        return json.loads((self.folder / "result.json").read_text())

    def end_of_log(self):
        """The last lines of its log, a few dozen at most."""
        file = self.folder / "log.jsonl"
        if not file.is_file():
            return []
        with open(file, "rb") as stream:
            stream.seek(max(0, file.stat().st_size - 8192))
            lines = stream.read().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}\n")]

    def steps_done(self):
        """How many of its updates the end of its log tells of."""
        lines = self.end_of_log()
        return max(0, lines[-1]["step"] - self.start) if lines else 0

    def given_up(self):
        """The last line of the log, if train.py gave up this segment or one before it as it diverged; else None."""
        if self.parent and (line := self.parent.given_up()):
            return line
        lines = [line for line in self.end_of_log() if "train_loss" in line][-MAX_SKIPS:]
        in_a_row = len(lines) == MAX_SKIPS and lines[-1]["step"] - lines[0]["step"] == MAX_SKIPS - 1
        return lines[-1] if in_a_row and all("skipped" in line for line in lines) else None

    def below(self):
        """This segment and all that come after it, parents first."""
        return [self, *(s for child in self.children for s in child.below())]

    def to_train(self):
        """Those of `below` that are still to be trained."""
        waiting = [s for child in self.children for s in child.to_train()]
        for_others = any(s.parent is self for s in waiting) and not self.is_saved()
        needed = for_others or self.run and not self.is_trained()
        return [self, *waiting] if needed else waiting

    def reach(self):
        """FLOPs of the longest way from here to the end of a run."""
        return self.flops + max((child.reach() for child in self.children), default=0)

    def flags(self):
        """The options of train.py that train this segment."""
        init_from = str(self.parent.checkpoint) if self.parent else None
        if list_steps(self.folder / "ckpt"):  # begun, perhaps from elsewhere, before the study grew: the same bits
            init_from = json.loads((self.folder / "config.json").read_text())["init_from"]
        return flags_of(dataclasses.replace(self.config, init_from=init_from))

    def command(self, launch):
        """What trains this segment, as a list of words."""
        return [*launch, os.path.relpath(HERE / "train.py"), *self.flags()]


def flags_of(config):
    """What train.py is called with for a config: --key=value where it differs from the defaults."""
    options = {k: v for k, v in vars(config).items() if v != getattr(Config, k)}
    text = {k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in options.items()}
    return [f"--{k}={v}" for k, v in text.items()]


def group_of(config):
    """Text that is equal for runs that differ in schedule, length and a cooldown's data only, or in no result.

    Only what differs from the defaults is in it, so that it stays when an option is added. An optimizer that reads the
    length of the run makes runs of other lengths other runs from their first step.
    """
    apart = {*names(Config, "schedule", "mix")} - {*optim.OPTIMIZERS[config.optimizer].facts}
    values = {name: getattr(config, name) for name in options_of_result() if name not in apart}
    return json.dumps({k: values[k] for k in sorted(values) if values[k] != getattr(Config, k)})


@functools.cache
def factors_of(config):
    """What tells updates of one group apart: (total_steps,), the learning-rate factor of each, fp64.

    With another dataset in the cooldown they are complex: each has a number for its data beside it, 0 up to there.
    """
    schedule = make_schedule(config)
    factors = np.array(list(map(schedule, range(config.total_steps))))
    if config.cooldown_dataset:
        factors = factors.astype(complex)
        factors.imag[cooldown_start(config, schedule) :] = zlib.crc32(config.cooldown_dataset.encode())
    return factors


def shared_already(study, config):
    """{(group, learning-rate factors as bytes): name} of the shared segments that the study's folder holds.

    By what they are, not by what they are called: a name is a hash, and hashes of earlier code were of other text.
    """
    found = {}
    for file in sorted((Path(config.out_dir) / study / "shared").glob("*/config.json")):
        there = Config(**from_record(Config, read_json(file), file, warn=False))
        found[group_of(there), in_bytes(factors_of(schedule_only(there))[: there.stop_at])] = (
            f"{study}/shared/{file.parent.name}"
        )
    return found


def in_bytes(factors):
    """Factors as bytes, which are equal where the factors are."""
    return (factors if factors.imag.any() else factors.real).tobytes()


def schedule_only(config):
    """A config of the same schedule and cooldown, all else at its default: one key for `factors_of`."""
    return Config(**{name: getattr(config, name) for name in names(Config, "schedule", "mix")})


def plan(study, runs):
    """{name: Config} -> the first segments of the trees that the runs form. Mistake if two are the same run."""
    groups = {}
    for name, config in runs.items():
        groups.setdefault(group_of(config), []).append(name)
    factors = {name: factors_of(schedule_only(config)) for name, config in runs.items()}
    there = shared_already(study, next(iter(runs.values())))

    def grow(members, start, parent):
        """Segments from update `start` on of runs that are one up to there."""
        one, length = factors[members[0]], min(len(factors[name]) for name in members)
        differ = np.any([factors[name][start:length] != one[start:length] for name in members], axis=0)
        end = start + int(differ.argmax()) if differ.any() else length
        if end == start:
            parts = {}
            for name in members:
                parts.setdefault(factors[name][start], []).append(name)
            return [segment for part in parts.values() for segment in grow(part, start, parent)]
        ended = [name for name in members if len(factors[name]) == end]
        if len(ended) > 1:
            raise Mistake(f"runs {' and '.join(ended)} are the same, learning rate by learning rate: leave one out")
        config = runs[ended[0] if ended else members[0]]
        if not ended:
            what = group_of(config), in_bytes(one[:end])
            digest = hashlib.sha256(what[0].encode() + what[1]).hexdigest()[:8]
            name = there.get(what, f"{study}/shared/{digest}-{end}")
            config = dataclasses.replace(config, name=name, stop_at=end)
            if not one[:end].imag.any():  # it ends before the cooldown, and is that of runs with any data there
                config = dataclasses.replace(config, cooldown_dataset=None)
        segment = Segment(start, end, config, ended[0] if ended else None, members[0], parent)
        if rest := [name for name in members if name not in ended]:
            segment.children = grow(rest, end, segment)
        return [segment]

    return [segment for members in groups.values() for segment in grow(members, 0, None)]


# ----------------------------------------------------------------------------------------------------------------------
# What it costs


@functools.cache
def vocabulary(data_dir, dataset):
    """Words in the vocabulary of a dataset, which need not be there yet if its name says the tokenizer."""
    folder = Path(data_dir) / first_dataset(dataset)
    tokenizer = folder.name.rpartition("-")[2]
    if tokenizer in TOKENIZERS and not folder.exists():
        return TOKENIZERS[tokenizer].vocab_size
    return read_meta(folder)["vocab_size"]


def shape_of(config):
    """The model's shape, from the options and the tokenizer of the data."""
    return Shape.of(config, vocabulary(config.data_dir, config.dataset))


def flops_per_step(config):
    return config.global_batch_size * scaling.train_flops(shape_of(config))


def disk(segments):
    """Bytes that the checkpoints of `segments` take at most, about."""
    total = 0
    for segment in segments:
        c = segment.config
        copies = 1 + (c.window_keep + 1) * bool(c.window_horizon) + len(c.ema_decay) + len(c.ema_half_life)
        size = 4 * copies * scaling.num_params(shape_of(c)) + optimizer_bytes(c.optimizer, shape_of(c))
        total += size * min(c.keep, 1 + (segment.end - segment.start) // (c.save_every or segment.end))
    return total


@functools.cache
def optimizer_bytes(name, shape):
    """Bytes that an optimizer keeps for a model."""
    with torch.device("meta"):  # sizes without memory
        return optim.state_bytes(name, Llama(shape))


def trained(segment):
    """(steps, seconds) of a segment that its log tells of; evaluating and saving are not in the seconds."""
    steps, seconds, per_step = 0, 0.0, segment.config.global_batch_size * segment.config.seq_len
    for line in map(json.loads, lines_up_to(segment.folder / "log.jsonl", segment.end)):
        if "tokens_per_s" in line and line["step"] > segment.start + steps:
            new = line["step"] - segment.start - steps
            steps, seconds = steps + new, seconds + new * per_step / line["tokens_per_s"]
    return steps, seconds


# ----------------------------------------------------------------------------------------------------------------------
# How long it takes


class Cost(NamedTuple):
    """Seconds that a model takes: per update, per evaluation of one set of weights, and for all else in a segment."""

    step: float
    evaluation: float
    rest: float  # to start, and to save at the end


def for_a_trial(config, folder):
    """A config that shows in seconds what `config` costs: of fewer steps, and if need be of fewer sequences in them."""
    fits = TRIAL_FLOPS / TRIAL_STEPS[0] / scaling.train_flops(shape_of(config))  # sequences per step
    batch, micro = config.global_batch_size, config.micro_batch_size
    if batch > fits:
        batch = micro = max(1, min(micro, int(fits)))
    steps = int(TRIAL_STEPS[0] * fits / batch)
    alike = {name: getattr(config, name) for name in (*names(Config, "model", "result", "free"), "dataset")}
    own = {"global_batch_size": batch, "micro_batch_size": micro, "log_every": 1, "save_every": 0, "wandb": "off"}
    own |= {
        "lr": 1e-6,
        "schedule": "constant",
        "warmup_steps": 0,
        "total_steps": min(max(steps, TRIAL_STEPS[0]), TRIAL_STEPS[1]),
    }
    one = dataclasses.replace(config, val_dataset=val_datasets(config.val_dataset, config.dataset)[0])
    own |= {"val_dataset": one.val_dataset, "eval_tokens": min(eval_tokens(one), chunk_tokens(config))}
    own |= {"stop_at": None, "save_at": (), "parallel": "replicate"}  # a trial is of one process
    return Config(**alike | own | {"out_dir": str(folder)})


def trial(config):
    """Train the config of a trial three times: its Cost, with one chunk as the evaluation."""
    rest, steps = {}, []
    for name, eval_every in (("warm", 0), ("often", 1), ("once", 0)):
        run = dataclasses.replace(config, name=f"{name}-{os.getpid()}", eval_every=eval_every)
        began = time.perf_counter()
        train_s = train(run)["train_s"]
        rest[name] = time.perf_counter() - began - train_s
        lines = map(json.loads, lines_up_to(Path(run.out_dir) / run.name / "log.jsonl", run.total_steps))
        steps += [run.global_batch_size * run.seq_len / x["tokens_per_s"] for x in lines if "tokens_per_s" in x]
    evaluation = max(0.0, rest["often"] - rest["once"]) / config.total_steps
    return Cost(statistics.median(steps), evaluation, rest["once"] - evaluation)


def scaled(cost, tried, config):
    """What `config` costs, if the config of its trial costs `cost`."""
    step = cost.step * flops_per_step(config) / flops_per_step(tried)
    chunks = -(-eval_tokens(config) // tried.eval_tokens)
    return Cost(step, cost.evaluation * chunks, cost.rest)


def guess(config, flops_per_s):
    """The Cost of a config at so many FLOP/s."""
    evaluation = eval_tokens(config) / config.seq_len * scaling.train_flops(shape_of(config)) / 3  # forward only
    return Cost(flops_per_step(config) / flops_per_s, evaluation / flops_per_s, 0.0)


def time_left(segments, waiting, costs, n_jobs):
    """(seconds until all is trained, share of the time that is updates), from {config: its Cost} of some of them.

    What lies between them in FLOPs lies between them in seconds. An update takes what it took in this study so far.
    """
    x, costs = zip(*sorted((flops_per_step(config), cost) for config, cost in costs.items()), strict=True)
    updates, whole = {}, {}  # segment: seconds
    for segment in waiting:
        config, flops = segment.config, flops_per_step(segment.config)
        step, evaluation, rest = (float(np.interp(flops, x, column)) for column in zip(*costs, strict=True))
        so_far = [trained(s) for s in segments if flops_per_step(s.config) == flops]
        if steps := sum(n for n, _ in so_far):
            step = sum(seconds for _, seconds in so_far) / steps
        averages = bool(config.window_horizon) + len(config.ema_decay) + len(config.ema_half_life)
        first = segment.start + segment.steps_done()
        evaluations, saves = due(config.eval_every, first, segment.end), due(config.save_every, first, segment.end)
        evaluations += segment.run is not None and not every(config.eval_every, segment.end)
        evaluations += first == 0 and config.eval_every > 0
        updates[segment] = step * (segment.end - first)
        whole[segment] = updates[segment] + evaluation * (1 + averages) * evaluations + rest * (1 + saves)
    longest = {}
    for segment in reversed(waiting):  # children come after
        longest[segment] = whole[segment] + max((longest.get(child, 0.0) for child in segment.children), default=0.0)
    return max(sum(whole.values()) / n_jobs, *longest.values()), sum(updates.values()) / sum(whole.values())


def due(interval, first, last):
    """How many steps in first + 1 .. last are one of every `interval`."""
    return last // interval - first // interval if interval else 0


def eval_tokens(config):
    """Tokens that an evaluation predicts, over all validation sets."""
    folders = [Path(config.data_dir) / name for name in val_datasets(config.val_dataset, config.dataset)]
    return sum(config.eval_tokens or read_meta(folder)["splits"]["val"]["tokens"] - 1 for folder in folders)


def chunk_tokens(config):
    """Tokens in a chunk of the validation set."""
    return max(1, ValSet.CHUNK_TOKENS // config.seq_len) * config.seq_len
