"""Tests of coord_check.py, and with it of what muP and SuPar promise: activations that keep their size.

python -m pytest tests/test_coord_check.py
"""

import json

import pytest
import torch

import coord_check
from config import Mistake
from model import Llama

FLAGS = ["--dataset=text", "--seq_len=64", "--micro_batch_size=4", "--global_batch_size=4", "--n_layer=2", "--lr=1e-2"]


@pytest.fixture
def check(data_dir, capsys):
    """check(*flags) -> {(name, step): row}"""

    def go(*flags):
        coord_check.run([*FLAGS, "--device=cpu", f"--data_dir={data_dir}", "--json", *flags])
        found = json.loads(capsys.readouterr().out)
        return {(row["name"], row["step"]): row for row in found["rows"]}

    return go


def test_activations_keep_their_size_over_widths_with_mup_and_not_without(check):
    flags = ["--n_embd=64", "--n_head=2", "--widths=64,256"]
    standard, mup = check(*flags), check(*flags, "--mup_base=64")
    assert standard["residual", 5]["slope"] > 1 and standard["MLP", 5]["slope"] > 1
    for name in ("embedding", "attention", "MLP", "residual", "logits"):
        assert abs(mup[name, 5]["slope"]) < 0.25, name
    assert mup["logits", 0]["slope"] == pytest.approx(-0.5, abs=0.1)  # the tied embedding is too small an output
    assert [row["means"][0] for row in mup.values()] == [row["means"][0] for row in standard.values()]  # the base
    assert len(mup) == 5 * 6


@pytest.mark.parametrize("mup", [[], ["--mup_base=64"]])
def test_activations_keep_their_size_over_densities_with_supar_and_not_without(check, mup):
    flags = ["--n_embd=128", "--n_head=4", "--densities=1,0.0625", "--seeds=1", *mup]
    sparse, dense = check(*flags)["MLP", 5]["means"]
    assert 1 / 1.5 < sparse / dense < 1.5
    sparse, dense = check(*flags, "--supar=False")["MLP", 5]["means"]
    assert sparse < dense / 100


def test_widths_keep_the_size_and_groups_of_heads(check):
    config = coord_check.Config(n_embd=64, n_head=4, n_kv_head=2)
    wide = coord_check.with_width(config, 160)
    assert (wide.n_embd, wide.n_head, wide.n_kv_head) == (160, 10, 5)
    for width in (72, 80):  # 4.5 heads; 5 heads, but 2.5 of keys
        with pytest.raises(Mistake, match=f"^widths={width}: expected a multiple of the head size, 16, and whole key"):
            coord_check.with_width(config, width)


def test_the_table_and_the_figure(data_dir, tmp_path, capsys):
    out = tmp_path / "coords.png"
    flags = [*FLAGS, f"--data_dir={data_dir}", "--n_embd=16", "--n_head=1", "--steps=1", "--seeds=1", f"--out={out}"]
    coord_check.run(flags)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["mean", "|activation|", "n_embd", "16", "n_embd", "32", "n_embd", "64", "slope"]
    assert len(printed) == 1 + 5 * 2 + 1 and out.stat().st_size > 10_000
    with pytest.raises(Mistake, match="--out=x.txt: expected a .png"):
        coord_check.run([*FLAGS, "--out=x.txt"])


def test_slopes():
    assert coord_check.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert coord_check.slope([1, 2], [0.0, 1.0]) is coord_check.slope([1], [1.0]) is None
    assert coord_check.slope([1, 2], [1.0, float("nan")]) is None


@torch.no_grad()
def test_what_is_measured_is_what_the_model_computes():
    """Against the forward pass written out, with factors of input and output."""
    shape = coord_check.Shape(64, 8, n_layer=2, n_head=2, n_embd=32, alpha_in=3.0, alpha_out=5.0, mup_base=16)
    model, tokens = Llama(shape), torch.arange(8)[None]
    x = 3.0 * model.embedding(tokens)
    means = {"embedding": x.abs().mean(), "attention": 0.0, "MLP": 0.0}
    for block in model.blocks:
        attention = block.attention(block.attention_norm(x), model.cos, model.sin)
        mlp = block.mlp(block.mlp_norm(x + attention))
        x = x + attention + mlp
        means["attention"] += attention.abs().mean() / 2
        means["MLP"] += mlp.abs().mean() / 2
    means |= {"residual": x.abs().mean(), "logits": (model.head(model.norm(x)) * 5.0 / 2).abs().mean()}
    found = coord_check.activations(model, tokens)
    assert found == pytest.approx({name: float(mean) for name, mean in means.items()}, rel=1e-5)
