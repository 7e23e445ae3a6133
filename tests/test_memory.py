"""Memory on paper against what torch counts on a CPU, and the configs of the paper's larger runs."""

import dataclasses
import json
import weakref

import pytest
import torch
from test_scaling import command
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import memory
import optim
import scaling
from bins import folder_of
from config import load, main
from memory import activations, kept, logits_bytes
from model import Llama, Shape
from parallel import Gradients, Ranks
from scaling import num_params
from train import Config, check, make_averages, make_optimizer

SMALL = Shape(vocab_size=640, seq_len=96, n_layer=3, n_head=4, n_embd=64)
BASE = dict(
    seq_len=96, global_batch_size=4, micro_batch_size=4, n_layer=3, n_head=4, n_embd=64, total_steps=20, warmup_steps=0,
    compile=False, dtype="float32",
)  # fmt: skip


def small(**options):
    """(config, shape) of a small model."""
    config = Config(**BASE | options)
    return config, Shape.of(config, SMALL.vocab_size)


def n_bytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def batch(config):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(640, (2, config.micro_batch_size, config.seq_len), generator=generator)


# ----------------------------------------------------------------------------------------------------------------------
# The configs


@pytest.mark.parametrize(
    "name, source, sizes, paper_words, tokens_per_step, tokens",
    [
        ("1b", "HuggingFaceFW/fineweb:sample-100BT", (1_026_086_656, 1_024_022_272), 49_152, "1.8M", "99B"),
        ("8b", "HuggingFaceFW/fineweb-edu:sample-100BT", (7_391_678_464, 8_030_261_248), 128_256, "0.6M", "12B"),
    ],
)
def test_configs_of_the_larger_runs(name, source, sizes, paper_words, tokens_per_step, tokens):
    path = scaling.HERE / "configs" / f"{name}.py"
    config = load(Config, [str(path)])
    check(config)
    per_step = config.global_batch_size * config.seq_len
    assert f"{per_step / 1e6:.1f}M" == tokens_per_step and f"{per_step * config.total_steps / 1e9:.0f}B" == tokens
    assert config.cooldown_steps == 0.2 * config.total_steps and config.save_at == (0.8 * config.total_steps,)
    assert config.dataset == folder_of("data", None, source, "gpt2").name  # what prepare_data.py calls it
    for words, n_params in zip((50_257, paper_words), sizes, strict=True):
        shape = Shape.of(config, words)
        with torch.device("meta"):
            assert num_params(shape) == n_params == sum(p.numel() for p in Llama(shape).parameters())
        assert f"{n_params:,}" in path.read_text()
    assert source in path.read_text()


# ----------------------------------------------------------------------------------------------------------------------
# What stays: exact


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_weights_optimizer_and_averages_are_what_torch_keeps(name):
    averaged = (
        {} if name == "schedule_free" else dict(window_horizon=4, window_every=2, window_keep=2, ema_decay=(0.5,))
    )
    config, shape = small(
        optimizer=name, ema_half_life=() if name == "schedule_free" else (3.0,), ema_every=2, **averaged
    )
    model = Llama(shape)
    optimizer, averages = make_optimizer(config, model), make_averages(config, model)
    most_averages = 0
    for step in range(1, 17):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        for average in averages.values():
            average.update(step)
        most_averages = max(most_averages, n_bytes(t for a in averages.values() for b in a.blocks for t in b.tensors))
    parts = memory.memory(config, shape, 1)
    assert parts["weights"]["loss"] == n_bytes(model.parameters())
    state = [t for t in tree_leaves(optimizer.state_dict()["state"]) if isinstance(t, torch.Tensor) and t.dim()]
    assert parts["optimizer"]["loss"] == n_bytes(state)
    assert parts["averages"]["loss"] == most_averages and (most_averages > 0) == bool(averaged)
    on_cpu = memory.memory(dataclasses.replace(config, averages_on="cpu"), shape, 1)
    assert on_cpu["averages"]["loss"] == 0


@pytest.mark.parametrize("total", [1, 2, 3, 4, 6, 8])
def test_gradients_are_as_many_copies_as_torch_keeps(total):
    config, shape = small(global_batch_size=total, micro_batch_size=1, seq_len=8)
    model = Llama(shape)
    gradients = Gradients(Ranks("cpu"), model, model, total)
    x, y = batch(config)
    made = [hook.args[0] for p in model.parameters() for hook in p._post_accumulate_grad_hooks.values()]
    parts = list({id(part): part for part in made}.values())
    for _ in gradients.micro_steps():
        held = [p.grad for p in model.parameters() if p.grad is not None]
        before = n_bytes([*held, *(t for part in parts for half in part.halves for t in half)])
        model(x, y).backward()
    after = n_bytes(p.grad for p in model.parameters())
    found = memory.memory(config, shape, 1)["gradients"]
    assert found["loss"] == before + 4 * shape.padded_vocab * shape.n_embd  # that of the output matrix is next
    assert found["sums"] == after


def test_shards_keep_what_torch_chunks_are():
    shape = dataclasses.replace(SMALL, n_embd=72, tied=False)  # 7 shards of no tensor are alike
    model = Llama(shape)
    for shards in (1, 2, 7):
        rows = sum(torch.chunk(p, shards)[0].numel() for p in model.parameters())
        assert kept(shape, shards, "adamw") == (rows, 8 * rows)
    config, _ = small(n_embd=72, tied=False, global_batch_size=7, micro_batch_size=1, parallel="shard")
    parts = memory.memory(config, shape, 7)
    assert parts["weights"]["loss"] == 4 * rows and parts["optimizer"]["loss"] == 8 * rows
    alone = memory.memory(dataclasses.replace(config, parallel="replicate"), shape, 7)
    assert alone["gathered"]["loss"] == 0 < parts["gathered"]["loss"]
    rounded = memory.memory(dataclasses.replace(config, gather_dtype="bfloat16"), shape, 7)
    travels = 2 * sum(p.numel() for p in Llama(shape).blocks[0].parameters() if p.dim() == 2)
    assert rounded["gathered"]["loss"] == parts["gathered"]["loss"] + travels


# ----------------------------------------------------------------------------------------------------------------------
# What comes and goes


def saved_bytes(model, x, y, bf16, z_loss):
    """Bytes that autograd keeps of a forward pass, each piece of memory once, without the parameters themselves."""
    own, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            seen[t.untyped_storage().data_ptr()] = t  # kept, so that no other takes its place
        return t

    with saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(x, y, z_loss=z_loss)
    return sum(t.untyped_storage().nbytes() for t in seen.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    "options", [{}, dict(loss_rows=64), dict(n_kv_head=2, tied=False), dict(qk_norm=True), dict(z_loss=1e-4)], ids=str
)
def test_activations_and_logits_are_what_autograd_keeps(bf16, again, options):
    config, shape = small(micro_batch_size=4, checkpoint_activations=again, **options)
    model = Llama(shape)
    model.set_up(False, config.loss_rows, again)
    found = saved_bytes(model, *batch(config), bf16, config.z_loss)
    tokens, e, rows = 4 * 96, 2 if bf16 else 4, config.loss_rows or 0
    matrices = shape.n_layer * memory.block_params(shape) * (not again) + shape.padded_vocab * shape.n_embd * (not rows)
    expected = activations(shape, tokens, e, again, rows) + logits_bytes(shape, tokens, e, rows, config.z_loss > 0)[0]
    assert found == pytest.approx(expected + 2 * matrices * bf16, rel=0.02)


class Peak(TorchDispatchMode):
    """The most memory that tensors take at one time, each piece of memory once."""

    def __init__(self, tensors):
        super().__init__()
        self.now = self.most = 0
        self.live = {}
        for t in tensors:
            self.add(t)

    def add(self, t):
        storage = t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.live:
            self.now += size
            self.most = max(self.most, self.now)
            self.live[key] = weakref.ref(storage, lambda _: self.gone(key, size))

    def gone(self, key, size):
        self.now -= size
        del self.live[key]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.add(t)
        return out


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("rows, vocab", [(0, 6400), (64, 6400), (64, 64)])
def test_the_most_that_a_step_takes(bf16, again, rows, vocab):
    dtype = "bfloat16" if bf16 else "float32"
    config, _ = small(checkpoint_activations=again, loss_rows=rows, dtype=dtype, global_batch_size=8, n_layer=6)
    shape = Shape.of(config, vocab)
    model = Llama(shape)
    model.set_up(False, rows, again)
    gradients = Gradients(Ranks("cpu"), model, model, 2)
    x, y = batch(config) % vocab
    with Peak(model.parameters()) as peak:
        for _ in gradients.micro_steps():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(x, y)
            loss.backward()
    parts = memory.memory(config, shape, 1)
    parts = {name: part | {"evaluation": 0} for name, part in parts.items() if name != "optimizer"}
    assert 0.98 < memory.most(parts) / peak.most < 1.1


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def test_memory_of_the_8b_run(capsys):
    scaling.run(["memory", "configs/8b.py", "--gpus=48", "--vocab_size=128256", "--price=2", "--json"])
    out = json.loads(capsys.readouterr().out)
    assert out["params"] == 8_030_261_248 and out["fits"] and out["dollars"] == pytest.approx(2 * out["gpu_hours"])
    assert out["bytes"] == max(sum(part[m] for part in out["parts"].values()) for m in memory.MOMENTS)
    by_way = {(row["parallel"], row["checkpoint_activations"], row["loss_rows"]): row for row in out["options"]}
    assert len(by_way) == 12 and by_way["shard", True, 512]["bytes"] == out["bytes"]
    assert not by_way["replicate", True, 512]["fits"] and by_way["replicate", True, 512]["largest_micro_batch"] == 0
    assert by_way["shard", True, 512]["bytes"] < by_way["shard:8", True, 512]["bytes"]
    seconds = scaling.train_flops(Shape.of(load(Config, ["configs/8b.py"]), 128_256)) * 144 * 20_000 / (0.4 * 989e12)
    assert out["gpu_hours"] == pytest.approx(seconds / 3600) and out["days"] == pytest.approx(seconds / 86400 / 48)


def test_the_largest_micro_batch_is_the_largest():
    config, shape = small(global_batch_size=24, micro_batch_size=1, seq_len=8192)

    def need(size):
        return memory.most(memory.memory(dataclasses.replace(config, micro_batch_size=size), shape, 2))

    assert memory.largest_micro_batch(config, shape, 2, need(6)) == 6
    assert memory.largest_micro_batch(config, shape, 2, need(6) - 1) == 4
    assert memory.largest_micro_batch(config, shape, 2, 0) == 0


def test_averages_on_the_cpu_spare_the_gpu(capsys):
    args = ["memory", "configs/124m.py", "--window_horizon=500", "--ema_half_life=100", "--averages_on=cpu"]
    scaling.run([*args, "--json"])
    out = json.loads(capsys.readouterr().out)
    assert out["averages_in_cpu_memory"] == 7 * 4 * out["params"] and out["parts"]["averages"]["loss"] == 0
    rows = {row["averages_on"]: row["bytes"] for row in out["options"] if row["checkpoint_activations"]}
    assert rows["device"] - rows["cpu"] == out["averages_in_cpu_memory"]
    scaling.run(args)
    text = capsys.readouterr().out
    assert "GiB of CPU memory per GPU" in text and max(map(len, text.splitlines())) <= 120


def test_mistakes_are_one_line(capsys):
    for args, word in (
        (["memory"], "config"),
        (["memory", "configs/none.py"], "none.py"),
        (["memory", "configs/8b.py", "--gpus=0"], "--gpus='0'"),
        (["memory", "configs/8b.py", "--gpus=7"], "--gpus=7: global_batch_size=144"),
        (["memory", "configs/8b.py", "--gpus=48", "--gpu=Abacus"], "--gpu=Abacus"),
        (["memory", "configs/8b.py", "--gather_dtype=bfloat16", "--parallel=replicate"], "add --parallel=shard"),
        (["memory", "configs/8b.py", "--gpus=48", "--parallel=split"], "parallel='split'"),
        (["memory", "configs/8b.py", "--gpus=48", "--parallel=shard:7"], "parallel='shard:7'"),
        (["memory", "configs/8b.py", "--gpus=48", "--optimizer=muon"], "optimizer='muon'"),
        (["memory", "configs/8b.py", "--gpus=48", "--mfu=2"], "--mfu='2'"),
        (["memory", "configs/8b.py", "--gpus=48", "--price=-1"], "--price='-1'"),
        (["memory", "configs/8b.py", "--layers=3"], "--layers: no such option"),
        (["memory", "configs/8b.py", "configs/1b.py"], "configs/1b.py: give one config"),
        (["memory", "configs/8b.py", "--n_head=7"], "n_head=7"),
        (["memory", "configs/8b.py", "--dataset=mine"], "--vocab_size"),
        (["table", "--gpus=8"], "--gpus=8"),
    ):
        with pytest.raises(SystemExit) as end:
            main(lambda args=args: scaling.run(args))
        assert end.value.code == 1, args
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and error.startswith("error: ") and word in error, (args, error)


def test_gpu_memory_by_device_name():
    for name, size in (
        ("NVIDIA H100 80GB HBM3", 80),
        ("NVIDIA H100 NVL", 94),
        ("NVIDIA A100-SXM4-80GB", 80),
        ("A100", 40),
    ):
        assert scaling.look_up(scaling.GPU_MEMORY, name) == size
    assert {*scaling.GPU_MEMORY} - {"A100-SXM4-80GB", "A100 80GB PCIe"} <= {*scaling.PEAK_FLOPS}
    assert all(scaling.look_up(scaling.GPU_MEMORY, name) for name in scaling.PEAK_FLOPS)


def test_scaling_py_reaches_it():
    done = command("memory", "configs/1b.py", "--gpus=4")
    assert done.returncode == 0 and "1,026,086,656 parameters" in done.stdout and done.stderr == ""
