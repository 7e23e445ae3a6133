"""What checkpoints are worth on the whole validation set: alone, averaged, merged, in between, or together.

    python evaluate.py runs/tiny/ckpt/step_00001500.pt                          # one, or several, in a table
    python evaluate.py runs/trunk/ckpt/step_00001500.pt --average=window        # which horizon is best? also: ema
    python evaluate.py --merge runs/trunk/ckpt/*.pt --weights=1-sqrt --out=merged.pt
    python evaluate.py --interpolate before.pt after.pt --points=11             # the loss on the line between two
    python evaluate.py --ensemble a.pt b.pt c.pt                                # of the mean of their logits

Losses are means over tokens in nats; --json prints one JSON object. The data are those of the checkpoint's own run, if
no others are named. Horizons and the like chosen here are chosen on the validation set: quote them as such.
"""

import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import averaging
import checkpoint
import optim
from config import Mistake, Parser, from_record, main, mistakes, to_record, whole
from data import ValSet, check_tokenizer, datasets
from model import load_model, shape_of
from parallel import autocast, choose_device, chunk_losses, use_bf16
from start import PARTS, check_state
from tables import print_table, refuse_twice
from train import Config

NEEDED = tuple(part for part in PARTS if part != "optimizer")  # of a checkpoint, to evaluate it
EVEN = ("uniform", "linear")  # --weights that do not depend on the order


def read(path, parts=NEEDED, mmap=False):
    """A checkpoint, with all of today's options in its "config", and as its "model" the weights that it stands for.

    Mistake if it is none. For `mmap` see `load`: it is for a look at all but the weights, which are those as saved.
    """
    with mistakes():
        state = checkpoint.load(path, mmap)
    check_state(state, path, parts)
    state |= {"config": from_record(Config, state["config"], path, warn=mmap)}
    if not mmap:
        with mistakes(path):
            name, optimizer = state["config"]["optimizer"], state.get("optimizer")
            state["model"] = optim.final_weights(name, state["model"], optimizer)
    return state


def build_model(state, path, device):
    """The model of a checkpoint, with its weights."""
    with mistakes(path):
        model = load_model(state).to(device)
    model.set_up(loss_rows=state["config"]["loss_rows"])
    return model


class Task:
    """What all evaluations share: validation set, device, precision; `rows` is the table.

    All checkpoints are looked at here and held against each other, before anything is computed.
    """

    def __init__(self, args, paths):
        self.heads = [read(path, mmap=True) for path in paths]
        config = self.heads[0]["config"]
        self.folder, self.seq_len = val_folder(args, config), config["seq_len"]
        self.val = ValSet(self.folder, self.seq_len, args.tokens)
        for state, path in zip(self.heads, paths, strict=True):
            self.check(args, state, path)
        self.device = choose_device(args.device)
        bf16 = use_bf16(args.dtype or config["dtype"], self.device)
        self.autocast = autocast(self.device, bf16)
        self.info = {"dataset": self.folder.name, "tokens": self.val.n_targets}
        self.info["dtype"] = "bfloat16" if bf16 else "float32"
        self.bytes = self.val.meta["splits"]["val"].get("bytes") if not args.tokens else None  # adopted bins have none
        self.rows = []

    def check(self, args, state, path):
        """Refuse a checkpoint of another kind than the first, or whose model does not read this data."""
        folder, seq_len = val_folder(args, state["config"]), state["config"]["seq_len"]
        if (folder.resolve(), seq_len) != (self.folder.resolve(), self.seq_len):
            other = f"{path} has seq_len={seq_len} and dataset {str(folder)!r}, unlike the first"
            raise Mistake(f"{other}: evaluate it by itself, or all of one seq_len on one --dataset")
        check_tokenizer(state, path, folder.name, self.val.meta)
        if args.merge or args.interpolate:  # their weights may fit, and mean something else
            first, other = (dataclasses.asdict(shape_of(head)) for head in (self.heads[0], state))
            for name in other:
                if other[name] != first[name] and name != "vocab_size":  # old checkpoints know only the padded one
                    raise Mistake(f"{path} has {name}={other[name]}, and the first {first[name]}: they do not mix")

    def add(self, model, /, **row):
        """Evaluate a model, or a function of tokens and targets that gives a summed loss, and add a row."""
        desc = str(next(iter(row.values())))
        with self.autocast, tqdm(total=self.val.n_chunks, desc=desc, leave=False, disable=None) as bar:

            def tick():
                bar.update()
                return False  # go on

            losses = chunk_losses(model, self.val, self.device, stop=tick)
        loss = math.fsum(losses.tolist()) / self.val.n_targets
        row |= {"val_loss": loss, "perplexity": math.exp(min(loss, 700))}
        if self.bytes:
            row["bits_per_byte"] = loss * self.val.n_targets / self.bytes / math.log(2)
        self.rows.append(row)


def val_folder(args, config):
    """The dataset on which a run with these options is evaluated."""
    name = args.dataset or config["val_dataset"] or datasets(config["dataset"])[0]
    return Path(args.data_dir or config["data_dir"]) / name


def evaluate_each(args, task, paths):
    """Every checkpoint by itself."""
    for path in paths:
        state = read(path)
        merged = {"merged": len(state["merged"]["paths"])} if "merged" in state else {}
        task.add(build_model(state, path, task.device), checkpoint=path, step=state["progress"]["step"], **merged)


def evaluate_average(args, task, paths):
    """The averages in a checkpoint, windows over each horizon that it holds or EMAs, beside its raw weights."""
    (path,) = paths
    state = read(path)
    names = [name for name in state["averages"] if name.partition("_")[0] == args.average]
    if not names:
        raise Mistake(f"{path} has no {args.average} average: train with --window_horizon=500 or --ema_half_life=200")
    model = build_model(state, path, task.device)
    task.add(model, average="raw weights", steps=1)
    for name in names:
        with mistakes(path):
            average = averaging.restore(model, state["averages"][name])
        for blocks in range(1, average.completed + 1) if name == "window" else [None]:
            weights = average.average(blocks) if blocks else average.average()
            span = average.span(blocks) if blocks else average.span()
            with averaging.swapped(model, weights):
                task.add(model, average=f"{name} x {blocks}" if blocks else name, steps=span.steps)


def in_order(task, paths, shape):
    """The checkpoints to merge, oldest first; Mistake if they cannot be merged. stderr tells what was not asked for."""
    steps = {path: head["progress"]["step"] for path, head in zip(paths, task.heads, strict=True)}
    configs = [head["config"] for head in task.heads]
    ordered, notes = sorted(paths, key=steps.get), []
    seeds = sorted({config["seed"] for config in configs if config["init_from"] is None})
    if len(seeds) > 1:
        raise Mistake(f"--merge: runs of seeds {', '.join(map(str, seeds))} begin apart; merge checkpoints of one")
    if shape not in EVEN:
        gaps = {steps[b] - steps[a] for a, b in itertools.pairwise(ordered)}
        if 0 in gaps:
            raise Mistake(f"--weights={shape} goes by the steps, and two checkpoints are of one step: leave one out")
        if ordered != paths:
            notes.append(f"they are merged by their steps, {', '.join(str(steps[path]) for path in ordered)}")
        if len(gaps) > 1:
            notes.append(f"their steps are not evenly apart, as --weights={shape} takes them to be")
    if len(names := list(dict.fromkeys(config["name"] for config in configs))) > 1:
        notes.append(f"they are of several runs, {', '.join(names)}")
    for note in notes:
        print(f"--merge: {note}", file=sys.stderr)
    return ordered


def evaluate_merge(args, task, paths):
    """The weighted mean of checkpoints."""
    shape = args.weights or "uniform"
    with mistakes():
        weights = averaging.merge_weights(shape, len(paths))
    paths = in_order(task, paths, shape)
    last = read(paths[-1], PARTS if args.out else NEEDED)
    with mistakes():
        last["model"] = averaging.merge(paths, weights, load=read)
    task.add(build_model(last, paths[-1], task.device), merge=f"{len(paths)} checkpoints, {shape}")
    if args.out:  # what it goes on from is the last one, but no loss and no average is of these weights
        last |= {"averages": {}, "config": to_record(Config(**last["config"]))}
        last["optimizer"] = optim.from_final(last["optimizer"])
        last["merged"] = {"paths": [str(path) for path in paths], "weights": weights}
        last["progress"] |= {"losses": None, "train_loss": None}
        checkpoint.write(Path(args.out), last)
        task.info["saved"] = args.out


def evaluate_line(args, task, paths):
    """Weights (1 - t) a + t b for t from 0 to 1."""
    a, b = map(read, paths)
    model = build_model(a, paths[0], task.device)
    start, end = a["model"], b["model"]
    with mistakes():
        averaging.check_match(end, start, paths[1])
    points = args.points or 11
    for i in range(points):
        t = i / (points - 1)
        model.load_state_dict({name: torch.lerp(start[name], end[name].to(start[name]), t) for name in start})
        task.add(model, t=t)


def evaluate_ensemble(args, task, paths):
    """One prediction out of the mean of the models' logits: the geometric mean of their probabilities."""
    models = [build_model(read(path), path, task.device) for path in paths]

    def ensemble(x, y):
        logits = sum(model(x).float() for model in models) / len(models)  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")

    for path, model in zip(paths, models, strict=True):
        task.add(model, model=path)
    task.add(ensemble, model="together")


def finite(value):
    """A value as JSON has it: no number is nan or inf there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(task):
    """Print the rows of a task as a table."""
    print("  ".join(f"{name} {value}" for name, value in task.info.items()))
    print_table(task.rows, lambda value: f"{value:.4f}" if type(value) is float else str(value))


def check_args(args):
    """Raise Mistake for flags that do not go together."""
    n = len(args.checkpoints)
    refuse_twice(args.checkpoints)
    if (args.average and n != 1) or (args.interpolate and n != 2) or ((args.merge or args.ensemble) and n < 2):
        raise Mistake(f"{n} checkpoints: --average takes one, --interpolate two, --merge and --ensemble two or more")
    for name, how in {"weights": "merge", "out": "merge", "points": "interpolate"}.items():
        if getattr(args, name) is not None and not getattr(args, how):
            raise Mistake(f"--{name} goes with --{how}")
    if args.out is None:
        return
    out = Path(args.out)
    if not out.absolute().parent.is_dir():
        raise Mistake(f"--out={out}: there is no folder {out.parent}; make it, or choose another")
    if out.exists() or out.is_symlink():
        raise Mistake(f"--out={out} is there already, and stays: choose another name")
    if checkpoint.NAME.fullmatch(out.name):
        raise Mistake(f"--out={out}: a run would take it for a checkpoint of its own; call it otherwise, as merged.pt")


def run(args=None):
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", help="paths; to merge in any order, as each holds its step")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--average", choices=("window", "ema"), help="the averages held in a checkpoint")
    how.add_argument("--merge", action="store_true", help="one weighted mean of all")
    how.add_argument("--interpolate", action="store_true", help="points on the line between two")
    how.add_argument("--ensemble", action="store_true", help="the mean of the logits of all")
    parser.add_argument("--weights", help=f"of --merge: {', '.join(averaging.MERGE_SHAPES)}; default: uniform")
    parser.add_argument("--out", help="of --merge: save the result as a checkpoint under a new name")
    parser.add_argument("--points", type=whole(least=2), help="of --interpolate; default: 11")
    parser.add_argument("--dataset", help="whose validation split; default: the run's own")
    parser.add_argument("--data_dir", help="folder of the datasets; default: the run's own")
    parser.add_argument("--tokens", type=whole(least=0), default=0, help="only the first so many; 0: all")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="default: the run's own")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(args)
    check_args(args)
    chosen = [(args.average, evaluate_average), (args.merge, evaluate_merge), (args.interpolate, evaluate_line)]
    chosen += [(args.ensemble, evaluate_ensemble), (True, evaluate_each)]
    task = Task(args, args.checkpoints)
    next(function for on, function in chosen if on)(args, task, args.checkpoints)
    if args.json:
        print(json.dumps({**task.info, "rows": [{k: finite(v) for k, v in row.items()} for row in task.rows]}))
    else:
        show(task)


if __name__ == "__main__":
    main(run)
