"""What several test files share: small runs and their data, and tables of made-up studies."""

import csv
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoint
import planner
from train import Config, train

os.environ["HF_HUB_OFFLINE"] = "1"  # `datasets` reports local files that it loads to a server, and may wait for it long
HERE = Path(__file__).resolve().parent.parent  # the project's root
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
DEVICE = os.environ.get("TEST_DEVICE", "cpu")  # TEST_DEVICE=cuda runs these tests on a GPU, and what needs two on two
two_ranks = pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="two ranks need two GPUs")
torch.set_num_threads(1)

# 60 steps of a model of 30,000 parameters; 3 micro-batches each for two halves of a step
BASE = dict(
    dataset="text", seq_len=32, global_batch_size=12, micro_batch_size=2, n_layer=2, n_head=2, n_embd=32, lr=1e-2,
    schedule="wsd", total_steps=60, warmup_steps=5, cooldown_steps=20, eval_every=20, eval_tokens=2000, log_every=10,
    save_every=20, device=DEVICE, dtype="float32", compile=False,
    window_horizon=10, window_every=2, window_keep=2, ema_half_life=(5.0,), ema_every=1,
)  # fmt: skip


def fixed_text(size):
    """Bytes that read a little like a language: words of few syllables, some far more frequent, in short lines."""
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3)))) for _ in range(300)]
    weights = [1 / (rank + 2) for rank in range(len(words))]
    lines, n = [], 0
    while n < size:
        lines.append(" ".join(rng.choices(words, weights, k=rng.randint(3, 12))))
        n += len(lines[-1]) + 1
    return "\n".join(lines).encode()[:size]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Three datasets: a text in bytes, the same backwards, and the same as if another tokenizer had made it."""
    text = fixed_text(400_000)
    folder = tmp_path_factory.mktemp("data")
    write_bins(folder / "text", np.frombuffer(text, np.uint8))
    write_bins(folder / "other", np.frombuffer(text[::-1], np.uint8))
    write_bins(folder / "words", np.frombuffer(text, np.uint8), tokenizer="words")
    return folder


def write_bins(folder, tokens, n_val=4000, **meta):
    folder.mkdir()
    splits = {"train": tokens[:-n_val], "val": tokens[-n_val:]}
    for name, part in splits.items():
        part.astype("<u2").tofile(folder / f"{name}.bin")
    hashes = {n: hashlib.sha256((folder / f"{n}.bin").read_bytes()).hexdigest() for n in splits}
    info = {n: {"tokens": len(part), "sha256": hashes[n]} for n, part in splits.items()}
    info = {"format": 1, "dtype": "uint16", "tokenizer": "bytes", "vocab_size": 257, "splits": info} | meta
    (folder / "meta.json").write_text(json.dumps(info))


@pytest.fixture
def run(tmp_path, data_dir):
    """run(name, **options) trains in this process and returns the newest checkpoint."""

    def go(name="run", **options):
        train(Config(**{**BASE, "name": name, "out_dir": str(tmp_path / "runs"), "data_dir": str(data_dir), **options}))
        return newest(tmp_path, name)

    return go


def write_config(folder, data_dir, text, **options):
    """A config file in `folder` of options, with `text` behind them; returns its path."""
    options = {"out_dir": str(folder / "runs"), "data_dir": str(data_dir)} | options
    (folder / "some.py").write_text("".join(f"{k} = {v!r}\n" for k, v in options.items()) + text)
    return str(folder / "some.py")


@pytest.fixture(scope="module")
def one_thread_and_short_trials():
    """What studies need in tests: their runs have the bits of runs in this process, and their estimates are rough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(planner, "TRIAL_STEPS", (4, 4))
        yield


def newest(tmp_path, name):
    return checkpoint.load_latest(tmp_path / "runs" / name / "ckpt")[0]


def command(tmp_path, data_dir, name, *launcher, **options):
    """The command line of the same run, for what needs a process of its own."""
    options = {**BASE, "name": name, "out_dir": tmp_path / "runs", "data_dir": data_dir, **options}
    options |= {k: ",".join(map(str, v)) for k, v in options.items() if isinstance(v, tuple)}
    return [*(launcher or [sys.executable]), str(HERE / "train.py"), *(f"--{k}={v}" for k, v in options.items())]


def torchrun(n, tmp_path, data_dir, name, **options):
    """The command line of the same run on `n` ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    return command(tmp_path, data_dir, name, *launcher, **options)


def launched(n, tmp_path, data_dir, name, **options):
    """Train the same run with torchrun on `n` ranks and return the newest checkpoint; what they said, if one fails."""
    call = torchrun(n, tmp_path, data_dir, name, **options)
    done = subprocess.run(call, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return newest(tmp_path, name)


def lines(tmp_path, name):
    """The log without its timings."""
    text = (tmp_path / "runs" / name / "log.jsonl").read_text()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("tokens_per_s", "mfu")} for line in text.splitlines()
    ]


def tensors(state):
    """Weights, moments, counters and averages of a checkpoint, by name."""
    all_of_them = flat(state["optimizer"]["state"])
    for name, average in state["averages"].items():
        for block in average["blocks"]:
            all_of_them |= {f"{name}.{block['first']}-{block['last']}.{k}": v for k, v in block["tensors"].items()}
    return all_of_them | state["model"]


def flat(value, name="optimizer"):
    """Tensors and numbers in dicts in dicts, the numbers as tensors too, by name."""
    if not isinstance(value, dict):
        return {name: value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)}
    return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}").items()}


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ----------------------------------------------------------------------------------------------------------------------
# Tables and logs of studies that were never run


def write_log(folder, end=0.0):
    """Ten steps, the last of which ends `end` lower."""
    folder.mkdir(parents=True)
    lines = [{"step": s, "train_loss": 5 - s / 10, "lr": 1e-3 - end * (s == 10) / 1e3} for s in range(1, 11)]
    lines += [
        {"step": s, "flops": s * 1e9, "val_loss": 5 - s / 10 - end * (s == 10), "val_loss_window": 4 - s / 10}
        for s in (0, 5, 10)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def row(schedule, val_loss, seed=0, total_steps=100, lr=1e-3, n_params=1_200_000, **more):
    """A row of results.csv; a wsd run has a 1-sqrt cooldown of 20 % unless `more` says otherwise."""
    flops = 6.0 * n_params * total_steps * 64
    wsd = {"cooldown_frac": 0.2, "cooldown_steps": total_steps // 5, "cooldown_shape": "1-sqrt"}
    name = f"{schedule}-{total_steps}-{lr}-{n_params}-{'-'.join(map(str, more.values()))}-s{seed}"
    return {
        **{"name": name, "schedule": schedule, "total_steps": total_steps, "lr": lr, "seed": seed},
        **{"n_params": n_params, "tokens": 64 * total_steps, "flops": flops, "flops_paid": flops / 4},
        **{"train_s": 3600.0, "train_s_paid": 1800.0, "train_loss": 1.0, "val_loss": val_loss, "dataset": "text"},
        **(wsd if schedule == "wsd" else dict.fromkeys(wsd, "")),
        **{"val_loss_window": "", "window_steps": "", "val_loss_ema": "", **more},
    }


def seeds_of(schedule, mean, **more):
    """Three seeds whose losses have this mean and a standard deviation of 0.1."""
    return [row(schedule, mean + shift, seed, **more) for seed, shift in enumerate((-0.1, 0.1, 0.0))]


@pytest.fixture
def table(tmp_path):
    def write(rows, name="results.csv"):
        with open(tmp_path / name, "w", newline="") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return str(tmp_path / name)

    return write
