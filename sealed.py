"""Files that are whole or not there, and files of tensors that tell when a bit of them is no longer as it was.

    write(path, state)            # of plain types; to be read with torch.load, too
    verify(path)                  # ValueError if it is damaged
    state = read_file(path)       # this one or ValueError
    with written(path) as file:   # any file: there is all of it, or what was there before
        file.write(b"...")

torch.save writes types that `torch.load(weights_only=True)` takes. torch.load itself notices no flipped bits, so the
file also carries, as its zip comment, a SHA-256 of all its other bytes: that of the SHA-256s of its blocks, so that
every core hashes some of them.
"""

import contextlib
import hashlib
import os
import pickle
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

TAG = b"sha256-16M:"  # before the digest of the blocks' digests; another size of the blocks is another tag
BLOCK_BYTES = 16 << 20
OLD_TAG = b"sha256:"  # earlier files have one digest of all their bytes
DIGEST_BYTES = 64  # SHA-256 as hex


def write(path, state):
    """Write one checkpoint file, or leave what is under its name as it is."""
    if odd := unsafe(state):  # no assert: python -O would write what `load` refuses
        raise AssertionError(f"{odd} is of a type that torch.load(weights_only=True) refuses")
    with written(path) as file, ThreadPoolExecutor(1) as pool:
        aside = Path(file.name)
        torch.save(state, aside)
        synced = pool.submit(os.fsync, file.fileno())  # hash while the disk writes; `written` syncs the seal, too
        seal(aside)
        try:
            verify(aside)
        except ValueError as error:
            raise OSError(f"{aside} does not read back as it was written: a bad disk?") from error
        synced.result()  # raises what fsync raised: a second one would not say it again


@contextlib.contextmanager
def written(path):
    """Open a file to write, in bytes, that is whole under its name or not there, whatever happens meanwhile.

    It is made aside, as `.<name>.tmp`; at the end it is synced and renamed to `path`, and the folder synced. An error
    removes it, and leaves alone what was at `path`; an OSError then names `path`, as that of a full disk does not.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with open(aside, "wb") as file:  # plain writes: on a full disk a memmap would die of SIGBUS
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def unsafe(value, name="state"):
    """Name of the first part of `value` that `load` would refuse, or None. Subclasses of plain types are refused."""
    if type(value) in (dict, OrderedDict):
        return next((odd for k, v in value.items() if (odd := unsafe(v, f"{name}[{k!r}]"))), None)
    if type(value) in (list, tuple):
        return next((odd for i, v in enumerate(value) if (odd := unsafe(v, f"{name}[{i}]"))), None)
    return None if type(value) in (torch.Tensor, str, int, float, bool, type(None)) else name


def seal(path):
    """Append the digest of a zip file's blocks as its comment."""
    size = path.stat().st_size
    with open(path, "r+b") as f:
        f.seek(-2, os.SEEK_END)
        f.write((len(TAG) + DIGEST_BYTES).to_bytes(2, "little"))
    digest = hash_blocks(path, size)
    with open(path, "ab") as f:
        f.write(TAG + digest)


def hash_blocks(path, size):
    """SHA-256, as hex, of the blocks' SHA-256s, as hex, of the first `size` bytes of a file, on all cores."""

    def hash_block(start):
        with open(path, "rb") as f:
            f.seek(start)
            return hash_stream(f, min(BLOCK_BYTES, size - start))

    with ThreadPoolExecutor() as pool:  # hashlib and reading let other threads run meanwhile
        starts = range(0, size, BLOCK_BYTES)
        digests = (pool.map if len(starts) > 1 else map)(hash_block, starts)  # a thread for one block gains nothing
        return hashlib.sha256("".join(digests).encode()).hexdigest().encode()


def hash_stream(f, size):
    """SHA-256 of the next `size` bytes of an open file, as hex."""
    digest = hashlib.sha256()
    while size > 0 and (block := f.read(min(size, 1 << 22))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def sync_folder(folder):
    """Make renames in `folder` durable, where folders can be opened: not on Windows."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def verify(path):
    """Raise ValueError unless every byte of a checkpoint is as it was written.

    A file without our seal, saved by torch.save elsewhere, is held against its zip checksums only.
    """
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            f.seek(max(0, size - len(TAG) - DIGEST_BYTES))
            comment = f.read()
            tag, digest = comment[:-DIGEST_BYTES], comment[-DIGEST_BYTES:]
            f.seek(0)
            if tag == TAG:
                good = hash_blocks(path, size - len(comment)) == digest
            elif tag.endswith(OLD_TAG):
                good = hash_stream(f, size - len(OLD_TAG) - DIGEST_BYTES).encode() == digest
            else:
                with zipfile.ZipFile(f) as archive:
                    good = comment.endswith(b"\0\0") and archive.testzip() is None  # ends in "no comment"
    except Exception as error:  # zipfile raises half a dozen kinds
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not good:
        raise ValueError(f"{path} is damaged: its bytes are not those that were written")


def digest_in(path):
    """The digest that a sealed file carries."""
    with open(path, "rb") as f:
        f.seek(-DIGEST_BYTES, os.SEEK_END)
        return f.read().decode()


def read_file(path, mmap=False):
    """What torch.save wrote, on the CPU; ValueError if it cannot be read, or holds more than data."""
    try:
        mmap = mmap and str(path).isascii()  # torch maps no file whose name the locale cannot spell
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever the file provokes in the unpickler
        reason = "it is not a whole file of torch.save"
        if isinstance(error, OSError) and error.filename:  # it could not be opened
            reason = error.strerror
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than plain data"
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
