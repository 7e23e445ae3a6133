"""Texts of files, folders, Python's standard library and the Hugging Face Hub, one by one, in a fixed order.

    found = local_files("corpus/")
    for split, texts, position in chunks(found.files, text_field="text", start=(0, 0)):
        ...

A file is (split or None, path), or (split or None, rows streamed from the Hub). Every file of a folder is used, or is
named with the reason; folders behind links, too, each folder once. Upper and lower case are the same in endings and
names of splits.

Validation text is what stands in files or folders named val, valid, validation, dev or eval, as in val.txt, Dev/a.txt
and validation-00000.parquet; with more words around it, as in wiki.valid.txt, only beside a train of the same form
(wiki.train.txt). Files named test are left out. Neither is ever trained on. All other files are training text; but
where those named train hold most of it, the others are left out (a README.txt). Where nothing but held-out text would
be left, names mean nothing.
"""

import codecs
import hashlib
import io
import json
import os
import platform
import re
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from checkpoint import hash_stream
from config import Mistake

HUB_NAMES = {"slimpajama-6b": ("DKYoon/SlimPajama-6B", "b5f90f419b7489cdba26fdbc8c022fcb5562f968")}  # name, commit
PYTHON = (".py",)
ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val"}
SPLITS |= {"test": "test"}
SPLIT_WORD = re.compile(rf"(?:^|(?<=[-_.]))({'|'.join(SPLITS)})(?=[-_.]|$)", re.IGNORECASE)
CHUNK_CHARS = 1 << 18  # text sent to a worker at once: 50 ms of work, next to which its way there and back is nothing
TEXT_CHARS = 1 << 20  # of a text file in one document: with more, memory grows, and a single file could not be split
MARKS = {  # byte-order marks; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UNDECODED = "\udc80"  # in place of bytes that are no text: who takes the texts replaces and counts lone surrogates
codecs.register_error("mark undecoded", lambda error: (UNDECODED, error.end))


class Found(NamedTuple):
    files: list  # of (split or None, path), in the order of reading
    size: int | None  # bytes of text; None if they are packed
    revision: str  # which text it is: number, bytes, and a hash of all names, splits and contents
    left_out: dict  # {reason: names}
    stamps: list  # sizes and times of the files, to see whether they change meanwhile


def walk(root):
    """Names of all files below a folder, relative to it. Links are followed, each folder is visited once."""
    names, seen, tops = [], set(), [Path(root)]

    def stop(error):  # else os.walk leaves out in silence what it may not read
        raise error

    for top in tops:  # those behind links come after all others, which keep their own names
        for folder, subfolders, inside in os.walk(top, onerror=stop):
            subfolders.sort()
            if (real := os.path.realpath(folder)) in seen:
                subfolders.clear()
                continue
            seen.add(real)
            names += [Path(folder, name).relative_to(root).as_posix() for name in inside]
            tops += [Path(folder, name) for name in subfolders if Path(folder, name).is_symlink()]
    return sorted(names)


def list_plainly(root, endings):
    """Names of the files below a folder, not behind links, that end so; those of the standard library."""
    names = []
    for folder, subfolders, inside in os.walk(root):
        if endings == PYTHON:  # what is installed beside it is another text on every machine
            subfolders[:] = {*subfolders} - {"site-packages", "dist-packages"}
        names += [Path(folder, name).relative_to(root).as_posix() for name in inside if name.endswith(endings)]
    return sorted(names)


def unfit(path, name):
    """Why a file below a folder cannot be used; None if it can."""
    if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
        return "it is hidden"
    if not path.is_file():
        return "it is a broken link, or no plain file"
    if not name.lower().endswith(ENDINGS):
        last = Path(name).suffixes[-2 if path.suffix.lower() in (".gz", ".zst", ".bz2", ".xz", ".zip") else -1 :]
        return f"{''.join(last) or 'no ending'} is not read"


def splits_of(names):
    """{name: "train", "val", "test" or None} by what the names say, all of which are looked at together."""
    words = {}  # {name: [(what stands before the word, split, whether no other word follows in this part of the path)]}
    for name in names:
        parts = name.split("/")
        words[name] = [
            ("/".join([*parts[:i], part[: match.start()]]), SPLITS[match[1].lower()], is_alone(part, match))
            for i, part in enumerate(parts)
            for match in SPLIT_WORD.finditer(part)
        ]
    trained = {before for found in words.values() for before, split, _ in found if split == "train"}
    return {
        name: next((split for before, split, alone in found if alone or before in trained), None)
        for name, found in words.items()
    }


def is_alone(part, match):
    """Whether a part of a path, as val.txt or validation-00000-of-00001.parquet, names a split and nothing else."""
    return match.start() == 0 and re.match(r"$|\.|[-_]\d", part[match.end() :]) is not None


def choose(sizes):
    """{name: size} of a folder's text files -> ([(split or None, name)], {reason: names}); the module says how."""
    named = splits_of(sizes)
    by_split = {split: [name for name in sizes if named[name] == split] for split in ("train", "val", "test", None)}
    if not (by_split["train"] or by_split[None]):
        return [(None, name) for name in sizes], {}
    held_out, left_out = by_split["val"] + by_split["test"], {}
    if by_split["test"]:
        left_out["it is a test split"] = by_split["test"]
    train_size, other_size = (sum(sizes[name] for name in by_split[split]) for split in ("train", None))
    if held_out and train_size > other_size and by_split[None]:
        left_out["files named train are beside it, and hold more"] = by_split[None]
        by_split[None] = []
    train = sorted(by_split["train"] + by_split[None])
    if by_split["val"]:
        return [("val", name) for name in by_split["val"]] + [("train", name) for name in train], left_out
    return [(None, name) for name in train], left_out


def local_files(source):
    """What there is to read of "stdlib", a file or a folder: Found. Reads all of it, to know it: 0.3 s a GB or more."""
    stdlib = source == "stdlib"
    root, left_out = Path(sysconfig.get_path("stdlib") if stdlib else source), {}
    if stdlib:
        files = [(None, name) for name in list_plainly(root, PYTHON)]
    elif root.is_file():
        if not root.name.lower().endswith(ENDINGS):
            raise Mistake(f"source={source!r}: its name does not end in {' '.join(ENDINGS)}")
        root, files = root.parent, [(None, root.name)]
    else:
        fits = {name: unfit(root / name, name) for name in walk(root)}
        files, left_out = choose({name: (root / name).stat().st_size for name, why in fits.items() if why is None})
        for name, why in fits.items():
            left_out.setdefault(why, []).append(name)
        left_out.pop(None, None)
        if not files:
            there = f"; there: {', '.join(sorted({Path(name).name for name in fits})[:5])}" if fits else ""
            raise Mistake(f"source={source!r}: no file there ends in {' '.join(ENDINGS)}{there}")
    paths = [(split, root / name) for split, name in files]
    stamps = stamps_of(paths)
    with ThreadPoolExecutor() as pool:  # hashing leaves Python to the others
        hashes = list(pool.map(hash_file, [path for _, path in paths]))
    content = hashlib.sha256(json.dumps([files, hashes]).encode()).hexdigest()[:16]
    n_bytes = sum(size for size, _ in stamps)
    revision = f"{len(files)} files, {n_bytes} bytes, contents {content}"
    if stdlib:
        revision = f"Python {platform.python_version()}, {revision}"
    packed = any(path.suffix.lower() in (".gz", ".zst", ".parquet") for _, path in paths)
    return Found(paths, None if packed else n_bytes, revision, left_out, stamps)


def hash_file(path):
    with open(path, "rb") as file:
        return hash_stream(file, os.fstat(file.fileno()).st_size)


def stamps_of(files):
    """[(bytes, time of the last change)] of files; none of rows from the Hub."""
    stats = [path.stat() for _, path in files if isinstance(path, Path)]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def earlier_revision(source):
    """(revision, paths) as they were before contents were hashed, to know again the datasets that were made then."""
    stdlib = source == "stdlib"
    root = Path(sysconfig.get_path("stdlib") if stdlib else source)
    names = [root.name] if root.is_file() else list_plainly(root, PYTHON if stdlib else ENDINGS)
    paths = [(root.parent if root.is_file() else root) / name for name in names]
    sizes = [path.stat().st_size for path in paths if path.exists()]
    state = hashlib.blake2b(json.dumps([names, sizes]).encode(), digest_size=8).hexdigest()
    python = f"Python {platform.python_version()}, " if stdlib else ""
    return f"{python}{len(names)} files, {sum(sizes)} bytes, {state}", paths


def revision_of(found, source, begun):
    """Which text it is. A dataset made when contents were not looked at keeps its word for names and sizes."""
    if begun and begun.get("revision") != found.revision:
        earlier, paths = earlier_revision(source)
        reads_the_same = found.files == [(None, path) for path in paths]
        if begun.get("revision") == earlier and ("splits" in begun or reads_the_same):
            return earlier
    return found.revision


def tell(source, found):
    """Say how many files are read, and which are not, and why."""
    n_val, n_left = sum(split == "val" for split, _ in found.files), sum(map(len, found.left_out.values()))
    how = f", {n_val} of them for validation" if n_val else ""
    print(f"{source}: {len(found.files)} of {len(found.files) + n_left} files are used{how}")
    for why, names in found.left_out.items():
        shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
        print(f"  left out, as {why}: {len(names)}, {shown}")
    if any(why.endswith("is not read") for why in found.left_out):
        print(f"  read are {' '.join(ENDINGS)}: convert the others; JSON lines need another name only")


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
    for name, split in [("validation", "val"), ("train", "train")]:
        n_files = splits[name].num_shards if name in splits else 0
        files += [(split, splits[name].shard(num_shards=n_files, index=i)) for i in range(n_files)]
    if "validation" not in splits:
        files = [(None, file) for _, file in files]
    if others := [name for name in splits if name not in ("train", "validation")]:
        print(f"left out, splits of other names: {', '.join(others)}")
    return files, builder.info.splits["train"].num_bytes if builder.info.splits else None


def parquet_rows(path, text_field):
    """Yield the rows of a .parquet, at most a few MB of which are in memory: one row group may be a GB."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)
    columns = [text_field] if text_field in file.schema_arrow.names else None  # all of them, for the error to name
    for batch in file.iter_batches(batch_size=100, columns=columns):
        yield from batch.to_pylist()


def open_text(path, encoding, newline):
    """Open a file of text, packed or not: in the encoding of its byte-order mark, else `encoding`, else UTF-8.

    UNDECODED stands for what is none. Mistake for UTF-16 without a mark, which UTF-8 would take for text with zeros.
    The standard library, .py, is UTF-8, marks and all, for its bins to stay as they are.
    """
    packing = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    if packing:
        import pyarrow  # it reads all frames of a .zst, and, unlike zstandard, notices that one breaks off

        raw = io.BufferedReader(pyarrow.input_stream(str(path), compression=packing), 1 << 20)
    else:
        raw = open(path, "rb", buffering=1 << 20)
    start = b"" if path.suffix == ".py" else raw.peek(4)[:4096]
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if not (marked or encoding) and 10 * start.count(0) > len(start):
        raise Mistake("many of its bytes are zero, so it is not UTF-8 text; if it is UTF-16, give --encoding=utf-16-le")
    return io.TextIOWrapper(raw, marked or encoding or "utf-8", errors="mark undecoded", newline=newline)


def json_rows(path, encoding):
    """Yield the rows of .jsonl, .jsonl.gz or .jsonl.zst."""
    with open_text(path, encoding, newline="\n") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def documents(file, text_field, encoding=None):
    """Yield the texts of a file one by one, None or "" where there is none; UNDECODED is in place of what is none."""
    if isinstance(file, Path) and file.suffix.lower() in (".py", ".txt"):
        with open_text(file, encoding, newline="") as text:
            pieces = iter(lambda: text.read(TEXT_CHARS) + text.readline(TEXT_CHARS), "")
            yield next(pieces, None)
            yield from pieces
        return
    if not isinstance(file, Path):
        rows = file
    elif file.suffix.lower() == ".parquet":
        rows = parquet_rows(file, text_field)
    else:
        rows = json_rows(file, encoding)
    for row in rows:
        if not isinstance(row.get(text_field, 0), str | None):
            fields = ", ".join(f"{name} ({type(value).__name__})" for name, value in row.items())
            raise Mistake(f"text_field={text_field!r} is not a field with text; there are {fields}")
        yield row[text_field]


def chunks(files, text_field, start, encoding=None):
    """Yield (split, texts, position behind them) from a position on; a position is (file, document in it)."""
    texts, size = [], 0
    for i in range(start[0], len(files)):
        split, file = files[i]
        j = 0
        try:
            for j, text in enumerate(documents(file, text_field, encoding)):
                if (i, j) < start:
                    continue
                texts.append(text)
                size += len(text or "") + 64  # a million empty documents are more than one chunk
                if size >= CHUNK_CHARS:
                    yield split, texts, (i, j + 1)
                    texts, size = [], 0
        except Exception as error:  # arrow, json, datasets: each has its own for a damaged file
            where = file if isinstance(file, Path) else f"file {i} on the Hub"
            kind = "" if isinstance(error, Mistake) else f"{type(error).__name__}: "
            raise Mistake(f"{where}, behind document {j}: {kind}{error}") from error
        if texts and (i + 1 == len(files) or files[i + 1][0] != split):
            yield split, texts, (i + 1, 0)
            texts, size = [], 0
