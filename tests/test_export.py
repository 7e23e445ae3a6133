"""Tests of export.py: transformers computes from our folders what we compute, and we from its folders what it does.

python -m pytest tests/test_export.py
"""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiktoken.load
import tiktoken.registry
import tokenizers
import torch
from conftest import BASE, newest, same
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)  # fmt: skip

import averaging
import checkpoint
import data
import evaluate
import export
import prepare_data
import sample
import vocab
from config import Mistake, load
from model import Llama, shape_of
from train import Config, train

ODD = [
    "",
    " ",
    "\n\n \t",
    "<|endoftext",
    "é\u0301 ﬁ 你好 🙂👩‍👩‍👧‍👦",
    "\0\x7f\x80\ufffd\ufeff",
    "a" * 500,
    "don't  DON'T\r\n",
    "١٢٣ ½ x²",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir):
    """runs(name, **options): the path of the last checkpoint of a short run, trained once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def go(name, **options):
        if name not in made:
            options = BASE | {"total_steps": 24, "cooldown_steps": 4, "name": name, "out_dir": str(folder)} | options
            train(Config(**options | {"data_dir": str(data_dir)}))
            made[name] = checkpoint.path_of(folder / name / "ckpt", 24)
        return made[name]

    return go


def exported(path, out, *args):
    export.run([str(path), f"--out={out}", *args])
    return AutoModelForCausalLM.from_pretrained(out, local_files_only=True).eval()


def some_tokens(vocab_size=257, T=32):
    return torch.randint(vocab_size, (3, T), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def differ(model, theirs):
    """Largest difference of logits, over the largest logit; in fp32, of all rows."""
    x = some_tokens(model.shape.vocab_size, min(32, model.shape.seq_len))
    ours, theirs = model(x), theirs(x).logits
    assert ours.shape == theirs.shape and ours.std() > 0.1
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


# ----------------------------------------------------------------------------------------------------------------------
# Out

WSD = {"window_horizon": 0, "ema_half_life": ()}
KINDS = {
    "tied": {},
    "untied": {"tied": False},
    "grouped": {"n_head": 4, "n_kv_head": 2},
    "qk_norm": {"qk_norm": True, "n_kv_head": 1},
    "mup": {"mup_base": 16, "alpha_in": 3.0, "alpha_out": 0.7, "n_head": 4},
    "mup untied": {"mup_base": 16, "alpha_in": 3.0, "alpha_out": 0.7, "n_head": 4, "tied": False},
    "sparse": {"density": 0.5},
    "numbers": {"n_inner": 40, "rope_theta": 50.0, "norm_eps": 0.01, "vocab_multiple": 1},
    "schedule_free": {"schedule": "constant", "optimizer": "schedule_free", "cooldown_steps": None, **WSD},
}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_ours(runs, tmp_path, kind):
    path = runs(kind, **KINDS[kind])
    theirs = exported(path, tmp_path / "out")
    state = evaluate.read(path)
    assert differ(evaluate.build_model(state, path, "cpu"), theirs) < 1e-5
    assert theirs.config.tie_word_embeddings == ("untied" not in kind)
    assert theirs.config.vocab_size == (257 if kind == "numbers" else 320)
    raw = Llama(shape_of(state))  # the control: the weights as they are in the file, without folding
    raw.load_state_dict(checkpoint.load(path)["model"])
    raw.factor_in = raw.factor_out = 1.0
    if kind in ("mup", "mup untied", "schedule_free"):
        assert differ(raw, theirs) > 1e-3
    else:
        assert differ(raw, theirs) < 1e-5


@pytest.mark.parametrize("average", ["window", "ema"])
def test_averages_are_exported(runs, tmp_path, average):
    path = runs("tied")
    theirs = exported(path, tmp_path / "out", f"--average={average}")
    state = evaluate.read(path)
    model = evaluate.build_model(state, path, "cpu")
    assert differ(model, theirs) > 1e-3  # the control: the raw weights
    weights = averaging.restore(model, state["averages"][average]).average()
    with averaging.swapped(model, weights):
        assert differ(model, theirs) < 1e-5
    assert f"| weights | {average}, float32 |" in (tmp_path / "out/README.md").read_text()


def test_bf16_weights_are_ours_rounded(runs, tmp_path):
    exported(runs("grouped", **KINDS["grouped"]), tmp_path / "fp32")
    theirs = exported(runs("grouped"), tmp_path / "bf16", "--dtype=bfloat16")
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("fp32", "bf16"))
    assert theirs.dtype == torch.bfloat16 and full.keys() == half.keys() and len(full) == 2 + 2 * 9
    for name, tensor in full.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor.bfloat16(), half[name])
    ours = checkpoint.load(runs("grouped"))["model"]  # not only consistent: the trained numbers
    assert torch.equal(full["model.embed_tokens.weight"], ours["embedding.weight"])
    assert torch.equal(full["model.layers.1.self_attn.v_proj.weight"], ours["blocks.1.attention.qkv.weight"][-16:])


@pytest.mark.parametrize("kind", ["tied", "grouped"])
def test_greedy_text_is_that_of_sample(runs, tmp_path, kind, capsys):
    path = runs(kind, **KINDS[kind])
    theirs, tokenizer = exported(path, tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    capsys.readouterr()
    for prompt in ("ba", "gomi te\n"):
        sample.run([str(path), f"--prompt={prompt}", "--tokens=20", "--temperature=1e-4"])
        context = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt")
        tokens = theirs.generate(**context, max_new_tokens=20, min_new_tokens=20, do_sample=False)
        assert tokenizer.decode(tokens[0, 1:]) == capsys.readouterr().out[:-1]


def test_many_tensors_are_several_files(runs, tmp_path, monkeypatch):
    path = runs("untied", **KINDS["untied"])
    whole = exported(path, tmp_path / "one").state_dict()
    monkeypatch.setattr(export, "SHARD_BYTES", 100_000)
    several = exported(path, tmp_path / "several").state_dict()
    assert whole.keys() == several.keys() and all(torch.equal(whole[k], several[k]) for k in whole)
    index = json.loads((tmp_path / "several/model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "several").glob("*.safetensors"))
    assert len(files) > 2 and files[-1] == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    held = {name: file for file in files for name in load_file(tmp_path / "several" / file)}
    assert index["weight_map"] == held and index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert max((tmp_path / "several" / file).stat().st_size for file in files[:-1]) < 101_000


def test_config_is_spelled_for_transformers_4_and_5(runs, tmp_path):
    exported(runs("numbers", **KINDS["numbers"]), tmp_path / "out", "--dtype=bfloat16")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16" and config["rms_norm_eps"] == 0.01
    assert config["bos_token_id"] == config["eos_token_id"] == 256 and config["intermediate_size"] == 40
    said = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert said == {"bos_token_id": 256, "eos_token_id": 256}
    exported(runs("tied"), tmp_path / "padded")
    padded = json.loads((tmp_path / "padded/generation_config.json").read_text())
    assert padded == said | {"suppress_tokens": [*range(257, 320)]}


def test_the_card_says_what_it_was(runs, tmp_path):
    path = runs("tied")
    exported(path, tmp_path / "out")
    text, state = (tmp_path / "out/README.md").read_text(), checkpoint.load(path)
    losses = state["progress"]["losses"]
    facts = [f"its sha256 | {hashlib.sha256(path.read_bytes()).hexdigest()} |", "tokens | 9,216 |", "step | 24 |"]
    facts += ["schedule wsd, total_steps 24, warmup_steps 5, cooldown_steps 4", "text from sequence 0", "lr 0.01"]
    facts += [f"{name} {losses[name]:.4f}" for name in ("val_loss", "val_loss_window", "val_loss_ema")]
    facts += [f"text {state['data']['sha256']['text']}", "tokenizer | bytes"]
    facts += ["257 words in 320 rows: the last 63 are padding"]
    assert [fact for fact in facts if fact not in text] == []


def test_old_checkpoints_are_exported_too(tmp_path):
    """Of before shapes and tokenizers were stored: they know the padded vocabulary only, and no tokenizer."""
    path = Path(__file__).parent / "fixtures/runs/run/ckpt/step_00000012.pt"
    with pytest.raises(Mistake, match="has the tokenizer None: give --tokenizer, gpt2, bytes, .* or the folder of it"):
        export.run([str(path), f"--out={tmp_path / 'out'}"])
    theirs = exported(path, tmp_path / "out", "--tokenizer=bytes")
    rows = checkpoint.load(path)["model"]["head.weight"]
    assert theirs.config.vocab_size == len(rows) == 320 and torch.equal(theirs.lm_head.weight, rows)
    assert theirs.generation_config.suppress_tokens == [*range(257, 320)]


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizers


def some_documents():
    """Python's own files and random text with odd characters: some thousands."""
    rng = random.Random(0)
    texts = [p.read_text(errors="replace") for p in sorted(Path(os.__file__).parent.glob("*.py"))]
    pieces = [line for text in texts for line in text.split("\n\n")][:20_000:10]
    alphabet = [*map(chr, range(1, 0x250)), *"你好🙂\u0301\u200d\u00a0\u2028\u3000\ufeffﬁ½²١ेñ\U0001d518\ufffd"]
    odd = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(1500)]
    spaces = ["".join(rng.choices(" \t\n\r a1'sé.", k=rng.randint(1, 40))) for _ in range(1000)]
    return [*ODD, *texts[:60], *pieces, *odd, *spaces]


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_tokens_are_ours_and_come_back(tmp_path, name):
    for file, value in export.tokenizer_files(name, 128).items():
        export.write_json(tmp_path / file, value)
    theirs, texts, encode = AutoTokenizer.from_pretrained(tmp_path), some_documents(), vocab.encoder(name)
    assert len(texts) > 4000 and len(theirs) == vocab.TOKENIZERS[name].vocab_size and theirs.is_fast
    found = [theirs.encode(text) for text in texts]
    assert [text for text, ids in zip(texts, found, strict=True) if list(encode(text)) != ids] == []
    assert [text for text, ids in zip(texts, found, strict=True) if theirs.decode(ids) != text] == []
    end = vocab.TOKENIZERS[name].eot_id
    assert theirs.encode("a<|endoftext|>") == [*encode("a"), end] == [*encode("a"), theirs.eos_token_id]
    text = theirs.encode("<|endoftext|>", split_special_tokens=True)  # as we read it, where it is text
    assert text == list(encode("<|endoftext|>")) and len(text) > 1
    assert [*theirs("a")] == ["input_ids", "attention_mask"] and theirs.model_max_length == 128


# ----------------------------------------------------------------------------------------------------------------------
# Whole or not there


def contents(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_exporting_changes_nothing_in_the_run(runs, tmp_path):
    run = runs("tied").parents[1]
    before = contents(run)
    for i, how in enumerate(([], ["--average=ema"], ["--average=window", "--dtype=bfloat16"])):
        exported(runs("tied"), tmp_path / str(i), *how)
    assert contents(run) == before and len(before) > 3


def export_and_die(path, out, n):
    """Export, and be killed at the n-th call that syncs or renames; exit status 0 if there are fewer."""
    calls = 0

    def counted(function):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, counted(getattr(os, name)))
    sys.stdout = open(os.devnull, "w")
    export.run([str(path), f"--out={out}"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_leaves_no_half_of_a_folder(runs, tmp_path):
    path, out, kills = runs("tied"), tmp_path / "out", 0
    exported(path, tmp_path / "whole")
    expected = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}
    while True:
        process = multiprocessing.get_context("fork").Process(target=export_and_die, args=(path, out, kills + 1))
        process.start()
        process.join()
        if out.exists():
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills > 10 and {p.name: p.read_bytes() for p in out.iterdir()} == expected


def test_a_failure_leaves_nothing(runs, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_json", full)
    with pytest.raises(OSError):
        export.run([str(runs("tied")), f"--out={tmp_path / 'out'}"])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_of_the_machine(runs, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="model.safetensors could not be written: I/O error: No space left on device"):
        export.run([str(runs("tied")), f"--out={tmp_path / 'out'}"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(runs, tmp_path):
    path = str(runs("tied"))
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("empty", "full", "file", "link"):
        with pytest.raises(Mistake, match=f"--out=.*{name} is there already, and stays: choose another name"):
            export.run([path, f"--out={tmp_path / name}"])
    (tmp_path / ".new.tmp").mkdir()
    (tmp_path / ".new.tmp/thesis.txt").write_text("mine")
    (tmp_path / ".linked.tmp").symlink_to(tmp_path / "full")
    for name in ("new", "linked"):
        with pytest.raises(Mistake, match="is not what a killed export left: move it away, or choose another --out"):
            export.run([path, f"--out={tmp_path / name}"])
    assert (tmp_path / ".new.tmp/thesis.txt").read_text() == (tmp_path / "full/thesis.txt").read_text() == "mine"


# ----------------------------------------------------------------------------------------------------------------------
# In

SIZES = dict(vocab_size=257, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(max_position_embeddings=64, initializer_range=0.2, bos_token_id=256, eos_token_id=256)
LLAMAS = {
    "plain": {},
    "grouped and tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "numbers": {"rms_norm_eps": 0.05, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    "as ours": {"intermediate_size": 256, "rms_norm_eps": 1e-5, "vocab_size": 320, "tie_word_embeddings": True},
}


def save_llama(folder, tokenizer="bytes", shards="5GB", dtype=torch.float32, **changes):
    """A folder as transformers writes it, of a random model; norms are not 1."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape) + 0.5 if parameter.dim() == 1 else 1)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    for file, value in export.tokenizer_files(tokenizer, 64).items() if tokenizer else ():
        export.write_json(folder / file, value)
    return model


def imported(folder, out, *args):
    export.run([f"--from_hf={folder}", f"--out={out}", *args])
    state = evaluate.read(out)
    return state, evaluate.build_model(state, out, "cpu")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def forget():
    """forget() makes this process know our own tokenizers only, as a new one does."""

    def go():
        for name in vocab.TOKENIZERS.keys() - {*vocab.our_own()}:
            del vocab.TOKENIZERS[name]

    yield go
    go()


@pytest.mark.parametrize("kind", LLAMAS)
def test_a_llama_comes_in_and_goes_out_to_the_bit(tmp_path, kind, forget):
    theirs = save_llama(tmp_path / "in", **LLAMAS[kind])
    state, model = imported(tmp_path / "in", tmp_path / "new/step_00000000.pt")
    assert differ(model, theirs) < 1e-5 and state["progress"]["step"] == 0
    assert (state["data"]["tokenizer"], model.shape.vocab_size) == ("bytes", 257)
    assert model.shape.padded_vocab == theirs.config.vocab_size  # of more rows the last are padding
    again = exported(tmp_path / "new/step_00000000.pt", tmp_path / "out").state_dict()
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in theirs.state_dict().items())
    assert "| imported from |" in (text := (tmp_path / "out/README.md").read_text()) and "| schedule" not in text
    for name in ("rms_norm_eps", "rope_parameters", "num_key_value_heads", "intermediate_size", "tie_word_embeddings"):
        before, after = (json.loads((tmp_path / folder / "config.json").read_text())[name] for folder in ("in", "out"))
        assert before == after


def test_numbers_count_when_a_llama_comes_in(tmp_path):
    """The control of the logits above, and older spellings: each number of the config makes another model."""
    theirs = save_llama(tmp_path / "in", **LLAMAS["numbers"])
    for changes, alike in (
        ({"rope_parameters": None, "rope_theta": 77.0, "rope_scaling": None}, True),
        ({"rope_parameters": None, "rope_theta": 77.0, "rope_scaling": {"type": "default"}}, True),
        ({"rope_parameters": None, "rope_theta": 1e4}, False),
        ({"rope_parameters": {"rope_theta": 77.0}, "rms_norm_eps": 1e-5}, False),
    ):
        edit_config(tmp_path / "in", **changes)
        _, model = imported(tmp_path / "in", tmp_path / f"{len(list(tmp_path.iterdir()))}.pt")
        found = differ(model, theirs)
        assert found < 1e-5 if alike else found > 1e-3


def test_shards_and_bf16_come_in_and_go_out_to_the_bit(tmp_path):
    theirs = save_llama(tmp_path / "in", shards="20KB", dtype=torch.bfloat16)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    imported(tmp_path / "in", tmp_path / "a.pt")
    again = exported(tmp_path / "a.pt", tmp_path / "out", "--dtype=bfloat16").state_dict()
    for name, tensor in theirs.state_dict().items():
        assert again[name].dtype == torch.bfloat16 and torch.equal(tensor, again[name])


OPTIONS = dict(n_layer=2, n_head=4, n_embd=32, n_kv_head=2, n_inner=56, vocab_multiple=1, norm_eps=1e-6, seq_len=32)
OPTIONS |= dict(window_horizon=0, ema_half_life=(), total_steps=16, cooldown_steps=4, init_from="step_00000000.pt")


@pytest.fixture
def branch(tmp_path, data_dir, monkeypatch):
    """branch(name, **options) trains from an imported model and returns what result.json says; and that model."""
    theirs = save_llama(tmp_path / "in", num_key_value_heads=2, tie_word_embeddings=True)
    monkeypatch.chdir(tmp_path)
    imported(tmp_path / "in", "step_00000000.pt", "--seq_len=32")
    options = BASE | OPTIONS | {"out_dir": "runs", "data_dir": str(data_dir)}
    return lambda name, **changes: train(Config(**options | {"name": name} | changes)), theirs


def test_training_goes_on_from_a_llama(branch, tmp_path, data_dir, capsys):
    go, theirs = branch
    before = (tmp_path / "step_00000000.pt").read_bytes()
    result = go("branch", eval_every=16)
    said = capsys.readouterr().out
    assert "imported: its weights are those of" in said and "changed:" not in said and "log:" not in said
    val, total = data.ValSet(data_dir / "text", 32, 2000), 0.0
    with torch.no_grad():
        for i in range(val.n_chunks):
            x, y = val.chunk(i)
            logits = theirs(x).logits.flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits, y.flatten(), ignore_index=-1, reduction="sum").item()
    log = [json.loads(line) for line in Path("runs/branch/log.jsonl").read_text().splitlines()]
    assert log[0]["step"] == 0 and log[0]["val_loss"] == pytest.approx(total / 2000, rel=1e-5)
    assert result["val_loss"] < log[0]["val_loss"] - 0.5 and result["step"] == 16
    assert (tmp_path / "step_00000000.pt").read_bytes() == before
    trained = exported("runs/branch/ckpt/step_00000016.pt", tmp_path / "out")  # what is trained goes out again
    state = evaluate.read("runs/branch/ckpt/step_00000016.pt")
    assert differ(evaluate.build_model(state, "x.pt", "cpu"), trained) < 1e-5 and "imported" not in state


@pytest.mark.parametrize("multiple", [64, 100, 1])
def test_a_run_goes_on_from_its_own_export_at_the_same_loss(runs, tmp_path, data_dir, forget, capsys, multiple):
    """The rows that pad the vocabulary are in the softmax: without them, as in earlier exports, the loss is another."""
    path = runs(f"multiple {multiple}", vocab_multiple=multiple, n_embd=32)
    expected = checkpoint.load(path)["progress"]["losses"]["val_loss"]

    def first_loss(folder, name):
        capsys.readouterr()
        export.run([f"--from_hf={folder}", f"--out={tmp_path / name}.pt"])
        flags = capsys.readouterr().out.splitlines()[-1].split("python train.py ")[1].split()[:-1]
        options = BASE | {"name": name, "out_dir": str(tmp_path / "runs"), "data_dir": str(data_dir), "total_steps": 8}
        shape = ("n_layer", "n_head", "n_embd", "seq_len")  # the flags have what is not the default
        options |= {"window_horizon": 0, "ema_half_life": (), "cooldown_steps": 2}
        config = load(Config, [f"--{k}={v}" for k, v in options.items() if k not in shape and v != ()] + flags)
        train(config)
        log = [json.loads(line) for line in (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines()]
        return log[0]["val_loss"]

    exported(path, tmp_path / "out")
    assert first_loss(tmp_path / "out", "again") == pytest.approx(expected, rel=1e-6)
    weights = load_file(tmp_path / "out/model.safetensors")  # the control, and what earlier exports hold
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:257].clone()
    save_file(weights, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    edit_config(tmp_path / "out", vocab_size=257)
    cut = first_loss(tmp_path / "out", "cut")
    assert cut == pytest.approx(expected, rel=1e-6) if multiple == 1 else cut < expected - 1e-4


def test_rows_without_a_word_are_never_drawn(runs, tmp_path):
    path = runs("tied")
    exported(path, tmp_path / "out")
    weights = load_file(tmp_path / "out/model.safetensors")
    weights["model.norm.weight"] *= 0  # all logits are 0, and all rows alike
    save_file(weights, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    start = torch.full((64, 1), 97)
    torch.manual_seed(0)
    how = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": True, "top_k": 0}
    assert 200 < theirs.generate(start, **how).max() < 257
    theirs.generation_config.suppress_tokens = None  # the control
    assert theirs.generate(start, **how).max() >= 257


@pytest.mark.parametrize("optimizer", ["muon", "schedule_free"])
def test_training_goes_on_with_any_optimizer(branch, optimizer):
    go, _ = branch
    schedule = {"schedule": "constant", "cooldown_steps": None} if optimizer == "schedule_free" else {}
    assert go("other", optimizer=optimizer, **schedule)["val_loss"] < 4.5
    for name, value in (("n_inner", 64), ("rope_theta", 500.0), ("norm_eps", 1e-5), ("seq_len", 64)):
        with pytest.raises(Mistake, match=f"{name}={value}, but .* a branch has to keep it"):
            go("wrong", **{name: value})


def test_a_stopped_branch_of_a_llama_goes_on_to_the_bit(branch, tmp_path):
    go, _ = branch
    go("whole")
    go("stopped", stop_at=7)
    go("stopped")
    assert same(*(newest(tmp_path, name) for name in ("whole", "stopped")))


def test_an_imported_model_is_no_checkpoint_of_a_run_s_own(branch, tmp_path):
    go, _ = branch
    go("run", stop_at=4)
    Path("step_00000000.pt").rename("runs/run/ckpt/step_00000008.pt")
    with pytest.raises(Mistake, match="was imported from others, and is not this run's own: move it away"):
        go("run", init_from=None)


def test_an_imported_model_is_evaluated_and_sampled(branch, data_dir, capsys):
    capsys.readouterr()
    evaluate.run(["step_00000000.pt", "--dataset=text", f"--data_dir={data_dir}", "--json"])
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["step"] == 0 and 4 < row["val_loss"] < 12
    sample.run(["step_00000000.pt", "--prompt=a", "--tokens=5"])
    assert capsys.readouterr().out.startswith("a")


UNFIT = [
    ({"model_type": "qwen2"}, "model_type='qwen2'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu', which this code's model does not compute; it is 'silu' there"),
    ({"attention_bias": True}, "attention_bias=True"),
    ({"mlp_bias": True}, "mlp_bias=True"),
    ({"sliding_window": 128}, "sliding_window=128"),
    ({"head_dim": 16}, "head_dim=16"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    ({"auto_map": {"AutoModel": "x.py"}}, "auto_map="),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters={'rope_type': 'llama3'"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling={'type': 'linear'"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
    ({"num_attention_heads": 32, "head_dim": None}, "n_embd=32, n_head=32"),
    ({"num_hidden_layers": 3}, "has no model.layers.2.input_layernorm.weight, which its config.json asks for"),
    ({"num_hidden_layers": 1}, "has model.layers.1."),
    ({"intermediate_size": 48}, "blocks.0.mlp.gate.weight is (56, 32), and should be (48, 32)"),
    ({"vocab_size": 300}, "embedding.weight is (257, 32), and should be (300, 32)"),
    ({"rms_norm_eps": -1.0}, "norm_eps=-1.0: expected number above 0"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings=True, but lm_head.weight is another than the embedding"),
]


@pytest.mark.parametrize("changes, message", UNFIT)
def test_what_does_not_fit_is_refused_by_its_field(tmp_path, changes, message):
    save_llama(tmp_path / "in")
    imported(tmp_path / "in", tmp_path / "good.pt")  # the control
    edit_config(tmp_path / "in", **changes)
    with pytest.raises(Mistake) as error:
        imported(tmp_path / "in", tmp_path / "out.pt")
    assert message in str(error.value) and not (tmp_path / "out.pt").exists()


def test_folders_that_are_not_whole_are_refused(tmp_path):
    save_llama(tmp_path / "in")
    weights = load_file(tmp_path / "in/model.safetensors")
    weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    save_file(weights, tmp_path / "in/model.safetensors")
    odd = {"q_norm": "has model.layers.0.self_attn.q_norm.weight, which this code's model has not"}
    odd |= {"int": "model.embed_tokens.weight is torch.int8; expected float32"}
    odd |= {"damaged": "model.safetensors is damaged", "gone": "has no model.safetensors", "bare": "has no hidden_size"}
    odd |= {"text": "config.json is no JSON", "no config": "config.json is not there: expected a folder"}
    for kind, message in odd.items():
        if kind == "int":
            del weights["model.layers.0.self_attn.q_norm.weight"]
            save_file({k: v.to(torch.int8) for k, v in weights.items()}, tmp_path / "in/model.safetensors")
        if kind == "damaged":
            (tmp_path / "in/model.safetensors").write_bytes(b"not this")
        if kind == "gone":
            (tmp_path / "in/model.safetensors").unlink()
        if kind == "bare":
            (tmp_path / "in/config.json").write_text('{"vocab_size": 3}')
        if kind == "text":
            (tmp_path / "in/config.json").write_text("model: llama")
        if kind == "no config":
            (tmp_path / "in/config.json").unlink()
        with pytest.raises(Mistake) as error:
            imported(tmp_path / "in", tmp_path / "out.pt")
        assert message in str(error.value) and not (tmp_path / "out.pt").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizers of others

TEXT = "The gömi said: don't <end> it, <|endoftext|>!\n\n  You 你好 🙂 123\n"


def save_tokenizer(folder, kind="ByteLevel", eos="<end>"):
    """A small tokenizer of the library: as GPT-2's, or as Llama's with spaces as characters and single bytes."""
    special = ["<start>", "<end>", "<unk>"]
    if kind == "ByteFallback":
        pieces = [*special, *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"Theydon't", "i", "it", "\u2581it"]
        ids = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        merges = [("i", "t"), ("\u2581", "it")]
        made = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, byte_fallback=True, unk_token="<unk>"))
        made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
        made.decoder = tokenizers.decoders.ByteFallback()
        made.add_special_tokens(special)
    else:
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel() if kind == "ByteLevel" else tokenizers.decoders.WordPiece()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
        made.train_from_iterator([TEXT * 3, "gomi kenade " * 50], trainer)
        template = tokenizers.processors.TemplateProcessing("<start> $A", special_tokens=[("<start>", 0)])
        made.post_processor = template  # which training must not see
    made.enable_truncation(5)
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<start>", eos_token=eos).save_pretrained(folder)


def test_a_folder_of_transformers_from_text_to_text(tmp_path, forget, capsys, monkeypatch):
    """Its tokenizer makes bins, its model is trained on them and goes out again, each time from what was kept."""
    monkeypatch.chdir(tmp_path)
    save_llama("in", tokenizer=None, vocab_size=70_000, hidden_size=16, bos_token_id=0, eos_token_id=1)
    save_tokenizer("in")
    Path("text.jsonl").write_text("".join(json.dumps({"text": TEXT * (2 + i % 5)}) + "\n" for i in range(60)))
    prepare_data.run(["text.jsonl", "--tokenizer=in", "--val_frac=0.2", "--procs=2"])
    tokens, meta = data.open_bin("data/text.jsonl-in", "train")
    assert meta["dtype"] == "<u4" and (meta["vocab_size"], meta["eot_id"]) == (70_000, 1)
    theirs = tokenizers.Tokenizer.from_file("in/tokenizer.json")
    theirs.no_truncation()
    documents = np.split(np.array(tokens), np.flatnonzero(tokens == 1) + 1)[:-1]
    assert all(theirs.decode(d[:-1], skip_special_tokens=False) in [TEXT * n for n in range(2, 7)] for d in documents)
    assert max(map(len, documents)) > 64 and not (tokens == 0).any()  # whole, without what begins a text
    n_bytes = sum(len(theirs.decode(d[:-1], skip_special_tokens=False).encode()) for d in documents)
    assert meta["splits"]["train"]["bytes"] == n_bytes and meta["splits"]["train"]["documents"] == len(documents)

    forget()
    prepare_data.run(["--verify", "data/text.jsonl-in"])
    forget()
    export.run(["--from_hf=in", "--out=step_00000000.pt", "--seq_len=16"])
    said = capsys.readouterr().out.splitlines()[-1]
    flags = [flag for flag in said.split("python train.py ")[1].split() if not flag.startswith("--dataset")]
    options = {"micro_batch_size": 4, "global_batch_size": 4, "total_steps": 2, "warmup_steps": 1, "dtype": "float32"}
    options |= {"dataset": "text.jsonl-in", "eval_tokens": 200, "compile": False, "device": "cpu"}
    train(load(Config, flags + [f"--{name}={value}" for name, value in options.items()]))
    path = "runs/run/ckpt/step_00000002.pt"
    forget()
    Path("in").rename("gone")
    sample.run([path, "--prompt=The g\u00f6mi", "--tokens=3", "--temperature=0"])
    assert "The g\u00f6mi" in capsys.readouterr().out
    forget()
    model, tokenizer = exported(path, "out"), AutoTokenizer.from_pretrained("out")
    assert json.loads(Path("out/tokenizer.json").read_text()) == json.loads(Path("gone/tokenizer.json").read_text())
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.vocab_size) == (0, 1, 70_000)
    assert differ(evaluate.build_model(evaluate.read(path), path, "cpu"), model) < 1e-5
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<start>", "<end>")
    forget()
    Path("data").rename("elsewhere")
    with pytest.raises(Mistake, match=r"the tokenizer tokenizer.json-\w{12}: give --tokenizer, gpt2, bytes, .* or the"):
        export.run([path, "--out=again"])
    with pytest.raises(Mistake, match=r"--tokenizer=bytes is bytes, and .* has tokenizer.json-"):
        export.run([path, "--out=again", "--tokenizer=bytes"])
    exported(path, "again", "--tokenizer=gone")


def test_spaces_and_bytes_of_llama_s_tokenizer(tmp_path, forget):
    save_tokenizer(tmp_path / "in", "ByteFallback")
    spec = vocab.TOKENIZERS[vocab.register(tmp_path / "in")]
    ids, words = spec.load()(TEXT), spec.token_bytes()
    assert b"".join(words[i] for i in ids) == TEXT.encode() and b" it" in [words[i] for i in ids]
    assert (spec.eot_id, words[1], len(words)) == (1, b"", spec.vocab_size)


def test_tokenizers_that_do_not_fit_are_refused(tmp_path, forget):
    save_tokenizer(tmp_path / "words", "WordPiece")
    save_tokenizer(tmp_path / "endless", eos=None)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/tokenizer.json").write_text('{"model": {}}')
    for folder, message in {
        "words": 'tokenizer.json has the decoder {"type": "WordPiece"',
        "endless": "tokenizer_config.json names no eos_token that is in the vocabulary",
        "odd": "tokenizer.json is not a file of the library tokenizers",
        "none": "or a folder with a tokenizer.json",
    }.items():
        with pytest.raises(Mistake) as error:
            prepare_data.prepare("stdlib", str(tmp_path / folder), data_dir=tmp_path / "data")
        assert message in str(error.value) and not (tmp_path / "data").exists()
    assert [*vocab.TOKENIZERS] == vocab.our_own()


def test_other_encodings_of_tiktoken(tmp_path, monkeypatch, runs):
    """Theirs are not at hand here: one of 256 bytes and two more tokens stands for them."""
    monkeypatch.setattr(socket, "socket", None)  # nothing is downloaded
    key = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # as tiktoken names the file
    for folder in ("", str(tmp_path)):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder)
        with pytest.raises(
            Mistake, match=f"TIKTOKEN_CACHE_DIR={folder} has no {key}; put .*cl100k_base.tiktoken there"
        ):
            prepare_data.prepare("stdlib", "cl100k_base", data_dir=tmp_path / "data")
    ranks = {bytes([i]): i for i in range(256)} | {b"he": 300, b"the": 301}
    lines = [b64encode(token) + b" " + str(rank).encode() for token, rank in ranks.items()]
    (tmp_path / key).write_bytes(b"\n".join(lines))
    made = {"name": "cl100k_base", "pat_str": r"\w+|\W", "special_tokens": {"<|endoftext|>": 100257}}
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    toy = {"cl100k_base": lambda: made | {"mergeable_ranks": tiktoken.load.load_tiktoken_bpe(url)}}
    monkeypatch.setattr(tiktoken.registry, "ENCODING_CONSTRUCTORS", toy)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    (tmp_path / "in.txt").write_text("the <|endoftext|> he\n" * 40)
    folder = prepare_data.prepare(str(tmp_path / "in.txt"), "cl100k_base", data_dir=tmp_path / "data", procs=1)
    tokens, meta = data.open_bin(folder, "train")
    assert [301, 32, 60, 124] == tokens[:4].tolist() and meta["dtype"] == "<u4" and meta["vocab_size"] == 100277
    assert sum(split["bytes"] for split in meta["splits"].values()) == (tmp_path / "in.txt").stat().st_size
    state = torch.load(runs("tied"), weights_only=True)
    torch.save(state | {"data": state["data"] | {"tokenizer": "cl100k_base"}}, tmp_path / "a.pt")
    with pytest.raises(Mistake, match="cl100k_base cannot be written: expected gpt2, bytes, or one of a folder"):
        export.run([str(tmp_path / "a.pt"), f"--out={tmp_path / 'out'}"])
    vocab.tiktoken_encoding.cache_clear()
    vocab.encoder.cache_clear()


def test_our_own_tokenizers_are_known_again(tmp_path, forget):
    for name in ("gpt2", "bytes"):
        for file, value in export.tokenizer_files(name, 64).items():
            (tmp_path / name).mkdir(exist_ok=True)
            export.write_json(tmp_path / name / file, value)
        AutoTokenizer.from_pretrained(tmp_path / name).save_pretrained(tmp_path / f"{name} again")
        assert vocab.tokenizer_name(tmp_path / name) == vocab.tokenizer_name(tmp_path / f"{name} again") == name
        rows, words = tmp_path / name / "config.json", vocab.TOKENIZERS[name].vocab_size
        rows.write_text('{"vocab_size": 60000}')  # the last of them are padding
        assert vocab.tokenizer_name(tmp_path / name) == name and vocab.tokenizer_words(tmp_path / name) == words
        earlier = vocab.hash_name(tmp_path / name / "tokenizer.json")  # what it was called then
        state = {"data": {"tokenizer": earlier}, "config": {"data_dir": "none", "dataset": "none"}}
        for told in ({"state": state | {"imported": {"path": str(tmp_path / name)}}}, {"given": tmp_path / name}):
            assert vocab.find_tokenizer(**{"state": state, "path": "a.pt"} | told) == earlier
            assert vocab.TOKENIZERS.pop(earlier).vocab_size == 60000
        with pytest.raises(Mistake, match="give --tokenizer"):
            vocab.find_tokenizer(state, "a.pt")
        rows.write_text('{"vocab_size": 256}')
        assert vocab.tokenizer_name(tmp_path / name).startswith("tokenizer.json-")
        rows.unlink()
        tokenizer = json.loads((tmp_path / name / "tokenizer.json").read_text())
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": words, "content": "<|im_start|>"})
        export.write_json(tmp_path / name / "tokenizer.json", tokenizer)  # one word more
        assert vocab.tokenizer_name(tmp_path / name).startswith("tokenizer.json-")
        assert vocab.tokenizer_words(tmp_path / name) == words + 1


MISTAKES = [
    (["--out=x"], "give either a checkpoint, to write as a folder, or --from_hf=FOLDER"),
    (["a.pt", "--from_hf=in", "--out=x"], "give either a checkpoint"),
    (["--from_hf=in", "--out=x", "--average=ema"], "--average goes without --from_hf"),
    (["--from_hf=in", "--out=x", "--dtype=bfloat16"], "--dtype goes without --from_hf"),
    (["a.pt", "--out=x", "--seq_len=5"], "--seq_len goes with --from_hf"),
    (["--from_hf=in", "--out=x", "--seq_len=65"], "--seq_len=65: in/config.json has max_position_embeddings=64; give"),
    (["--from_hf=in", "--out=in"], "--out=in is there already, and stays"),
    (["a.pt"], "--out"),
    (["a.pt", "--out=x"], "a.pt cannot be read as a checkpoint"),
    (["a.pt", "--out=x", "--dtype=float16"], "--dtype: invalid choice: 'float16'"),
]


@pytest.mark.parametrize("args, message", MISTAKES)
def test_mistakes(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_llama(tmp_path / "in")
    with pytest.raises(Mistake) as error:
        export.run(args)
    assert message in str(error.value) and not Path("x").exists()


def test_an_average_that_is_not_there_is_refused(runs, tmp_path):
    with pytest.raises(Mistake, match="has no window average"):
        export.run(
            [str(runs("schedule_free", **KINDS["schedule_free"])), f"--out={tmp_path / 'out'}", "--average=window"]
        )
    assert list(tmp_path.iterdir()) == []
