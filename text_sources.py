"""Texts of files, folders, Python's standard library and the Hugging Face Hub, one by one, in a fixed order.

    files, size, revision = local_files("corpus/")
    for split, texts, position in chunks(files, text_field="text", start=(0, 0)):
        ...

A source is a list of (split or None, file); a file is a path, or rows streamed from the Hub.
"""

import hashlib
import io
import json
import os
import platform
import re
import sysconfig
from pathlib import Path

from config import Mistake

HUB_NAMES = {"slimpajama-6b": ("DKYoon/SlimPajama-6B", "b5f90f419b7489cdba26fdbc8c022fcb5562f968")}  # name, commit
ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
CHUNK_CHARS = 1 << 18  # text sent to a worker at once: 50 ms of work, next to which its way there and back is nothing
TEXT_CHARS = 1 << 20  # of a text file in one document: with more, memory grows, and a single file could not be split


def split_of(name):
    """The split that a path like train/a.txt or validation-00000.parquet names; None if it names none."""
    for part in name.split("/"):
        if match := re.match(r"(train|val|valid|validation|test)(?=[-_.]|$)", part):
            return "val" if match[1].startswith("val") else match[1]


def own_split(files):
    """Of [(split, file)]: val, then train, if both are there; train without test; or all. None: split by hash."""
    splits = {split for split, _ in files}
    if {"train", "val"} <= splits:
        return [f for f in files if f[0] == "val"] + [f for f in files if f[0] == "train"]
    return [(None, file) for split, file in files if split == "train" or not {"train", "test"} <= splits]


def local_files(source):
    """(files, bytes of text or None, revision) of "stdlib", a file or a folder, sorted by path below it.

    The revision tells what was found: number, bytes, and a hash of all names and sizes.
    """
    stdlib = source == "stdlib"
    root = Path(sysconfig.get_path("stdlib") if stdlib else source)
    base = root.parent if root.is_file() else root
    endings = (".py",) if stdlib else ENDINGS
    names = [root.name] if root.is_file() else []
    for folder, subfolders, inside in os.walk(root):
        if stdlib:  # what is installed beside it is another text on every machine
            subfolders[:] = {*subfolders} - {"site-packages", "dist-packages"}
        names += [Path(folder, name).relative_to(root).as_posix() for name in inside if name.endswith(endings)]
    names = sorted(name for name in names if name.endswith(endings))
    if not names:
        raise Mistake(f"source={source!r}: no file there ends in {' '.join(endings)}")
    sizes = [(base / name).stat().st_size for name in names]
    state = hashlib.blake2b(json.dumps([names, sizes]).encode(), digest_size=8).hexdigest()
    revision = f"{len(names)} files, {sum(sizes)} bytes, {state}"
    if stdlib:
        return [(None, base / name) for name in names], sum(sizes), f"Python {platform.python_version()}, {revision}"
    size = sum(sizes) if all(name.endswith((".txt", ".jsonl")) for name in names) else None  # others are compressed
    return own_split([(split_of(name), base / name) for name in names]), size, revision


def hub_name(source):
    """(repo, config or None, pinned commit or None) of a Hub dataset; None if the source is local."""
    if source == "stdlib" or Path(source).exists():
        return None
    repo, _, config = source.partition(":")
    repo, commit = HUB_NAMES.get(repo, (repo, None))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise Mistake(
            f"source={source!r} is unknown: give stdlib, {', '.join(HUB_NAMES)}, owner/name or owner/name:config for a "
            f"dataset of the Hub, or a file or folder that exists, with {' '.join(ENDINGS)}"
        )
    return repo, config or None, commit


def hub_revision(repo, revision=None):
    """Commit hash that a branch, tag or short hash (None: the newest) of a Hub dataset stands for. Asks the Hub."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(repo, revision=revision, timeout=10).sha
    except Exception as error:  # each version of the client raises those of another HTTP library
        raise OSError(
            f"cannot get {repo} from the Hugging Face Hub: {error}. Without a network here, run `hf download {repo} "
            f"--repo-type=dataset --revision={revision or 'main'} --local-dir=DIR` elsewhere and give a copy of DIR as "
            "the source; or use stdlib, or files of your own"
        ) from error


def hub_files(repo, config, revision):
    """(files, bytes of text or None) of a dataset on the Hub, or of a folder given in place of `repo`.

    A file is the rows of one file there, streamed: nothing is copied to a cache.
    """
    import datasets
    from pyarrow.dataset import ParquetFragmentScanOptions

    hub_revision(repo, revision)  # without a network this says so at once, `datasets` only after many trials
    datasets.disable_progress_bars()
    builder = datasets.load_dataset_builder(repo, config, revision=revision)
    if hasattr(builder.config, "fragment_scan_options"):  # parquet; by default memory holds the file, too
        scan = ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=1 << 24, pre_buffer=False)
        builder.config.batch_size, builder.config.fragment_scan_options = 100, scan
    splits = builder.as_streaming_dataset()
    if "train" not in splits:
        raise Mistake(f"{repo} has no split named train, only {', '.join(splits)}")
    files = []
    for name, split in [("train", "train"), ("validation", "val")]:
        n_files = splits[name].num_shards if name in splits else 0
        files += [(split, splits[name].shard(num_shards=n_files, index=i)) for i in range(n_files)]
    return own_split(files), builder.info.splits["train"].num_bytes if builder.info.splits else None


def parquet_rows(path, text_field):
    """Yield the rows of a .parquet, at most a few MB of which are in memory: one row group may be a GB."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)
    columns = [text_field] if text_field in file.schema_arrow.names else None  # all of them, for the error to name
    for batch in file.iter_batches(batch_size=100, columns=columns):
        yield from batch.to_pylist()


def json_rows(path):
    """Yield the rows of .jsonl, .jsonl.gz or .jsonl.zst."""
    import pyarrow

    # Arrow unpacks by the ending, reads all frames of a .zst, and, unlike zstandard, notices that one breaks off.
    with io.BufferedReader(pyarrow.input_stream(str(path)), 1 << 20) as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line.decode(errors="replace"))


def documents(file, text_field):
    """Yield the texts of a file one by one, None or "" where there is none."""
    if isinstance(file, Path) and file.suffix in (".py", ".txt"):
        with open(file, encoding="utf-8", errors="replace", newline="") as text:
            pieces = iter(lambda: text.read(TEXT_CHARS) + text.readline(TEXT_CHARS), "")
            yield next(pieces, None)
            yield from pieces
        return
    if not isinstance(file, Path):
        rows = file
    elif file.suffix == ".parquet":
        rows = parquet_rows(file, text_field)
    else:
        rows = json_rows(file)
    for row in rows:
        if not isinstance(row.get(text_field, 0), str | None):
            fields = ", ".join(f"{name} ({type(value).__name__})" for name, value in row.items())
            raise Mistake(f"text_field={text_field!r} is not a field with text; there are {fields}")
        yield row[text_field]


def chunks(files, text_field, start):
    """Yield (split, texts, position behind them) from a position on; a position is (file, document in it)."""
    texts, size = [], 0
    for i in range(start[0], len(files)):
        split, file = files[i]
        j = 0
        try:
            for j, text in enumerate(documents(file, text_field)):
                if (i, j) < start:
                    continue
                texts.append(text)
                size += len(text or "") + 64  # a million empty documents are more than one chunk
                if size >= CHUNK_CHARS:
                    yield split, texts, (i, j + 1)
                    texts, size = [], 0
        except Exception as error:  # arrow, json, datasets: each has its own for a damaged file
            where = file if isinstance(file, Path) else f"file {i} on the Hub"
            raise Mistake(f"{where}, behind document {j}: {type(error).__name__}: {error}") from error
        if texts and (i + 1 == len(files) or files[i + 1][0] != split):
            yield split, texts, (i + 1, 0)
            texts, size = [], 0
