"""Ranks, and sums over them: all that knows of more than one process.

    ranks = Ranks("auto")                                    # as torchrun says, or the only one
    with ranks.connected():
        loss, count = ranks.sum(loss, count)                 # over all ranks
        model, weights = build(ranks, shape, seed)           # two names of one model, unless it is in shards
        gradients = Gradients(ranks, model, weights, total)
        for _ in gradients.micro_steps():                    # `total` backward passes
            model(...).backward()
        norm = gradients.clip(1.0)                           # of the sum over all passes and all ranks

Gradients are summed by halves, within a rank (`add_by_halves`) and over ranks (`Ranks.connected`), so 2, 4, 8 and more
ranks add the very numbers that one rank adds, whether each has the whole model ("replicate"), its rows of every
parameter ("shard"), or the model is in shards within groups of N ranks ("shard:N"). Other numbers of ranks add in the
library's order: such runs repeat themselves, and have bits of their own.
"""

import contextlib
import functools
import os
import signal
import threading
import time

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401  imported later, its defaults would keep the group and its threads

import checkpoint
from config import Mistake
from devices import choose_device, to_device
from model import Llama

WAIT_S = 5  # for other ranks, before it is told
DRAIN_S = 0.1  # for gloo's threads to let go of the last tensors

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


def shard_size_of(parallel, world_size):
    """How many ranks share a model: 1 for "replicate", all for "shard", N for "shard:N"; Mistake if that cannot be."""
    if parallel == "replicate":
        return 1
    kind, _, size = parallel.partition(":")
    if kind != "shard" or not (size.isdigit() or parallel == "shard"):
        raise Mistake(f"parallel={parallel!r}: expected replicate, shard, or shard:8 for shards within groups of 8")
    size = int(size or world_size)
    if size < 1 or world_size % size:
        raise Mistake(f"parallel={parallel!r}: groups of {size} ranks cannot be made of {world_size}")
    return size


def check_gathers(gather_dtype, parallel, bf16):
    """Raise Mistake unless weights that are gathered in `gather_dtype` are those that the run computes with."""
    if gather_dtype == "float32":
        return
    if parallel == "replicate":
        raise Mistake(f"gather_dtype={gather_dtype!r}: a model is gathered only from shards: add --parallel=shard")
    if not bf16:
        raise Mistake(f"gather_dtype={gather_dtype!r}: this run computes in float32: add --dtype=bfloat16")


class Ranks:
    """This rank among all of them: `rank`, `world_size`, `device`; `is_main` on the one that prints and writes.

    It keeps shard `shard_rank` of `shard_size` of copy `replica` of the model; a copy's shards are on neighbours. With
    `exact_sums` 2, 4, 8, ... ranks add as one rank does; without, as fast as the library can.
    """

    def __init__(self, device, exact_sums=True, parallel="replicate"):
        self.exact_sums = exact_sums
        self.rank, self.world_size, local_rank = read_launcher(os.environ)
        self.is_main = self.rank == 0
        self.shard_size = shard_size_of(parallel, self.world_size)
        self.replica, self.shard_rank = divmod(self.rank, self.shard_size)
        self.in_shard, self.across = [], []  # groups: sums in one after another are over shards, and over copies
        self.shard_mesh = None
        self.device = choose_device(device, local_rank, in_shards=self.shard_size > 1)
        self.sum_dtype = torch.float32 if self.device.type == "mps" else torch.float64  # of sums; mps has no fp64

    @contextlib.contextmanager
    def connected(self):
        """A context in which sums can be made: the other ranks are there."""
        if self.world_size == 1:
            yield
            return
        with waiting(f"rank {self.rank} waits for the others of {self.world_size} ranks"):
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        try:
            self.make_groups()
            yield
        finally:
            self.in_shard, self.across, self.shard_mesh = [], [], None  # with the last name of a group its threads end
            dist.destroy_process_group()
            time.sleep(DRAIN_S)  # torch's shards keep theirs; one that drops a tensor while Python ends aborts it all

    def make_groups(self):
        """Groups by halves: a sum within one after another adds pairs of ranks, pairs of pairs, and so on.

        So a power of 2 of ranks adds what `add_by_halves` does on one rank, in its order. Another number is one group:
        the sum of the library, in an order of its own.
        """

        def factors(n):
            by_halves = self.exact_sums and n & (n - 1) == 0
            return [2] * (n.bit_length() - 1) if by_halves else [n]

        replicas = self.world_size // self.shard_size
        sizes = factors(replicas) + factors(self.shard_size)
        mesh = dist.init_device_mesh(self.device.type, tuple(sizes))  # the last dimension: neighbours
        groups = [mesh.get_group(dimension) for dimension in reversed(range(mesh.ndim))]
        n_in_shard = len(factors(self.shard_size))
        self.in_shard, self.across = groups[:n_in_shard], groups[n_in_shard:]
        if self.shard_size > 1:
            names = ("replicas", "shards")
            pairs = dist.init_device_mesh(self.device.type, (replicas, self.shard_size), mesh_dim_names=names)
            self.shard_mesh = pairs["shards"]

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
        for group in (*self.in_shard, *self.across):
            dist.all_reduce(flat, group=group)
        return flat.tolist()

    def shards(self):
        """How the model lies on the ranks, for people; nothing if each has all of it."""
        return f", each with 1/{self.shard_size} of the model" if self.shard_size > 1 else ""

    def told(self, signals):
        """Whether this rank got signals; of a model in shards whether any did, as all ranks have to know at once."""
        return bool(signals) if self.shard_size == 1 else self.sum(len(signals))[0] > 0

    def micro_batches(self, stream, position, n_steps, rank_batch, micro_batch_size):
        """Yield this rank's micro-batches of the next `n_steps`, in order: (B, T + 1) int64, on the device.

        All ranks together take what one would. Each copy of the model takes its share of a step, in one piece; its
        shards take turns, as they add up first: one micro-batch each, or of a number without halves all.
        """
        total = rank_batch // micro_batch_size
        at_once = odd_part(total) if self.shard_size > 1 else total
        for step in range(n_steps):
            first = (step * self.world_size + self.replica * self.shard_size) * total  # of this copy
            for i in range(total):
                turn, within = divmod(i, at_once)
                number = first + (turn * self.shard_size + self.shard_rank) * at_once + within
                yield to_device(stream.batch(position + number * micro_batch_size, micro_batch_size), self.device)


def build(ranks, shape, seed, gather_dtype="float32"):
    """(model, weights) on the device: what computes, and what is kept of it here, which is all unless in shards."""
    if ranks.shard_size > 1:
        from sharding import shard  # FSDP2 takes half a second to import

        return shard(shape, seed, ranks, gather_dtype)
    model = Llama(shape, seed).to(ranks.device)
    return model, model


class Part:
    """Parameters whose gradients are added up together, and how far that is."""

    def __init__(self, parameters):
        self.parameters, self.missing = parameters, len(parameters)  # how many have no gradient of this micro-step yet
        self.halves, self.done = [], 0  # as of `add_by_halves`
        self.flat = self.work = None  # all of their gradients, and their sum over ranks on its way


class Gradients:
    """Adds gradients up over micro-steps and over ranks, one block of a model after another.

    model, weights   as of `build`: the sums are in the gradients of `weights`
    total            micro-steps in a step of this rank

    As soon as a backward pass is through with a block, its gradient is added to those of earlier passes. In the last
    pass it goes to the other ranks while the pass goes on; of the sums by halves over 4 ranks and more that is the
    first, and the others come at the end. On its way is one more copy of the gradients.

    The shards of a model are summed after every pass: a rank keeps its rows of the gradient only, and as many more
    copies of these as `total` has factors of 2. Of a `total` that has others, too, that many passes are added up before
    they are summed, and the whole gradient is kept meanwhile: better a power of 2.
    """

    def __init__(self, ranks, model, weights, total):
        self.ranks, self.model, self.total, self.ready = ranks, model, total, []
        self.in_shards = model is not weights
        self.at_once = odd_part(total) if self.in_shards else 1  # passes before a sum over shards
        self.parameters, self.lengths = list(weights.parameters()), [len(p) for p in model.parameters()]
        own = dict(zip(model.parameters(), self.parameters, strict=True))
        parts = [list(block.parameters()) for block in model.blocks]
        in_blocks = {p for part in parts for p in part}
        parts.append([p for p in model.parameters() if p not in in_blocks])
        for computed in parts:
            part = Part([own[p] for p in computed])
            for p in computed:
                p.register_post_accumulate_grad_hook(functools.partial(self.arrived, part, own[p]))

    def micro_steps(self):
        """Yield before every micro-step; at the end every .grad of the weights is the sum of all."""
        for i in range(self.total):
            if self.in_shards:
                self.model.set_requires_gradient_sync((i + 1) % self.at_once == 0)
            yield
        self.finish()

    def arrived(self, part, own, p):
        """The gradient of one of its parameters is there."""
        if own is not p:
            own.grad, p.grad = p.grad.to_local(), None
        part.missing -= 1
        if part.missing:
            return
        part.missing, part.done = len(part.parameters), part.done + 1
        total = self.total // self.at_once
        add_by_halves(part.parameters, part.halves, part.done, total)
        if part.done == total:
            self.ready.append(part)  # in an order that is the same on all ranks
            if self.ranks.across:
                part.flat = torch.cat([p.grad.flatten() for p in part.parameters])
                part.work = dist.all_reduce(part.flat, group=self.ranks.across[0], async_op=True)

    def finish(self):
        """Wait for the sums over ranks."""
        for part in self.ready:
            if self.ranks.across:
                part.work.wait()
                for group in self.ranks.across[1:]:
                    dist.all_reduce(part.flat, group=group)
                for p, summed in zip(
                    part.parameters, part.flat.split([p.numel() for p in part.parameters]), strict=True
                ):
                    p.grad.copy_(summed.view_as(p))
            part.done, part.flat, part.work = 0, None, None
        self.ready = []

    def clip(self, most):
        """Scale the gradients so that the norm of all is at most `most`; return what it was, the same on all ranks."""
        if not self.in_shards:
            return torch.nn.utils.clip_grad_norm_(self.parameters, most)
        from sharding import whole_norms

        gradients = [p.grad for p in self.parameters]
        norm = torch.linalg.vector_norm(whole_norms(gradients, self.lengths, self.ranks))
        torch._foreach_mul_(gradients, torch.clamp(most / (norm + 1e-6), max=1.0))  # as clip_grad_norm_ does
        return norm


def odd_part(n):
    """What is left of n > 0 without its factors of 2."""
    return n // (n & -n)


def add_by_halves(parameters, halves, done, total):
    """Add the gradients of `total` micro-batches up as a sum of halves of halves, after the backward pass of each.

    So two ranks with half of the micro-batches each add the very numbers that one rank adds, in its order. `halves` (a
    list, empty at first) holds finished halves: a copy of the gradient for every factor of 2 in `total`. After the last
    of `done` = 1 .. total the whole sum is in `.grad`. An odd number is not halved, but added one by one.
    """
    odd = odd_part(total)
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
def chunk_losses(model, val, device, ranks=checkpoint.ALONE, stop=lambda: False, shape=()):
    """Summed token loss of each chunk of `val` (data.ValSet): (n_chunks,) fp64, 0 where it is another rank's turn.

    Add over ranks, then over chunks, and divide by `val.n_targets`: the mean loss per token in nats. `stop()` is asked
    before every chunk; if it says so, the rest stays 0. Of a model that gives several losses `shape` is their shape.
    The ranks of a model in shards compute together: they have to be told the same by `stop`, and who has no chunk left
    computes one for nothing.
    """
    losses = torch.zeros(val.n_chunks, *shape, dtype=torch.float64)
    for first in range(0, val.n_chunks, ranks.world_size):
        i = first + ranks.rank
        if stop():
            break
        if i < val.n_chunks or ranks.shard_size > 1:
            x, y = val.chunk(min(i, val.n_chunks - 1))
            loss = model(x.to(device), y.to(device))
            if i < val.n_chunks:
                losses[i] = loss
    if ranks.shard_size > 1:
        model.reshard()  # else a later pass would not see weights that are put in meanwhile
    return losses
