"""Text from a model: to the terminal, or as much as you like into bins, to train other models on.

    python sample.py runs/tiny/ckpt/step_00000400.pt                                # begins a document
    python sample.py runs/tiny/ckpt/step_00000400.pt --prompt="import " --temperature=0.8 --top_k=50 --samples=3
    python sample.py a.pt b.pt c.pt --tokens=10M --out=data/samples                 # equal parts by each model
    python train.py configs/tiny.py --dataset=real-bytes@1M:0.1,samples:0.9         # distilled from these models

A sample goes on past the model's context: when that is full, its later half is kept. --out writes samples of --length
tokens one after another, each the beginning of a document, at temperature 1 as a rule, as the models' own distribution
is what another one is to learn. The same command again goes on; meta.json says which checkpoints the text is from.

What is drawn depends on the weights, on --seed and on the number of the sample only: not on the batch, the cache, or
where a sampling was killed. That is to rounding, which other shapes and other machines do differently: it moves the
edge between two words by 1e-6 or so, and a number that falls between gives another word.
"""

import codecs
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bins import NAME, SHARDS, check_settings, join, locked, report, save_shard, scan, write_meta
from checkpoint import MANIFEST
from config import Mistake, Parser, main, number, token_count, whole
from data import hash64, token_dtype
from devices import autocast, choose_device, use_bf16
from evaluate import AVERAGED, NEEDED, build_model, named, read
from sealed import hash_stream
from tables import refuse_twice
from vocab import TOKENIZERS, encoder, find_tokenizer

WINDOWS = 64  # in a sample for bins, as a default: its first is nearer to the beginning of a document than most text


# ----------------------------------------------------------------------------------------------------------------------
# Tokens


def uniforms(seed, samples, position):
    """Numbers in [0, 1) that draw the tokens at a position of these samples (their numbers, int64): fixed for ever."""
    return (hash64(seed, samples, position) >> np.uint64(32)) / 2**32


def choose(logits, u, temperature=1.0, top_k=None, top_p=1.0):
    """Draw a token from each row of logits (B, V) by the numbers u (B,) in [0, 1): (B,) int64.

    temperature  divides the logits; 0 takes the likeliest token
    top_k        only the k likeliest tokens (Fan et al. 2018)
    top_p        only the likeliest tokens that have this probability together (Holtzman et al. 2020)
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = (logits.double() / temperature).softmax(dim=-1)
    if (top_k or math.inf) < p.shape[-1] or top_p < 1:
        largest, order = p.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(p.shape[-1], device=p.device)
        out = (rank >= (top_k or math.inf)) | (largest.cumsum(dim=-1) - largest >= top_p)
        p = torch.zeros_like(p).scatter(-1, order, largest.masked_fill(out, 0.0))
    edges = p.cumsum(dim=-1)
    return torch.searchsorted(edges, u[:, None] * edges[:, -1:], right=True).squeeze(1)  # u is 1 - 2**-32 at most


@torch.no_grad()
def generate(model, tokens, n, numbers, cached=True, **how):
    """Yield n times the next tokens, (B,) int64, behind `tokens` (B, T).

    numbers  position -> (B,) numbers in [0, 1), which draw the tokens there
    how      options of `choose`
    When the model has read seq_len tokens, the later half of them is read again as if text began there.
    """
    seq_len, vocab_size = model.shape.seq_len, model.shape.vocab_size
    caches = None
    for position in range(n):
        if tokens.shape[1] > seq_len:
            tokens, caches = tokens[:, -max(1, seq_len // 2) :], None
        if caches is None:
            caches, new = model.new_caches() if cached else None, tokens
        hidden = model.hidden(new if cached else tokens, caches)[:, -1]
        logits = model.head(hidden)[:, :vocab_size]
        new = choose(logits, torch.from_numpy(numbers(position)).to(logits.device), **how)[:, None]
        tokens = torch.cat((tokens, new), dim=1)
        yield new.squeeze(1)


# ----------------------------------------------------------------------------------------------------------------------
# To the terminal


def tell(model, device, args, tokenizer, context):
    """Print samples behind a prompt as they are drawn, one after another."""
    words, eot_id = tokenizer.token_bytes(), tokenizer.eot_id
    for sample in range(args.samples):
        if args.samples > 1:
            print(f"--- sample {sample + 1} of {args.samples} ---")
        text = codecs.getincrementaldecoder("utf-8")("replace")  # holds back bytes of a character that is not whole
        print(args.prompt or "", end="", flush=True)
        start = torch.tensor([context], device=device)
        drawn = generate(
            model, start, args.tokens, lambda i, s=sample: uniforms(args.seed, np.array([s]), i), **how(args)
        )
        for token in (new.item() for new in drawn):
            if token == eot_id and args.stop:
                break
            print(text.decode(words[token]) if token != eot_id else "<|endoftext|>", end="", flush=True)
        print(text.decode(b"", final=True))


# ----------------------------------------------------------------------------------------------------------------------
# Into bins


def sample_batch(model, device, args, numbers, eot_id, bar):
    """Samples of these numbers: (B, length) tokens, of which the last ends the document."""
    numbers = np.asarray(numbers)
    start = torch.full((len(numbers), 1), eot_id, device=device)
    columns = []
    for new in generate(model, start, args.length - 1, lambda i: uniforms(args.seed, numbers, i), **how(args)):
        columns.append(new)
        bar.update(len(numbers))
    columns.append(start.squeeze(1))
    bar.update(len(numbers))
    return torch.stack(columns, dim=1).cpu().numpy()


def fill(models, device, args, settings, tokenizer, folder):
    """Draw the samples that the folder of shards lacks, and join all of them to train.bin.

    Sample k is by model k modulo their number. A shard has as many samples as the models draw in one batch each.
    """
    n_samples, per_shard = -(-args.tokens // args.length), args.batch * len(models)
    n_shards = -(-n_samples // per_shard)
    shards, dtype = sorted(folder.glob("*.npz")), token_dtype(tokenizer.vocab_size)
    total, done = n_samples * args.length, min(n_samples, len(shards) * per_shard) * args.length
    with tqdm(total=total, initial=done, unit=" tokens", unit_scale=True, desc=folder.parent.name) as bar:
        for shard in range(len(shards), n_shards):
            first, end = shard * per_shard, min((shard + 1) * per_shard, n_samples)
            tokens = np.empty((end - first, args.length), dtype)
            for i, model in enumerate(models):
                mine = range(first + i, end, len(models))  # as `per_shard` is a multiple of their number
                if mine:
                    tokens[i :: len(models)] = sample_batch(model, device, args, mine, tokenizer.eot_id, bar)
            about = {"settings": settings, "state": {"samples": end}, "last": shard == n_shards - 1}
            shards.append(folder / f"{shard:06d}.npz")
            save_shard(shards[-1], [tokens.ravel()], [tokens[:0].ravel()], about)
    path = folder.parent / "train.bin"
    join(path, shards, "train", 0, args.tokens)
    info, _ = scan(path, settings["tokenizer"], dtype.str)
    write_meta(folder.parent, settings, dtype.str, {"train": info})


def write_samples(models, device, args, settings, tokenizer):
    """A dataset of samples, whole or not there."""
    folder = Path(args.out)
    if (folder / "meta.json").exists():
        check_settings(folder, settings)
    else:
        with locked(folder / SHARDS):
            check_settings(folder, settings)
            fill(models, device, args, settings, tokenizer, folder / SHARDS)
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    report(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def how(args):
    """Options of `choose`."""
    return {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}


def check_args(args):
    """Raise Mistake for flags that do not go together."""
    refuse_twice(args.checkpoints)
    for_bins, for_terminal = ("length", "batch"), ("prompt", "samples", "stop")
    wrong = [name for name in (for_terminal if args.out else for_bins) if getattr(args, name)]
    if wrong:
        raise Mistake(f"--{wrong[0]} goes {'without' if args.out else 'with'} --out")
    if args.out and args.tokens is None:
        raise Mistake("--out: say how many --tokens, such as 10M")
    if args.out and not NAME.fullmatch(Path(args.out).name):
        raise Mistake(f"--out={args.out}: expected a name of letters, digits and . _ - as --dataset takes it")
    if not args.out and len(args.checkpoints) > 1:
        raise Mistake(
            "several checkpoints: that is for --out, which has equal parts of each; give one to read its text"
        )


def file_hash(path):
    """SHA-256 of a checkpoint: of its file, or of a folder's manifest, which holds the digests of its files."""
    path = Path(path)
    with open(path / MANIFEST if path.is_dir() else path, "rb") as file:
        return hash_stream(file, os.fstat(file.fileno()).st_size)


def run(args=None):
    parser = Parser(description=__doc__)
    flag = parser.add_argument
    flag("checkpoints", nargs="+", help="of one run, or with --out of several")
    flag("--prompt", help="what each sample begins with, as the beginning of a document; default: nothing")
    flag("--tokens", type=token_count, help="to draw: 500, 1e8, 10M; default 500")
    flag("--samples", type=whole(least=1), help="how many, one after another; default 1")
    flag("--stop", action="store_true", help="end a sample where its document ends")
    flag("--temperature", type=number(least=0), default=1.0, help="divides the logits; 0: always the likeliest token")
    flag("--top_k", type=whole(least=1), help="only the so many likeliest tokens; default: all")
    flag("--top_p", type=number(above=0, most=1), default=1.0, help="only the likeliest, up to this probability")
    flag("--seed", type=whole(least=0, most=2**63 - 1), default=0, help="of what is drawn; default 0")
    flag("--tokenizer", metavar="FOLDER", help="of its tokenizer.json, if neither data nor checkpoint tell")
    flag("--average", choices=("window", "ema"), help="sample from this average of the weights")
    flag("--out", help="folder of a dataset to write, such as data/samples")
    flag("--length", type=whole(least=2), help=f"tokens in each of its samples; default {WINDOWS} times the context")
    flag("--batch", type=whole(least=1), help="samples at once by a model; default 256")
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="float32", help="default float32")
    args = parser.parse_args(args)
    args.checkpoints = [named(path) for path in args.checkpoints]
    check_args(args)
    args.samples = args.samples or 1

    states = [read(path, AVERAGED if args.average else NEEDED) for path in args.checkpoints]
    names = {state["data"].get("tokenizer") for state in states}
    if len(names) > 1:
        found = " and ".join(map(str, names))
        raise Mistake(f"expected models of one tokenizer, and found {found}")
    name = find_tokenizer(states[0], args.checkpoints[0], args.tokenizer)
    tokenizer = TOKENIZERS[name]
    device = choose_device(args.device)
    of_paths = list(zip(states, args.checkpoints, strict=True))
    models = [build_model(state, path, device, args.average) for state, path in of_paths]
    bf16 = use_bf16(args.dtype, device)
    with autocast(device, bf16):
        if not args.out:
            args.tokens = args.tokens or 500
            context = [tokenizer.eot_id, *map(int, encoder(name)(args.prompt or ""))]
            if len(context) > (seq_len := models[0].shape.seq_len):
                read_last = max(1, seq_len // 2)
                print(f"--prompt has {len(context) - 1} tokens, of which the model reads {read_last}", file=sys.stderr)
            tell(models[0], device, args, tokenizer, context)
            return
        args.length = min(args.length or WINDOWS * models[0].shape.seq_len, args.tokens)
        args.batch = min(args.batch or 256, -(-args.tokens // args.length))
        settings = {"source": "samples", "revision": None, "tokenizer": name, "tokens_asked": args.tokens}
        settings |= {"seed": args.seed, **how(args), "length": args.length, "batch": args.batch}
        settings |= {"precision": "bfloat16" if bf16 else "float32", "average": args.average, "checkpoints": []}
        for state, path in of_paths:
            about = {"run": state["config"]["name"], "step": state["progress"]["step"], "sha256": file_hash(path)}
            settings["checkpoints"].append(about)
        write_samples(models, device, args, settings, tokenizer)


if __name__ == "__main__":
    main(run)
