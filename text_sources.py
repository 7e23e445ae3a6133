"""Texts of files, folders, Python's standard library and the Hugging Face Hub, one by one, in a fixed order.

    found = local_files("corpus/")
    for split, texts, position in chunks(found.files, text_field="text", start=(0, 0)):
        ...

A file is (split or None, path), or (split or None, rows streamed from the Hub). Every file of a folder is used, or is
named with the reason; folders behind links, too, each folder once. Upper and lower case are the same.

Files and folders named val, valid, validation, dev or eval are validation text, those named test are left out: val.txt,
Dev/a.txt, test-00000.parquet. Such a name may have words around it, as wiki.valid.txt, if there is a wiki.train.txt.
All other files are trained on; but where text is held out and files named train hold more than the rest, only these.
Where all files would be held out, their names mean nothing.
"""

import ast
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

from config import Mistake
from sealed import hash_stream

HUB_NAMES = {"slimpajama-6b": ("DKYoon/SlimPajama-6B", "b5f90f419b7489cdba26fdbc8c022fcb5562f968")}  # name, commit
LIBRARIES = ("matplotlib", "numpy", "pandas", "scipy", "sympy", "torch")  # each is there with our requirements
PYTHON = {  # text that comes with Python and its packages, of other versions another text: (folder, packages or all)
    "stdlib": ("stdlib", None),
    "docstrings": ("platlib", ("numpy", "scipy")),
    "packages": ("platlib", LIBRARIES),
}
ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SPLITS = dict.fromkeys(["val", "valid", "validation", "dev", "eval"], "val") | {"train": "train", "test": "test"}
WORD = re.compile(rf"(?:^|(?<=[-_./]))({'|'.join(SPLITS)})(?=[-_./]|$)", re.IGNORECASE)  # in a path, names a split
ALONE = re.compile(rf"(?:^|(?<=/))({'|'.join(SPLITS)})(?=[./]|[-_]\d|$)", re.IGNORECASE)  # without other words
CHUNK_CHARS = 1 << 18  # text sent to a worker at once: 50 ms of work, next to which its way there and back is nothing
TEXT_CHARS = 1 << 20  # of a text file in one document: with more, memory grows, and a single file could not be split
DOCSTRING_CHARS = 400  # shorter docstrings say a line or two, and are no documents
MARKS = {  # byte-order marks; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UNDECODED = "\udc80"  # in place of bytes that are no text: who takes the texts replaces and counts lone surrogates
codecs.register_error("mark undecoded", lambda error: (UNDECODED, error.end))


class Docstrings(type(Path())):
    """A path of a .py file whose docstrings are its documents."""


class Found(NamedTuple):
    files: list  # of (split or None, path), in the order of reading
    size: int | None  # bytes of text; None if they are packed
    revision: str  # which text it is: number, bytes, and a hash of all names, splits and contents
    earlier: str  # what code called it that knew a text by the names and sizes of all its files
    plain: bool  # whether that code read the same files in the same order
    left_out: dict  # {name: reason}
    stamps: list  # sizes and times of the files, to see whether they change meanwhile


def list_python(root):
    """Names of the files of the standard library, in whatever folders can be read."""
    names = []
    for folder, subfolders, inside in os.walk(root):
        subfolders[:] = {*subfolders} - {"site-packages", "dist-packages"}  # another text on every machine
        names += [Path(folder, name).relative_to(root).as_posix() for name in inside if name.endswith(".py")]
    return sorted(names)


def walk(root):
    """Names of all files below a folder, relative to it. Links are followed, each folder is visited once."""
    names, seen = [], set()

    def stop(error):  # else os.walk leaves out in silence what it may not read
        raise error

    for folder, subfolders, inside in os.walk(root, onerror=stop, followlinks=True):
        subfolders.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))  # own names come first
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        names += [Path(folder, name).relative_to(root).as_posix() for name in inside]
    return sorted(names)


def unfit(root, name):
    """Why a file below a folder cannot be used; None if it can."""
    if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
        return "it is hidden"
    if not (root / name).is_file():
        return "it is a broken link, or no plain file"
    if not name.lower().endswith(ENDINGS):
        return f"it does not end in {' '.join(ENDINGS)}"
    return None


def split_of(name, trained):
    """The split that a path names; `trained` is what stands before the word in all paths that name train."""
    for match in WORD.finditer(name):
        if ALONE.match(name, match.start()) or name[: match.start()] in trained:
            return SPLITS[match[1].lower()]
    return None


def choose(sizes):
    """{name: size} of text files -> ([(split or None, name)] in the order of reading, {name left out: reason})."""
    trained = {name[: match.start()] for name in sizes for match in WORD.finditer(name) if match[1].lower() == "train"}
    named = {"train": [], "val": [], "test": [], None: []}
    for name in sizes:
        named[split_of(name, trained)].append(name)
    train, other = named["train"], named[None]
    if not (train or other):
        return [(None, name) for name in sizes], {}
    left_out = dict.fromkeys(named["test"], "it is a test split")
    held_out = named["val"] or named["test"]
    if held_out and sum(sizes[name] for name in train) > sum(sizes[name] for name in other):
        left_out |= dict.fromkeys(other, "files named train are beside it, and hold more")
        other = []
    own = "train" if named["val"] else None
    return [("val", name) for name in named["val"]] + [(own, name) for name in sorted(train + other)], left_out


def find(source):
    """(root, {name: size} of its text files, those to read as of `choose`, {name left out: reason})."""
    root, unread = Path(source), {}
    if source in PYTHON:
        folder, packages = PYTHON[source]
        root = (Docstrings if source == "docstrings" else Path)(sysconfig.get_path(folder))
        if missing := [name for name in packages or () if not (root / name).is_dir()]:
            raise Mistake(f"source={source!r}: not installed below {root}: {', '.join(missing)}")
        names = [f"{name}/{path}" for name in packages for path in list_python(root / name)] if packages else []
        names = names or list_python(root)
    elif root.is_file():
        root, names = root.parent, [root.name] if root.name.lower().endswith(ENDINGS) else []
    else:
        reasons = {name: unfit(root, name) for name in walk(root)}
        names = [name for name, reason in reasons.items() if not reason]
        unread = {name: reason for name, reason in reasons.items() if reason}
    if not names:
        there = f"; there: {', '.join([*unread][:5])}" if unread else ""
        raise Mistake(f"source={source!r}: no file there ends in {' '.join(ENDINGS)}{there}")
    sizes = {name: (root / name).stat().st_size for name in names}
    if source in PYTHON:
        return root, sizes, [(None, name) for name in names], {}
    files, left_out = choose(sizes)
    return root, sizes, files, left_out | unread


def local_files(source):
    """What there is to read of a source on this machine: Found. Reads all of it, to know it: 0.3 s a GB or more."""
    root, sizes, files, left_out = find(source)
    paths = [(split, root / name) for split, name in files]
    stamps = stamps_of(paths)
    with ThreadPoolExecutor() as pool:  # hashing leaves Python to the others
        hashes = list(pool.map(hash_file, [path for _, path in paths]))
    n_bytes = sum(size for size, _ in stamps)
    contents = hashlib.sha256(json.dumps([files, hashes]).encode()).hexdigest()[:16]
    names_and_sizes = json.dumps([[*sizes], [*sizes.values()]]).encode()
    state = hashlib.blake2b(names_and_sizes, digest_size=8).hexdigest()
    python = f"Python {platform.python_version()}, " if source in PYTHON else ""
    packed = source == "docstrings" or any(path.suffix.lower() in (".gz", ".zst", ".parquet") for _, path in paths)
    return Found(
        files=paths,
        size=None if packed else n_bytes,
        revision=f"{python}{len(files)} files, {n_bytes} bytes, contents {contents}",
        earlier=f"{python}{len(sizes)} files, {sum(sizes.values())} bytes, {state}",
        plain=files == [(None, name) for name in sizes],
        left_out=left_out,
        stamps=stamps,
    )


def hash_file(path):
    with open(path, "rb") as file:
        return hash_stream(file, os.fstat(file.fileno()).st_size)


def stamps_of(files):
    """[(bytes, time of the last change)]"""
    stats = [path.stat() for _, path in files]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def revision_of(found, begun):
    """Which text it is, for a dataset that may be `begun`: what earlier code called it keeps that word."""
    if begun and begun.get("revision") == found.earlier and (found.plain or "splits" in begun):  # splits: it is whole
        return found.earlier
    return found.revision


def tell(source, found):
    """Say how many files are read, and which are not, and why."""
    n_val = sum(split == "val" for split, _ in found.files)
    how = f", {n_val} of them for validation" if n_val else ""
    print(f"{source}: {len(found.files)} of {len(found.files) + len(found.left_out)} files are used{how}")
    for why in dict.fromkeys(found.left_out.values()):
        names = [name for name, reason in found.left_out.items() if reason == why]
        more = ", ..." if len(names) > 5 else ""
        print(f"  left out, as {why}: {len(names)}, {', '.join(map(repr, names[:5]))}{more}")


def hub_name(source):
    """(repo, config or None, pinned commit or None) of a Hub dataset; None if the source is local."""
    if source in PYTHON or Path(source).exists():
        return None
    repo, _, config = source.partition(":")
    repo, commit = HUB_NAMES.get(repo, (repo, None))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise Mistake(
            f"source={source!r} is unknown: give a file or folder that exists, with {' '.join(ENDINGS)}, or "
            f"{', '.join((*PYTHON, *HUB_NAMES))}, or owner/name or owner/name:config of a dataset of the Hub"
        )
    return repo, config or None, commit


def hub_revision(repo, revision=None):
    """Commit hash that a branch, tag or short hash (None: the newest) of a Hub dataset stands for. Asks the Hub."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(repo, revision=revision, timeout=10).sha
    except Exception as error:  # each version of the client raises those of another HTTP library
        raise OSError(
            f"cannot get {repo} from the Hugging Face Hub: {error}. Elsewhere, `hf download {repo} --repo-type=dataset "
            f"--revision={revision or 'main'} --local-dir=DIR`, and give a copy of DIR here; or take stdlib"
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
    used = {"validation": "val", "train": "train"} if "validation" in splits else {"train": None}
    files = []
    for name, split in used.items():
        n_files = splits[name].num_shards
        files += [(split, splits[name].shard(num_shards=n_files, index=i)) for i in range(n_files)]
    if others := [name for name in splits if name not in used]:
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
        yield from map(json.loads, filter(str.strip, lines))


def docstrings(file, encoding=None):
    """Yield the docstrings of a .py file, but for short ones."""
    with open_text(file, encoding, newline=None) as text:
        tree = ast.parse(text.read())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found = ast.get_docstring(node) or ""
            if len(found) >= DOCSTRING_CHARS:
                yield found


def documents(file, text_field, encoding=None):
    """Yield the texts of a file one by one, None or "" where there is none; UNDECODED is in place of what is none."""
    kind = file.suffix.lower() if isinstance(file, Path) else "rows"
    if isinstance(file, Docstrings):
        yield from docstrings(file, encoding)
        return
    if kind in (".py", ".txt"):
        with open_text(file, encoding, newline="") as text:
            pieces = iter(lambda: text.read(TEXT_CHARS) + text.readline(TEXT_CHARS), "")
            yield next(pieces, None)
            yield from pieces
        return
    if kind == "rows":
        rows = file
    elif kind == ".parquet":
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
