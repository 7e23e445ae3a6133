"""Checkpoints that are whole or not there: written aside, synced, verified, renamed, and verified again before use.

    save(folder, step, state, keep=2, save_at=(1000,))   # -> folder/step_00001200.pt; prunes older ones
    found = load_latest(folder)                          # (state, path) of the newest good one, None if there is none
    state = load(path)                                   # this one or ValueError

One file holds everything, and a digest of itself, see sealed.py.

Of a model in shards a checkpoint is a folder, step_00001200: each rank writes files of its rows of all tensors, one for
weights, optimizer and averages each, and the first one then manifest.pt, which holds all else, and the digests of these
files. Whoever reads it, on any number of ranks, gets whole tensors or its own rows of them; so does who reads a single
file. Ranks save and load together: what fails on one is an error on all.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import torch

import sealed

NAME = re.compile(r"step_[0-9]{8,}(\.pt)?")  # of a file, or of a folder of shards
MAX_FAILED = 3  # saves in a row
MANIFEST = "manifest.pt"
IN_SHARDS = ("model", "optimizer", "averages")  # parts of a state; their tensors, but for single numbers, are cut


class Alone:
    """The only process there is; parallel.Ranks says the same of several."""

    rank, world_size, is_main = 0, 1, True
    replica, shard_rank, shard_size = 0, 0, 1  # which copy of the model, and which of how many shards of it

    def gather(self, value):
        """[value of every rank]."""
        return [value]


ALONE = Alone()


def find(folder, step):
    """Path of the checkpoint of the weights after `step` updates, be it a folder of shards or a file; else None."""
    shards = Path(folder) / f"step_{step:08d}"
    if is_shards(shards):
        return shards
    file = shards.with_suffix(".pt")
    return file if file.is_file() else None


def path_of(folder, step):
    """The path that `find` finds; of a missing checkpoint that of a file."""
    return find(folder, step) or Path(folder) / f"step_{step:08d}.pt"


def meant(path):
    """The checkpoint that a user means by `path`, be it a file or a folder; ValueError if that is not clear."""
    path = Path(path)
    if path.name == MANIFEST and is_shards(path.parent):
        return path.parent
    if NAME.fullmatch(path.name) and not path.exists():
        return find(path.parent, int(path.stem[5:])) or path
    if path.is_dir() and not is_shards(path):
        found = next((folder for folder in (path, path / "ckpt") if list_steps(folder)), None)
        if found is None:
            raise ValueError(f"{path} is a folder without checkpoints: give one, as runs/NAME/ckpt/step_00001000.pt")
        newest = path_of(found, list_steps(found)[-1])
        raise ValueError(f"{path} is a folder of checkpoints: give one of them, such as {newest}")
    return path


def is_shards(path):
    """Whether a path is a folder of shards, or what is left of one."""
    return (path / MANIFEST).is_file() or any(path.glob("*_[0-9][0-9][0-9][0-9][0-9].pt"))


def list_steps(folder):
    """Steps with a checkpoint in `folder`, increasing; other names are left alone."""
    steps = {int(p.stem[5:]) for p in Path(folder).glob("step_*") if NAME.fullmatch(p.name)}
    return sorted(step for step in steps if find(folder, step))


def save(folder, step, state, keep=2, save_at=(), ranks=ALONE):
    """Write the checkpoint of `step`, then remove all but the newest `keep` and those of the steps in `save_at`.

    At every moment, a power cut included, whatever has a final name is whole. OSError or RuntimeError (that is how
    torch.save reports a full disk) means that the ones before are as they were. All ranks call this; if the model is
    not in shards, the first one writes.
    """
    folder = Path(folder)
    path = folder / f"step_{step:08d}"
    if ranks.shard_size > 1:
        write_shards(path, state, ranks)
    else:
        path = path.with_suffix(".pt")
        together(lambda: write_file(path, state, ranks), ranks)
    if ranks.is_main:
        prune(folder, step, keep, save_at)
    return path


def write_file(path, state, ranks):
    """Write a checkpoint's file, on the first rank."""
    if ranks.is_main:
        make_room(path.parent, path)
        sealed.write(path, state)


def make_room(folder, path):
    """Make the folder of checkpoints, and remove from it what a kill left, and what there is of this step.

    FileExistsError if something else has the step's name, as it stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".step_*.tmp"):
        remove(stale)
    other = path.with_suffix("" if path.suffix else ".pt")  # a file is replaced by a file
    for old in (path, other):
        if is_shards(old) or old == other and old.is_file():
            remove(old)
    if in_the_way(path):
        raise FileExistsError(f"{path} is in the way, as it is no checkpoint")


def in_the_way(path):
    """Whether a file is to be where a folder is, or a folder where a file is, or a folder with something in it."""
    if path.suffix:
        return path.is_dir()
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def remove(path):
    """Remove a file or a folder, if it is there; a folder under a name that no longer says it is whole."""
    if path.is_dir():
        aside = path if path.name.startswith(".") else path.with_name(f".{path.name}.tmp")
        path.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)  # what another process still reads goes next time
    else:
        path.unlink(missing_ok=True)


def prune(folder, step, keep, save_at):
    """Remove the checkpoints up to `step`, which is good, but for the newest `keep` and those in `save_at`.

    A warning tells of those that cannot be removed: they are in nobody's way.
    """
    steps = [old for old in list_steps(folder) if old <= step]  # later ones were damaged, and will be written again
    errors = []
    for old in steps[:-keep]:
        if old not in save_at:
            try:
                remove(path_of(folder, old))
            except OSError as error:
                errors.append(error)
    if errors:
        told = f"warning: {len(errors)} old checkpoint(s) could not be removed, and stay: {errors[0]}"
        print(told, file=sys.stderr, flush=True)


def write_shards(path, state, ranks):
    """Write a checkpoint's folder, all ranks together, or leave what is under its name as it is."""
    aside = path.with_name(f".{path.name}.tmp")

    def make_folder():
        if ranks.is_main:
            make_room(path.parent, path)
            aside.mkdir(exist_ok=True)

    def write_own():
        names = [f"{part}_{ranks.shard_rank:05d}.pt" for part in IN_SHARDS if ranks.replica == 0]
        for part, name in zip(IN_SHARDS, names, strict=False):
            sealed.write(aside / name, state[part])
        return {name: sealed.digest_in(aside / name) for name in names}

    def finish():
        if ranks.is_main:
            rest = {name: value for name, value in state.items() if name not in IN_SHARDS}
            sealed.write(aside / MANIFEST, rest | {"shards": ranks.shard_size, "files": files})
            os.replace(aside, path)
            sealed.sync_folder(path.parent)

    try:
        together(make_folder, ranks)
        own = together(write_own, ranks)
        files = {name: digest for part in ranks.gather(own) for name, digest in part.items()}
        together(finish, ranks)
    except BaseException:
        if ranks.is_main:
            shutil.rmtree(aside, ignore_errors=True)  # room for the next one
        raise


def together(work, ranks, errors=(FileExistsError, OSError, RuntimeError)):
    """Return `work()`; where it fails on one of the ranks, with one of `errors`, raise such an error on all of them."""
    result = error = told = None
    try:
        result = work()
    except errors as raised:
        error = raised
        told = next(i for i, kind in enumerate(errors) if isinstance(error, kind)), str(error)
    found = [(rank, *told) for rank, told in enumerate(ranks.gather(told)) if told]
    if error is not None:
        raise error
    for rank, kind, message in found:
        raise errors[kind](f"rank {rank}: {message}")
    return result


def try_save(folder, step, state, keep, save_at, failed, must, ranks=ALONE):
    """Save; return 0, or where that fails `failed` + 1 with a warning, so that a full disk need not end a run.

    OSError, saying what to do, after MAX_FAILED saves in a row, or at once where it `must` be saved.
    """
    try:
        save(folder, step, state, keep, save_at, ranks)
        return 0
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        there = next(p for p in (Path(folder), *Path(folder).absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free / 1e6
        problem = f"could not save the checkpoint of step {step} ({free:,.0f} MB free on disk): {error}"
        if must or failed + 1 == MAX_FAILED:
            remedy = "move that away" if isinstance(error, FileExistsError) else "make room"
            raise OSError(f"{problem}; the earlier ones are whole: {remedy}, and run again") from error
        if ranks.is_main:
            print(f"warning: {problem}; training goes on", file=sys.stderr, flush=True)
        return failed + 1


def load(path, mmap=False, ranks=ALONE, parts=IN_SHARDS):
    """Verify one checkpoint and read it to the CPU; ValueError if it is missing, damaged, or holds more than data.

    Of a model in shards each of `ranks` gets its rows of every tensor, else all get all rows. With `mmap` nothing is
    verified, and tensors stay in the file until they are used (those of a folder of shards have shapes only): a look at
    what it holds. Of a folder only `parts` are read, and what else there is.
    """

    def read():
        if is_shards(Path(path)):
            return read_shards(Path(path), mmap, ranks, parts)
        return read_whole(Path(path), mmap, ranks)

    return together(read, ranks, errors=(ValueError,))


def read_whole(path, mmap, ranks):
    """See `load`, of a file."""
    if not mmap:
        sealed.verify(path)
    state = sealed.read_file(path, mmap or ranks.shard_size > 1)
    if ranks.shard_size > 1 and isinstance(state, dict):
        state |= {part: joined([state[part]], ranks, {}) for part in IN_SHARDS if part in state}
    return state


def read_shards(path, mmap, ranks, parts):
    """See `load`, of a folder of shards."""
    if not mmap:
        verify_shards(path, ranks)
    state = sealed.read_file(path / MANIFEST)
    for part in parts:
        shards = [sealed.read_file(path / f"{part}_{i:05d}.pt", mmap=True) for i in range(state["shards"])]
        state[part] = joined(shards, ranks, {}, shapes_only=mmap)
    del state["shards"], state["files"]
    return state


def verify_shards(path, ranks):
    """Raise ValueError unless a folder holds the files that its manifest names, as they were written.

    Every rank looks at the manifest, and at its share of the files.
    """
    sealed.verify(path / MANIFEST)
    files = sealed.read_file(path / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{path / MANIFEST} cannot be read as a checkpoint: it names no files")
    for name in list(files)[ranks.rank :: ranks.world_size]:
        sealed.verify(path / name)
        if sealed.digest_in(path / name) != files[name]:
            raise ValueError(f"{path / name} is of another checkpoint than the manifest beside it")


def own_rows(n_rows, shard_rank, shard_size):
    """(start, end) of the rows in a shard: all but the last shards have the same number."""
    size = -(-n_rows // shard_size)
    return min(shard_rank * size, n_rows), min((shard_rank + 1) * size, n_rows)


def joined(shards, ranks, made, shapes_only=False):
    """The same value in all shards -> this rank's rows of it: dicts and lists of tensors, whose rows are cut.

    `made`, empty at first, holds what was made: tensors that are tied in the shards still are.
    """
    first = shards[0]
    if isinstance(first, dict):
        return type(first)((k, joined([shard[k] for shard in shards], ranks, made, shapes_only)) for k in first)
    if isinstance(first, (list, tuple)):
        return type(first)(joined(values, ranks, made, shapes_only) for values in zip(*shards, strict=True))
    if not isinstance(first, torch.Tensor):
        return first
    if first.dim() == 0:
        return first.clone()  # nothing of the file stays mapped: it may be removed
    start, end = own_rows(sum(map(len, shards)), ranks.shard_rank, ranks.shard_size)
    if shapes_only:
        return first.new_empty((end - start, *first.shape[1:]), device="meta")
    if first.data_ptr() not in made:
        pieces, row = [], 0
        for shard in shards:
            pieces.append(shard[max(start - row, 0) : max(end - row, 0)])
            row += len(shard)
        made[first.data_ptr()] = torch.cat(pieces)  # a copy: the file is left alone
    return made[first.data_ptr()]


def load_latest(folder, warn=True, ranks=ALONE):
    """(state, path) of the newest good checkpoint in `folder`, or None if it holds no checkpoint at all.

    Damaged ones are passed over, by all ranks, with a warning on stderr unless `warn` is off (one rank's is enough).
    When all are damaged this is a ValueError, and never a silent start from step 0.
    """
    seen = ranks.gather(list_steps(folder))
    if any(steps != seen[0] for steps in seen):
        raise ValueError(f"ranks see different checkpoints in {folder}, {seen}: do all of them see the same folder?")
    for step in reversed(seen[0]):
        path = path_of(folder, step)
        try:
            return load(path, ranks=ranks), path
        except ValueError as error:
            if warn:
                print(f"warning: {error}; trying the checkpoint before it", file=sys.stderr)
    if seen[0]:
        raise ValueError(f"no checkpoint in {folder} is good: restore one, or choose another name for the run")
    return None
