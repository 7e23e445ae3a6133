"""Do activations keep their size over the first steps when a model gets wider, or sparser? The check of muP and SuPar.

    python coord_check.py configs/tiny.py --n_embd=64 --n_head=2                    # they grow with the width
    python coord_check.py configs/tiny.py --n_embd=64 --n_head=2 --mup_base=64      # they do not
    python coord_check.py configs/tiny.py --densities=1,0.25,0.0625 --out=coords.png

For each width, and each seed, a model is trained for a few steps of one micro-batch at the full learning rate, and the
mean |activation| on the first of these is taken before every step. The slope is that of its logarithm over that of the
width: 0 is what makes a learning rate carry over, 1 is an activation that grows like the width. Logits at step 0 fall
by half a power with muP, as the embedding is the output's matrix, too. A few steps show a wrong factor, not which
learning rate is best: for that, train several (`study.py`). Wrong head sizes do not show here.

Heads keep their size and grow in number. All is computed in fp32. Other options are those of train.py.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import Mistake, Parser, load, main, mistakes, typed, whole
from data import TrainStream
from devices import choose_device
from model import Llama, Shape
from tables import print_table
from train import Config, check, make_optimizer

NAMES = ("embedding", "attention", "MLP", "residual", "logits")  # of activations; those of branches are means of all


def with_width(config, n_embd):
    """The config of a model of another width, with more or fewer heads of the same size."""
    head_size, times = config.n_embd // config.n_head, n_embd / config.n_embd
    kv_heads = (config.n_kv_head or config.n_head) * times
    if n_embd % head_size or kv_heads % 1:
        raise Mistake(f"widths={n_embd}: expected a multiple of the head size, {head_size}, and whole key-value heads")
    n_kv_head = config.n_kv_head and int(kv_heads)
    return dataclasses.replace(config, n_embd=n_embd, n_head=n_embd // head_size, n_kv_head=n_kv_head)


@torch.no_grad()
def activations(model, tokens):
    """{name: mean |activation|} of a forward pass."""
    found = {name: [] for name in NAMES}

    def keep(name, x):
        found[name].append(x.abs().mean().item())

    hooks = [model.blocks[0].register_forward_pre_hook(lambda block, x: keep("embedding", x[0]))]
    for block in model.blocks:
        hooks.append(block.attention.register_forward_hook(lambda module, x, out: keep("attention", out)))
        hooks.append(block.mlp.register_forward_hook(lambda module, x, out: keep("MLP", out)))
    hooks.append(block.register_forward_hook(lambda block, x, out: keep("residual", out)))  # of the last one
    keep("logits", model(tokens))
    for hook in hooks:
        hook.remove()
    return {name: np.mean(values) for name, values in found.items()}


def measure(config, steps, device):
    """[{name: mean |activation|}] after 0, 1, ... `steps` steps of a new model."""
    stream = TrainStream(config.data_dir, [(0, config.dataset)], config.seq_len, config.data_seed)
    model = Llama(Shape.of(config, stream.vocab_size), config.seed).to(device)
    optimizer, masks, size = make_optimizer(config, model), model.masks(config.seed), config.micro_batch_size
    first, found = stream.batch(0, size)[:, :-1].to(device), []
    for step in range(steps + 1):
        found.append(activations(model, first))
        if step == steps:
            return found
        tokens = stream.batch(step * size, size).to(device)
        (model(tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()).backward()  # from here on as in train.py
        for p, is_off in masks:
            p.grad.masked_fill_(is_off, 0.0)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
        optimizer.step()
        for p, is_off in masks:
            p.detach().masked_fill_(is_off, 0.0)
        optimizer.zero_grad()


def coord_check(config, option, values, steps, seeds):
    """Mean |activation| over values of an option, n_embd or density: [{name, step, means of seeds, their slope}]."""
    configs = {
        x: with_width(config, x) if option == "n_embd" else dataclasses.replace(config, density=x) for x in values
    }
    for one in configs.values():
        check(one)
    device, found = choose_device(config.device), {}
    runs = [(x, dataclasses.replace(one, seed=one.seed + i)) for x, one in configs.items() for i in range(seeds)]
    for x, one in tqdm(runs, leave=False, disable=None):
        found.setdefault(x, []).append(measure(one, steps, device))
    rows = []
    for name in NAMES:
        for step in range(steps + 1):
            means = [float(np.mean([of_seed[step][name] for of_seed in found[x]])) for x in values]
            rows.append({"name": name, "step": step, "means": means, "slope": slope(values, means)})
    return rows


def slope(x, y):
    """Of the line through the logarithms, by least squares; None without two numbers above 0."""
    if len(x) < 2 or not all(0 < value < math.inf for value in y):
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def show(option, values, rows, steps):
    """Print the activations before the first step and after the last one."""
    table = []
    for row in (row for row in rows if row["step"] in (0, steps)):
        cells = {f"{option} {x:g}": f"{mean:.4g}" for x, mean in zip(values, row["means"], strict=True)}
        end = "-" if row["slope"] is None else f"{row['slope']:+.2f}"
        table.append({"mean |activation|": f"{row['name']}, step {row['step']}", **cells, "slope": end})
    print_table(table)


def draw(out, option, values, rows, title):
    """A panel for each kind of activation, a line for each step."""
    from figures.looks import finish, log_axis, plt, styles  # in a function only: matplotlib is slow to load

    labels = {row["step"]: f"step {row['step']}" for row in rows}
    look = styles([("steps", label) for label in labels.values()])
    figure, panels = plt.subplots(1, len(NAMES), figsize=(2.6 * len(NAMES), 3.6))
    for name, axes in zip(NAMES, panels, strict=True):
        mine = [row for row in rows if row["name"] == name]
        for row in mine:
            axes.plot(values, row["means"], label=labels[row["step"]], **look[labels[row["step"]]])
        log_axis(axes.xaxis, values)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        margin = max(1.0, math.sqrt(100 * low / high))  # two decades at least, so that flat looks flat
        end = mine[-1]["slope"]
        axes.set(ylim=(low / margin, high * margin), xlabel=option)
        axes.set_title(name if end is None else f"{name}: slope {end:+.2f}")
    panels[0].set_ylabel("mean |activation|")
    finish(figure, title).savefig(out, dpi=150)
    plt.close(figure)


def run(args=None):
    parser = Parser(description=__doc__)
    over = parser.add_mutually_exclusive_group()
    over.add_argument("--widths", type=typed(tuple[int, ...], least=1), help="default: mup_base or n_embd, x 1, 2, 4")
    over.add_argument("--densities", type=typed(tuple[float, ...], above=0, most=1), help="instead of widths")
    parser.add_argument("--steps", type=whole(least=0), default=5)
    parser.add_argument("--seeds", type=whole(least=1), default=2, help="that the means are over, from --seed on")
    parser.add_argument("--out", help="file for a figure: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every step")
    args, options = parser.parse_known_args(args)
    config = load(Config, options)
    with mistakes():
        Shape.of(config, vocab_size=1)
    out = Path(args.out) if args.out else None
    if out and (out.suffix not in (".png", ".svg", ".pdf") or not out.parent.is_dir()):
        raise Mistake(f"--out={out}: expected a .png, .svg or .pdf in a folder that is there")
    option, values = "density", args.densities
    if values is None:
        start = config.mup_base or config.n_embd
        option, values = "n_embd", args.widths or (start, 2 * start, 4 * start)
    values = sorted(set(values))
    rows = coord_check(config, option, values, args.steps, args.seeds)
    if args.json:
        print(json.dumps({"option": option, "values": values, "rows": rows}))
    else:
        show(option, values, rows, args.steps)
    if out:
        scale = f"muP from {config.mup_base}" if config.mup_base else "standard parametrization"
        scale += ", not scaled for the density" if option == "density" and not config.supar else ""
        draw(
            out, option, values, rows, f"{config.optimizer}, lr {config.lr:g}, {scale}: means over {args.seeds} seed(s)"
        )
        if not args.json:
            print(out)


if __name__ == "__main__":
    main(run)
