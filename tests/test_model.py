"""Tests of model.py: the logits of transformers' Llama, the paper's parameter counts and initialization, exact losses.

python -m pytest test_model.py
"""

import math
import os
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import scaling
from model import Llama, choose_device, chunk_losses, native_bf16, swiglu_width

torch.set_num_threads(1)
SHAPE = dict(vocab_size=120, n_layer=2, n_head=4, n_embd=64, seq_len=24)  # a vocabulary of 128 after padding


def tokens_and_targets(B=3, T=24):
    both = torch.randint(120, (B, T + 1), generator=torch.Generator().manual_seed(0))
    return both[:, :-1], both[:, 1:]


def spread(model):
    """Weights 5 times as large, and norms that are not 1: so that every part shows in the logits."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def as_transformers(model, n_head, n_kv_head, tied):
    """The same weights in transformers' model."""
    V, C = model.embedding.weight.shape
    settings = dict(vocab_size=V, hidden_size=C, intermediate_size=swiglu_width(C), num_hidden_layers=len(model.blocks))
    heads = dict(num_attention_heads=n_head, num_key_value_heads=n_kv_head, max_position_embeddings=24)
    numbers = dict(rms_norm_eps=1e-5, rope_theta=1e4, hidden_act="silu", attn_implementation="eager")
    theirs = LlamaForCausalLM(LlamaConfig(**settings, **heads, **numbers, tie_word_embeddings=tied)).eval()
    state = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    state["lm_head.weight"] = model.head.weight
    size = C // n_head
    for i, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv.weight.split((C, n_kv_head * size, n_kv_head * size))
        parts = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
        parts |= {"self_attn.o_proj": block.attention.out.weight, "input_layernorm": block.attention_norm.weight}
        parts |= {"mlp.gate_proj": block.mlp.gate.weight, "mlp.up_proj": block.mlp.up.weight}
        parts |= {"mlp.down_proj": block.mlp.down.weight, "post_attention_layernorm": block.mlp_norm.weight}
        state |= {f"model.layers.{i}.{name}.weight": weight for name, weight in parts.items()}
    theirs.load_state_dict(state)
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("n_kv_head, tied", [(None, True), (2, True), (1, False), (4, False)])
def test_logits_are_those_of_transformers(n_kv_head, tied):
    model = spread(Llama(**SHAPE, n_kv_head=n_kv_head, tied=tied))
    x, _ = tokens_and_targets()
    logits, theirs = model(x), as_transformers(model, 4, n_kv_head or 4, tied)
    assert logits.shape == (3, 24, 128) and logits.std() > 0.5
    limit = 1e-5 * logits.abs().max()
    assert (logits - theirs(x).logits).abs().max() < limit
    for name, buffer in model.named_buffers():  # the control: without the angles of the last position
        buffer[-1] = {"cos": 1.0, "sin": 0.0}[name]
    assert (model(x) - theirs(x).logits).abs().max() > 100 * limit


@pytest.mark.parametrize(
    "n_embd, n_layer, n_head, params",  # as the paper's runs logged them
    [
        (384, 8, 6, 33_479_040),
        (512, 8, 8, 53_027_328),
        (512, 10, 8, 59_845_120),
        (640, 12, 10, 93_159_040),
        (768, 12, 12, 123_587_328),
        (768, 16, 12, 151_905_024),
        (896, 12, 14, 166_205_312),
        (768, 24, 12, 208_540_416),
        (1024, 24, 16, 359_842_816),
    ],
)
def test_parameters_of_the_papers_sizes(n_embd, n_layer, n_head, params):
    with torch.device("meta"):
        model = Llama(50257, n_layer, n_head, n_embd, seq_len=512)
    assert sum(p.numel() for p in model.parameters()) == params
    assert scaling.num_params(50304, n_layer, n_embd, n_head) == params


def test_parameters_of_other_shapes():
    for n_kv_head, tied in ((None, True), (2, True), (1, False)):
        model = Llama(**SHAPE, n_kv_head=n_kv_head, tied=tied)
        count = scaling.num_params(128, 2, 64, 4, n_kv_head=n_kv_head, tied=tied)
        assert sum(p.numel() for p in model.parameters()) == count
    assert [swiglu_width(n) for n in range(1, 9000)] == [scaling.swiglu_width(n) for n in range(1, 9000)]
    assert [swiglu_width(n) for n in (384, 512, 640, 768, 896, 1024)] == [1024, 1536, 1792, 2048, 2560, 2816]


def test_initial_weights():
    model = Llama(1000, n_layer=8, n_head=4, n_embd=256, seq_len=8, tied=False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == 1).all()
        else:
            std = 0.02 / math.sqrt(2 * 8) if name.endswith(("out.weight", "down.weight")) else 0.02
            error = 4 / math.sqrt(parameter.numel())  # 4 standard deviations of the mean, in units of std
            assert abs(parameter.mean().item()) < error * std and abs(parameter.std().item() / std - 1) < error
            assert parameter.abs().max() > 4 * std  # a normal distribution, not a uniform one


def test_the_seed_alone_decides_the_initial_weights():
    def weights(seed):
        torch.rand(seed + 1)  # torch's own generator is elsewhere each time
        return torch.cat([p.detach().flatten() for p in Llama(**SHAPE, seed=seed).parameters() if p.dim() > 1])

    first = weights(0)
    assert torch.equal(first, weights(0)) and (first == weights(1)).double().mean() < 0.01
    model = Llama(**SHAPE)
    assert (
        model.head.weight is model.embedding.weight and Llama(**SHAPE, tied=False).head.weight is not model.head.weight
    )
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters(remove_duplicate=False)}  # no tables


@torch.no_grad()
def test_loss_is_the_sum_of_the_token_losses():
    model, (x, y) = spread(Llama(**SHAPE)), tokens_and_targets()
    logits = model(x).double().numpy().reshape(-1, 128)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    token_losses = -log_softmax[np.arange(len(logits)), y.flatten()]
    assert model(x, y).item() == pytest.approx(token_losses.sum(), rel=1e-6)
    assert model(x, y).dtype == torch.float32
    some = torch.arange(y.numel()).view(y.shape) % 3 == 0
    loss = model(x, torch.where(some, y, -1)).item()
    assert loss == pytest.approx(token_losses[::3].sum(), rel=1e-6) and loss != pytest.approx(
        token_losses.sum(), rel=0.1
    )
    assert model(x, torch.full_like(y, -1)).item() == 0
    assert token_losses.std() > 0.1
    for half, context in ((model, torch.autocast("cpu", torch.bfloat16)), (model.bfloat16(), nullcontext())):
        with context:
            assert half(x).dtype == torch.bfloat16 and half(x, y).dtype == torch.float32


@torch.no_grad()
def test_no_logit_depends_on_a_later_token():
    model, (x, _) = spread(Llama(**SHAPE)), tokens_and_targets()
    before = model(x)
    for position in (1, 12, 23):
        other = x.clone()
        other[:, position] = (other[:, position] + 1) % 120
        after = model(other)
        assert torch.equal(after[:, :position], before[:, :position])
        assert (after[:, position:] != before[:, position:]).any(dim=-1).all()  # the control: all the later ones do
    assert (model(x[:, :7]) - before[:, :7]).abs().max() < 1e-5 * before.abs().max()  # shorter than seq_len works too


def test_chunk_losses():
    model, (x, y) = spread(Llama(**SHAPE)), tokens_and_targets(B=7)
    y = torch.cat((y[:-1], torch.full((1, 24), -1)))
    val = SimpleNamespace(n_chunks=7, chunk=lambda i: (x[i : i + 1], y[i : i + 1]))
    alone = chunk_losses(model, val, "cpu")
    assert alone.dtype == torch.float64 and not alone.requires_grad and (alone[:6] > 0).all() and alone[6] == 0
    assert alone.sum().item() == pytest.approx(model(x, y).item(), rel=1e-6)
    for world_size in (2, 3, 9):
        parts = torch.stack([chunk_losses(model, val, "cpu", rank, world_size) for rank in range(world_size)])
        assert torch.equal(parts.sum(0), alone)
        assert ((parts != 0).sum(0) <= 1).all()  # nothing is computed twice
    asked = []
    stopped = chunk_losses(model, val, "cpu", stop=lambda: asked.append(0) or len(asked) > 2)
    assert torch.equal(stopped[:2], alone[:2]) and (stopped[2:] == 0).all() and len(asked) == 3


@pytest.fixture
def no_gpu(monkeypatch):
    """As on a machine without one; afterwards torch computes as before."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.set_float32_matmul_precision(before[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled


def test_cuda_is_made_to_repeat_itself(no_gpu, monkeypatch):
    """The switches are set; TEST_DEVICE=cuda, on a GPU, runs the tests that show what they do."""
    chosen = []
    assert choose_device("auto") == torch.device("cpu") and not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(os, "environ", {})
    assert choose_device("cpu") == torch.device("cpu") and not torch.are_deterministic_algorithms_enabled()
    assert choose_device("auto", 1) == torch.device("cuda", 1) and chosen == [1]
    assert torch.are_deterministic_algorithms_enabled() and os.environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def test_native_bf16(monkeypatch):
    cpu = torch.device("cpu")
    for found, native in (({}, False), ({"avx512_bf16": True}, True), ({"avx512_bf16": False, "amx_bf16": True}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found | {"avx2": True})
        assert native_bf16(cpu) is native


@pytest.mark.parametrize(
    "shape, parts",
    [
        (dict(n_embd=66), ["n_embd=66", "n_head=4", "even"]),
        (dict(n_embd=36), ["n_embd=36", "n_head=4", "even"]),  # heads of 9
        (dict(n_kv_head=3), ["n_kv_head=3", "n_head=4"]),
        (dict(n_kv_head=8), ["n_kv_head=8", "n_head=4"]),
        (dict(n_kv_head=-2), ["n_kv_head=-2"]),
    ],
)
def test_shapes_that_do_not_work_out(shape, parts):
    with pytest.raises(ValueError) as caught:
        Llama(**SHAPE | shape)
    assert [part for part in parts if part not in str(caught.value)] == []
