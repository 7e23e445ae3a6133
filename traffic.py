"""What GPUs send each other, on paper, and the share of a step's time that it takes.

    python scaling.py traffic configs/8b.py --gpus=8,16,48,144 --network=25e9
    python scaling.py traffic configs/1b.py --exact_sums=False     # any option of train.py

S = 4 N bytes, fp32 numbers for N parameters. In a ring of n GPUs each sends (n - 1) / n S for an all-gather or a
reduce-scatter, and twice that for an all-reduce; there are as many rings as GPUs in a node, so that every link between
nodes carries its share. Exact sums are of pairs of GPUs, of pairs of pairs and so on, near ones first: for an
all-reduce each sends log2(n) S, for a reduce-scatter S / 2 + S / 4 + ...

    replicate   one all-reduce of S per step
    shard       per micro-step an all-gather of S forward and of the blocks again backward, and a reduce-scatter of S;
                per step S / n for the norm of the gradient
    shard:8     the same within groups of 8 GPUs, and one all-reduce of S / 8 per step over the groups

With --gather_dtype=bfloat16 all-gathers send 2 bytes for each weight of a matrix, but for one that embeds.

Blocks can travel while others are computed: gathers forward, gathers and reduce-scatter backward, and in the last
backward pass the first sum of an all-reduce. Embedding, head and last norm, and later sums of pairs, are waited for.
With overlap only what does not fit beside the computing counts.

Transfers take the time of the slower link. Latency is not counted: many small messages take longer than this says.
"""

import dataclasses
from typing import NamedTuple

from config import number, typed
from memory import add_flags, block_params, divisors, micro_steps, multiplied_params, read, root_params
from parallel import check_gathers, odd_part, shard_size_of
from scaling import num_params, train_flops
from tables import print_table


class Sent(NamedTuple):
    """What a GPU sends, within its node and to others, and the seconds that takes."""

    node_bytes: float = 0
    network_bytes: float = 0
    messages: float = 0
    seconds: float = 0

    def __add__(self, other):
        return Sent(*(a + b for a, b in zip(self, other, strict=True)))

    def __mul__(self, times):
        return Sent(*(a * times for a in self))


class Links(NamedTuple):
    per_node: int  # GPUs in a node
    nvlink: float  # bytes per second and GPU, in each direction, within a node
    network: float  # and between nodes

    def send(self, size, beyond, messages):
        """`size` bytes from each GPU, of which a share `beyond` leaves the node while the rest stays there."""
        inside, outside = size * (1 - beyond), size * beyond
        return Sent(inside, outside, messages, max(inside / self.nvlink, outside / self.network))


def ring(links, size, n, times=1, stride=1):
    """An all-gather, a reduce-scatter or, `times` 2, an all-reduce of `size` bytes over n GPUs, `stride` apart."""
    in_node = max(1, links.per_node // stride)
    return links.send(times * size * (n - 1) / n, 1 / in_node if n > in_node else 0, times * (n - 1))


def in_pairs(links, size, n, scatter, stride=1):
    """[Sent of each sum] of pairs, of pairs of pairs, ...: of all, or with `scatter` of the half that is kept."""
    sums = []
    for i in range(n.bit_length() - 1):
        part = size / 2 ** (i + 1) if scatter else size
        sums.append(links.send(part, float(stride * 2**i >= links.per_node), 1 if scatter else 2))
    return sums


def all_reduce(links, size, n, exact, stride=1):
    """[Sent of each of the sums that follow each other]."""
    if n == 1:
        return [Sent()]
    if exact and n & (n - 1) == 0 and n > 2:
        return in_pairs(links, size, n, scatter=False, stride=stride)
    return [ring(links, size, n, times=2, stride=stride)]


def reduce_scatter(links, size, n, exact):
    if exact and n & (n - 1) == 0 and n > 2:
        return sum(in_pairs(links, size, n, scatter=True), Sent())
    return ring(links, size, n)


def together(sent, times):
    """`times` transfers that have these bytes in all."""
    return sent._replace(messages=sent.messages * times)


def traffic(config, shape, gpus, links, speed):
    """(Sent, seconds of computing, seconds waited for with overlap) per step and GPU, at `speed` FLOP/s of a GPU."""
    c, shards, total = config, shard_size_of(config.parallel, gpus), micro_steps(config, gpus)
    micro_s = train_flops(shape) * c.micro_batch_size / speed  # a third of it forward
    L, root, blocks = shape.n_layer, 4 * root_params(shape), 4 * shape.n_layer * block_params(shape)
    groups = gpus // shards

    def reduced(size, parts):
        return [together(sent, parts) for sent in all_reduce(links, size / shards, groups, c.exact_sums, shards)]

    of_blocks, of_root = reduced(blocks, L), reduced(root, 1)
    first, later = of_blocks[0], sum((*of_blocks[1:], *of_root), Sent())
    if shards == 1:
        waited = later.seconds + max(0, first.seconds - 2 / 3 * micro_s)
        return first + later, total * micro_s, waited
    halved, halved_root = multiplied_params(shape) if c.gather_dtype == "bfloat16" else (0, 0)
    gather = together(ring(links, blocks - 2 * L * halved, shards), L)
    gather_root = ring(links, root - 2 * halved_root, shards)
    scatter, scatter_root = (
        together(reduce_scatter(links, size, shards, c.exact_sums), n) for size, n in ((blocks, L), (root, 1))
    )
    sums = total // odd_part(total)  # micro-steps with a reduce-scatter
    beyond = max(0, 1 - links.per_node / shards)
    norms = links.send((blocks + root) / shards, beyond, 7 * L + 3)  # a rank's rows of each tensor go to one rank
    sent = (gather * 2 + gather_root) * total + (scatter + scatter_root) * sums + first + later + norms
    waited = total * (max(0, gather.seconds - micro_s / 3) + gather_root.seconds)
    waited += sums * scatter_root.seconds + later.seconds + norms.seconds
    for last, scatters in ((False, False),) * (total - sums) + ((False, True),) * (sums - 1) + ((True, True),):
        backward = gather.seconds + scatters * scatter.seconds + last * first.seconds
        waited += max(0, backward - 2 / 3 * micro_s)
    return sent, total * micro_s, waited


def traffic_command(args, rest) -> dict:
    """What GPUs send each other, by their number, and the share of a step's time that it takes."""
    config, shape, peak = read(args, rest)
    check_gathers(config.gather_dtype, "shard", config.dtype != "float32")
    links, rows, left_out = Links(args.per_node, args.nvlink, args.network), [], []
    for kind in ("strong", "weak"):
        for gpus in args.gpus:
            c = with_batch(config, gpus, kind)
            if c is None:
                left_out.append(gpus)
                continue
            ways = ["replicate", "shard", f"shard:{args.per_node}"][: 1 + (gpus > 1) + (gpus > args.per_node)]
            for parallel in ways:
                c = dataclasses.replace(c, parallel=parallel)
                if parallel.startswith("shard:") and gpus % args.per_node:
                    continue
                sent, computing, waited = traffic(c, shape, gpus, links, peak * args.mfu)
                rows.append({
                    "scaling": kind, "gpus": gpus, "parallel": parallel, "tokens": c.global_batch_size * c.seq_len,
                    "sequences": c.micro_batch_size, "micro_steps": micro_steps(c, gpus), **sent._asdict(),
                    "computing_s": computing, "waited_s": waited, "share": sent.seconds / (sent.seconds + computing),
                    "share_overlapped": waited / (waited + computing),
                })  # fmt: skip
    return {
        "name": config.name, "params": num_params(shape), "vocab_size": shape.vocab_size, "gpu": args.gpu,
        "mfu": args.mfu, "exact_sums": config.exact_sums, "gather_dtype": config.gather_dtype,
        "global_batch_size": config.global_batch_size, "seq_len": config.seq_len, **links._asdict(),
        "not_strong": left_out, "traffic": rows,
    }  # fmt: skip


def with_batch(config, gpus, scaling):
    """The config on so many GPUs: the same step shared out, None if that cannot be; or a micro-batch for each."""
    if scaling == "weak":
        return dataclasses.replace(config, global_batch_size=gpus * config.micro_batch_size)
    if config.global_batch_size % gpus:
        return None
    fits = [size for size in divisors(config.global_batch_size // gpus) if size <= config.micro_batch_size]
    return dataclasses.replace(config, micro_batch_size=fits[-1])


def print_traffic(out):
    print(
        f"{out['name']}: {out['params']:,} parameters with {out['vocab_size']:,} words; {out['gpu']} at an MFU of "
        f"{out['mfu']:g}, an assumption\nper GPU {out['nvlink'] / 1e9:g} GB/s within a node of {out['per_node']}, "
        f"{out['network'] / 1e9:g} GB/s between nodes; exact_sums={out['exact_sums']}, "
        f"gather_dtype={out['gather_dtype']}"
    )
    limit = f"at most {out['global_batch_size']} GPUs, a sequence each"
    titles = {
        "strong": f"Strong scaling: {out['global_batch_size']} sequences of {out['seq_len']} tokens per step; {limit}",
        "weak": "Weak scaling: a micro-batch per GPU and step, so the step grows with the GPUs",
    }
    for scaling, title in titles.items():
        print(f"\n{title}. Per GPU and step:")
        rows = [row for row in out["traffic"] if row["scaling"] == scaling]
        print_table([
            {
                "gpus": str(row["gpus"]), "parallel": row["parallel"], "Mtokens": f"{row['tokens'] / 1e6:.2f}",
                "sequences": f"{row['micro_steps']} x {row['sequences']}",
                "GB in node": f"{row['node_bytes'] / 1e9:.2f}",
                "GB between": f"{row['network_bytes'] / 1e9:.2f}", "messages": f"{row['messages']:,.0f}",
                "s computing": f"{row['computing_s']:.3f}", "s sending": f"{row['seconds']:.3f}",
                "share": f"{row['share']:.1%}", "overlapped": f"{row['share_overlapped']:.1%}",
            }
            for row in rows
        ])  # fmt: skip
        if scaling == "strong" and out["not_strong"]:
            numbers = ", ".join(map(str, out["not_strong"]))
            print(f"left out: {numbers}, as {out['global_batch_size']} sequences cannot be shared out alike")


def add_command(commands):
    parser = commands.add_parser("traffic", help="what GPUs send each other, and the share of time it takes")
    add_flags(parser)
    numbers = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
    parser.add_argument("--gpus", type=typed(tuple[int, ...], least=1), default=numbers, help="as 8,16,48")
    parser.add_argument("--nvlink", type=number(above=0), default=450e9, help="bytes/s per GPU in a node; 450e9")
    parser.add_argument("--network", type=number(above=0), default=50e9, help="bytes/s per GPU between nodes; 50e9")
    return parser
