"""What a run takes on GPUs, on paper: memory per GPU, which options spare it, hours and cost.

    python scaling.py memory configs/8b.py --gpus=48 --gpu=H100 --price=2.5
    python scaling.py memory configs/8b.py --gpus=8 --parallel=shard --micro_batch_size=1    # any option of train.py

N parameters, L layers, C channels, Ck channels of keys, F of the MLP, H heads, V words; M tokens at a time; e bytes per
number in matrix multiplications, 2 in bf16. In bytes, on a GPU that keeps n of the N parameters:

    weights 4 n    gradients 4 n for each copy    optimizer as optim.py says    averages 4 n for each that is kept
    bf16 copies    2 for each weight of the matrices: autograd keeps them, or autocast does up to the end of the pass
    activations    M (16 C + 4 H + 8 + e (6 C + 3 Ck + 4 F)) per layer, in bf16 2 M C more, as gate and up cast their
                   input each; if checkpointed 4 M C, and one whole layer; M (8 C + e C + 20) beside the layers
    logits         12 M V: log-softmax and two gradients; by R rows 23 R V (in fp32 21) and e V C + 4 M C
    gathered       of shards: 4 for each weight of embedding, head and last norm, and of two blocks; with
                   gather_dtype=bfloat16 2 more for each weight of one block's matrices, as they travel

Copies of the gradient: one for each factor of 2 in the number of micro-steps, as halves are added up; one if there is
another factor, in shards the whole gradient; the sum over ranks on its way. In shards the gradients of embedding and
head are whole until they are summed. GPU hours are by the paper's FLOPs: what is computed again counts as nothing.

These are counts of what torch takes in eager mode on a CPU, and the tests compare them with torch's own; what shards
gather, and GPUs, are on paper only. On a GPU they should be an upper bound. Flash attention keeps q, k, v, output and
log-sum-exp, as on a CPU, but its output needs no copy (e C fewer); the kernel of RMSNorm keeps no normalized input (8 C
fewer); compiled blocks keep less again.
"""

import dataclasses
import functools

import torch
from torch import nn

import optim
from checkpoint import own_rows
from config import Mistake, load, mistakes, number, whole
from data import ValSet
from model import Llama, Shape
from parallel import check_gathers, odd_part, shard_size_of
from planner import vocabulary
from scaling import GPU_MEMORY, PEAK_FLOPS, look_up, num_params, train_flops
from tables import print_table
from train import Config

GIB = 2**30
MOMENTS = {
    "loss": "the last loss of a step, and the gradient of its logits",
    "backward": "its backward pass, as it begins with the blocks",
    "sums": "its end, when gradients are summed over GPUs",
    "evaluation": "of the averages, if there are any",
}

# ----------------------------------------------------------------------------------------------------------------------
# Memory


@functools.cache
def kept(shape, shards, optimizer):
    """(parameters, bytes of optimizer state) that the first of so many shards keeps, which has the most rows."""
    with torch.device("meta"):  # sizes without memory
        model, own = Llama(shape), {}
        for name, p in list(model.named_parameters(remove_duplicate=False)):
            start, end = own_rows(len(p), 0, shards)
            place, _, last = name.rpartition(".")
            own.setdefault(id(p), nn.Parameter(torch.empty(end - start, *p.shape[1:])))  # tied matrices are one
            setattr(model.get_submodule(place), last, own[id(p)])
    return sum(p.numel() for p in model.parameters()), optim.state_bytes(optimizer, model)


def block_params(shape):
    return num_params(dataclasses.replace(shape, n_layer=shape.n_layer + 1)) - num_params(shape)


def root_params(shape):
    """Of embedding, output head and last norm."""
    return num_params(shape) - shape.n_layer * block_params(shape)


def multiplied_params(shape):
    """(of a block, of the rest) weights that do nothing but multiply: not norms, nor what embeds."""
    return block_params(shape) - 2 * shape.n_embd, 0 if shape.tied else shape.padded_vocab * shape.n_embd


def layer_activations(shape, tokens, e):
    """Bytes that autograd keeps of a block: inputs of norms and matrices, q, k, v, what attention gave, the MLP."""
    s, C = shape, shape.n_embd
    Ck = s.kv_heads * s.head_size
    norms = s.qk_norm * 4 * (s.n_head + s.kv_heads)
    casts = 2 * C + s.qk_norm * 4 * (C + Ck) if e == 2 else 0
    return tokens * (16 * C + 4 * s.n_head + 8 + e * (6 * C + 3 * Ck + 4 * s.mlp_width) + norms + casts)


def activations(shape, tokens, e, checkpointed=False, rows=0):
    """Bytes that autograd keeps of a forward pass, but for logits and bf16 copies of weights."""
    layer = 4 * tokens * shape.n_embd if checkpointed else layer_activations(shape, tokens, e)
    last = tokens * (8 * shape.n_embd + 4 + (0 if rows else e * shape.n_embd + 8))  # the norm; input and targets
    return 8 * tokens + shape.n_layer * layer + last


def logits_bytes(shape, tokens, e, rows=0, z_loss=False):
    """(bytes that autograd keeps of the logits, bytes at the most) of all logits, or of so many rows at a time."""
    V, C = shape.padded_vocab, shape.n_embd
    if rows:
        return 0, min(rows, tokens) * V * (23 if e == 2 else 21) + e * V * C + 4 * tokens * C
    saved = (8 if z_loss else 4) * tokens * V
    return saved, saved + 8 * tokens * V


def average_copies(config):
    """How many averages are kept: windows that are complete and one that is filling; EMAs."""
    return (config.window_keep + 1) * bool(config.window_horizon) + len(config.ema_decay) + len(config.ema_half_life)


def micro_steps(config, gpus):
    if config.global_batch_size % (gpus * config.micro_batch_size):
        n = config.global_batch_size
        raise Mistake(
            f"--gpus={gpus}: global_batch_size={n} is no multiple of {gpus} x micro_batch_size="
            f"{config.micro_batch_size}; with --micro_batch_size=1 there can be {', '.join(map(str, divisors(n)))} GPUs"
        )
    return config.global_batch_size // (gpus * config.micro_batch_size)


def divisors(n):
    return [i for i in range(1, n + 1) if n % i == 0]


def gradient_bytes(config, shape, gpus, own):
    """(as the last backward pass begins, at its end) of a GPU that keeps `own` parameters, see parallel.Gradients."""
    shards, total = shard_size_of(config.parallel, gpus), micro_steps(config, gpus)
    odd = odd_part(total)
    in_turn = total // odd if shards > 1 else total  # passes whose gradients are halves of halves
    halves = (in_turn & -in_turn).bit_length() - 1
    one_by_one = 4 * (num_params(shape) if shards > 1 else own) if odd > 1 else 0  # in shards the whole gradient
    of_output = 4 * shape.padded_vocab * shape.n_embd  # comes with the loss
    return 4 * own * halves + one_by_one + of_output, 4 * own * (1 + (gpus > shards))  # and what is being summed


def memory(config, shape, gpus):
    """{part: bytes per GPU at each of MOMENTS}; of GPUs in a group the first, which keeps the most."""
    c, e = config, 4 if config.dtype == "float32" else 2
    shards = shard_size_of(c.parallel, gpus)
    own, state = kept(shape, shards, c.optimizer)
    tokens, rows = c.micro_batch_size * c.seq_len, c.loss_rows or 0
    root, block, head = root_params(shape), block_params(shape), shape.padded_vocab * shape.n_embd
    whole_layer, again = layer_activations(shape, tokens, e), c.checkpoint_activations

    begun, done = gradient_bytes(c, shape, gpus, own)
    by_halves = c.exact_sums and shards & (shards - 1) == 0 and shards > 2
    sent = 0 if shards == 1 else 12 if by_halves else 8  # per weight whose gradient is whole: it, buffers of its sum

    # bf16 copies of weights, of all blocks or of one
    per_weight = 2 if e == 2 else 0
    in_loss = 1 if again and c.compile is not False else shape.n_layer  # autocast keeps those of eager blocks
    in_backward = 1 if again else shape.n_layer
    in_evaluation = shape.n_layer if c.compile is False else 1
    in_blocks = whole_layer + tokens * (e * shape.mlp_width + 8 * shape.n_embd)  # with gradients on their way

    saved = activations(shape, tokens, e, again, rows)
    averages = 4 * own * average_copies(c)
    swapped = 8 * own if averages or optim.OPTIMIZERS[c.optimizer].final else 0  # the average; weights set aside
    gathered = 4 * (root + 2 * block) if shards > 1 else 0
    if shards > 1 and c.gather_dtype == "bfloat16":
        gathered += 2 * multiplied_params(shape)[0]
    chunk = max(1, ValSet.CHUNK_TOKENS // c.seq_len) * c.seq_len
    forward = logits_bytes(shape, chunk, e, rows)[1] if rows else (8 + e) * chunk * shape.padded_vocab
    parts = {
        "weights": (4 * own, 4 * own, 4 * own, 4 * own + swapped),
        "bf16 copies": [per_weight * (block * n + head) for n in (in_loss, in_backward, 1, in_evaluation)],
        "gradients": (begun, begun, done, 0),
        "optimizer": (state,) * 4,
        "averages": (averages if c.averages_on == "device" else 0,) * 4,
        "activations": (
            saved, saved + in_blocks - (not again) * whole_layer, in_blocks, layer_activations(shape, chunk, e),
        ),
        "logits": (logits_bytes(shape, tokens, e, rows, c.z_loss > 0)[1], 0, 0, forward),
        "gathered": (gathered, gathered + sent * block, sent * root, gathered),
    }  # fmt: skip
    return {name: dict(zip(MOMENTS, values, strict=True)) for name, values in parts.items()}


def most(parts):
    """Bytes at the moment that takes the most."""
    return max(sum(part[moment] for part in parts.values()) for moment in MOMENTS)


def largest_micro_batch(config, shape, gpus, room):
    """The largest that fits into `room` bytes and divides a GPU's share of the step; 0 if none does."""
    for size in reversed(divisors(config.global_batch_size // gpus)):
        if most(memory(dataclasses.replace(config, micro_batch_size=size), shape, gpus)) <= room:
            return size
    return 0


VARIED = ("parallel", "averages_on", "checkpoint_activations", "loss_rows")


def variants(config, gpus, per_node):
    """{option: value} of all ways to spare memory, for this config."""
    ways = ["replicate"] + ["shard"] * (gpus > 1)
    if per_node < gpus and gpus % per_node == 0:
        ways.append(f"shard:{per_node}")
    if optim.OPTIMIZERS[config.optimizer].whole:
        ways = ["replicate"]
    places = ("device", "cpu") if average_copies(config) else (config.averages_on,)
    for parallel in ways:
        for place in places:
            for again in (False, True):
                for rows in (0, config.loss_rows or 512):
                    yield dict(zip(VARIED, (parallel, place, again, rows), strict=True))


def memory_command(args, rest) -> dict:
    """Memory per GPU of a config, what its options change, and what the run costs."""
    config, shape, peak = read(args, rest)
    check_gathers(config.gather_dtype, config.parallel, config.dtype != "float32")
    with mistakes():
        optim.check(config.optimizer, {}, in_shards=shard_size_of(config.parallel, args.gpus) > 1)
    gpus, size = args.gpus, args.gpu_memory or look_up(GPU_MEMORY, args.gpu)
    if size is None:
        raise Mistake(f"--gpu={args.gpu}: its memory is not known; give --gpu_memory, in GiB")
    room = (size - args.reserve) * GIB
    parts = memory(config, shape, gpus)
    rows = []
    for options in variants(config, gpus, args.per_node):
        other = dataclasses.replace(config, **options)
        need = most(memory(other, shape, gpus))
        largest = largest_micro_batch(other, shape, gpus, room)
        rows.append(options | {"bytes": need, "fits": need <= room, "largest_micro_batch": largest})
    hours = config.total_steps * config.global_batch_size * train_flops(shape) / (peak * args.mfu * 3600)
    return {
        "config": {name: getattr(config, name) for name in SHOWN}, "params": num_params(shape),
        "vocab_size": shape.vocab_size, "gpus": gpus, "micro_steps": micro_steps(config, gpus), "gpu": args.gpu,
        "gpu_memory": size * GIB, "reserve": args.reserve * GIB, "parts": parts, "bytes": most(parts),
        "fits": most(parts) <= room, "largest_micro_batch": largest_micro_batch(config, shape, gpus, room),
        "averages_in_cpu_memory": 4 * kept(shape, shard_size_of(config.parallel, gpus), config.optimizer)[0]
        * average_copies(config) * (config.averages_on == "cpu"),
        "options": rows, "mfu": args.mfu, "gpu_hours": hours, "days": hours / gpus / 24,
        "dollars": hours * args.price if args.price else None,
    }  # fmt: skip


SHOWN = (
    "name", "parallel", "micro_batch_size", "global_batch_size", "seq_len", "total_steps", "checkpoint_activations",
    "loss_rows", "dtype", "compile", "averages_on", "optimizer", "exact_sums",
    "gather_dtype",
)  # fmt: skip


def print_memory(out):
    c, gib = out["config"], lambda value: f"{value / GIB:.2f}"
    print(
        f"{c['name']}: {out['params']:,} parameters with {out['vocab_size']:,} words, on {out['gpus']} x {out['gpu']}, "
        f"{c['parallel']}\nstep: {c['global_batch_size']} sequences x {c['seq_len']} tokens, {out['micro_steps']} x "
        f"{c['micro_batch_size']} sequences per GPU\n\nGiB per GPU:"
    )
    rows = [{"part": name} | {m: gib(part[m]) for m in MOMENTS} for name, part in out["parts"].items()]
    total = {m: gib(sum(part[m] for part in out["parts"].values())) for m in MOMENTS}
    print_table([*rows, {"part": "total"} | total])
    print(*(f"{name}: {what}" for name, what in MOMENTS.items()), sep="\n")
    size, reserve = out["gpu_memory"] / GIB, out["reserve"] / GIB
    verdict = "fits" if out["fits"] else "does not fit"
    print(
        f"{gib(out['bytes'])} {verdict} in {size:g} GiB, of which {reserve:g} are reserved for CUDA, NCCL and gaps; "
        f"largest micro-batch: {out['largest_micro_batch'] or 'none'}"
    )
    if out["averages_in_cpu_memory"]:
        print(f"averages: {gib(out['averages_in_cpu_memory'])} GiB of CPU memory per GPU")
    print("\nWith and without each option:")
    shown = []
    for row in out["options"]:
        words = {
            "GiB": gib(row["bytes"]),
            "fits": "yes" if row["fits"] else "no",
            "loss_rows": row["loss_rows"] or "all",
        }
        largest = {"largest micro_batch_size": row["largest_micro_batch"] or "none"}
        shown.append({name: value for name, value in row.items() if name in VARIED} | words | largest)
    print_table(shown)
    tokens = c["total_steps"] * c["global_batch_size"] * c["seq_len"]
    cost = f", {out['dollars']:,.0f} dollars" if out["dollars"] else ""
    print(
        f"\n{c['total_steps']:,} steps = {tokens / 1e9:,.2f}B tokens: {out['gpu_hours']:,.0f} GPU hours at an MFU of "
        f"{out['mfu']:g}, an assumption, so {out['days']:,.1f} days{cost}"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def read(args, rest):
    """(config, shape, peak FLOP/s) of a command line, of which `rest` are options of train.py."""
    if unknown := [arg for arg in rest if not arg.startswith("--")]:
        raise Mistake(f"{unknown[0]}: give one config, and options as --key=value")
    config = load(Config, [args.config, *rest])
    peak = look_up(PEAK_FLOPS, args.gpu)
    if peak is None:
        raise Mistake(f"--gpu={args.gpu} is not known; known: {', '.join(PEAK_FLOPS)}")
    try:
        words = args.vocab_size or vocabulary(config.data_dir, config.dataset)
    except Mistake as error:
        raise Mistake(f"{error}; or give --vocab_size") from error
    with mistakes():
        return config, Shape.of(config, words), peak


def add_command(commands):
    parser = commands.add_parser("memory", help="memory per GPU, options that spare it, hours and cost")
    add_flags(parser)
    parser.add_argument("--gpus", type=whole(least=1), default=1, help="how many; default 1")
    parser.add_argument("--gpu_memory", type=number(above=0), help="GiB of a GPU, instead of the table's")
    parser.add_argument("--reserve", type=number(least=0), default=6, help="GiB left to CUDA, NCCL, gaps; default 6")
    parser.add_argument("--price", type=number(above=0), help="dollars per GPU hour")
    return parser


def add_flags(parser):
    """Those of both commands."""
    parser.add_argument("config", help="a config, as configs/8b.py; options of train.py change it")
    parser.add_argument("--gpu", default="H100", help="a name such as H100, or torch.cuda.get_device_name()")
    parser.add_argument("--per_node", type=whole(least=2), default=8, help="GPUs in a node; default 8")
    parser.add_argument("--mfu", type=number(above=0, most=1), default=0.4, help="share of the peak; default 0.4")
    parser.add_argument("--vocab_size", type=whole(least=1), help="words, if not those of the config's dataset")
