"""The paper's model: a Llama-style decoder with tied embeddings. RMSNorm, RoPE, SwiGLU, causal attention, no biases.

    shape = Shape(vocab_size=50257, seq_len=512, n_layer=12, n_head=12, n_embd=768)
    model = Llama(shape)
    logits = model(x)               # (B, T, V), V is the vocabulary padded to a multiple of 64
    loss = model(x, y) / y.numel()  # the summed token loss in fp32, here made a mean; targets of -1 are left out

Llama: Touvron et al. 2023. Sizes and initialization: Haegele et al., NeurIPS 2024, appendix A.1. Two options keep the
best learning rate while sizes change: `mup_base` over widths (muP, Yang et al. 2022, arXiv 2203.03466), `density` over
shares of weights that are not 0 (SuPar, Dey et al. 2024, arXiv 2405.15743). What they do here, optim.py completes.
The last four make models of others that export.py brings in.
"""

import dataclasses
import functools
import hashlib
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

INIT_STD = 0.02
ATTENTION_ROWS = 128  # queries at a time, where compiled for a CPU
LONGEST_BY_ROWS = 1024  # sequence with that: they take long to compile if there are many
LOSS_ROWS = 512  # of logits at a time: fewer make slower multiplications, more take more memory


def mlp_width(n_embd):
    """SwiGLU's hidden width: 8/3 n_embd, up to a multiple of 256."""
    return -(-int(8 / 3 * n_embd) // 256) * 256


@dataclasses.dataclass(frozen=True)
class Shape:
    """What makes two models alike but for their weights: an option that changes what a model computes is a field here.

    A checkpoint holds it, and all that builds a model or counts its parameters takes it. ValueError where it does not
    work out. New fields need a default, which is what older checkpoints have.
    """

    vocab_size: int  # words of the tokenizer
    seq_len: int  # longest sequence, in tokens
    n_layer: int  # blocks
    n_head: int  # attention heads
    n_embd: int  # channels
    n_kv_head: int | None = None  # heads of keys and values, shared by several heads of queries; none: as many
    tied: bool = True  # one matrix for embedding and output head
    qk_norm: bool = False  # RMSNorm of every head's queries and keys, without weights (Dehghani et al. 2023)
    mup_base: int | None = None  # muP: channels of the model with the standard parametrization; none: this one
    alpha_in: float = 1.0  # times the embedding's output
    alpha_out: float = 1.0  # times the logits
    density: float = 1.0  # share of the blocks' weights that are not 0, drawn once; see `off`
    supar: bool = True  # initial weights and lr are scaled for the density; False: they are those of a dense model
    n_inner: int | None = None  # channels within the MLP; none: as `mlp_width` says
    rope_theta: float = 10_000.0  # base of the rotation's wavelengths
    norm_eps: float = 1e-5  # of RMSNorm, added to the mean square
    vocab_multiple: int = 64  # of which the rows are a multiple, as matrix multiplications like it: 50257 -> 50304

    def __post_init__(self):
        if self.n_embd % self.n_head or self.head_size % 2:
            raise ValueError(
                f"n_embd={self.n_embd}, n_head={self.n_head}: the head size n_embd / n_head has to be an even number"
            )
        if self.kv_heads < 1 or self.n_head % self.kv_heads:
            raise ValueError(f"n_kv_head={self.n_kv_head} does not divide n_head={self.n_head}")
        if self.mup_base is not None and (self.mup_base > self.n_embd or self.mup_base % self.head_size):
            raise ValueError(
                f"mup_base={self.mup_base}: the base is narrower than n_embd={self.n_embd} or as wide, and its heads "
                f"are as large, so n_embd / n_head = {self.head_size} has to divide it: let n_head grow with n_embd"
            )
        if self.mup_base is not None and self.n_inner is not None:
            raise ValueError(
                f"n_inner={self.n_inner} with mup_base={self.mup_base}: nothing says how wide the base's MLP is, "
                "so leave one of them out"
            )

    @classmethod
    def of(cls, config, vocab_size):
        """The shape that the options of the same names give, for a dataset of `vocab_size` words."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "vocab_size"]
        return cls(vocab_size, **{name: getattr(config, name) for name in names})

    @property
    def head_size(self):
        return self.n_embd // self.n_head

    @property
    def kv_heads(self):
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def mlp_matrices(self):
        """SwiGLU's gate, up and down."""
        return 3

    @property
    def mlp_width(self):
        """Hidden width: 8/3 of the model's, three matrices for the price of two, up to a multiple of 256."""
        return mlp_width(self.n_embd) if self.n_inner is None else self.n_inner

    @property
    def width_ratio(self):
        """Channels over those of the base."""
        return 1.0 if self.mup_base is None else self.n_embd / self.mup_base

    @property
    def mlp_ratio(self):
        """The MLP's hidden width over that of the base: another ratio, as widths are rounded up."""
        return 1.0 if self.mup_base is None else self.mlp_width / mlp_width(self.mup_base)

    @property
    def on_ratio(self):
        """Weights of a matrix that are on, over those of the model for which lr was found."""
        return self.density if self.supar else 1.0

    @property
    def padded_vocab(self):
        """Rows of the embedding."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def to_record(self):
        """{field: value} to write down, without newer fields at their defaults: older code reads what it can build."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}


def off(name, rows, columns, density, seed):
    """Where a matrix of the blocks stays 0 for ever: (rows, columns) bool, each True with probability 1 - density.

    A hash of seed and name decides, so it is alike on all machines and needs no room in a checkpoint: fixed for ever.
    What is on at one density is on at every higher one. 10 million weights take 0.15 s.
    """
    drawn = hashlib.shake_128(f"{seed} {name}".encode()).digest(4 * rows * columns)
    uniform = torch.frombuffer(bytearray(drawn), dtype=torch.int32).double() / 2**32 + 0.5  # in [0, 1), exact
    return (uniform >= density).view(rows, columns)


def rope_table(seq_len, head_size, theta):
    """cos and sin of every position's rotation angles, (T, head_size / 2) each."""
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    """Rotate the pairs (i, i + half) of every head by its position's angles: x (B, H, T, head_size).

    The paper's runs pair neighbours (2i, 2i + 1) instead. That is the same model with the rows of the query and key
    weights in another order, and those are initialized alike; this order is the one of transformers' Llama.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def attention(q, k, v):
    """Causal attention of heads (B, H, T, head_size), of which k and v may have fewer, each for several of q.

    k and v may be of more tokens than q, which then is of the last ones.
    """
    gqa = q.shape[1] != k.shape[1]
    if q.shape[2] < k.shape[2]:
        past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=past, enable_gqa=gqa)
    if torch.compiler.is_compiling() and q.device.type == "cpu" and q.shape[2] <= LONGEST_BY_ROWS:
        return checkpoint(attention_by_rows, q, k, v, use_reentrant=False)  # no weights are kept for the backward pass
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)


def attention_by_rows(q, k, v):
    """The same, some queries at a time and the keys up to them: compiled for a CPU, it takes 0.4 to 0.7 of the time.

    In bf16 the scores are rounded, too, which the other does not do.
    """
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    outputs = []
    for start in range(0, q.shape[2], ATTENTION_ROWS):
        end = min(start + ATTENTION_ROWS, q.shape[2])
        future = torch.arange(end) > torch.arange(start, end)[:, None]
        scores = (q[:, :, start:end] @ k[:, :, :end].mT).float() * q.shape[-1] ** -0.5
        weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        outputs.append(weights.type_as(v) @ v[:, :, :end])
    return torch.cat(outputs, dim=2)


class Cache:
    """Keys and values of a block for the tokens that it has read, so that it reads on behind them: up to `size`."""

    def __init__(self, size):
        self.size, self.length, self.keys, self.values = size, 0, None, None

    def append(self, k, v):
        """Take those of the next tokens (B, Hkv, T, head_size); give those of all."""
        if self.keys is None:
            room = (*k.shape[:2], self.size, k.shape[3])
            self.keys, self.values = k.new_empty(room), v.new_empty(room)
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = k, v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_size = shape.n_head, shape.kv_heads, shape.head_size
        self.qk_norm, self.norm_eps = shape.qk_norm, shape.norm_eps
        self.qkv = nn.Linear(shape.n_embd, (shape.n_head + 2 * shape.kv_heads) * shape.head_size, bias=False)
        self.qkv.parts = tuple(heads * self.head_size for heads in (self.n_head, self.n_kv_head, self.n_kv_head))
        self.out = nn.Linear(shape.n_embd, shape.n_embd, bias=False)
        self.qkv.fan_in_ratio = self.out.fan_in_ratio = shape.width_ratio * shape.on_ratio

    def forward(self, x, cos, sin, cache=None):
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, H + 2 Hkv, T, C / H)
        q, k, v = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=1)
        if self.qk_norm:  # before or after the rotation is the same: it keeps lengths
            q, k = (F.rms_norm(x, (self.head_size,), eps=self.norm_eps) for x in (q, k))
        q, k = rotate(q, cos[:T], sin[:T]), rotate(k, cos[:T], sin[:T])
        if cache:
            k, v = cache.append(k, v)
        y = attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class SwiGLU(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate = nn.Linear(shape.n_embd, shape.mlp_width, bias=False)
        self.up = nn.Linear(shape.n_embd, shape.mlp_width, bias=False)
        self.down = nn.Linear(shape.mlp_width, shape.n_embd, bias=False)
        self.gate.fan_in_ratio = self.up.fan_in_ratio = shape.width_ratio * shape.on_ratio
        self.down.fan_in_ratio = shape.mlp_ratio * shape.on_ratio

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.n_embd, eps=shape.norm_eps)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.n_embd, eps=shape.norm_eps)
        self.mlp = SwiGLU(shape)

    def forward(self, x, cos, sin, cache=None):
        x = x + self.attention(self.attention_norm(x), cos, sin, cache)
        return x + self.mlp(self.mlp_norm(x))


def checkpointed(block, *inputs):
    """A block's output, of which nothing is kept for the backward pass but the inputs."""
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


class Llama(nn.Module):
    """A model of this shape; `seed` fixes the initial weights, on every device."""

    def __init__(self, shape, seed=0):
        super().__init__()
        self.embedding = nn.Embedding(shape.padded_vocab, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = nn.RMSNorm(shape.n_embd, eps=shape.norm_eps)
        self.head = nn.Linear(shape.n_embd, shape.padded_vocab, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight
        cos, sin = rope_table(shape.seq_len, shape.head_size, shape.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.shape = shape
        self.factor_in, self.factor_out = shape.alpha_in, shape.alpha_out / shape.width_ratio
        self.set_up()
        self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed, put=torch.Tensor.copy_):
        """N(0, 0.02) everywhere, 0.02 / sqrt(2 n_layer) where a block adds to the residual stream, norms 1.

        For matrices of the blocks it is over sqrt(fan_in_ratio), too: their inputs that are not off, over the base's.
        `put(parameter, values)` puts whole values into a parameter.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():  # the tied matrix once
            values = torch.ones(parameter.shape, dtype=parameter.dtype)
            if parameter.dim() > 1:
                adds = name.endswith(("attention.out.weight", "mlp.down.weight"))
                std = INIT_STD / math.sqrt(2 * len(self.blocks)) if adds else INIT_STD
                ratio = getattr(self.get_submodule(name.rpartition(".")[0]), "fan_in_ratio", 1.0)
                values.normal_(0.0, std / math.sqrt(ratio), generator=generator)
            put(parameter, values)
        for parameter, is_off in self.masks(seed):
            parameter.masked_fill_(is_off, 0.0)

    def masks(self, seed):
        """[(matrix of the blocks, where it is off)], as of `off`, with the seed of the initial weights; [] if dense."""
        if self.shape.density == 1.0 or self.embedding.weight.is_meta:
            return []
        named = [(name, p) for name, p in self.named_parameters() if name.startswith("blocks.") and p.dim() == 2]
        return [(p, off(name, *p.shape, self.shape.density, seed).to(p.device)) for name, p in named]

    def forward(self, tokens, targets=None, z_loss=0.0):
        """(B, T) int64 -> logits (B, T, V); with targets (B, T) the sum of the token losses in nats, fp32.

        With `z_loss` they are two, (2,): that sum, and the sum of z_loss * (ln Z)^2, Z being the softmax's denominator.
        Minimize their sum: the second keeps the logits from drifting (PaLM, Chowdhery et al. 2022: 1e-4).
        """
        x = self.hidden(tokens)
        if targets is None:
            return self.head(x)  # (B, T, V)
        losses = self.losses(x.flatten(0, 1), self.head.weight, targets.flatten(), z_loss)
        return losses if z_loss else losses[0]

    def hidden(self, tokens, caches=None):
        """(B, T) int64 -> what the output matrix makes logits of, (B, T, C).

        With `caches` the tokens are those behind what was read before: all in all at most seq_len.
        """
        x = self.embedding(tokens)  # (B, T, C)
        if self.factor_in != 1.0:
            x = x * self.factor_in
        if caches is None:
            again = self.checkpoint_activations and torch.is_grad_enabled()
            for block in self.blocks:
                x = checkpointed(block, x, self.cos, self.sin) if again else block(x, self.cos, self.sin)
        else:
            start = caches[0].length
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, self.cos[start:], self.sin[start:], cache)
        x = self.norm(x)
        if self.factor_out != 1.0:  # of the logits, but these are fewer numbers
            x = x * self.factor_out
        return x

    def new_caches(self):
        """A cache for each block, empty."""
        return [Cache(self.shape.seq_len) for _ in self.blocks]

    def set_up(self, compiled=False, loss_rows=None, checkpoint_activations=False):
        """How the same numbers, but for rounding, are computed, on the device where the model is: blocks and loss
        compiled, or not; `loss_rows` of logits at a time, 0 for all, None for what is faster. One compiled graph serves
        all blocks. `checkpoint_activations` keeps a block's input only, and computes the block again in the backward
        pass: a third more time, the same bits.
        """
        self.checkpoint_activations = checkpoint_activations
        if loss_rows is None:
            loss_rows = LOSS_ROWS if compiled and self.cos.device.type == "cpu" else 0
        compile = functools.partial(torch.compile, dynamic=False) if compiled else lambda function: function
        if compiled:
            for block in self.blocks:
                block.compile(dynamic=False)
        if loss_rows:
            self.losses = functools.partial(losses_by_rows, rows=loss_rows, row_losses=compile(row_losses))
        else:
            self.losses = compile(losses)


# ----------------------------------------------------------------------------------------------------------------------
# The losses (2,), see `forward`, of hidden states x (N, C), output matrix (V, C) and targets (N,), of which -1 is none


def losses(x, weight, targets, z_loss):
    """The sums of token losses and z-losses, from all the logits (N, V)."""
    logits = F.linear(x, weight).float()
    loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    if not z_loss:
        return torch.stack((loss, torch.zeros_like(loss)))
    log_z = logits.logsumexp(dim=-1).masked_fill(targets == -1, 0.0)
    return torch.stack((loss, z_loss * log_z.square().sum()))


def losses_by_rows(x, weight, targets, z_loss, rows, row_losses):
    """The same from `rows` of logits at a time: memory for more than those is never taken."""
    if torch.is_grad_enabled():
        return LossesByRows.apply(x, weight, targets, z_loss, rows, row_losses)
    return add_up_rows(x, weight, targets, z_loss, rows, row_losses)[0]


class LossesByRows(torch.autograd.Function):
    """The gradients are made with the losses, while the logits are at hand; both losses have to be minimized alike."""

    @staticmethod
    def forward(ctx, *args):
        losses, *ctx.gradients = add_up_rows(*args, with_gradients=True)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x_gradient, weight_gradient = (g.mul_(gradient[0]) for g in ctx.gradients)
        del ctx.gradients  # they are scaled in place: nobody can take them twice
        return x_gradient, weight_gradient, None, None, None, None


def add_up_rows(x, weight, targets, z_loss, rows, row_losses, with_gradients=False):
    """(losses, gradient of x, gradient of the output matrix): of their sum, in fp32; without `with_gradients` None."""
    device = x.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    sums = torch.zeros(2, device=x.device)
    x_gradient, weight_gradient = (torch.zeros_like(t) if with_gradients else None for t in (x, weight))
    with torch.autocast(device, enabled=False):
        x, weight = x.to(low), weight.to(low)
        logits, product = x.new_empty(min(rows, len(x)), len(weight)), torch.empty_like(weight)  # fresh memory is slow
        for i in range(0, len(x), rows):
            x_rows, target_rows = x[i : i + rows], targets[i : i + rows]
            logits = torch.mm(x_rows, weight.T, out=logits[: len(x_rows)])
            sums += row_losses(logits, target_rows, z_loss, with_gradients)
            if with_gradients:
                x_gradient[i : i + rows] = logits @ weight
                torch.mm(logits.T, x_rows, out=product)
                for total, part in zip(weight_gradient.split(4096), product.split(4096), strict=True):
                    total += part  # in pieces, as it is cast first
    return sums, x_gradient, weight_gradient


def row_losses(logits, targets, z_loss, with_gradients):
    """Losses of logits (R, V), in whose place their gradients are put if `with_gradients`."""
    x, targets = logits.float(), targets[:, None]
    counted = targets != -1  # (R, 1)
    log_z = x.logsumexp(dim=-1, keepdim=True)
    loss = ((log_z - x.gather(1, targets.clamp(min=0))) * counted).sum()
    z = (z_loss * log_z.square() * counted).sum()
    if with_gradients:
        is_target = torch.arange(x.shape[1], device=x.device) == targets
        softmax = (x - log_z).exp_()
        logits.copy_((softmax * (1 + 2 * z_loss * log_z) - is_target.float()) * counted)
    return torch.stack((loss, z))


# ----------------------------------------------------------------------------------------------------------------------
# Models in checkpoints


def shape_of(state):
    """The shape of the model in a checkpoint; one from before shapes were stored tells it by its options.

    ValueError if the checkpoint's model needs an option that this code does not have: it would be another model.
    """
    fields = {field.name for field in dataclasses.fields(Shape)}
    record = state.get("shape")
    if record is None:
        record = {name: value for name, value in state["config"].items() if name in fields}
        if "embedding.weight" not in state["model"]:
            raise ValueError("the checkpoint's model has no embedding.weight, which tells its vocabulary")
        record["vocab_size"] = state["model"]["embedding.weight"].shape[0]  # padded, which gives the same model
    if unknown := sorted(record.keys() - fields):
        raise ValueError(
            f"the checkpoint's model has {unknown[0]}={record[unknown[0]]!r}, which this code cannot build"
        )
    try:
        return Shape(**record)
    except TypeError as error:
        raise ValueError(f"the checkpoint's model has the shape {record}: {error}") from error


def load_weights(model, weights):
    """Put weights into a model by name; ValueError names the first that is missing, unknown or of another shape."""
    expected = model.state_dict()
    for name in [*expected, *weights]:
        wanted, found = (tuple(d[name].shape) if name in d else "missing" for d in (expected, weights))
        if wanted != found:
            raise ValueError(f"the weights are of another model: {name} is {found}, and should be {wanted}")
    model.load_state_dict(weights)


def load_model(state):
    """The model of a checkpoint, with its weights, on the CPU; ValueError if they do not go together."""
    model = Llama(shape_of(state))
    load_weights(model, state["model"])
    return model
