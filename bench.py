"""How fast each part is, as a share of what the machine can do, measured in the same run.

    python bench.py                                   # everything, three to five minutes on two CPU cores
    python bench.py train                             # only training; also: start, prepare, data, checkpoint, laws
    python bench.py train configs/124m.py --micro_batch_size=16
    python bench.py --json                            # one JSON object instead of tables

Machines are noisy and shared, so what is compared takes turns, and the median of its times counts. Trust the ratios;
the absolute figures hold for that minute only. Training data are random tokens: nothing has to be prepared.
"""

import contextlib
import functools
import io
import itertools
import json
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

import checkpoint
import data
import laws
import prepare_data
import scaling
import text_sources
from averaging import EMA, WindowAverage
from bins import gpt2_encoding
from config import HERE, load, main, mistakes
from model import Llama, Shape
from parallel import autocast, choose_device, use_bf16
from tables import print_table
from train import Config, make_optimizer

VOCAB_SIZE = 50257  # GPT-2's
ROUNDS = 5
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


# ----------------------------------------------------------------------------------------------------------------------
# Training


def gemm(dtype, device):
    """A function that multiplies square matrices, and its FLOPs: large enough for the peak, small enough for a CPU."""
    n = 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * n**3


def trainer(pipe, config, bf16, compiled, device):
    """One step for every message, answered with its seconds; in a process of its own, for a peak memory of its own."""
    if compiled:
        choose_device(device)  # as train.py; the baseline is torch as it comes
    torch.manual_seed(0)
    model = Llama(Shape.of(config, VOCAB_SIZE)).to(device)
    optimizer = make_optimizer(config, model)
    forward = torch.compile(model, dynamic=False) if compiled else model
    tokens = torch.randint(VOCAB_SIZE, (config.micro_batch_size, config.seq_len + 1)).to(device)

    def step():
        with autocast(torch.device(device), bf16):
            loss = forward(tokens[:, :-1], tokens[:, 1:])
        (loss / tokens[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    while pipe.recv():
        pipe.send(seconds(step, device))
    cuda = torch.device(device).type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else peak_memory()
    pipe.send({"peak memory GB": peak / 1e9, "averages": time_averages(model, device)})


def peak_memory():
    """Bytes that this process has held at most; not on Windows."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def time_averages(model, device):
    """{average: (seconds per step, fp32 copies of the model)}, sampled every 5 steps; the window holds 2 blocks."""
    costs, n_params = {}, sum(p.numel() for p in model.parameters())
    for average in (WindowAverage(model, horizon=25, every=5, keep=2), EMA(model, half_life=100, every=5)):
        times = [seconds(functools.partial(average.update, step), device) for step in range(1, 101)]
        held = sum(tensor.numel() for block in average.blocks for tensor in block.tensors)
        costs[type(average).__name__] = sum(times) / len(times), held / n_params
    return costs


def bench_train(config):
    """Training as it is run (bf16 where native, compiled) against fp32 eager, and both against bare multiplication."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = use_bf16("auto", torch.device(device))
    modes = {"fp32 eager": (False, False), "bf16 compiled" if bf16 else "fp32 compiled": (bf16, True)}
    context, pipes, workers = multiprocessing.get_context("spawn"), {}, []
    for name, mode in modes.items():
        pipes[name], theirs = context.Pipe()
        workers.append(context.Process(target=trainer, args=(theirs, config, *mode, device), daemon=True))
        workers[-1].start()

    def step(name):
        pipes[name].send(True)
        return pipes[name].recv()

    first = {name: step(name) for name in modes}  # compiles
    for name in modes:
        step(name)
    gemms = {str(dtype)[6:]: gemm(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    times = {name: [] for name in (*modes, *gemms)}
    for _ in range(ROUNDS):
        for name in modes:
            times[name].append(step(name))
        for name, (multiply, _) in gemms.items():
            times[name].append(min(seconds(multiply, device) for _ in range(5)))
    ends = {}
    for name, pipe in pipes.items():
        pipe.send(False)
        ends[name] = pipe.recv()
    shape = Shape.of(config, Shape.of(config, VOCAB_SIZE).padded_vocab)  # what is multiplied
    flops = config.micro_batch_size * scaling.train_flops(shape)
    # the paper's count takes the embedding's look-up for a multiplication: no machine does it
    flops -= 3 * config.micro_batch_size * 2 * shape.seq_len * shape.vocab_size * shape.n_embd
    peaks = {name: gemms[name][1] / statistics.median(times[name]) for name in gemms}
    rows = []
    for name in modes:
        median = statistics.median(times[name])
        rows.append(
            {
                "mode": name,
                "tokens/s": config.micro_batch_size * config.seq_len / median,
                "against fp32 eager": statistics.median(times["fp32 eager"]) / median,
                "GFLOP/s": flops / median / 1e9,
                "of its GEMM peak": flops / median / peaks["bfloat16" if "bf16" in name else "float32"],
                "peak memory GB": ends[name]["peak memory GB"],
                "first step s": first[name],
            }
        )
    rows += [{"mode": f"GEMM {name}", "GFLOP/s": peak / 1e9} for name, peak in peaks.items()]
    step_s = statistics.median(times[name])  # of the last mode, the one that is used
    for average, (cost, copies) in ends[name]["averages"].items():
        rows.append({"mode": f"{average}: {cost / step_s:.2%} of a step, {copies:g} fp32 copies held"})
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


# ----------------------------------------------------------------------------------------------------------------------
# Data and checkpoints


def write_random_bins(folder, **sizes):
    """Write the dataset "x" of random tokens, {split: tokens}."""
    (Path(folder) / "x").mkdir()
    for split, size in sizes.items():
        tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, size).astype("<u2")
        tokens.tofile(Path(folder) / f"x/{split}.bin")
    meta = {"format": data.FORMAT, "dtype": "uint16", "tokenizer": "gpt2", "vocab_size": VOCAB_SIZE}
    meta["splits"] = {split: {"tokens": size} for split, size in sizes.items()}
    (Path(folder) / "x/meta.json").write_text(json.dumps(meta))


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
    "start": bench_start,
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
