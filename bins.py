"""Bins of tokens: made of shards, counted, described in meta.json, verified, adopted.

adopt(Path("data/openwebtext"), "gpt2")  # the meta.json of bins that nanoGPT made
verify(Path("data/stdlib-gpt2"))         # ValueError if a bit of a bin has changed
"""

import contextlib
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np

from config import Mistake
from data import FORMAT, RESTORE, check_tokens, load_meta, read_meta
from sealed import written
from vocab import KEPT, TOKENIZERS, keep_tokenizer, our_own, recall

try:
    import fcntl
except ImportError:  # Windows, where two preparations of one dataset are not noticed
    fcntl = None

SHARDS = "shards.tmp"  # folder, inside that of the dataset, until the bins are whole
NAME = re.compile(r"\w(?:[\w.-]*[\w-])?")  # of a dataset: what --dataset, file systems and shells take as it is
HEADERS = b"\x93NUMPY", (20240520).to_bytes(4, "little")  # of .npy files, and of the bins of llm.c


# ----------------------------------------------------------------------------------------------------------------------
# Datasets that are half made: shards, which are joined to bins at the end


def read_settings(folder):
    """What the dataset in `folder`, whole or half made, is made with; None if there is none."""
    if (folder / "meta.json").is_file():
        return load_meta(folder)
    for shard in sorted((folder / SHARDS).glob("*.npz"))[:1]:
        return read_about(shard)["settings"]
    if any(folder.glob("*.bin")):
        raise Mistake(f"{folder} has bins without meta.json: keep them with --adopt, or choose another --name")
    return None


def check_settings(folder, settings):
    """Mistake if the dataset in `folder`, whole or half made, is made with other settings."""
    begun = read_settings(folder)
    if begun and (other := [f"{k}={begun.get(k)}, not {v}" for k, v in settings.items() if begun.get(k) != v]):
        raise Mistake(f"{folder} was made with {'; '.join(other)}: choose another --name")


@contextlib.contextmanager
def locked(folder):
    """Keep other processes from making a dataset, whose folder of shards this is; left without any, it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike that of flock, no worker inherits it
        except (BlockingIOError, PermissionError):
            raise Mistake(f"{folder.parent} is being made by another process: wait, or choose another --name") from None
        except OSError as error:
            raise Mistake(f"{folder} is on a file system without locks ({error}): choose another --data_dir") from None
        try:
            yield
        finally:
            if not any(folder.glob("*.npz")):
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # it holds more
                    folder.parent.rmdir()


def save_shard(path, train, val, about):
    """Write a shard, whole or not at all: lists of train and val tokens, and {"settings", "state", "last"} as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as file:
        np.savez(file, train=np.concatenate(train), val=np.concatenate(val), about=json.dumps(about))


def read_about(path):
    """What save_shard was told about a shard."""
    with np.load(path) as shard:
        return json.loads(str(shard["about"]))


def join(path, shards, part, first, end):
    """Write tokens first .. end - 1 of a part of the shards to a bin."""
    position = 0
    with written(path) as file:
        for shard in shards:
            with np.load(shard) as arrays:  # checks the CRC
                tokens = arrays[part]
            file.write(tokens[max(0, first - position) : max(0, end - position)].data)
            position += len(tokens)


# ----------------------------------------------------------------------------------------------------------------------
# Bins


def folder_of(data_dir, name, label, tokenizer):
    """The dataset's folder; Mistake for a name that would lead elsewhere, or that a later command could not take."""
    folder = Path(data_dir) / (name or re.sub(r"[^\w.-]", "-", f"{label.split('/')[-1]}-{tokenizer}"))
    if name and (Path(name).is_absolute() or ".." in Path(name).parts or folder == Path(data_dir)):
        raise Mistake(f"name={name!r}: the dataset's folder has to lie within data_dir={str(data_dir)!r}")
    if name and not folder.exists() and not all(map(NAME.fullmatch, Path(name).parts)):
        raise Mistake(f"name={name!r}: expected letters, digits and . _ -, as commands and file systems take no others")
    return folder


def cut(state, settings, own):
    """{split: (part of the shards, first token, end)}: the tokens of a bin are these of that part of all shards.

    The parts are as the source (`own`) or the hash has split the text. If the hash leaves one of them empty, as it may
    where there are few documents, validation is the end of the other, a share of val_frac, whatever its documents.
    """
    if own or (state["train"] and state["val"]):
        return {split: (split, 0, state[split]) for split in ("train", "val")}
    part = "train" if state["train"] else "val"
    n, limit, val_frac = state[part], settings["tokens_asked"], settings["val_frac"]
    n_train = n - round(n * val_frac)
    if limit:
        n_train = limit if n >= limit + round(limit * val_frac) else min(limit, n_train)
    return {"train": (part, 0, n_train), "val": (part, n_train, n)}


def scan(path, tokenizer, dtype):
    """(what meta.json says of a bin: tokens, documents, bytes of text in UTF-8, sha256; its largest token). 4 s a GB.

    ValueError if its size is no whole number of tokens, or a token is beyond the vocabulary.
    """
    dtype, spec = np.dtype(dtype), TOKENIZERS[tokenizer]
    if path.stat().st_size % dtype.itemsize:
        raise Mistake(f"{path} has {path.stat().st_size:,} bytes, which is no whole number of {dtype.name} tokens")
    counts, digest = np.zeros(spec.vocab_size, dtype=np.int64), hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            tokens = np.frombuffer(block, dtype)
            check_tokens(tokens, spec.vocab_size, f"{path}, from token {counts.sum():,} on")
            counts += np.bincount(tokens, minlength=spec.vocab_size)
            digest.update(block)
    info = {"tokens": int(counts.sum()), "documents": int(counts[spec.eot_id])}
    info |= {"bytes": int(counts @ np.array([*map(len, spec.token_bytes())])), "sha256": digest.hexdigest()}
    return info, int(counts.nonzero()[0].max(initial=0))


def write_meta(folder, settings, dtype, splits):
    """Write meta.json, the proof that the bins, which are on disk by now, are whole."""
    tokenizer = TOKENIZERS[settings["tokenizer"]]
    keep_tokenizer(tokenizer, folder)
    meta = {"format": FORMAT, "dtype": dtype, "vocab_size": tokenizer.vocab_size, "eot_id": tokenizer.eot_id}
    with written(folder / "meta.json") as file:
        file.write(json.dumps(meta | settings | {"splits": splits}, indent=1).encode())


def dtype_of(path):
    """The dtype of a bin made elsewhere, by its first tokens; Mistake if it is none that `data` reads, or no bin."""
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    is_text = len(start) >= 1000 and max(start) < 128 and 0 not in start
    if is_text or start.startswith(HEADERS):
        raise Mistake(f"{path} is text, or has a header as of numpy or llm.c: expected bare tokens of 2 or 4 bytes")
    halves = np.frombuffer(start[: len(start) // 2 * 2], "<u2")
    if len(halves) < 2 or halves[1::2].any():
        return "<u2"
    if len(halves) >= 4 and not halves[2::4].any():
        raise Mistake(f"{path} holds int64: convert it by np.fromfile({str(path)!r}, '<i8').astype('<u2').tofile(NEW)")
    return "<u4"


def adopt(folder: Path, tokenizer: str) -> None:
    """Write the meta.json of train.bin and val.bin made elsewhere; ValueError if they are not tokens of `tokenizer`."""
    if (folder / "meta.json").exists():
        raise Mistake(f"{folder} has a meta.json already; --verify compares its bins with it")
    if any((folder / SHARDS).glob("*.npz")):
        raise Mistake(f"{folder} is half made: the command that began it goes on")
    if not NAME.fullmatch(name := folder.resolve().name):
        raise Mistake(f"rename the folder {name!r}: the name of a dataset has letters, digits and . _ - only")
    if missing := [name for name in ("train.bin", "val.bin") if not (folder / name).is_file()]:
        raise Mistake(f"{folder} has no {' and no '.join(missing)}")
    if (folder / "meta.pkl").exists():  # as of nanoGPT's characters
        raise Mistake(f"{folder} has a meta.pkl, a vocabulary of its own: prepare its text, as with --tokenizer=bytes")
    bins = {split: folder / f"{split}.bin" for split in ("train", "val")}
    dtype, *others = {dtype_of(path) for path in bins.values()}
    if others:
        raise Mistake(f"{folder}: one bin holds tokens of two bytes, the other of four; expected one kind")
    splits = {split: check_adopted(path, tokenizer, dtype) for split, path in bins.items()}
    settings = {"source": "adopted", "revision": None, "tokenizer": tokenizer, "text_field": None}
    write_meta(folder, settings, dtype, splits)


def check_adopted(path, tokenizer, dtype):
    """What meta.json says of a bin; Mistake if it has no tokens, or those of another tokenizer."""
    info, largest = scan(path, tokenizer, dtype)
    n_tokens, vocab_size = info["tokens"], TOKENIZERS[tokenizer].vocab_size
    if n_tokens < 2:
        raise Mistake(f"{path} has {n_tokens} tokens: nothing to predict")
    if n_tokens >= 1000 and largest < vocab_size // 10:
        raise Mistake(
            f"{path}: its largest token is {largest} of {vocab_size:,}, so they are not {tokenizer}'s: "
            "give their --tokenizer, or prepare their text"
        )
    if not info["documents"]:
        print(f"{path.name}: no end-of-text token among {n_tokens:,}: one document, if they are {tokenizer}'s")
    return info


def verify(folder: Path) -> None:
    """Read the bins again; ValueError if they are not, to the bit, what meta.json says."""
    meta = read_meta(folder)
    recall(meta["tokenizer"], folder / KEPT)
    if meta["tokenizer"] not in TOKENIZERS:
        raise Mistake(f"{folder} has tokens of {meta['tokenizer']!r}, which is none of {', '.join(our_own())}")
    for split, info in meta["splits"].items():
        path = folder / f"{split}.bin"
        if scan(path, meta["tokenizer"], meta["dtype"])[0] != info:
            raise Mistake(f"{path} was changed since meta.json was written: {RESTORE}")


def report(folder):
    """Print what a dataset holds, and how to train on it."""
    meta = read_meta(folder)
    for split, info in meta["splits"].items():
        print(f"{split}: {info['tokens']:,} tokens, {info['documents']:,} documents, {info['bytes']:,} bytes of text")
    if replaced := meta.get("replaced_characters"):
        print(f"replaced by U+FFFD, as they are not in their file's encoding: {replaced:,} characters")
    name, data_dir = folder.resolve().name, folder.parent if folder.name else folder.resolve().parent
    mix = name if "val" in meta["splits"] else f"REAL:0.25,{name}:0.75"  # samples have no text to validate on
    print(f"{folder} is whole: python train.py --dataset={shlex.quote(mix)} --data_dir={shlex.quote(str(data_dir))}")
