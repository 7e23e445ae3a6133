"""A model in shards: every rank keeps some rows of each parameter, and has all rows of a block while it computes it.

    model, weights = shard(shape, seed, ranks)       # `ranks` are connected, and ranks.shard_size is above 1
    optimizer = ...(weights)                         # elementwise rules, on this rank's rows
    model(tokens, targets).backward()                # leaves in the gradients this rank's rows of the sum over shards

`model` computes; it is torch's FSDP2 (`fully_shard`), a block at a time, with embedding, norm and head as one more.
`weights` has the same names, and as parameters the rows that are here, plain tensors in the memory of the shards: it is
what optimizer, averages and checkpoints work on, as if it were a smaller model. Weights arrive in fp32, gradients are
summed in fp32, by halves over ranks, so all numbers are those of a model that is not in shards, to the bit. (On a CPU
only if what a rank keeps of a tensor is a multiple of 16 numbers: torch's AdamW rounds what is left over another way.)

Autocast rounds matrices to bf16 before it multiplies. With `gather_dtype` they may be rounded on the rank that keeps
them, so that half of the bytes travel; norms and the embedding's rows are added up as they are, and travel in fp32.
"""

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from checkpoint import own_rows
from config import Mistake
from model import Llama, rope_table

VECTOR = 16  # numbers that a CPU computes at once, at most

# FSDP2 says so of the loss, which is a part of two losses; nothing is done to it in place
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


@torch.no_grad()
def shard(shape, seed, ranks, gather_dtype="float32"):
    """(model, weights) of this shape, with the initial weights of `seed`; never more than one tensor is there whole.

    With the `gather_dtype` bfloat16 the model has to be called in autocast to that. Mistake for a sparse model.
    """
    if shape.density < 1:
        raise Mistake(f"density={shape.density}: sparse models are not made in shards; use --parallel=replicate")
    with torch.device("meta"):
        model, weights = Llama(shape), Llama(shape)
    multiplied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    multiplied.discard(id(model.embedding.weight))  # tied to the head
    left = {id(p): p for p in model.parameters()}
    for module in (*model.blocks, model):
        group = [left.pop(id(p)) for p in module.parameters() if id(p) in left]
        fully_shard(module, mesh=ranks.shard_mesh)
        module.set_gradient_divide_factor(1.0)  # sums, not means
        module.set_force_sum_reduction_for_comms(True)
        if len(ranks.in_shard) > 1:
            module.set_custom_reduce_scatter(SumByHalves(ranks.in_shard))
        if gather_dtype == "bfloat16":
            sizes = [-(-len(p) // ranks.shard_size) * p[0].numel() for p in group]
            module.set_custom_all_gather(GatherRounded(sizes, [id(p) in multiplied for p in group]))
    model.to_empty(device=ranks.device)
    for buffer, values in zip(
        (model.cos, model.sin), rope_table(shape.seq_len, shape.head_size, shape.rope_theta), strict=True
    ):
        buffer.copy_(values)
    model(torch.zeros(1, 1, dtype=torch.int64, device=ranks.device))  # the first pass settles where the shards lie
    model.reshard()

    def put(parameter, values):
        start, end = own_rows(len(values), ranks.shard_rank, ranks.shard_size)
        parameter.to_local().copy_(values[start:end])

    model.init_weights(seed, put)
    own = {}  # by identity: tied matrices are one
    for name, parameter in model.named_parameters(remove_duplicate=False):
        own.setdefault(id(parameter), torch.nn.Parameter(parameter.to_local()))
        place, _, last = name.rpartition(".")
        setattr(weights.get_submodule(place), last, own[id(parameter)])
    weights.cos, weights.sin = model.cos, model.sin
    odd = [f"{name} {tuple(p.shape)}" for name, p in weights.named_parameters() if p.numel() % VECTOR]
    if odd and ranks.is_main and ranks.device.type == "cpu":
        print(f"shards: {odd[0]} is no multiple of {VECTOR} numbers, so on a CPU bits are not those of one rank")
    return model, weights


class SumByHalves:
    """The sum over shards of which each rank keeps its part: of pairs of neighbours, then of pairs of pairs, and so on.

    As of torch's interface ReduceScatter. In the input, part after part, is what goes to the rank of that number.
    """

    def __init__(self, groups):
        self.groups = groups  # of two ranks each, neighbours first

    def allocate(self, size, *, dtype, device):
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        parts = input_tensor.view(2 ** len(self.groups), -1)  # (ranks, numbers)
        for pair in self.groups:
            pairs = torch.cat((parts[0::2], parts[1::2]))  # for the even rank of the pair, for the odd one
            parts = torch.empty_like(parts[0::2])
            dist.reduce_scatter_single(parts, pairs, group=pair)
        output_tensor.copy_(parts[0])


class GatherRounded:
    """The gather of all rows of some tensors, fp32, of which matrices travel in bf16.

    As of torch's interface AllGather. sizes: how many numbers of each tensor a rank keeps; rounded: whether it is one
    of the matrices. A message, of the type fp32, holds first what is not rounded, and then in each number two of bf16.
    """

    def __init__(self, sizes, rounded):
        self.sizes, self.rounded, self.starts, end = sizes, rounded, [0] * len(sizes), 0
        for i in sorted(range(len(sizes)), key=rounded.__getitem__):  # in halves of fp32 numbers
            self.starts[i] = end
            end += sizes[i] if rounded[i] else 2 * sizes[i]
        self.length = (end + 1) // 2

    def allocate(self, size, *, dtype, device):
        return torch.empty(*size, dtype=dtype, device=device)

    def places(self, messages):
        """Where in messages (..., length) the numbers of each tensor are."""
        halves = messages.view(torch.bfloat16)
        return [
            halves.narrow(-1, start, size) if rounded else messages.narrow(-1, start // 2, size)
            for start, size, rounded in zip(self.starts, self.sizes, self.rounded, strict=True)
        ]

    def __call__(self, output_tensor, input_tensor, group, async_op=False):
        message = input_tensor.new_empty(self.length)
        torch._foreach_copy_(self.places(message), input_tensor.split(self.sizes))
        messages = message.new_empty(len(output_tensor) // len(input_tensor), self.length)  # (ranks, length)
        dist.all_gather_single(messages.view(-1), message, group=group)
        output = output_tensor.view(len(messages), -1).split(self.sizes, dim=1)
        torch._foreach_copy_(output, self.places(messages))


def whole_norms(gradients, lengths, ranks):
    """Norms of whole tensors, (n,) fp32, from the rows of them that are here; `lengths` are their numbers of rows.

    Each is computed by one rank, which gathers its rows: so it is the norm of a tensor that is not in shards, to the
    bit, and every rank sends its rows once.
    """
    norms = torch.zeros(len(gradients), device=ranks.device)
    group = ranks.shard_mesh.get_group()
    for i, (rows, length) in enumerate(zip(gradients, lengths, strict=True)):
        owner = i % ranks.shard_size
        own = rows.new_zeros(-(-length // ranks.shard_size), *rows.shape[1:])  # later ranks may have fewer
        own[: len(rows)] = rows
        parts = [torch.empty_like(own) for _ in range(ranks.shard_size)] if owner == ranks.shard_rank else None
        dist.gather(own, parts, group=group, group_dst=owner)
        if parts:
            norms[i] = torch._foreach_norm([torch.cat(parts)[:length]])[0]
    dist.all_reduce(norms, group=group)  # of numbers of which all but one are 0
    return norms
