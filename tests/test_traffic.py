"""Traffic on paper against what parallel.py and sharding.py hand to the library, and against sums by hand."""

import dataclasses
import json
import types

import pytest
import torch
import torch.distributed as dist
from torch import nn

import scaling
import traffic
from config import main
from memory import block_params, root_params
from model import Llama, Shape
from parallel import Gradients
from sharding import GatherRounded, SumByHalves
from train import Config

SHAPE = Shape(vocab_size=128, seq_len=8, n_layer=3, n_head=2, n_embd=32)
CONFIG = Config(seq_len=8, n_layer=3, n_head=2, n_embd=32, global_batch_size=64, micro_batch_size=1)
S = 4 * scaling.num_params(SHAPE)
LINKS = traffic.Links(per_node=8, nvlink=4e9, network=1e9)


def sent(gpus, parallel, speed=1e12, **options):
    config = dataclasses.replace(CONFIG, parallel=parallel, **options)
    return traffic.traffic(config, SHAPE, gpus, LINKS, speed)


def test_an_exact_all_reduce_sends_what_gradients_hand_over(monkeypatch):
    handed = []

    def all_reduce(flat, group, async_op=False):
        handed.append((group, flat.nbytes))  # of two GPUs: each sends as much
        return types.SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    for gpus, stages in ((4, 2), (16, 4)):
        model, ranks = Llama(SHAPE), types.SimpleNamespace(across=list(range(stages)))
        gradients = Gradients(ranks, model, model, 1)
        x = torch.zeros(1, 8, dtype=torch.int64)
        for _ in gradients.micro_steps():
            model(x, x).backward()
        found, _, _ = sent(gpus, "replicate")
        assert found.node_bytes + found.network_bytes == sum(size for _, size in handed)
        assert found.messages == 2 * len(handed)  # there and back
        assert found.network_bytes == sum(size for group, size in handed if 2**group >= 8)  # GPUs that are 8 apart
        handed.clear()


def test_an_exact_reduce_scatter_sends_what_sums_by_halves_hand_over(monkeypatch):
    handed = []
    monkeypatch.setattr(
        dist, "reduce_scatter_single", lambda parts, pairs, group: handed.append((group, pairs.nbytes - parts.nbytes))
    )
    full = torch.zeros(16 * 6)
    SumByHalves(range(4))(torch.zeros(6), full, None, None)
    found = traffic.reduce_scatter(LINKS, full.nbytes, 16, exact=True)
    assert found.node_bytes + found.network_bytes == sum(size for _, size in handed) == 15 / 16 * full.nbytes
    assert found.network_bytes == sum(size for group, size in handed if 2**group >= 8)
    assert found.messages == len(handed)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gather_in_bf16_sends_what_is_handed_over(monkeypatch, tied):
    """Of four ranks: blocks twice, the rest once, all of it to three others."""
    shape, spared, own_bytes = dataclasses.replace(SHAPE, tied=tied), [], []
    monkeypatch.setattr(dist, "all_gather_single", lambda messages, own, group: own_bytes.append(own.nbytes))
    model = Llama(shape)
    for part in (*model.blocks, nn.ModuleDict({"embedding": model.embedding, "norm": model.norm, "head": model.head})):
        sizes = [p.numel() // 4 for p in part.parameters()]
        rounded = [p.dim() == 2 and p is not model.embedding.weight for p in part.parameters()]
        GatherRounded(sizes, rounded)(torch.zeros(4 * sum(sizes)), torch.zeros(sum(sizes)), None)
        spared.append(4 * sum(sizes) - own_bytes[-1])
    full = dataclasses.replace(CONFIG, tied=tied, parallel="shard", global_batch_size=8)  # two micro-steps
    rounded = dataclasses.replace(full, gather_dtype="bfloat16")
    full, rounded = (traffic.traffic(config, shape, 4, LINKS, speed=1e12)[0] for config in (full, rounded))
    assert full.node_bytes - rounded.node_bytes == 2 * 3 * (2 * sum(spared[:-1]) + spared[-1])
    assert spared[0] > 0 and (spared[-1] == 0) == tied
    assert full.messages == rounded.messages


def test_bytes_by_hand():
    root, blocks = 4 * root_params(SHAPE), 4 * 3 * block_params(SHAPE)
    assert root + blocks == S
    assert sent(1, "replicate")[0] == traffic.Sent()
    exact, ring = sent(32, "replicate")[0], sent(32, "replicate", exact_sums=False)[0]
    assert (exact.node_bytes, exact.network_bytes) == (3 * S, 2 * S)
    assert ring.node_bytes + ring.network_bytes == pytest.approx(2 * 31 / 32 * S)
    assert ring.network_bytes == pytest.approx(2 * 31 / 32 * S / 8)  # each of 8 rings passes a GPU's own link
    odd = sent(48, "replicate", global_batch_size=96)[0]
    assert odd.node_bytes + odd.network_bytes == pytest.approx(2 * 47 / 48 * S)
    shards = sent(8, "shard", global_batch_size=64)[0]  # 8 micro-steps
    per_step = 8 * 7 / 8 * (2 * blocks + root + S)
    assert shards.node_bytes == pytest.approx(per_step + S / 8) and shards.network_bytes == 0
    once = sent(8, "shard", global_batch_size=24)[0]  # 3 micro-steps are summed at the end only
    assert once.node_bytes == pytest.approx(7 / 8 * (3 * (2 * blocks + root) + S) + S / 8)
    hybrid = sent(32, "shard:8", global_batch_size=256)[0]
    assert hybrid.network_bytes == pytest.approx(2 * S / 8)  # pairs of 4 groups
    assert hybrid.node_bytes == pytest.approx(per_step + S / 8)
    odd = sent(48, "shard:8", global_batch_size=96)[0]
    assert odd.network_bytes == pytest.approx(2 * 5 / 6 * S / 8)  # a ring of 6 GPUs, each in a node of its own


def test_time_by_hand():
    seconds = 3 * S / 4e9 + 2 * S / 1e9
    found, computing, waited = sent(32, "replicate")
    assert found.seconds == pytest.approx(seconds)
    assert computing == pytest.approx(2 * scaling.train_flops(SHAPE) / 1e12)  # 2 micro-steps of a sequence
    blocks = 4 * 3 * block_params(SHAPE)
    hidden = min(blocks / 4e9, 2 / 3 * computing / 2)  # the first sum, of blocks, in the last backward pass
    assert waited == pytest.approx(seconds - hidden)
    ring, _, _ = sent(32, "replicate", exact_sums=False)
    assert ring.seconds == pytest.approx(2 * 31 / 32 * S * 7 / 8 / 4e9)  # 7 of 8 steps are within a node
    slow = traffic.ring(LINKS._replace(network=1e8), S, 32, times=2)
    assert slow.seconds == pytest.approx(2 * 31 / 32 * S / 8 / 1e8)  # the slower link decides
    for parallel in ("replicate", "shard", "shard:8"):
        for speed in (1e9, 1e15):
            found, computing, waited = sent(32, parallel, speed)
            assert 0 < waited < found.seconds * (1 + 1e-12)
    root = 4 * root_params(SHAPE)
    slow = sent(8, "shard", 1e6, global_batch_size=8)[2]  # all that may be hidden is
    assert slow == pytest.approx(2 * 7 / 8 * root / 4e9 + S / 8 / 4e9)


def test_strong_and_weak(capsys):
    scaling.run(["traffic", "configs/8b.py", "--gpus=1,16,48,144,288", "--json"])
    out = json.loads(capsys.readouterr().out)
    rows = {(row["scaling"], row["gpus"], row["parallel"]): row for row in out["traffic"]}
    assert out["not_strong"] == [288]  # 144 sequences
    assert {key[:2] for key in rows} == {("strong", n) for n in (1, 16, 48, 144)} | {
        ("weak", n) for n in (1, 16, 48, 144, 288)
    }
    for (kind, gpus, _), row in rows.items():
        per_gpu = row["sequences"] * row["micro_steps"]
        assert per_gpu == (144 // gpus if kind == "strong" else 3) and row["tokens"] == per_gpu * gpus * 4096
        assert row["sequences"] == (1 if (kind, gpus) == ("strong", 144) else 3)  # a micro-batch of the config, or less
        assert 0 <= row["share_overlapped"] <= row["share"] < 1
    assert (
        rows["strong", 144, "shard"]["share"] > rows["weak", 144, "shard"]["share"]
    )  # less to compute, as much to send
    assert rows["weak", 288, "replicate"]["tokens"] == 288 * 3 * 4096
    slower = ["traffic", "configs/8b.py", "--gpus=144", "--network=5e9", "--json"]
    scaling.run(slower)
    again = json.loads(capsys.readouterr().out)["traffic"]
    assert all(row["share"] > rows[row["scaling"], 144, row["parallel"]]["share"] for row in again)
    scaling.run(["traffic", "configs/8b.py"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120 and "at most 144 GPUs" in text and "left out: 32, 64" in text


def test_mistakes_are_one_line(capsys):
    for args, word in (
        (["--gpus=8,0"], "--gpus='8,0'"),
        (["--network=0"], "--network='0'"),
        (["--nvlink=many"], "--nvlink='many'"),
        (["--per_node=1"], "--per_node='1'"),
        (["--gpu=Abacus"], "--gpu=Abacus"),
        (["--cards=8"], "--cards: no such option"),
        (["--gather_dtype=bfloat16", "--dtype=float32"], "this run computes in float32"),
    ):
        with pytest.raises(SystemExit) as end:
            main(lambda args=args: scaling.run(["traffic", "configs/8b.py", *args]))
        assert end.value.code == 1, args
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and error.startswith("error: ") and word in error, (args, error)
