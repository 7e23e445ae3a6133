"""What checkpoints are worth on the whole validation set: alone, averaged, merged, in between, or together.

    python evaluate.py runs/tiny/ckpt/step_00001500.pt                          # one, or several, in a table
    python evaluate.py runs/trunk/ckpt/step_00001500.pt --average=window        # which horizon is best? also: ema
    python evaluate.py --merge runs/trunk/ckpt/*.pt --weights=1-sqrt --out=merged.pt
    python evaluate.py --interpolate before.pt after.pt --points=11             # the loss on the line between two
    python evaluate.py --ensemble a.pt b.pt c.pt                                # of the mean of their logits

Losses are means over tokens in nats; --json prints one JSON object. The data are those of the checkpoint's own run, if
no others are named. Horizons and the like chosen here are chosen on the validation set: quote them as such.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import averaging
import checkpoint
from config import Mistake, Parser, from_record, main, mistakes
from data import ValSet, parse_mix
from model import load_model
from parallel import autocast, choose_device, chunk_losses, use_bf16
from tables import print_table
from train import Config


def read(path):
    """A checkpoint, with all of today's options in its "config"; Mistake if it is none."""
    with mistakes():
        state = checkpoint.load(path)
    return state | {"config": from_record(Config, state["config"], path)}


def build_model(state, device):
    """The model of a checkpoint, with its weights."""
    with mistakes():
        return load_model(state).to(device)


class Task:
    """What all evaluations share: validation set, device, precision; `rows` is the table."""

    def __init__(self, args, state):
        config = state["config"]
        dataset = args.dataset or config["val_dataset"] or next(iter(parse_mix(config["dataset"])))
        self.seq_len, self.dataset = config["seq_len"], dataset
        self.val = ValSet(Path(args.data_dir or config["data_dir"]) / dataset, config["seq_len"], args.tokens)
        self.device = choose_device(args.device)
        dtype = args.dtype or config["dtype"]
        bf16 = use_bf16(dtype, self.device)
        self.autocast = autocast(self.device, bf16)
        self.info = {"dataset": dataset, "tokens": self.val.n_targets, "dtype": "bfloat16" if bf16 else "float32"}
        self.bytes = self.val.meta["splits"]["val"].get("bytes") if not args.tokens else None  # adopted bins have none
        self.rows = []

    def check(self, args, state, path):
        """Refuse a checkpoint that is of another kind than the first."""
        config = state["config"]
        dataset = args.dataset or config["val_dataset"] or next(iter(parse_mix(config["dataset"])))
        if (config["seq_len"], dataset) != (self.seq_len, self.dataset):
            raise Mistake(f"{path} has seq_len={config['seq_len']} and dataset {dataset!r}: evaluate it by itself")

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


def evaluate_each(args, paths):
    """Every checkpoint by itself."""
    task = None
    for path in paths:
        state = read(path)
        task = task or Task(args, state)
        task.check(args, state, path)
        at = state["progress"]
        task.add(build_model(state, task.device), checkpoint=path, step=at["step"])
    return task


def evaluate_average(args, paths):
    """The averages in a checkpoint, windows over each horizon that it holds or EMAs, beside its raw weights."""
    (path,) = paths
    state = read(path)
    task = Task(args, state)
    names = [name for name in state["averages"] if name.partition("_")[0] == args.average]
    if not names:
        raise Mistake(f"{path} has no {args.average} average: train with --window_horizon=500 or --ema_half_life=200")
    model = build_model(state, task.device)
    task.add(model, average="raw weights", steps=1)
    for name in names:
        saved = state["averages"][name]
        average = averaging.restore(model, saved)
        for blocks in range(1, average.completed + 1) if name == "window" else [None]:
            weights = average.average(blocks) if blocks else average.average()
            span = average.span(blocks) if blocks else average.span()
            with averaging.swapped(model, weights):
                task.add(model, average=f"{name} x {blocks}" if blocks else name, steps=span.steps)
    return task


def evaluate_merge(args, paths):
    """The weighted mean of checkpoints, oldest first."""
    last = read(paths[-1])
    with mistakes():
        weights = averaging.merge_weights(args.weights, len(paths))
        last["model"] = averaging.merge(paths, weights, load=checkpoint.load)
    task = Task(args, last)
    task.add(build_model(last, task.device), merge=f"{len(paths)} checkpoints, {args.weights}")
    if args.out:
        last |= {"averages": {}, "merged": {"paths": [str(p) for p in paths], "weights": weights}}
        last["progress"] |= {"losses": None}
        checkpoint.write(Path(args.out), last)
        task.info["saved"] = args.out
    return task


def evaluate_line(args, paths):
    """Weights (1 - t) a + t b for t from 0 to 1."""
    a, b = map(read, paths)
    task = Task(args, a)
    model = build_model(a, task.device)
    start, end = a["model"], b["model"]
    for i in range(args.points):
        t = i / (args.points - 1)
        with mistakes():
            averaging.check_match(end, start, paths[1])
        model.load_state_dict({name: torch.lerp(start[name], end[name], t) for name in start})
        task.add(model, t=t)
    return task


def evaluate_ensemble(args, paths):
    """One prediction out of the mean of the models' logits: the geometric mean of their probabilities."""
    states = [read(path) for path in paths]
    task = Task(args, states[0])
    for state, path in zip(states, paths, strict=True):
        task.check(args, state, path)
    models = [build_model(state, task.device) for state in states]

    def ensemble(x, y):
        logits = sum(model(x).float() for model in models) / len(models)  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")

    for path, model in zip(paths, models, strict=True):
        task.add(model, model=path)
    task.add(ensemble, model="together")
    return task


def show(task):
    """Print the rows of a task as a table."""
    print("  ".join(f"{name} {value}" for name, value in task.info.items()))
    print_table(task.rows, lambda value: f"{value:.4f}" if type(value) is float else str(value))


def run(args=None):
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", help="paths, oldest first where the order counts")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--average", choices=("window", "ema"), help="the averages held in a checkpoint")
    how.add_argument("--merge", action="store_true", help="one weighted mean of all")
    how.add_argument("--interpolate", action="store_true", help="points on the line between two")
    how.add_argument("--ensemble", action="store_true", help="the mean of the logits of all")
    parser.add_argument("--weights", default="uniform", help=f"of --merge: {', '.join(averaging.MERGE_SHAPES)}")
    parser.add_argument("--out", help="of --merge: save the result as a checkpoint")
    parser.add_argument("--points", type=int, default=11, help="of --interpolate")
    parser.add_argument("--dataset", help="whose validation split; default: the run's own")
    parser.add_argument("--data_dir", help="folder of the datasets; default: the run's own")
    parser.add_argument("--tokens", type=int, default=0, help="only the first so many; 0: all")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="default: the run's own")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(args)
    paths = args.checkpoints
    if (args.average and len(paths) != 1) or (args.interpolate and len(paths) != 2):
        raise Mistake(f"{len(paths)} checkpoints: --average takes one, --interpolate two")
    if args.out and not (args.merge and Path(args.out).absolute().parent.is_dir()):
        raise Mistake(f"--out={args.out}: goes with --merge, into a folder that is there")
    if args.points < 2:
        raise Mistake(f"--points={args.points}: expected at least 2")
    chosen = [(args.average, evaluate_average), (args.merge, evaluate_merge), (args.interpolate, evaluate_line)]
    chosen += [(args.ensemble, evaluate_ensemble), (True, evaluate_each)]
    task = next(function for on, function in chosen if on)(args, paths)
    if args.json:
        print(json.dumps({**task.info, "rows": task.rows}))
    else:
        show(task)


if __name__ == "__main__":
    main(run)
