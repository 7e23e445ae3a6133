"""Tests of model.py: the logits of transformers' Llama, the paper's parameter counts and initialization, exact losses.

python -m pytest tests/test_model.py
"""

import math
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

import model as model_file
import scaling
from model import LOSS_ROWS, Llama, Shape, attention, attention_by_rows, load_model, losses, off, shape_of

torch.set_num_threads(1)
COMPILER = shutil.which("g++") or shutil.which("clang++")
SHAPE = dict(vocab_size=120, n_layer=2, n_head=4, n_embd=64, seq_len=24)  # a vocabulary of 128 after padding


def llama(seed=0, **changes):
    return Llama(Shape(**SHAPE | changes), seed)


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


def as_transformers(model, n_head, n_kv_head, tied, rope_theta=1e4, norm_eps=1e-5):
    """The same weights in transformers' model."""
    V, C = model.embedding.weight.shape
    settings = dict(
        vocab_size=V,
        hidden_size=C,
        intermediate_size=model.blocks[0].mlp.gate.weight.shape[0],
        num_hidden_layers=len(model.blocks),
    )
    heads = dict(num_attention_heads=n_head, num_key_value_heads=n_kv_head, max_position_embeddings=24)
    numbers = dict(rms_norm_eps=norm_eps, hidden_act="silu", attn_implementation="eager")
    numbers["rope_parameters"] = {"rope_type": "default", "rope_theta": rope_theta}
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
    model = spread(llama(n_kv_head=n_kv_head, tied=tied))
    x, _ = tokens_and_targets()
    logits, theirs = model(x), as_transformers(model, 4, n_kv_head or 4, tied)
    assert logits.shape == (3, 24, 128) and logits.std() > 0.5
    limit = 1e-5 * logits.abs().max()
    assert (logits - theirs(x).logits).abs().max() < limit
    for name, buffer in model.named_buffers():  # the control: without the angles of the last position
        buffer[-1] = {"cos": 1.0, "sin": 0.0}[name]
    assert (model(x) - theirs(x).logits).abs().max() > 100 * limit


@torch.no_grad()
def test_options_of_published_models_are_those_of_transformers():
    numbers = dict(rope_theta=500.0, norm_eps=0.1)
    model = spread(llama(tied=False, n_inner=40, vocab_multiple=1, **numbers))
    x, _ = tokens_and_targets()
    logits, theirs = model(x), as_transformers(model, 4, 4, False, **numbers)
    assert logits.shape == (3, 24, 120) and logits.std() > 0.2
    limit = 1e-5 * logits.abs().max()
    assert (logits - theirs(x).logits).abs().max() < limit
    for name in numbers:  # the control: each counts
        other = as_transformers(model, 4, 4, False, **{k: v for k, v in numbers.items() if k != name})
        assert (logits - other(x).logits).abs().max() > 100 * limit
    sizes = {k: v.shape for k, v in model.state_dict().items()}
    assert sizes["blocks.1.mlp.down.weight"] == (64, 40) and sizes["head.weight"] == (120, 64)
    assert scaling.num_params(model.shape) == sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_queries_and_keys_are_normalized_with_the_eps_of_the_norms():
    x, _ = tokens_and_targets()
    small, large = (spread(llama(qk_norm=True, norm_eps=eps)) for eps in (1e-5, 0.5))
    for block in small.blocks:
        block.attention_norm.eps = block.mlp_norm.eps = 0.5
    small.norm.eps = 0.5
    assert not torch.allclose(small(x), large(x), atol=1e-2)


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
    shape = Shape(50257, 512, n_layer, n_head, n_embd)
    with torch.device("meta"):
        model = Llama(shape)
    assert sum(p.numel() for p in model.parameters()) == params
    assert scaling.num_params(shape) == params


def test_parameters_of_other_shapes():
    for n_kv_head, tied in ((None, True), (2, True), (1, False)):
        model = llama(n_kv_head=n_kv_head, tied=tied)
        count = scaling.num_params(Shape(**SHAPE, n_kv_head=n_kv_head, tied=tied))
        assert sum(p.numel() for p in model.parameters()) == count
    # int(8/3 d), up to 256: 96 -> 256, 97 -> 258, 384 -> 1024 exactly, 4096 -> 10922
    for n_embd, width in ((2, 256), (96, 256), (98, 512), (384, 1024), (896, 2560), (1024, 2816), (4096, 11008)):
        assert Shape(**SHAPE | dict(n_head=1, n_embd=n_embd)).mlp_width == width


def test_initial_weights():
    model = Llama(Shape(1000, n_layer=8, n_head=4, n_embd=256, seq_len=8, tied=False))
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
        return torch.cat([p.detach().flatten() for p in llama(seed).parameters() if p.dim() > 1])

    first = weights(0)
    assert torch.equal(first, weights(0)) and (first == weights(1)).double().mean() < 0.01
    model = llama()
    assert model.head.weight is model.embedding.weight and llama(tied=False).head.weight is not model.head.weight
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters(remove_duplicate=False)}  # no tables


@torch.no_grad()
def test_loss_is_the_sum_of_the_token_losses():
    model, (x, y) = spread(llama()), tokens_and_targets()
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
def test_z_loss_is_the_squared_log_of_the_softmaxs_denominator():
    model, (x, y) = spread(llama()), tokens_and_targets()
    log_z = np.log(np.exp(model(x).double().numpy()).sum(-1))
    some = torch.arange(y.numel()).view(y.shape) % 3 == 0
    loss, extra = model(x, torch.where(some, y, -1), z_loss=1e-2)
    assert loss == model(x, torch.where(some, y, -1))
    assert extra.item() == pytest.approx(1e-2 * (log_z[some.numpy()] ** 2).sum(), rel=1e-5)


def losses_and_gradients(targets, z_loss=0.0, tied=True, bf16=False, double=False, **set_up):
    model, (x, _) = spread(llama(tied=tied)), tokens_and_targets()
    model.double() if double else model.set_up(**set_up)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = model(x, targets, z_loss=z_loss)
        with torch.no_grad():
            assert torch.equal(model(x, targets, z_loss=z_loss), losses)
    (losses.sum() / 3).backward()
    return losses.detach().double(), torch.cat([p.grad.double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("z_loss, tied", [(0.0, True), (1e-2, False)])
def test_losses_by_rows_are_those_of_all_logits(z_loss, tied):
    _, y = tokens_and_targets()  # 72 rows: 20 at a time are three times 20 and 12
    y = torch.where(torch.arange(y.numel()).view(y.shape) % 5 == 0, -1, y)
    exact, exact_gradient = losses_and_gradients(y, z_loss, tied, double=True)

    def errors(bf16, **set_up):
        losses, gradient = losses_and_gradients(y, z_loss, tied, bf16, **set_up)
        of_losses = ((losses - exact).abs() / exact.abs().clamp(min=1e-30)).max()
        return torch.stack((of_losses, (gradient - exact_gradient).norm() / exact_gradient.norm()))

    set_ups = [{"loss_rows": 20}, {"loss_rows": 1000}]
    if COMPILER and z_loss:  # one compiled form is enough: it takes seconds
        set_ups.append({"loss_rows": 24, "compiled": True})
    all_logits = errors(bf16=True)
    assert errors(bf16=False).max() < 1e-6 and all_logits.min() > 1e-5
    for set_up in set_ups:
        assert errors(bf16=False, **set_up).max() < 1e-6
        of_loss, of_gradient = errors(bf16=True, **set_up)  # no worse than from all logits, but for luck in one number
        assert of_loss < 1e-3 and of_gradient <= 1.1 * all_logits[1]


def test_losses_by_rows_never_hold_more_logits_than_those():
    model, (x, y), largest = llama(), tokens_and_targets(), []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            tensors = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
            largest.extend(len(t) for t in tensors if t.shape[1:] == (128,) and len(t) != 64)  # 64 x 128 is the head's
            return made

    def most_rows(rows):
        model.set_up(loss_rows=rows)
        with Sizes():
            model(x, y).backward()
        found = max(largest)
        largest.clear()
        return found

    assert most_rows(0) == 72 and most_rows(20) == 20


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.skipif(not COMPILER, reason="no g++"))]
)
def test_checkpointed_activations_take_less_memory_and_have_the_same_bits(compiled):
    x, y = tokens_and_targets()
    found = {}
    for again in (False, True):
        model, kept = llama(n_layer=3), 0
        model.set_up(compiled, checkpoint_activations=again)

        def count(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(x, y)
        loss.backward()
        found[again] = [loss, *(p.grad for p in model.parameters())], kept
        with torch.no_grad():
            assert model(x, y) == loss
    assert all(torch.equal(a, b) for a, b in zip(found[True][0], found[False][0], strict=True))
    assert found[True][1] < 0.5 * found[False][1]


def test_rows_by_default_where_that_is_faster():
    model = llama()
    assert model.losses is losses
    for set_up, rows in (({"compiled": True}, LOSS_ROWS), ({"compiled": True, "loss_rows": 0}, None)):
        model.set_up(**set_up)  # compiled only when first called
        assert getattr(model.losses, "keywords", {}).get("rows") == rows


@pytest.mark.parametrize("T", [50, 128, 300])  # up to three times 128 queries, the last not full
def test_attention_by_rows_is_attention(T):
    random = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, heads, T, 16, generator=random, dtype=torch.float64) * 2 for heads in (4, 2, 2, 4)]

    def error(function, dtype):
        *inputs, weight = (x.detach().to(dtype).requires_grad_() for x in exact)
        output = function(*inputs)
        (output * weight).sum().backward()
        return torch.cat([x.detach().double().flatten() for x in (output, *(x.grad for x in inputs))]) - reference

    reference = torch.zeros(())
    reference = error(attention, torch.float64)
    assert error(attention_by_rows, torch.float32).norm() < 1e-6 * reference.norm()
    in_bf16 = [error(function, torch.bfloat16).norm() for function in (attention_by_rows, attention)]
    assert in_bf16[0] < 2 * in_bf16[1]  # scores are rounded, too


def test_compiled_on_a_cpu_attention_is_by_rows_and_keeps_no_weights(monkeypatch):
    kept, q = [], torch.randn(1, 2, 64, 16, requires_grad=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(model_file, "LONGEST_BY_ROWS", 64)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attention(q, q, q)
    assert kept and all(getattr(x, "shape", q.shape) == q.shape for x in kept)
    monkeypatch.setattr(model_file, "attention_by_rows", None)
    attention(*(torch.cat((q, q), dim=2),) * 3)  # longer ones are not


@torch.no_grad()
def test_qk_norm_normalizes_the_queries_and_keys_of_every_head(monkeypatch):
    seen = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **kw: seen.append((q, k)) or attend(q, k, v, **kw)
    )
    x, _ = tokens_and_targets()
    for qk_norm in (True, False):
        spread(llama(qk_norm=qk_norm))(x)
    lengths = [torch.stack([h.square().mean(-1) for h in pair]) for pair in seen]  # of the two blocks, twice
    for with_norm, without in ((lengths[0], lengths[2]), (lengths[1], lengths[3])):
        assert (with_norm - 1).abs().max() < 1e-3 < (without - 1).abs().max()


def test_a_checkpoint_remembers_qk_norm():
    model, (x, _) = spread(llama(qk_norm=True)), tokens_and_targets()
    shape = Shape(**SHAPE, qk_norm=True)
    assert torch.equal(load_model({"model": model.state_dict(), "shape": shape.to_record()})(x), model(x))
    forgetful = load_model({"model": model.state_dict(), "shape": Shape(**SHAPE).to_record()})  # same weights
    assert not torch.allclose(forgetful(x), model(x), atol=1e-2)
    assert scaling.num_params(shape) == scaling.num_params(Shape(**SHAPE))


@torch.no_grad()
def test_no_logit_depends_on_a_later_token():
    model, (x, _) = spread(llama()), tokens_and_targets()
    before = model(x)
    for position in (1, 12, 23):
        other = x.clone()
        other[:, position] = (other[:, position] + 1) % 120
        after = model(other)
        assert torch.equal(after[:, :position], before[:, :position])
        assert (after[:, position:] != before[:, position:]).any(dim=-1).all()  # the control: all the later ones do
    assert (model(x[:, :7]) - before[:, :7]).abs().max() < 1e-5 * before.abs().max()  # shorter than seq_len works too


@pytest.mark.parametrize(
    "shape, parts",
    [
        (dict(n_embd=66), ["n_embd=66", "n_head=4", "even"]),
        (dict(n_embd=36), ["n_embd=36", "n_head=4", "even"]),  # heads of 9
        (dict(n_kv_head=3), ["n_kv_head=3", "n_head=4"]),
        (dict(n_kv_head=8), ["n_kv_head=8", "n_head=4"]),
        (dict(n_kv_head=-2), ["n_kv_head=-2"]),
        (dict(n_inner=100, mup_base=32), ["n_inner=100", "mup_base=32", "leave one of them out"]),
    ],
)
def test_shapes_that_do_not_work_out(shape, parts):
    with pytest.raises(ValueError) as caught:
        Shape(**SHAPE | shape)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_checkpoint_tells_the_shape_of_its_model():
    model = spread(llama(n_kv_head=2, tied=False))
    shape = Shape(**SHAPE, n_kv_head=2, tied=False)
    state = {"model": model.state_dict(), "shape": shape.to_record()}
    older = {"model": model.state_dict(), "config": {**SHAPE, "n_kv_head": 2, "tied": False, "lr": 1e-3}}
    x, _ = tokens_and_targets()
    assert shape_of(state) == shape and shape_of(older).padded_vocab == 128
    for saved in (state, older):
        assert torch.equal(load_model(saved)(x), model(x))
    assert Shape(**SHAPE).to_record() == SHAPE  # defaults are not written: what is there counts
    with pytest.raises(ValueError, match="has twist=2, which this code cannot build"):
        shape_of(state | {"shape": shape.to_record() | {"twist": 2}})


# ----------------------------------------------------------------------------------------------------------------------
# muP and SuPar


def weights_of(**changes):
    return dict(llama(**changes).named_parameters())


def test_initial_weights_shrink_with_the_inputs_of_each_matrix():
    """To the bit nothing changes at the base; 160 channels are 2.5 x 64, but the MLP's 512 are 2 x 256."""
    assert all(torch.equal(p, weights_of()[name]) for name, p in weights_of(mup_base=64).items())
    wide = dict(n_embd=160, n_head=10)
    before, after = weights_of(**wide), weights_of(**wide, mup_base=64)
    for name, p in before.items():
        ratio = 2.0 if "down" in name else 2.5
        expected = p / math.sqrt(ratio) if name.startswith("blocks.") and p.dim() == 2 else p
        torch.testing.assert_close(after[name], expected, rtol=1e-6, atol=0)


def test_masks_are_fixed_for_ever_and_nested():
    """By an independent implementation of the docstring: hash, little-endian 32-bit integers, uniform in [0, 1)."""
    down = ["01111110", "11010111", "11100111"]
    qkv = ["10110000", "10111110"]
    for expected, found in (
        (down, off("blocks.0.mlp.down.weight", 3, 8, density=0.25, seed=0)),
        (qkv, off("blocks.0.attention.qkv.weight", 2, 8, density=0.5, seed=7)),
    ):
        assert ["".join(str(int(x)) for x in row) for row in found] == expected
    torch.rand(3)  # torch's own generator plays no part
    quarter, half = (~off("a", 256, 768, density, seed=0) for density in (0.25, 0.5))
    assert torch.equal(quarter, ~off("a", 256, 768, 0.25, seed=0)) and not (quarter & ~half).any()
    assert quarter.double().mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / quarter.numel()))
    assert quarter.sum(1).double().std() == pytest.approx(math.sqrt(768 * 0.25 * 0.75), rel=0.2)  # binomial
    for other in (off("b", 256, 768, 0.25, seed=0), off("a", 256, 768, 0.25, seed=1)):  # independent of this one
        assert (quarter & ~other).double().mean() == pytest.approx(0.0625, abs=0.003)
    assert not off("a", 3, 4, 1.0, seed=0).any() and off("a", 3, 4, 1e-300, seed=0).all()


def test_a_sparse_model_has_the_weights_of_the_dense_one_scaled_where_they_are_on():
    model, dense = llama(density=0.25), weights_of()
    masks = dict(model.masks(seed=0))
    for name, p in model.named_parameters():
        is_matrix = name.startswith("blocks.") and p.dim() == 2
        assert (p in masks) == is_matrix
        expected = (2 * dense[name]).masked_fill(masks[p], 0.0) if is_matrix else dense[name]
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=0)
    assert llama().masks(seed=0) == []
    with torch.device("meta"):
        assert llama(density=0.25).masks(seed=0) == []  # sizes alone


@torch.no_grad()
def test_factors_of_input_and_output():
    """Of the logits alpha_out / width ratio, and alpha_in is as good as a larger embedding that is not the output's."""
    (x, y), shape = tokens_and_targets(), dict(tied=False, n_embd=128, n_head=8)
    model, plain = spread(llama(**shape, mup_base=32, alpha_in=3.0, alpha_out=0.5)), spread(llama(**shape))
    plain.load_state_dict(model.state_dict())
    plain.embedding.weight.mul_(3.0)
    plain.head.weight.mul_(0.5 / 4)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    assert model(x, y).item() == pytest.approx(plain(x, y).item(), rel=1e-5)
    assert not torch.allclose(model(x), spread(llama(**shape))(x), atol=0.1)
    saved = {"model": model.state_dict(), "shape": Shape(**SHAPE | shape, mup_base=32, alpha_in=3.0, alpha_out=0.5)}
    saved["shape"] = saved["shape"].to_record()
    assert torch.equal(load_model(saved)(x), model(x))


@pytest.mark.parametrize("base", [128, 24])  # wider than the model; heads of 16 do not divide it
def test_bases_that_do_not_fit(base):
    with pytest.raises(ValueError, match=f"mup_base={base}: .*n_embd=64 .*n_embd / n_head = 16 has to divide it"):
        Shape(**SHAPE, mup_base=base)
