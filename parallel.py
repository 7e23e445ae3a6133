"""Ranks, and sums over them: all that knows of more than one process.

    ranks = Ranks("auto")                            # as torchrun says, or the only one
    model.to(ranks.device)
    with ranks.connected():
        loss, count = ranks.sum(loss, count)         # over all ranks
        gradients = Gradients(ranks, model, total)   # adds up what `total` backward passes give, on all ranks
        ...
        gradients.finish()

Gradients are summed by halves, within a rank (`add_by_halves`) and over ranks (`groups_by_halves`), so 2, 4, 8 and more
ranks add the very numbers that one rank adds. Other numbers of ranks add in the library's order: such runs repeat
themselves, and have bits of their own.
"""

import contextlib
import functools
import os
import signal
import threading

import torch
import torch.distributed as dist

from config import Mistake
from devices import choose_device, to_device

WAIT_S = 5  # for other ranks, before it is told

# ----------------------------------------------------------------------------------------------------------------------
# Ranks


def check_batch(global_batch_size, micro_batch_size, world_size):
    """Raise Mistake unless every rank gets a whole number of micro-batches per step."""
    at_once = micro_batch_size * world_size
    if global_batch_size % at_once == 0:
        return
    rank_batch, left = divmod(global_batch_size, world_size)
    fits = [str(size) for size in range(1, rank_batch + 1) if rank_batch % size == 0]
    remedy = "change the number of ranks" if left else f"micro_batch_size can be {', '.join(fits)}"
    raise Mistake(
        f"global_batch_size={global_batch_size} is not a multiple of "
        f"micro_batch_size={micro_batch_size} x {world_size} rank(s) = {at_once}: {remedy}"
    )


def read_launcher(environment):
    """(rank, world_size, local_rank) as torchrun says, (0, 1, 0) if it says nothing; Mistake if that makes no sense."""
    said = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environment}
    if not said:
        return 0, 1, 0
    shown = ", ".join(f"{name}={value}" for name, value in said.items())
    remedy = "start with torchrun, which sets all, or unset them"
    if len(said) < 3 or not all(value.isdigit() for value in said.values()):
        raise Mistake(f"{shown}: a launcher sets RANK, WORLD_SIZE and LOCAL_RANK, to whole numbers; {remedy}")
    rank, world_size, local_rank = map(int, said.values())
    if not local_rank <= rank < world_size:
        raise Mistake(f"{shown}: expected LOCAL_RANK <= RANK < WORLD_SIZE; {remedy}")
    if world_size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        raise Mistake(f"{shown}, but no MASTER_ADDR and MASTER_PORT: {remedy}")
    return rank, world_size, local_rank


@contextlib.contextmanager
def waiting(what):
    """Say what is waited for, if it takes more than WAIT_S seconds; meanwhile Ctrl-C ends the process at once."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    timer = threading.Timer(WAIT_S, print, [f"{what} at {where}; Ctrl-C ends it"], {"flush": True})
    timer.daemon = True
    timer.start()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would wait until torch is done
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        timer.cancel()


def groups_by_halves(world_size, device):
    """Groups of this rank: a sum within one after another adds pairs of ranks, pairs of pairs, and so on.

    So a power of 2 of ranks adds what `add_by_halves` does on one rank, in its order. Another number is one group: the
    sum of the library, in an order of its own.
    """
    if world_size & (world_size - 1):
        return [dist.group.WORLD]
    mesh = dist.init_device_mesh(device.type, (2,) * (world_size.bit_length() - 1))  # the last one: neighbours
    return [mesh.get_group(dimension) for dimension in reversed(range(mesh.ndim))]


class Ranks:
    """This rank among all of them: `rank`, `world_size`, `device`; `is_main` on the one that prints and writes.

    With `exact_sums` 2, 4, 8, ... ranks add as one rank does; without, as fast as the library can.
    """

    def __init__(self, device, exact_sums=True):
        self.exact_sums, self.groups = exact_sums, []  # in which one sum after another is the sum over ranks
        self.rank, self.world_size, local_rank = read_launcher(os.environ)
        self.is_main = self.rank == 0
        self.device = choose_device(device, local_rank)
        self.sum_dtype = torch.float32 if self.device.type == "mps" else torch.float64  # of sums; mps has no fp64

    @contextlib.contextmanager
    def connected(self):
        """A context in which sums can be made: the other ranks are there."""
        several = self.world_size > 1
        if several:
            with waiting(f"rank {self.rank} waits for the others of {self.world_size} ranks"):
                dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
                exact = self.exact_sums and self.world_size > 2  # of two numbers there is one sum
                self.groups = groups_by_halves(self.world_size, self.device) if exact else [dist.group.WORLD]
        try:
            yield
        finally:
            if several:
                self.groups = []  # a group that outlives this may abort the process when it exits
                dist.destroy_process_group()

    def gather(self, value):
        """[value of every rank]."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def sum(self, *values):
        """Sums over ranks, in fp64, of numbers or tensors of numbers: a flat list of floats."""
        flat = [torch.as_tensor(value, dtype=self.sum_dtype, device=self.device).reshape(-1) for value in values]
        flat = torch.cat(flat)
        for group in self.groups:
            dist.all_reduce(flat, group=group)
        return flat.tolist()

    def micro_batches(self, stream, position, n_steps, rank_batch, micro_batch_size):
        """Yield this rank's micro-batches of the next `n_steps`, in order: (B, T + 1) int64, on the device.

        Rank r takes the r-th `rank_batch` sequences of every step, so all ranks together take what one would.
        """
        for step in range(n_steps):
            first = position + (step * self.world_size + self.rank) * rank_batch
            for i in range(first, first + rank_batch, micro_batch_size):
                yield to_device(stream.batch(i, micro_batch_size), self.device)


class Part:
    """Parameters whose gradients are added up together, and how far that is."""

    def __init__(self, parameters):
        self.parameters, self.missing = parameters, len(parameters)  # how many have no gradient of this micro-step yet
        self.halves, self.done = [], 0  # as of `add_by_halves`
        self.flat = self.work = None  # all of their gradients, and their sum over ranks on its way


class Gradients:
    """Adds gradients up over micro-steps and over ranks, one block of a model after another.

        gradients = Gradients(ranks, model, total)     # `model` has `blocks`
        for _ in range(total):
            model(...).backward()
        gradients.finish()                             # every .grad is the sum of all

    As soon as a backward pass is through with a block, its gradient is added to those of earlier passes. In the last
    pass it goes to the other ranks while the pass goes on; of the sums by halves over 4 ranks and more that is the
    first, and `finish` makes the others. On its way is one more copy of the gradients.
    """

    def __init__(self, ranks, model, total):
        self.ranks, self.total, self.ready = ranks, total, []
        parts = [list(block.parameters()) for block in model.blocks]
        in_blocks = {id(p) for part in parts for p in part}
        parts.append([p for p in model.parameters() if id(p) not in in_blocks])
        for part in map(Part, parts):
            for p in part.parameters:
                p.register_post_accumulate_grad_hook(functools.partial(self.arrived, part))

    def arrived(self, part, _):
        """The gradient of one of its parameters is there."""
        part.missing -= 1
        if part.missing:
            return
        part.missing, part.done = len(part.parameters), part.done + 1
        add_by_halves(part.parameters, part.halves, part.done, self.total)
        if part.done == self.total:
            self.ready.append(part)  # in an order that is the same on all ranks
            if self.ranks.groups:
                part.flat = torch.cat([p.grad.flatten() for p in part.parameters])
                part.work = dist.all_reduce(part.flat, group=self.ranks.groups[0], async_op=True)

    def finish(self):
        """Wait for the sums over ranks."""
        for part in self.ready:
            if self.ranks.groups:
                part.work.wait()
                for group in self.ranks.groups[1:]:
                    dist.all_reduce(part.flat, group=group)
                for p, summed in zip(
                    part.parameters, part.flat.split([p.numel() for p in part.parameters]), strict=True
                ):
                    p.grad.copy_(summed.view_as(p))
            part.done, part.flat, part.work = 0, None, None
        self.ready = []


def add_by_halves(parameters, halves, done, total):
    """Add the gradients of `total` micro-batches up as a sum of halves of halves, after the backward pass of each.

    So two ranks with half of the micro-batches each add the very numbers that one rank adds, in its order. `halves` (a
    list, empty at first) holds finished halves: a copy of the gradient for every factor of 2 in `total`. After the last
    of `done` = 1 .. total the whole sum is in `.grad`. An odd number is not halved, but added one by one.
    """
    odd = total // (total & -total)
    if done % odd == 0:
        groups = done // odd
        while groups % 2 == 0:
            torch._foreach_add_([p.grad for p in parameters], halves.pop())
            groups //= 2
        if done < total:
            halves.append([p.grad for p in parameters])
            for p in parameters:
                p.grad = None


@torch.no_grad()
def chunk_losses(model, val, device, rank=0, world_size=1, stop=lambda: False, shape=()):
    """Summed token loss of each chunk of `val` (data.ValSet): (n_chunks,) fp64, 0 where it is another rank's turn.

    Add over ranks, then over chunks, and divide by `val.n_targets`: the mean loss per token in nats. `stop()` is asked
    before every chunk; if it says so, the rest stays 0. Of a model that gives several losses `shape` is their shape.
    """
    losses = torch.zeros(val.n_chunks, *shape, dtype=torch.float64)
    for i in range(rank, val.n_chunks, world_size):
        if stop():
            break
        x, y = val.chunk(i)
        losses[i] = model(x.to(device), y.to(device))
    return losses
