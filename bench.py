"""How fast each part is, as a share of what the machine can do, measured in the same run.

    python bench.py                                   # everything
    python bench.py train loss                        # two parts; the others: optimizers start growth study prepare
                                                      # data checkpoint laws
    python bench.py train configs/124m.py --micro_batch_size=16
    python bench.py --json                            # one JSON object instead of tables

Machines are noisy and shared, so what is compared takes turns, and the median of its times counts. Trust the ratios;
the absolute figures hold for that minute only. Training data are random tokens: nothing has to be prepared.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import checkpoint
import data
import laws
import optim
import prepare_data
import scaling
import text_sources
from averaging import EMA, WindowAverage
from config import HERE, load, main, mistakes
from devices import autocast, choose_device, use_bf16
from model import LOSS_ROWS, Llama, Shape
from tables import print_table, read_log
from train import Config, make_optimizer
from vocab import gpt2_encoding

VOCAB_SIZE = 50257  # GPT-2's
ROUNDS = 5
EAGER = {"compiled": False}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
THEIRS = "transformers' Llama, compiled"
SHAPE = ["--n_embd=256", "--n_layer=6", "--n_head=4", "--seq_len=512", "--micro_batch_size=8"]  # when none is given


def seconds(function, device="cpu"):
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def take_turns(*functions, rounds=ROUNDS, device="cpu"):
    """Median seconds of each function, called in turns after one call each to warm up."""
    for function in functions:
        function()
    times = [[seconds(function, device) for function in functions] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def peak_memory(device):
    """Bytes that this process has held at most, on a GPU if it works there; on Windows unknown."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Worker:
    """A process that does what is measured: called, it does it once and tells its seconds; `end` tells what is left.

    So every variant has a peak memory and a compiler of its own, while they take turns.
    """

    def __init__(self, function, *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        context.Process(target=function, args=(theirs, *args), daemon=True).start()

    def __call__(self):
        self.pipe.send(True)
        return self.pipe.recv()

    def end(self):
        self.pipe.send(False)
        return self.pipe.recv()


# ----------------------------------------------------------------------------------------------------------------------
# Training


def gemm(dtype, device):
    """A function that multiplies square matrices, and its FLOPs: large enough for the peak, small enough for a CPU."""
    n = 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * n**3


def transformers_llama(shape):
    """The model of the same sizes that most would take instead, and its loss, compiled as a whole."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": shape.padded_vocab, "hidden_size": shape.n_embd, "intermediate_size": shape.mlp_width}
    sizes |= {"num_hidden_layers": shape.n_layer, "max_position_embeddings": shape.seq_len}
    heads = {"num_attention_heads": shape.n_head, "num_key_value_heads": shape.kv_heads}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=shape.tied, use_cache=False))

    def loss(tokens, targets):
        logits = model(tokens).logits.flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten(), reduction="sum")

    return model, torch.compile(loss, dynamic=False)


def trainer(pipe, config, bf16, set_up, device):
    """One step for every message, answered with its seconds; in a process of its own, for a peak memory of its own.

    `set_up` says how our model is computed, see model.py; None stands for transformers' model.
    """
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # the first step compiles everything
        if set_up not in (EAGER, None):
            choose_device(device)  # as train.py; the others are torch as it comes
        torch.manual_seed(0)
        shape = Shape.of(config, VOCAB_SIZE)
        if set_up is None:
            model, loss = transformers_llama(shape)
        else:
            model = loss = Llama(shape)
            model.set_up(**set_up)
        model.to(device)
        optimizer = make_optimizer(config, model)
        tokens = torch.randint(VOCAB_SIZE, (config.micro_batch_size, config.seq_len + 1)).to(device)

        def step():
            with autocast(torch.device(device), bf16):
                sum_of_losses = loss(tokens[:, :-1], tokens[:, 1:])
            (sum_of_losses / tokens[:, 1:].numel()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        while pipe.recv():
            pipe.send(seconds(step, device))
        pipe.send((peak_memory(device), set_up and time_averages(model, device)))


def time_averages(model, device):
    """{average: (seconds per step, fp32 copies of the model)}, sampled every 5 steps; the window holds 2 blocks."""
    costs, n_params = {}, sum(p.numel() for p in model.parameters())
    for average in (WindowAverage(model, horizon=25, every=5, keep=2), EMA(model, half_life=100, every=5)):
        times = [seconds(functools.partial(average.update, step), device) for step in range(1, 101)]
        held = sum(tensor.numel() for block in average.blocks for tensor in block.tensors)
        costs[type(average).__name__] = sum(times) / len(times), held / n_params
    return costs


def bench_train(config):
    """Steps in bf16 where native, and compiled, against torch as it comes, transformers' model and bare multiplication.

    The loss is of all logits at once, which is train.py's default on a GPU, or of some rows at a time: on a CPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = use_bf16("auto", torch.device(device))
    precision = "bf16" if bf16 else "fp32"
    modes = {
        "fp32 eager": (False, EAGER),
        f"{precision} compiled, all logits": (bf16, {"compiled": True, "loss_rows": 0}),
        f"{precision} compiled, by rows": (bf16, {"compiled": True, "loss_rows": LOSS_ROWS}),
    }
    if importlib.util.find_spec("transformers"):
        modes[THEIRS] = (bf16, None)
    step = {name: Worker(trainer, config, *mode, device) for name, mode in modes.items()}
    first = {name: step[name]() for name in modes}  # compiles
    for name in modes:
        step[name]()
    dtypes = (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)  # bf16 that is not native takes for ever
    gemms = {str(dtype)[6:]: gemm(dtype, device) for dtype in dtypes}
    times = {name: [] for name in (*modes, *gemms)}
    for _ in range(ROUNDS):
        for name in modes:
            times[name].append(step[name]())
        for name, (multiply, _) in gemms.items():
            times[name].append(min(seconds(multiply, device) for _ in range(5)))
    ends = {name: step[name].end() for name in modes}
    shape = Shape.of(config, Shape.of(config, VOCAB_SIZE).padded_vocab)  # what is multiplied
    flops = config.micro_batch_size * scaling.train_flops(shape)
    # the paper's count takes the embedding's look-up for a multiplication: no machine does it
    flops -= 3 * config.micro_batch_size * 2 * shape.seq_len * shape.vocab_size * shape.n_embd
    peaks = {name: gemms[name][1] / statistics.median(times[name]) for name in gemms}
    step_s = {name: statistics.median(times[name]) for name in modes}
    rows = []
    for name in modes:
        row = {"mode": name, "tokens/s": config.micro_batch_size * config.seq_len / step_s[name]}
        row["against fp32 eager"] = step_s["fp32 eager"] / step_s[name]
        if THEIRS in modes:
            row["against transformers"] = step_s[THEIRS] / step_s[name]
        row["GFLOP/s"] = flops / step_s[name] / 1e9
        row["of its GEMM peak"] = flops / step_s[name] / peaks["bfloat16" if modes[name][0] else "float32"]
        rows.append(row | {"peak memory GB": ends[name][0] / 1e9, "first step s": first[name]})
    rows += [{"mode": f"GEMM {name}", "GFLOP/s": peak / 1e9} for name, peak in peaks.items()]
    ours = next(name for name in modes if "all" in name)
    for average, (cost, copies) in ends[ours][1].items():
        rows.append({"mode": f"{average}: {cost / step_s[ours]:.2%} of a step, {copies:g} fp32 copies held"})
    return rows


def loss_worker(pipe, n_words, set_up, bf16, device):
    """Losses and gradients of random hidden states, once for every message; its seconds, and at last bytes it took."""
    shape = Shape(n_words, seq_len=512, n_layer=1, n_head=4, n_embd=256, tied=False)
    model = Llama(shape).to(device)
    model.set_up(**set_up)
    weight = model.head.weight
    x = torch.randn(4096, shape.n_embd, device=device, requires_grad=True)
    targets = torch.randint(n_words, (4096,), device=device)

    def step():
        x.grad = weight.grad = None
        with autocast(torch.device(device), bf16):
            losses = model.losses(x, weight, targets, 0.0)
        losses.sum().backward()

    before = peak_memory(device)
    while pipe.recv():
        pipe.send(seconds(step, device))
    pipe.send(peak_memory(device) - before)


def bench_loss(config):
    """The output layer and the loss alone, compiled, 4096 rows of 256 channels: of all logits, and by rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = use_bf16("auto", torch.device(device))
    set_ups = {"all logits": {"compiled": True, "loss_rows": 0}, "by rows": {"compiled": True, "loss_rows": LOSS_ROWS}}
    rows = []
    for n_words in (VOCAB_SIZE, 128_256):
        calls = {name: Worker(loss_worker, n_words, set_up, bf16, device) for name, set_up in set_ups.items()}
        times = dict(zip(set_ups, take_turns(*calls.values()), strict=True))
        for name, call in calls.items():
            row = {
                "loss": f"{n_words:,} words, {name}",
                "s": times[name],
                "of all logits": times[name] / times["all logits"],
            }
            rows.append(row | {"memory GB": call.end() / 1e9})
    return rows


def bench_start(config):
    """From the start of a process to the end of `--help`, and to the first step of a tiny model on the CPU."""
    script, names = [sys.executable, HERE / "train.py"], itertools.count()

    def first_step():
        command = [*script, *options, f"--name={next(names)}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert any(line.startswith("step  ") for line in process.stdout), "train.py printed no step"
            process.kill()

    with tempfile.TemporaryDirectory() as folder:
        write_random_bins(folder, train=1_000_000, val=1000)
        options = [f"--data_dir={folder}", f"--out_dir={folder}", "--dataset=x", "--log_every=1", "--device=cpu"]
        options += ["--n_embd=16", "--n_layer=1", "--n_head=1", "--seq_len=32", "--global_batch_size=1"]
        options += ["--micro_batch_size=1"]
        tasks = {
            "import torch": lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True),
            "train.py --help": lambda: subprocess.run([*script, "--help"], stdout=subprocess.DEVNULL, check=True),
            "train.py, first step": first_step,
        }
        times = take_turns(*tasks.values(), rounds=3)
    return [{"start": name, "s": s, "of import torch": s / times[0]} for name, s in zip(tasks, times, strict=True)]


def bench_optimizers(config):
    """An update by each optimizer against AdamW's, which is torch's own; the gradients are random."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = {}
    for name in optim.OPTIMIZERS:
        model = Llama(Shape.of(config, VOCAB_SIZE)).to(device)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        step = make_optimizer(dataclasses.replace(config, optimizer=name), model).step
        steps[name] = lambda step=step: [step() for _ in range(10)]  # soap's bases turn at every tenth
    times = dict(zip(steps, take_turns(*steps.values(), rounds=3, device=device), strict=True))
    return [{"optimizer": name, "ms": s * 100, "of adamw": s / times["adamw"]} for name, s in times.items()]


# ----------------------------------------------------------------------------------------------------------------------
# Whole runs and studies


def bench_growth(config):
    """A step of configs/small.py on one thread, and how much longer it takes with more of something; whole runs."""
    script = [sys.executable, str(HERE / "train.py"), str(HERE / "configs/small.py")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *script[1:]]
    window = ["--window_horizon=10", "--window_every=5"]
    variants = {
        "as it is": (script, []),
        "data 100 times as large": (script, ["--dataset=large"]),
        "5 windows of 10 steps": (script, [*window, "--window_keep=5"]),
        "20 windows of 10 steps": (script, [*window, "--window_keep=20"]),
        "4 micro-batches": (script, ["--micro_batch_size=2"]),
        "sequences 4 times as long, as many tokens": (
            script,
            ["--seq_len=512", "--global_batch_size=2", "--micro_batch_size=2"],
        ),
        "2 ranks, as many tokens": (torchrun, ["--micro_batch_size=4"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_random_bins(folder, "small", n_words=257, train=1_000_000, val=10_000)
        write_random_bins(folder, "large", n_words=257, train=100_000_000, val=10_000)

        def ms_per_step(command, options):
            out = Path(tempfile.mkdtemp(dir=folder))
            where = [f"--data_dir={folder}", f"--out_dir={out}", "--dataset=small", "--device=cpu", "--eval_tokens=0"]
            lengths = ["--total_steps=220", "--eval_every=0", "--save_every=0", "--log_every=20"]
            subprocess.run(
                [*command, *where, *lengths, *options], env=ONE_THREAD, stdout=subprocess.DEVNULL, check=True
            )
            training, *_ = read_log(out / "small")
            speeds = [line["tokens_per_s"] for line in training[1:]]  # without the first steps
            return 1024 / statistics.median(speeds) * 1e3

        times = {name: [] for name in variants}
        for _ in range(3):
            for name, variant in variants.items():
                times[name].append(ms_per_step(*variant))
    base = statistics.median(times["as it is"])
    medians = {name: statistics.median(found) for name, found in times.items()}
    return [{"step": name, "ms": ms, "of it as it is": ms / base} for name, ms in medians.items()]


def bench_study(config):
    """A study of ten runs of 40 steps on one thread, from the command to its table, against their training alone."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_bins(folder, n_words=257, train=1_000_000, val=10_000)
        file = Path(folder) / "ten.py"
        lines = [f"base = {str(HERE / 'configs/small.py')!r}", f"data_dir, out_dir = {folder!r}, {folder!r}"]
        lines += ["dataset, device, eval_every, eval_tokens = 'x', 'cpu', 0, 1024", "total_steps, warmup_steps = 40, 5"]
        file.write_text("\n".join([*lines, f"lr = {[i * 1e-3 for i in range(1, 11)]}"]))
        command = [sys.executable, str(HERE / "study.py"), str(file)]
        whole = seconds(lambda: subprocess.run(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, check=True))
        results = [json.loads(path.read_text()) for path in Path(folder).glob("ten/*/result.json")]
    assert len(results) == 10
    training = sum(result["train_s"] for result in results)
    return [
        {"study": name, "s": s, "of training": s / training} for name, s in (("whole", whole), ("training", training))
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Data and checkpoints


def write_random_bins(folder, name="x", n_words=VOCAB_SIZE, **sizes):
    """Write a dataset of random tokens, {split: tokens}."""
    (Path(folder) / name).mkdir()
    for split, size in sizes.items():
        tokens = np.random.default_rng(0).integers(0, n_words, size).astype("<u2")
        tokens.tofile(Path(folder) / name / f"{split}.bin")
    meta = {"format": data.FORMAT, "dtype": "uint16", "tokenizer": "gpt2", "vocab_size": n_words}
    meta["splits"] = {split: {"tokens": size} for split, size in sizes.items()}
    (Path(folder) / name / "meta.json").write_text(json.dumps(meta))


def encode(texts):
    """What a bare worker does: GPT-2's tokens of some texts as an array."""
    encode_ordinary = gpt2_encoding().encode_ordinary
    return np.concatenate([np.array(encode_ordinary(text), np.uint16) for text in texts])


def bench_prepare(config):
    """prepare_data.py against a bare pool of tokenizers, which has the text in memory and drops the tokens."""
    files, size, *_ = text_sources.local_files("stdlib")
    work = [list(filter(None, texts)) for _, texts, _ in text_sources.chunks(files, "text", (0, 0))]
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with tempfile.TemporaryDirectory() as folder, context.Pool(initializer=encode, initargs=(["warm"],)) as pool:
        names = itertools.count()
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            ours, bare = take_turns(
                lambda: prepare_data.prepare("stdlib", data_dir=folder, name=str(next(names))),
                lambda: [None for _ in pool.imap(encode, work)],
                rounds=3,
            )
        made = Path(folder) / "0"
        tokens = sum(info["tokens"] for info in data.read_meta(made)["splits"].values())
        stored = sum(path.stat().st_size for path in made.iterdir() if path.suffix == ".bin") / tokens
    return [
        {"prepare": "prepare_data.py", "MB/s": size / ours / 1e6, "of bare pool": bare / ours, "bytes/token": stored},
        {"prepare": f"bare pool of {multiprocessing.cpu_count()}", "MB/s": size / bare / 1e6, "of bare pool": 1.0},
    ]


def bench_data(config):
    """Batches in training order against plain slices of the same bin, one behind the other."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_bins(folder, train=50_000_000)  # 100 MB
        stream = data.TrainStream(folder, [(0, "x")], config.seq_len, data_seed=0)
        B, T, batches = config.micro_batch_size, config.seq_len, itertools.count()

        def slices():
            tokens = stream.bins["x"]
            i = next(batches) * B * T % (tokens.size - 10 * B * T)
            return torch.from_numpy(tokens[i : i + B * (T + 1)].astype(np.int64).reshape(B, T + 1))

        ours, plain = take_turns(lambda: stream.batch(next(batches) * B, B), slices, rounds=200)
    rows = [("in training order", ours), ("plain slices", plain)]
    return [{"batch": f"{n}, {B} x {T}", "ms": s * 1e3, "Mtokens/s": B * T / s / 1e6} for n, s in rows]


def bench_checkpoint(config):
    """Saving and loading against writing and reading the same bytes, synced to disk like ours."""
    state = {"model": {str(i): torch.randn(1 << 20) for i in range(48)}}  # 200 MB
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.save(folder, 1, state)
        blob, other = path.read_bytes(), Path(folder) / "other"

        def write():
            with open(other, "wb") as f:
                f.write(blob)
                f.flush()
                os.fsync(f.fileno())

        tasks = {
            "save": lambda: checkpoint.save(folder, 1, state),
            "write the same bytes": write,
            "load": lambda: checkpoint.load(path),
            "torch.load, unverified": lambda: torch.load(path, weights_only=True),
        }
        times = dict(zip(tasks, take_turns(*tasks.values()), strict=True))
    against = {"of bare write": ("write the same bytes", "save"), "of torch.load": ("torch.load, unverified", "load")}
    rows = []
    for name, s in times.items():
        shares = {share: times[bare] / s for share, (bare, ours) in against.items() if name in (bare, ours)}
        rows.append({"checkpoint": name, "MB/s": len(blob) / s / 1e6} | shares)
    return rows


def bench_laws(config):
    """Fitting L(N, D) to 240 points from 4500 starts, and the same with 1000 bootstrap fits for the intervals."""
    random = np.random.default_rng(0)
    N, D = 10 ** random.uniform(7, 10, 240), 10 ** random.uniform(9, 11.5, 240)
    loss = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(random.normal(0, 0.005, 240))
    return [{"draws": n, "s": seconds(lambda n=n: laws.chinchilla(N, D, loss, draws=n))} for n in (0, 1000)]


PARTS = {
    "train": bench_train,
    "loss": bench_loss,
    "optimizers": bench_optimizers,
    "start": bench_start,
    "growth": bench_growth,
    "study": bench_study,
    "prepare": bench_prepare,
    "data": bench_data,
    "checkpoint": bench_checkpoint,
    "laws": bench_laws,
}


def run(args):
    parts = [a for a in args if a in PARTS] or list(PARTS)
    options = [a for a in args if a not in PARTS and a != "--json"]
    config = load(Config, options or SHAPE)
    with mistakes():
        Shape.of(config, VOCAB_SIZE)
    results = {}
    for part in parts:
        results[part] = PARTS[part](config)
        if "--json" not in args:
            print(f"{part}: {PARTS[part].__doc__ or ''}\n")  # python -OO drops docstrings
            print_table(results[part], lambda x: f"{x:,.2f}" if isinstance(x, float) else str(x))
            print(flush=True)
    if "--json" in args:
        print(json.dumps(results))


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
