"""Tests of export.py: transformers computes from our folders what we compute, and we from its folders what it does.

python -m pytest tests/test_export.py
"""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import BASE
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import averaging
import bins
import checkpoint
import evaluate
import export
import sample
from config import Mistake
from model import Llama
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
    """Largest difference of logits, over the largest logit; in fp32, on words that are not padding."""
    x = some_tokens(model.shape.vocab_size)
    ours, theirs = model(x)[..., : model.shape.vocab_size], theirs(x).logits
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
    assert theirs.config.tie_word_embeddings == ("untied" not in kind) and theirs.config.vocab_size == 257
    raw = Llama(export.shape_of(state))  # the control: the weights as they are in the file, without folding
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
    assert torch.equal(full["model.embed_tokens.weight"], ours["embedding.weight"][:257])
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
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {
        "bos_token_id": 256,
        "eos_token_id": 256,
    }


def test_the_card_says_what_it_was(runs, tmp_path):
    path = runs("tied")
    exported(path, tmp_path / "out")
    text, state = (tmp_path / "out/README.md").read_text(), checkpoint.load(path)
    losses = state["progress"]["losses"]
    facts = [f"its sha256 | {hashlib.sha256(path.read_bytes()).hexdigest()} |", "tokens | 9,216 |", "step | 24 |"]
    facts += ["schedule wsd, total_steps 24, warmup_steps 5, cooldown_steps 4", "text from sequence 0", "lr 0.01"]
    facts += [f"{name} {losses[name]:.4f}" for name in ("val_loss", "val_loss_window", "val_loss_ema")]
    facts += [f"text {state['data']['sha256']['text']}", "tokenizer | bytes"]
    assert [fact for fact in facts if fact not in text] == []


def test_old_checkpoints_are_exported_too(tmp_path):
    """Of before shapes and tokenizers were stored: they know the padded vocabulary only, and no tokenizer."""
    path = Path(__file__).parent / "fixtures/runs/run/ckpt/step_00000012.pt"
    with pytest.raises(Mistake, match="has the tokenizer None: expected a model with one of gpt2, bytes"):
        export.run([str(path), f"--out={tmp_path / 'out'}"])
    state = torch.load(path, weights_only=True)
    state["data"]["tokenizer"] = "bytes"
    torch.save(state, tmp_path / "told.pt")
    theirs = exported(tmp_path / "told.pt", tmp_path / "out")
    assert theirs.config.vocab_size == 257 == len(theirs.lm_head.weight) and len(state["model"]["head.weight"]) == 320


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
    theirs, texts, encode = AutoTokenizer.from_pretrained(tmp_path), some_documents(), bins.encoder(name)
    assert len(texts) > 4000 and len(theirs) == bins.TOKENIZERS[name].vocab_size and theirs.is_fast
    found = [theirs.encode(text) for text in texts]
    assert [text for text, ids in zip(texts, found, strict=True) if list(encode(text)) != ids] == []
    assert [text for text, ids in zip(texts, found, strict=True) if theirs.decode(ids) != text] == []
    end = bins.TOKENIZERS[name].eot_id
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
