"""A study for a budget: the config file that `python scaling.py plan --flops=1e15 --write=configs/mine.py` writes.

It has three to five model sizes, each twice as large as the one before, at half, once and twice the best number of
tokens per parameter, with three seeds. For each size and seed a trunk at a constant learning rate runs up to the
longest length, and a cooldown of 20% branches from it for every length: `study.py` finds that by itself, as the runs of
a size differ in their length only. What a study costs grows with the square of its largest size, which is the one that
brings the cost nearest to what the study may cost.

The batch follows DeepSeek's rule (scaling.deepseek_rules), to a power of 2 in sequences, and the peak their other rule
times sqrt(batch / rule's batch). That was measured on results/ladder (18,000 to 200,000 parameters, 2e10 to 7e12
FLOPs, batches of 0.2 to 1.5 times the rule's): for each of its twelve sizes and lengths, the minimum of a parabola
through the best of the peaks tried and its neighbours lies at 0.78 to 1.33 times this. DeepSeek measured theirs at 1e17
to 2e19 FLOPs. All else is a guess.

How far to trust a prediction, `python -m laws holdout` says before it counts. A study of 3e11 FLOPs, the smallest there
is, predicted 1.885 [1.748, 2.056] for a run of 3e11. Trained, that came to 1.673, off by 1.5 times the interval: models
of 3,000 to 11,000 parameters are embeddings for the most part, and the law has another form there. The study's holdout
had all nine runs below what it predicted.
"""

import functools
import math
import re
import shlex
import tempfile
import textwrap
from pathlib import Path

import numpy as np

import planner
import scaling
from config import Mistake
from model import Shape

SEEDS = (0, 1, 2)
N_SIZES, LEAST_SIZES = 5, 3
TOKENS_PER_PARAMETER = 20  # near the best of the default law at 1e21 FLOPs, and of results/ladder at 1e12
LENGTHS = (0.5, 1, 2)  # times that
SMALL_FLOPS = 1e17  # below it a study is for a CPU: bytes, sequences of 128, fp32
SMALL_BASE, SMALL_SEQ_LEN, SMALL_DATASET, SMALL_MICRO = "configs/small.py", 128, "stdlib-bytes", 8
LARGE_SEQ_LEN, LARGE_DATASET, LARGE_MICRO = 512, "slimpajama-6b-gpt2", 32  # of train.py's defaults, but the last


# ----------------------------------------------------------------------------------------------------------------------
# Sizes, and what runs of them take


@functools.cache
def shapes(vocab_size: int, seq_len: int) -> list:
    """Shapes of all sizes: heads of about 64 channels, a layer for each 64 or one more.

    Below 256 channels the MLP has 8/3 of them to a multiple of 8, as rounding to 256 would decide the model's size.
    Rule of thumb, not of the paper: its models have 0.75 to 2 layers per head, and loss hardly depends on the shape.
    """
    found = []
    for n_embd in (*range(8, 128, 4), *range(128, 256, 8), *range(256, 512, 16), *range(512, 12801, 64)):
        heads = [n for n in range(1, n_embd // 8 + 1) if n_embd % (2 * n) == 0]
        n_head = min(heads, key=lambda n: abs(math.log(n_embd / n / 64)))
        n_inner = -(-n_embd // 3) * 8 if n_embd < 256 else None
        fewest = 1 if n_embd < 32 else max(2, n_embd // 64)
        most = fewest + 1 if n_embd >= 128 or 24 <= n_embd < 32 else fewest
        for n_layer in range(fewest, most + 1):
            found.append(Shape(vocab_size, seq_len, n_layer, n_head=n_head, n_embd=n_embd, n_inner=n_inner))
    return found


def shape_for(params: float, vocab_size: int = scaling.PAPER_VOCAB, seq_len: int = LARGE_SEQ_LEN) -> Shape:
    """The one of `shapes` whose number of parameters is nearest."""
    return min(shapes(vocab_size, seq_len), key=lambda shape: abs(math.log(scaling.num_params(shape) / params)))


def shape_options(shape: Shape) -> dict:
    """The options of train.py that give one of `shapes`."""
    sizes = {name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "n_inner")}
    return {name: value for name, value in sizes.items() if value is not None}  # none: the default


def batch_and_lr(flops, seq_len):
    """(sequences per step, peak) of a run of so many FLOPs by the rules above: DeepSeek's, the peak for this batch."""
    lr, rule = scaling.deepseek_rules(flops)
    sequences = 2 ** max(0, round(math.log2(rule / seq_len)))
    return sequences, lr * math.sqrt(sequences * seq_len / rule)


def rung(shape, tokens_per_parameter, micro):
    """The options of one model size, as a dict: its shape, batch, peak and lengths."""
    params = scaling.num_params(shape)
    tokens = params * tokens_per_parameter
    sequences, lr = batch_and_lr(scaling.train_flops_6nd(params, tokens), shape.seq_len)
    steps = [max(1, round(x * tokens / (sequences * shape.seq_len))) for x in LENGTHS]
    return shape_options(shape) | {
        "global_batch_size": sequences,
        "micro_batch_size": min(micro, sequences),
        "lr": float(f"{lr:.2g}"),
        "eval_every": max(1, steps[-1] // 10),
        "warmup_steps": min(300, steps[0] // 10),
        "total_steps": steps,
    }


def cost(shape, options):
    """FLOPs of one seed of a size: the longest run, and a cooldown of 20% for each of the other lengths."""
    per_step = options["global_batch_size"] * scaling.train_flops(shape)
    return scaling.shared_cost([per_step * steps for steps in options["total_steps"]], 0.2)


def rungs(flops, vocab_size, seq_len, tokens_per_parameter, micro):
    """[(shape, options)] of the study that costs about so many FLOPs in all, smallest size first."""
    known = shapes(vocab_size, seq_len)
    counts = np.log([scaling.num_params(shape) for shape in known])
    options = [rung(shape, tokens_per_parameter, micro) for shape in known]
    costs = np.array([len(SEEDS) * cost(*pair) for pair in zip(known, options, strict=True)])
    studies = []  # one for each largest size: indices of its sizes
    for count in counts:
        targets = [x for x in count - math.log(2) * np.arange(N_SIZES)[::-1] if x > counts.min() - 0.2]
        studies.append(sorted({int(abs(counts - x).argmin()) for x in targets}))
    studies = [study for study in studies if len(study) >= LEAST_SIZES]
    totals = np.array([costs[study].sum() for study in studies])
    best = int(abs(np.log(totals / flops)).argmin())
    if not 0.5 < totals[best] / flops < 2:
        raise Mistake(
            f"{short(flops)} FLOPs for a study: expected from {short(totals.min())}, of the {LEAST_SIZES} "
            f"smallest sizes, to {short(totals.max())}"
        )
    return [(known[i], options[i]) for i in studies[best]]


# ----------------------------------------------------------------------------------------------------------------------
# The file


def write(path, flops, law=None, dataset=None, study_flops=None):
    """Write the study for a run of `flops` into a new file: what it is, costs and takes to run, as a dict.

    `law`, a laws.Fit, says how many tokens per parameter are the best; without it they are 20. `study_flops` is about
    what the study costs in all, as much as the run if None.
    """
    file, study_flops = Path(path), study_flops or flops
    if file.suffix != ".py":
        raise Mistake(f"--write={path}: expected a file such as configs/mine.py, whose name is that of the study")
    if file.exists():
        raise Mistake(f"--write={path} is there already; choose another name, or delete it")
    if not file.parent.is_dir():
        raise Mistake(f"--write={path}: there is no folder {file.parent}")
    small = study_flops < SMALL_FLOPS
    dataset = dataset or (SMALL_DATASET if small else LARGE_DATASET)
    seq_len, micro = (SMALL_SEQ_LEN, SMALL_MICRO) if small else (LARGE_SEQ_LEN, LARGE_MICRO)
    ratio = best_ratio(law, study_flops / 40) if law else TOKENS_PER_PARAMETER  # / 40: about its middle budget
    sizes = rungs(study_flops, planner.vocabulary("data", dataset), seq_len, ratio, micro)
    head = {"base": SMALL_BASE} if small else {"seq_len": seq_len}
    body = code(head | {"dataset": dataset, "schedule": "wsd"}, sizes)
    plan = planned(file.name, body)
    facts = {"flops": flops, "sizes": [scaling.num_params(shape) for shape, _ in sizes], "dataset": dataset}
    facts |= plan | {"tokens_per_parameter": [x * ratio for x in LENGTHS]}
    facts["longest"] = max(o["total_steps"][-1] * o["global_batch_size"] * seq_len for _, o in sizes)  # tokens
    facts["epochs"] = epochs(dataset, facts["longest"])
    facts["commands"] = commands(path, file.stem, flops, dataset, jobs=2 if small else 1)
    with open(file, "x") as stream:
        stream.write(f'"""{docstring(path, facts)}\n"""\n\n{body}')
    return facts


def best_ratio(law, flops):
    """Tokens per parameter of the best run of so many FLOPs by a law."""
    from laws import optimum

    params, tokens, _ = optimum(law.params, flops)
    return float(f"{tokens / params:.2g}")


def code(head, sizes):
    """The config's Python."""
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in head.items()]
    lines.append("_sizes = [")
    for shape, options in sizes:
        words = [f"{name}={value}" for name, value in options.items()]
        first = len(words) - 4  # all but the peak and what comes after
        lines += [f"    # {scaling.num_params(shape):,} parameters", f"    dict({', '.join(words[:first])})"]
        lines.append(f"    | dict({', '.join(words[first:])}),")
    seeds = ", ".join(map(str, SEEDS))
    lines += ["]", f"grids = [dict(seed=_seed, data_seed=_seed) | _size for _seed in ({seeds}) for _size in _sizes]"]
    return "\n".join(lines) + "\n"


def planned(name, body):
    """What the runs of a config come to, as the study will plan them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(body)
        study, runs = planner.read_study(file)
        segments = [s for root in planner.plan(study, runs) for s in root.below()]
    alone = sum(c.total_steps * planner.flops_per_step(c) for c in runs.values())
    return {"runs": len(runs), "study_flops": sum(s.flops for s in segments), "alone_flops": alone}


def epochs(dataset, tokens):
    """How often the longest run goes through the data; None while they are not there."""
    folder = Path("data") / dataset
    if not folder.is_dir():
        return None
    return tokens / planner.read_meta(folder)["splits"]["train"]["tokens"]


def short(x):
    """A number of FLOPs as one writes it: 1e15, 2.5e15."""
    return re.sub(r"e\+0*", "e", f"{x:.4g}")


def commands(path, study, flops, dataset, jobs):
    """The commands that run a study, fit it and predict this budget and the next tenfold one."""
    table, budgets = shlex.quote(f"runs/{study}/results.csv"), f"{short(flops)},{short(10 * flops)}"
    fit = f"python -m laws chinchilla {table} --budgets={budgets}"
    test = f"python -m laws holdout {table}"
    return [f"python study.py {shlex.quote(path)} --jobs={jobs}", fit, test]


def docstring(path, facts):
    """What the file says of itself."""
    smallest, *_, largest = facts["sizes"]
    *some, last = (f"{x:g}" for x in facts["tokens_per_parameter"])
    title = f"What would a run of {short(facts['flops'])} FLOPs come to? The runs for a scaling law that predicts it."
    what = (
        f"{len(facts['sizes'])} models of {smallest:,} to {largest:,} parameters, each at {', '.join(some)} and {last} "
        f"tokens per parameter, with {len(SEEDS)} seeds. For each size and seed a trunk at a constant learning rate, "
        f"and a cooldown of 20% from it to each length: {facts['runs']} runs that cost {short(facts['study_flops'])} "
        f"FLOPs in all, {saved(facts):.0%} less than apart."
    )
    rule = (
        "Batch and peak are by DeepSeek LLM's rules (2401.02954), with the peak scaled by the square root of the "
        "batch; ladder.py says where that was measured. To find the best peaks, let lr be a list around each."
    )
    made = f"Written by `python scaling.py plan --flops={short(facts['flops'])} --write={path}`. Not run yet."
    shown = "\n".join(f"    {command}" for command in facts["commands"])
    return "\n\n".join([title, textwrap.fill(what, 118), shown, textwrap.fill(f"{rule} {made}", 118)])


def saved(facts):
    """The share of the FLOPs that sharing saves."""
    return 1 - facts["study_flops"] / facts["alone_flops"]


def print_study(path, facts):
    """Print what was written, what it costs, and the commands that come next."""
    smallest, *_, largest = facts["sizes"]
    ratio, times = facts["tokens_per_parameter"][1], facts["study_flops"] / facts["flops"]
    best = " to ".join(short(float(f"{scaling.train_flops_6nd(n, ratio * n):.2g}")) for n in (smallest, largest))
    print(f"\nwritten: {path}, {facts['runs']} runs of {smallest:,} to {largest:,} parameters")
    print(f"cost: {short(facts['study_flops'])} FLOPs in all, {times:.2g} times the run's ({saved(facts):.0%} saved)")
    print(f"at {ratio:g} tokens per parameter its sizes are the best for {best} FLOPs: the law goes on from there")
    data = f"data: its longest run takes {short(facts['longest'])} tokens of {facts['dataset']}"
    if facts["epochs"] is None:
        data += "; prepare it first, if it is not there"
    elif facts["epochs"] > 1:
        data += f", {facts['epochs']:.1f} times all of it: more text would be better"
    print(data)
    print("\nnext: train it; fit a law, and predict this budget and ten times it; test the law on the largest size")
    for command in facts["commands"]:
        print(f"    {command}")
