"""The paper's model: a Llama-style decoder with tied embeddings. RMSNorm, RoPE, SwiGLU, causal attention, no biases.

    model = Llama(vocab_size=50257, n_layer=12, n_head=12, n_embd=768, seq_len=512)
    logits = model(x)              # (B, T, V), V is the vocabulary padded to a multiple of 64
    loss = model(x, y) / y.numel()  # the summed token loss in fp32, here made a mean; targets of -1 are left out

Llama: Touvron et al. 2023. Sizes and initialization: Haegele et al., NeurIPS 2024, appendix A.1.
"""

import math
import os

import torch
import torch.nn.functional as F
from torch import nn

VOCAB_MULTIPLE = 64  # matrix multiplications like it: 50257 -> 50304
NORM_EPS = 1e-5
ROPE_BASE = 10_000.0
INIT_STD = 0.02


def swiglu_width(n_embd):
    """Hidden width: 8/3 of the model's, three matrices for the price of two, up to a multiple of 256."""
    return -(-int(8 / 3 * n_embd) // 256) * 256


def rope_table(seq_len, head_size):
    """cos and sin of every position's rotation angles, (T, head_size / 2) each."""
    frequency = ROPE_BASE ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    """Rotate the pairs (i, i + half) of every head by its position's angles: x (B, H, T, head_size).

    The paper's runs pair neighbours (2i, 2i + 1) instead. That is the same model with the rows of the query and key
    weights in another order, and those are initialized alike; this order is the one of transformers' Llama.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class Attention(nn.Module):
    def __init__(self, n_embd, n_head, n_kv_head):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_size = n_head, n_kv_head, n_embd // n_head
        self.qkv = nn.Linear(n_embd, (n_head + 2 * n_kv_head) * self.head_size, bias=False)
        self.out = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x, cos, sin):
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, H + 2 Hkv, T, C / H)
        q, k, v = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=1)
        q, k = rotate(q, cos[:T], sin[:T]), rotate(k, cos[:T], sin[:T])
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.n_kv_head != self.n_head)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class SwiGLU(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        width = swiglu_width(n_embd)
        self.gate = nn.Linear(n_embd, width, bias=False)
        self.up = nn.Linear(n_embd, width, bias=False)
        self.down = nn.Linear(width, n_embd, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, n_embd, n_head, n_kv_head):
        super().__init__()
        self.attention_norm = nn.RMSNorm(n_embd, eps=NORM_EPS)
        self.attention = Attention(n_embd, n_head, n_kv_head)
        self.mlp_norm = nn.RMSNorm(n_embd, eps=NORM_EPS)
        self.mlp = SwiGLU(n_embd)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """vocab_size is rounded up to a multiple of 64; n_kv_head < n_head shares key and value heads (None: none shared).

    `seed` fixes the initial weights, on every device. ValueError if the shape does not work out.
    """

    def __init__(self, vocab_size, n_layer, n_head, n_embd, seq_len, n_kv_head=None, tied=True, seed=0):
        super().__init__()
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        if n_embd % n_head or n_embd // n_head % 2:
            raise ValueError(
                f"n_embd={n_embd}, n_head={n_head}: the head size n_embd / n_head has to be an even number"
            )
        if n_kv_head < 1 or n_head % n_kv_head:
            raise ValueError(f"n_kv_head={n_kv_head} does not divide n_head={n_head}")
        vocab_size = -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.embedding = nn.Embedding(vocab_size, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, n_kv_head) for _ in range(n_layer))
        self.norm = nn.RMSNorm(n_embd, eps=NORM_EPS)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        cos, sin = rope_table(seq_len, n_embd // n_head)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed):
        """N(0, 0.02) everywhere, 0.02 / sqrt(2 n_layer) where a block adds to the residual stream, norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():  # the tied matrix once
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                adds = name.endswith(("attention.out.weight", "mlp.down.weight"))
                std = INIT_STD / math.sqrt(2 * len(self.blocks)) if adds else INIT_STD
                parameter.normal_(0.0, std, generator=generator)

    def forward(self, tokens, targets=None):
        """(B, T) int64 -> logits (B, T, V); with targets (B, T) the sum of the token losses in nats, fp32."""
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))  # (B, T, V)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1, reduction="sum")


def choose_device(name, index=0):
    """The device for "auto", "cpu" or "cuda"; CUDA, the GPU of `index`, is set up to give the same bits every time.

    ValueError if there are not that many GPUs.
    """
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if index >= (gpus := torch.cuda.device_count()):
        raise ValueError(f"rank {index} of this machine finds {gpus} GPU(s): --nproc_per_node={gpus}, or --device=cpu")
    torch.cuda.set_device(index)
    torch.set_float32_matmul_precision("high")  # what stays in fp32 is multiplied in TF32
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # flash attention backward; else no two runs are alike, and 5% faster
    torch.utils.deterministic.fill_uninitialized_memory = False
    return torch.device("cuda", index)


def native_bf16(device):
    """Whether the device computes in bfloat16 itself, rather than by way of fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))  # absent on other architectures


@torch.no_grad()
def chunk_losses(model, val, device, rank=0, world_size=1, stop=lambda: False):
    """Summed token loss of each chunk of `val` (data.ValSet): (n_chunks,) fp64, 0 where it is another rank's turn.

    Add over ranks, then over chunks, and divide by `val.n_targets`: the mean loss a token in nats. `stop()` is asked
    before every chunk; if it says so, the rest stays 0.
    """
    losses = torch.zeros(val.n_chunks, dtype=torch.float64)
    for i in range(rank, val.n_chunks, world_size):
        if stop():
            break
        x, y = val.chunk(i)
        losses[i] = model(x.to(device), y.to(device)).item()
    return losses
