"""Text -> token bins: <data_dir>/<source>-<tokenizer>/{train,val}.bin and meta.json, which data.py reads.

    python prepare_data.py                                # Python's standard library: 15M tokens, nothing to download
    python prepare_data.py docstrings                     # of NumPy and SciPy, 6.2M bytes: text of another kind
    python prepare_data.py packages --tokenizer=bytes     # the code of PyTorch and five others, 134M bytes
    python prepare_data.py slimpajama-6b --tokens=100M    # a part of SlimPajama-6B, streamed from the Hugging Face Hub
    python prepare_data.py owner/name:config              # any dataset of the Hub with a text field
    python prepare_data.py corpus/ --text_field=content   # .txt .jsonl .jsonl.gz .jsonl.zst .parquet: file or folder
    python prepare_data.py --tokenizer=SmolLM2-135M       # a folder of transformers: its tokenizer.json
    python prepare_data.py --adopt data/openwebtext       # train.bin and val.bin as nanoGPT writes them
    python prepare_data.py --verify data/stdlib-gpt2      # read the bins again and compare them with meta.json

Other encodings of tiktoken are read from TIKTOKEN_CACHE_DIR. The tokenizer of a folder is kept beside the bins.

A document is a row, or a .py or .txt file (above 1 MiB cut at line ends into several). Its tokens end with one
end-of-text token. Validation text is the source's own, see text_sources.py. Without one, a hash of each document's text
chooses a share of `val_frac` of them, so that copies are on one side. Where that leaves a split empty, as it may with
few documents, validation is the end of the tokens.

The same command again does nothing, or goes on, and is refused if the options or the contents of the files are others.
The main process reads, workers tokenize, results are taken in order: the bins do not depend on the number of workers.
Every SHARD_TOKENS they are saved as a shard. After a kill, the same command goes on behind the last shard (a file that
was begun is read again). At the end the shards are joined, which for a moment takes the disk space twice, and
meta.json, written last, says that the bins are whole.
"""

import contextlib
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

import text_sources
from config import Mistake, Parser, main, number, token_count, whole
from data import read_meta, token_dtype
from vocab import TOKENIZERS, encoder, register

from bins import (  # isort: skip
    SHARDS, adopt, check_settings, cut, folder_of, join, locked, read_about, read_settings, report, save_shard, scan,
    verify, write_meta,
)  # fmt: skip

SHARD_TOKENS = 1 << 23  # between two saves: 16 MB, some seconds of work, which is what a kill costs
REPLACED_SHARE = 1e-3  # of the bytes of text: with more characters replaced, the encoding is another


# ----------------------------------------------------------------------------------------------------------------------
# Tokens, in the worker processes


def start_worker(tokenizer, folder):
    """Load the tokenizer, of a folder or our own; leave Ctrl-C to the parent, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    register(folder or tokenizer)  # where this process is no fork
    encode_chunk(None, ["text"], tokenizer, 0)


def encode_chunk(split, texts, tokenizer, val_frac):
    """(train tokens, val tokens, {"bytes", "empty", "replaced"}) of texts; split None: each goes by its hash.

    bytes     of text, in UTF-8
    empty     documents without text
    replaced  characters that are none, as they were not in their file's encoding: they become U+FFFD
    """
    dtype, eot_id = token_dtype(TOKENIZERS[tokenizer].vocab_size), TOKENIZERS[tokenizer].eot_id
    tokens = {"train": [np.empty(0, dtype)], "val": [np.empty(0, dtype)]}
    counts = {"bytes": 0, "empty": sum(not text for text in texts), "replaced": 0}
    for text in filter(None, texts):
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # lone surrogates become U+FFFD
        counts["replaced"] += clean.count("\ufffd") - text.count("\ufffd")
        data = clean.encode()
        ids = np.array(encoder(tokenizer)(clean), dtype)
        tokens[split or hash_split(data, val_frac)] += [ids, np.array([eot_id], dtype)]
        counts["bytes"] += len(data)
    return np.concatenate(tokens["train"]), np.concatenate(tokens["val"]), counts


def hash_split(data, val_frac):
    """Side of a document (in UTF-8), from nothing but its text: "val" for a share `val_frac` of all, else "train"."""
    share = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64
    return "val" if share < val_frac else "train"


# ----------------------------------------------------------------------------------------------------------------------
# Datasets


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

    A state is the position of the next document, and what came before it: train and val tokens, and encode_chunk's
    counts. If the hash gave validation nothing until train has the tokens asked for, more are read for it; see `cut`.
    """
    limit, val_frac = settings["tokens_asked"], settings["val_frac"]
    more = round(limit * val_frac) if limit and files[0][0] is None else 0
    start = state["file"], state["document"]
    jobs = text_sources.chunks(files, settings["text_field"], start, settings.get("encoding"))
    for (train, val, counts), (file, document) in in_order(pool, jobs, ahead, settings["tokenizer"], val_frac):
        end = None
        if limit:
            val = val if state["train"] < limit else val[:0]
            end = limit if state["val"] or val.size else limit + more
            train = train[: end - state["train"]]
        counts |= {"train": len(train), "val": len(val)}
        state = {name: state[name] + count for name, count in counts.items()} | {"file": file, "document": document}
        yield train, val, state
        if state["train"] == end:
            return


def make_shards(pool, files, size, folder, settings, ahead):
    """Tokenize what the folder of shards does not hold yet; returns (paths of all shards, the state behind them)."""
    shards = sorted(folder.glob("*.npz"))
    start = dict.fromkeys(["file", "document", "train", "val", "bytes", "empty", "replaced"], 0)
    if shards:
        about = read_about(shards[-1])
        start |= about["state"]
        if about["last"]:
            return shards, start
    state, limit = start, settings["tokens_asked"]
    train, val = [np.empty(0, np.uint16)], [np.empty(0, np.uint16)]

    def save(last):
        check_replaced(state, settings, folder)
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


def check_replaced(state, settings, folder):
    """Mistake, with the shards removed, if too many characters were replaced."""
    if state["replaced"] > REPLACED_SHARE * state["bytes"]:
        shutil.rmtree(folder)
        raise Mistake(
            f"source={settings['source']!r}: {state['replaced']:,} characters in {state['bytes']:,} bytes are not "
            f"{settings.get('encoding') or 'UTF-8'}: give its encoding, as --encoding=cp1251 or latin-1"
        )


def read_all(folder, settings, hub, found, procs):
    """Text -> shards, going on behind those that are there: (their paths, state behind them, splits of the source?)"""
    tokenizer, val_frac = settings["tokenizer"], settings["val_frac"]
    encode_chunk(None, ["text"], tokenizer, val_frac)  # loads the tokenizer, or says what is wrong with it
    initargs = tokenizer, TOKENIZERS[tokenizer].folder
    start_method = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    try:
        with ProcessPoolExecutor(procs, start_method, start_worker, initargs) as pool:
            pool.submit(len, "").result()  # they start here, before `datasets` brings threads: forks dislike them
            files, size = text_sources.hub_files(*hub, settings["revision"]) if hub else (found.files, found.size)
            shards, state = make_shards(pool, files, size, folder, settings, ahead=4 * procs)
    except BrokenProcessPool as error:
        raise OSError("a worker was killed, for lack of memory? The same command goes on; try --procs=1") from error
    if found and text_sources.stamps_of(found.files) != found.stamps:
        shutil.rmtree(folder)
        raise Mistake(f"source={settings['source']!r} was changed while it was read: run the same command again")
    return shards, state, files[0][0] is not None


def build(folder, settings, hub, found, procs):
    """Text -> shards -> bins -> meta.json, going on behind the shards that are there."""
    shards, state, own = read_all(folder / SHARDS, settings, hub, found, procs)
    spans = cut(state, settings, own)
    n_train, n_val = (end - first for _, first, end in spans.values())
    if not (n_train and n_val):
        shutil.rmtree(folder / SHARDS)
        raise Mistake(
            f"source={settings['source']!r} gave {n_train:,} train and {n_val:,} val tokens: "
            "take more text, or another --val_frac"
        )
    if spans["train"][0] == spans["val"][0]:
        print(f"the hash of documents would leave one split empty: validation is the last {n_val:,} tokens instead")
    tokenizer, splits = settings["tokenizer"], {}
    dtype = token_dtype(TOKENIZERS[tokenizer].vocab_size).str
    for split, span in spans.items():
        join(folder / f"{split}.bin", shards, *span)
        splits[split], _ = scan(folder / f"{split}.bin", tokenizer, dtype)
    counts = {"empty_documents": state["empty"], "replaced_characters": state["replaced"]}
    write_meta(folder, settings | counts, dtype, splits)


def identify(source, revision, encoding, begun):
    """((repo, config) of a dataset of the Hub or None, Found of files here or None, revision of the text)."""
    hub = text_sources.hub_name(source)
    if not hub:
        if revision:
            raise Mistake(f"revision={revision!r}: only datasets of the Hub have revisions, not {source}")
        found = text_sources.local_files(source)
        text_sources.tell(source, found)
        return None, found, text_sources.revision_of(found, begun)
    if encoding:
        raise Mistake(f"encoding={encoding!r}: goes with text files of your own, not with {source}")
    repo, config, pinned = hub
    revision = revision or pinned or (begun and begun["revision"])
    if not re.fullmatch("[0-9a-f]{40}", revision or ""):
        revision = text_sources.hub_revision(repo, revision)
    return (repo, config), None, revision


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
    encoding: str | None = None,
) -> Path:
    """Make a dataset, or go on making it, and return its folder. Arguments as on the command line, see `run`.

    ValueError: something to choose differently, or an unreadable file. OSError: a full disk, no network.
    """
    label = Path(source).resolve().name if Path(source).exists() else source
    folder = folder_of(data_dir, name, label, tokenizer if tokenizer in TOKENIZERS else Path(tokenizer).resolve().name)
    tokenizer = register(tokenizer)
    hub, found, revision = identify(source, revision, encoding, read_settings(folder))
    if val_frac is None:
        val_frac = 0.0005 if hub else 0.02
    settings = {"source": label, "revision": revision, "tokenizer": tokenizer, "tokens_asked": tokens}
    settings |= {"text_field": text_field, "val_frac": val_frac, "encoding": encoding}
    is_whole = (folder / "meta.json").exists()
    with contextlib.nullcontext() if is_whole else locked(folder / SHARDS):
        check_settings(folder, settings)
        if not (folder / "meta.json").exists():
            build(folder, settings, hub, found, procs or os.cpu_count())
    read_meta(folder)
    shutil.rmtree(folder / SHARDS, ignore_errors=True)  # not in `build`: a kill may come between meta.json and here
    return folder


def run(args):
    """The command line."""
    parser = Parser(description=__doc__)
    flag = parser.add_argument
    flag("source", nargs="?", default="stdlib", help="as above; default stdlib")
    flag("--tokenizer", default="gpt2", help=f"{', '.join(TOKENIZERS)}, or a folder of transformers; default gpt2")
    flag("--tokens", type=token_count, help="stop at exactly so many for training: 250000, 1e8, 100M; default all")
    flag("--data_dir", default="data", help="where the dataset's folder goes; default data")
    flag("--text_field", default="text", help="field or column that holds the text; default text")
    flag("--name", help="of the dataset's folder; default <source>-<tokenizer>")
    flag("--revision", help="commit, branch or tag of a Hub dataset; default the newest, then recorded")
    flag("--val_frac", type=number(above=0, below=1), help="for validation; default 0.02, of the Hub 0.0005")
    flag("--procs", type=whole(least=1), help="worker processes, beside this one, which reads; default one per core")
    flag("--encoding", help="of text files without a byte-order mark; default UTF-8")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--adopt", metavar="DIR", type=Path, help="write the meta.json of bins made elsewhere")
    others.add_argument("--verify", metavar="DIR", type=Path, help="compare bins with their meta.json, sha256 included")
    args = vars(parser.parse_args(args))
    adopted, verified = args.pop("adopt"), args.pop("verify")
    if adopted:
        adopt(adopted, register(args["tokenizer"]))
    elif verified:
        verify(verified)
    report(adopted or verified or prepare(**args))


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
