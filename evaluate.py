"""What checkpoints are worth on the whole validation set: alone, averaged, merged, in between, or together.

    python evaluate.py runs/tiny/ckpt/step_00001500.pt                          # one, or several, in a table
    python evaluate.py runs/trunk/ckpt/step_00001500.pt --average=window        # which horizon is best? also: ema
    python evaluate.py --merge runs/trunk/ckpt/step_* --weights=1-sqrt --out=merged.pt   # files, and folders of shards
    python evaluate.py --interpolate before.pt after.pt --points=11             # the loss on the line between two
    python evaluate.py --ensemble a.pt b.pt c.pt                                # of the mean logits of 1, 2, 3 of them
    python evaluate.py runs/tiny/ckpt/step_* --tasks=hellaswag,arc_easy,piqa    # beside the loss, benchmarks by lm-eval

Losses are means over tokens in nats; --json prints one JSON object. The data are those of the checkpoint's own run, if
no others are named. Horizons and the like chosen here are chosen on the validation set: quote them as such.

--tasks takes names of lm-eval, or of the YAML files in --tasks_dir, and needs `pip install 'lm-eval>=0.4.13,<0.5'`. The
column "error" is the mean of 1 - acc over the tasks that have one, which `python -m laws downstream` fits to the loss.
"""

import argparse
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
import sealed
from config import Mistake, Parser, from_record, main, mistakes, to_record, whole
from data import ValSet, check_tokenizer, val_datasets
from devices import autocast, choose_device, use_bf16
from model import load_model, shape_of
from parallel import chunk_losses
from start import PARTS, check_state
from tables import SHAPE, print_table, refuse_twice
from train import Config, make_schedule
from vocab import find_tokenizer

NEEDED = tuple(part for part in PARTS if part not in ("optimizer", "averages"))  # of a checkpoint, to evaluate it
AVERAGED = (*NEEDED, "averages")
EVEN = ("uniform", "linear")  # --weights that do not depend on the order
ENSEMBLE_ROWS = 128  # of every model's logits at a time
TOLD = ("dataset", "lr", "weight_decay", "total_steps")  # of an ensemble, where all its models have it in common


def named(path):
    """The checkpoint that a path on the command line means, as text; Mistake if that is not clear."""
    with mistakes():
        return str(checkpoint.meant(path))


def read(path, parts=NEEDED, mmap=False):
    """A checkpoint, with all of today's options in its "config", and as its "model" the weights that it stands for.

    `parts` have to be in it; of a folder of shards the others are not read, and need no memory. Mistake if it is none.
    For `mmap` see `load`: it is for a look at all but the weights, which are those as saved.
    """
    with mistakes():
        state = checkpoint.load(path, mmap, parts=[part for part in checkpoint.IN_SHARDS if part in parts])
    check_state(state, path, parts)
    state |= {"config": from_record(Config, state["config"], path, warn=mmap)}
    if not mmap:
        with mistakes(path):
            name = state["config"]["optimizer"]
            if "optimizer" not in state and optim.has_final(name):
                state["optimizer"] = checkpoint.load(path, parts=["optimizer"])["optimizer"]
            state["model"] = optim.final_weights(name, state["model"], state.get("optimizer"))
    return state


def averages_of(state, path, kind):
    """Names of the averages of a kind, "window" or "ema", that a checkpoint holds: at least one."""
    names = [name for name in state["averages"] if name.partition("_")[0] == kind]
    if not names:
        raise Mistake(f"{path} has no {kind} average: train with --window_horizon=500 or --ema_half_life=200")
    return names


def build_model(state, path, device, average=None):
    """The model of a checkpoint, with its weights, or with an average of them: the last window, or the first EMA."""
    with mistakes(path):
        model = load_model(state).to(device)
        if average:
            name = averages_of(state, path, average)[0]
            weights = averaging.restore(model, state["averages"][name]).average()
            model.load_state_dict(weights, strict=False)  # of tied matrices it has one name
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
        self.rows, self.members = [], []
        self.tasks = None
        if args.tasks:
            from tasks import VERSION, Tasks  # it needs lm-eval, and this file

            tokenizer = find_tokenizer(self.heads[0], paths[0], args.tokenizer)
            self.tasks = Tasks(args.tasks, tokenizer, args.tasks_dir, args.task_limit, args.shots)
            self.info |= {"tasks": ",".join(args.tasks), "shots": self.tasks.shots, "lm_eval": VERSION}
            self.info |= {"task_limit": args.task_limit} if args.task_limit else {}

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

    def measure(self, model, desc, shape=()):
        """Mean losses of a model, or of a function of tokens and targets that gives summed losses of this shape."""
        with self.autocast, tqdm(total=self.val.n_chunks, desc=desc, leave=False, disable=None) as bar:

            def tick():
                bar.update()
                return False  # go on

            losses = chunk_losses(model, self.val, self.device, stop=tick, shape=shape)
        sums = [math.fsum(chunks) for chunks in losses.view(self.val.n_chunks, -1).T.tolist()]
        return [total / self.val.n_targets for total in sums]

    def row(self, loss, **row):
        """A row of the table, with a loss in all its units."""
        row |= {"val_loss": loss, "perplexity": math.exp(min(loss, 700))}
        if self.bytes:
            row["bits_per_byte"] = loss * self.val.n_targets / self.bytes / math.log(2)
        return row

    def add(self, model, /, **row):
        """Evaluate a model, on the tasks, too, and add a row."""
        (loss,) = self.measure(model, str(next(iter(row.values()))))
        row = self.row(loss, **row)
        if self.tasks:
            with self.autocast:
                row |= self.tasks.score(model)
        self.rows.append(row)


def val_folder(args, config):
    """The dataset on which a run with these options is evaluated, the first of several."""
    name = args.dataset or val_datasets(config["val_dataset"], config["dataset"])[0]
    return Path(args.data_dir or config["data_dir"]) / name


def run_of(state):
    """What a figure of several tables calls a checkpoint by: tables.called; before its cooldown a run is constant."""
    config = Config(**state["config"])
    if config.schedule != "wsd":
        return {"schedule": config.schedule}
    if state["progress"]["step"] <= make_schedule(config).keywords["start"]:
        return {"schedule": "constant"}
    return {"schedule": "wsd", "cooldown_shape": config.cooldown_shape or SHAPE}


def evaluate_each(args, task, paths):
    """Every checkpoint by itself."""
    for path in paths:
        state = read(path)
        merged = {"merged": len(state["merged"]["paths"])} if "merged" in state else {}
        told = {"step": state["progress"]["step"]} | (run_of(state) if args.tasks else {})
        task.add(build_model(state, path, task.device), checkpoint=path, **told, **merged)


def evaluate_average(args, task, paths):
    """The averages in a checkpoint, windows over each horizon that it holds or EMAs, beside its raw weights."""
    (path,) = paths
    state = read(path, AVERAGED)
    names = averages_of(state, path, args.average)
    model = build_model(state, path, task.device)
    at = {"step": state["progress"]["step"]} | run_of(state) if args.tasks else {}
    task.add(model, average="raw weights", steps=1, **at)
    for name in names:
        with mistakes(path):
            average = averaging.restore(model, state["averages"][name])
        for blocks in range(1, average.completed + 1) if name == "window" else [None]:
            weights = average.average(blocks) if blocks else average.average()
            span = average.span(blocks) if blocks else average.span()
            with averaging.swapped(model, weights):
                task.add(model, average=f"{name} x {blocks}" if blocks else name, steps=span.steps, **at)


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
        sealed.write(Path(args.out), last)
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
    """One prediction out of the mean of K models' logits, the geometric mean of their probabilities: K = 1 .. n.

    For K of the n models stand K neighbours in a circle, from each model on in turn: n ensembles, in which all models
    come equally often, and losses are means over these. All n models are held at once, but few of their logits.
    """
    parts = AVERAGED if args.average else NEEDED
    models = [build_model(read(path, parts), path, task.device, args.average) for path in paths]
    n = len(models)

    def losses(x, y):
        """(n, n): summed losses from each model on, of 1 .. n of them."""
        hidden, sums = [model.hidden(x).flatten(0, 1) for model in models], torch.zeros(n, n, dtype=torch.float64)
        for rows in torch.arange(y.numel(), device=x.device).split(ENSEMBLE_ROWS):
            logits = [model.head(h[rows]).float() for model, h in zip(models, hidden, strict=True)]  # (rows, V) each
            for first in range(n):
                total = torch.zeros_like(logits[0])
                for k in range(n):
                    total += logits[(first + k) % n]
                    loss = F.cross_entropy(total / (k + 1), y.flatten()[rows], ignore_index=-1, reduction="sum")
                    sums[first, k] += loss.item()
        return sums

    means = torch.tensor(task.measure(losses, f"{n} models", (n, n)), dtype=torch.float64).view(n, n)
    configs = [head["config"] for head in task.heads]
    facts = {name: {config[name] for config in configs} for name in TOLD}
    facts["n_params"] = {sum(p.numel() for p in model.parameters()) for model in models}
    alike = {name: min(values) for name, values in facts.items() if len(values) == 1}
    for path, loss in zip(paths, means[:, 0].tolist(), strict=True):
        task.members.append(task.row(loss, checkpoint=path))
    for k in range(n):
        of_k = means[: n if k + 1 < n else 1, k].tolist()  # all n of them are one ensemble, however they are added
        row = task.row(math.fsum(of_k) / len(of_k), models=k + 1, ensembles=len(of_k))
        task.rows.append(row | {"lowest": min(of_k), "highest": max(of_k)} | alike)


def finite(value):
    """A value as JSON has it: no number is nan or inf there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(task):
    """Print the rows of a task as a table."""
    print("  ".join(f"{name} {value}" for name, value in task.info.items()))
    for rows in filter(None, (task.members, task.rows)):
        options = [{name: f"{row[name]:g}" for name in ("lr", "weight_decay") if name in row} for row in rows]
        rows = [row | told for row, told in zip(rows, options, strict=True)]
        rows = [{name: v for name, v in row.items() if not name.endswith("_stderr")} for row in rows]  # --json has them
        print_table(rows, lambda value: f"{value:.4f}" if type(value) is float else str(value))


def task_names(text):
    """a,b -> [a, b]; for argparse."""
    found = [name for name in dict.fromkeys(text.split(",")) if name]
    if not found:
        raise argparse.ArgumentTypeError("expected names of tasks, with commas between")
    return found


def check_args(args):
    """Raise Mistake for flags that do not go together."""
    n = len(args.checkpoints)
    refuse_twice(args.checkpoints)
    alone = args.average and not args.ensemble
    if alone and (args.merge or args.interpolate):
        raise Mistake("--average goes alone, or with --ensemble")
    if (alone and n != 1) or (args.interpolate and n != 2) or ((args.merge or args.ensemble) and n < 2):
        raise Mistake(f"{n} checkpoints: --average takes one, --interpolate two, --merge and --ensemble two or more")
    goes_with = {"weights": "merge", "out": "merge", "points": "interpolate"}
    goes_with |= dict.fromkeys(("tasks_dir", "task_limit", "shots", "tokenizer"), "tasks")
    for name, how in goes_with.items():
        if getattr(args, name) is not None and not getattr(args, how):
            raise Mistake(f"--{name} goes with --{how}")
    if args.tasks and args.ensemble:
        raise Mistake("--tasks goes without --ensemble: they are for one model at a time")
    if args.tasks_dir and not Path(args.tasks_dir).is_dir():
        raise Mistake(f"--tasks_dir={args.tasks_dir}: there is no such folder")
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
    parser.add_argument(
        "--average", choices=("window", "ema"), help="the averages in a checkpoint; or --ensemble of such"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--merge", action="store_true", help="one weighted mean of all")
    how.add_argument("--interpolate", action="store_true", help="points on the line between two")
    how.add_argument("--ensemble", action="store_true", help="the mean of the logits of 1, 2, ... all")
    parser.add_argument("--weights", help=f"of --merge: {', '.join(averaging.MERGE_SHAPES)}; default: uniform")
    parser.add_argument("--out", help="of --merge: save the result as a checkpoint under a new name")
    parser.add_argument("--points", type=whole(least=2), help="of --interpolate; default: 11")
    parser.add_argument("--dataset", help="whose validation split; default: the run's own, the first of several")
    parser.add_argument("--data_dir", help="folder of the datasets; default: the run's own")
    parser.add_argument("--tokens", type=whole(least=0), default=0, help="only the first so many; 0: all")
    tasks = "names of lm-eval's tasks: hellaswag,arc_easy,piqa; `lm-eval ls tasks` lists them"
    parser.add_argument("--tasks", type=task_names, metavar="NAME,...", help=tasks)
    parser.add_argument("--tasks_dir", metavar="FOLDER", help="of YAML files of your own tasks, and lm-eval's besides")
    parser.add_argument("--task_limit", type=whole(least=1), help="only so many questions of each task: a quick look")
    shots = "solved examples before each question; default: as the task has it, mostly none"
    parser.add_argument("--shots", type=whole(least=0), metavar="N", help=shots)
    tokenizer = "for --tasks: of its tokenizer.json, if neither data nor checkpoint tell"
    parser.add_argument("--tokenizer", metavar="FOLDER", help=tokenizer)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="default: the run's own")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(args)
    args.checkpoints = [named(path) for path in args.checkpoints]
    check_args(args)
    chosen = [(args.ensemble, evaluate_ensemble), (args.merge, evaluate_merge), (args.interpolate, evaluate_line)]
    chosen += [(args.average, evaluate_average), (True, evaluate_each)]
    task = Task(args, args.checkpoints)
    next(function for on, function in chosen if on)(args, task, args.checkpoints)
    if args.json:
        tables = {"members": task.members} if task.members else {}
        tables |= {"rows": task.rows}
        tables = {name: [{k: finite(v) for k, v in row.items()} for row in rows] for name, rows in tables.items()}
        print(json.dumps(task.info | tables))
    else:
        show(task)


if __name__ == "__main__":
    main(run)
