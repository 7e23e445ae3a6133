"""Tests of sample.py: what is drawn is the model's distribution, and depends on nothing but weights, seed and sample.

python -m pytest tests/test_sample.py
"""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BASE, ENV, HERE
from scipy.stats import chisquare

import data
import prepare_data
import sample
from config import Mistake
from model import Llama, Shape
from train import Config, train

LINE = "the quick brown fox jumps over the lazy dog, é, and naps.\n"
SHAPE = dict(vocab_size=257, seq_len=16, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def models():
    """Two models whose every next token depends on the ones before, and is far from certain."""
    found = []
    for seed in (0, 1):
        model = Llama(Shape(**SHAPE), seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(6 if parameter.dim() > 1 else 1)
        found.append(model)
    return found


def drawn(model, n, samples, seed=0, first=256, **how):
    """(B, n) tokens of these samples."""
    samples = np.asarray(samples)
    start = torch.full((len(samples), 1), first)
    steps = sample.generate(model, start, n, lambda i: sample.uniforms(seed, samples, i), **how)
    return torch.stack(list(steps), dim=1)


# ----------------------------------------------------------------------------------------------------------------------
# Tokens


@pytest.mark.parametrize("changes", [{}, {"n_head": 4, "n_kv_head": 2, "qk_norm": True}, {"mup_base": 16, "n_head": 4}])
@pytest.mark.parametrize("pieces", [[16], [1] * 16, [7, 1, 1, 5, 2], [1, 15]])
def test_reading_on_behind_a_cache_is_reading_all(changes, pieces):
    model = Llama(Shape(**SHAPE | changes))
    tokens = torch.randint(257, (3, 16), generator=torch.Generator().manual_seed(0))
    caches = model.new_caches()
    parts = [model.hidden(part, caches) for part in tokens.split(pieces, dim=1)]
    assert [cache.length for cache in caches] == [16, 16]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(tokens), rtol=1e-4, atol=1e-5)
    apart = model.hidden(tokens[:, 7:])  # the control: what came before counts
    assert (apart[:, -1] - parts[-1][:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("model", [0, 1])
def test_the_same_seed_gives_the_same_tokens_with_any_cache_and_batch(models, model):
    whole = drawn(models[model], 60, range(20))  # 60 tokens are several windows of 16
    assert torch.equal(drawn(models[model], 60, range(20), cached=False), whole)
    for some in ([3], [19, 0], range(7)):
        assert torch.equal(drawn(models[model], 60, some), whole[list(some)])
    others = drawn(models[model], 60, range(20), seed=1)
    assert (others != whole).float().mean() > 0.5 and len({tuple(row) for row in whole.tolist()}) == 20


def test_tokens_are_drawn_by_hand_in_the_same_way(models):
    """The context is all there is up to seq_len tokens, then the later half of these, and so on."""
    context, expected = [256], []
    for position in range(40):
        if len(context) > 16:
            context = context[-8:]
        with torch.no_grad():
            p = models[0](torch.tensor([context]))[0, -1, :257].double().softmax(-1)
        u = sample.uniforms(5, np.array([9]), position)[0]
        expected.append(int((p.cumsum(-1) <= u * p.sum()).sum()))
        context.append(expected[-1])
    assert drawn(models[0], 40, [9], seed=5)[0].tolist() == expected


def test_golden_numbers():
    numbers = sample.uniforms(0, np.array([0, 1, 10**6]), 5)
    assert (numbers * 2**32).tolist() == GOLDEN
    many = sample.uniforms(3, np.arange(100_000), 7)
    assert 0 <= many.min() and many.max() < 1 and abs(many.mean() - 0.5) < 0.005


GOLDEN = [3276848851, 3322606496, 2935337656]


def test_frequencies_are_the_probabilities():
    p = np.array([0.5, 0.0, 0.2, 0.15, 0.1, 0.05])
    u = torch.from_numpy(sample.uniforms(0, np.arange(20_000), 0))

    def frequencies(**how):
        logits = torch.from_numpy(p).log().expand(20_000, 6)
        return torch.bincount(sample.choose(logits, u, **how), minlength=6).numpy()

    def fits(counts, expected):
        there = np.array(expected) > 0
        assert counts[~there].sum() == 0
        if there.sum() == 1:
            return True
        return chisquare(counts[there], 20_000 * np.array(expected)[there] / sum(expected)).pvalue > 1e-3

    assert fits(frequencies(), p)
    assert not fits(frequencies(), [0.48, 0, 0.22, 0.15, 0.1, 0.05])  # the control
    assert fits(frequencies(temperature=0.5), p**2) and fits(frequencies(temperature=2.0), p**0.5)
    assert fits(frequencies(top_k=2), [0.5, 0, 0.2, 0, 0, 0]) and fits(frequencies(top_k=1), [1, 0, 0, 0, 0, 0])
    assert fits(frequencies(top_p=0.69), [0.5, 0, 0.2, 0, 0, 0]) and fits(
        frequencies(top_p=0.71), [0.5, 0, 0.2, 0.15, 0, 0]
    )
    assert fits(frequencies(top_k=100), p) and fits(frequencies(top_p=0.4, top_k=4), [1, 0, 0, 0, 0, 0])
    assert fits(frequencies(temperature=0), [1, 0, 0, 0, 0, 0])


def test_the_model_s_own_distribution_is_met(models):
    """Pairs of tokens of a model with 5 words: their frequencies against the products of its probabilities."""
    model = Llama(Shape(**SHAPE | {"vocab_size": 5}))
    with torch.no_grad():
        model.embedding.weight.mul_(30)
    pairs = drawn(model, 2, range(20_000), first=4)
    assert pairs.max() == 4 and model.head.weight.shape[0] == 64  # padded words are never drawn
    with torch.no_grad():
        first = model(torch.tensor([[4]]))[0, 0, :5].softmax(-1)
        then = model(torch.tensor([[4, i] for i in range(5)]))[:, -1, :5].softmax(-1)
    expected = (first[:, None] * then).double().flatten()
    counts = torch.bincount(5 * pairs[:, 0] + pairs[:, 1], minlength=25).numpy()
    assert chisquare(counts, 20_000 * (expected / expected.sum()).numpy()).pvalue > 1e-3
    assert chisquare(counts, np.full(25, 800)).pvalue < 1e-6  # the control


# ----------------------------------------------------------------------------------------------------------------------
# From checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two checkpoints of a model that knows one line by heart, with an average: paths."""
    folder = tmp_path_factory.mktemp("trained")
    documents = [json.dumps({"text": LINE * (3 + i % 2)}) for i in range(20)]
    (folder / "line.jsonl").write_text("\n".join(documents))
    prepare_data.run([str(folder / "line.jsonl"), "--tokenizer=bytes", f"--data_dir={folder}", "--val_frac=0.1"])
    options = BASE | {"dataset": "line.jsonl-bytes", "data_dir": str(folder), "out_dir": str(folder / "runs")}
    options |= {"eval_tokens": 300, "total_steps": 120, "seq_len": 64, "ema_half_life": (2.0,), "save_at": (60,)}
    train(Config(**options | {"name": "line"}))
    return [folder / f"runs/line/ckpt/step_{step:08d}.pt" for step in (120, 60)]


def out_of(capsys, *args):
    capsys.readouterr()
    sample.run([str(arg) for arg in args])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "how", [["--temperature=1e-3"], ["--temperature=0"], ["--top_k=1"], ["--average=ema", "--temperature=0"]]
)
def test_a_text_known_by_heart_comes_back(trained, capsys, how):
    text = out_of(
        capsys, trained[0], "--prompt=the quick", "--tokens=171", *how
    )  # nearly three lines: past the context
    assert text == (LINE * 4)[: len(text) - 1] + "\n" and text.encode().count("é".encode()) == 3


def test_a_prompt_longer_than_the_context_is_told(trained, capsys):
    sample.run([str(trained[0]), "--prompt", LINE * 2, "--tokens=59", "--temperature=0"])
    text, error = capsys.readouterr()
    assert text == LINE * 3 + "\n"
    assert error == "--prompt has 118 tokens, of which the model reads 32\n"
    sample.run([str(trained[0]), "--prompt=the", "--tokens=1"])
    assert capsys.readouterr().err == ""


def test_partial_characters_are_held_back(trained, monkeypatch):
    written = []

    class Terminal(io.StringIO):
        def write(self, text):
            text.encode()
            written.append(text)

    monkeypatch.setattr(sys, "stdout", Terminal())
    sample.run([str(trained[0]), "--prompt=the quick", "--tokens=60", "--temperature=0"])
    assert "é" in written and "\ufffd" not in "".join(written)
    assert len(written) > 60  # as they are drawn
    written.clear()
    sample.run(
        [str(trained[0]), "--prompt=the quick brown fox jumps over the lazy dog, ", "--tokens=1", "--temperature=0"]
    )
    assert "".join(written).endswith("dog, \ufffd\n")  # half of it is what was asked for


def test_several_samples_and_the_end_of_a_document(trained, capsys, monkeypatch):
    text = out_of(capsys, trained[1], "--samples=3", "--tokens=40", "--seed=1")
    parts = text.split("--- sample ")[1:]
    assert [part[:10] for part in parts] == [f"{i} of 3 ---"[:10] for i in (1, 2, 3)] and len(set(parts)) == 3
    assert out_of(capsys, trained[1], "--samples=3", "--tokens=40", "--seed=1") == text
    calls = itertools.cycle([65, 66, 256, 67])
    monkeypatch.setattr(sample, "choose", lambda logits, u, **how: torch.tensor([next(calls)]))
    assert out_of(capsys, trained[0], "--tokens=4") == "AB<|endoftext|>C\n"
    assert out_of(capsys, trained[0], "--tokens=4", "--stop") == "AB\n"


# ----------------------------------------------------------------------------------------------------------------------
# Bins


def written_by(folder, paths, *args, **settings):
    command = [str(path) for path in paths] + [f"--out={folder}", *args]
    sample.run(command + [f"--{name}={value}" for name, value in settings.items()])
    tokens, meta = data.open_bin(folder, "train")
    return np.array(tokens), meta


def test_bins_are_the_samples_in_order(trained, tmp_path, capsys):
    asked = {"tokens": "1k", "length": 96, "batch": 2}
    tokens, meta = written_by(tmp_path / "samples", trained, **asked)
    assert "samples is whole: python train.py --dataset=REAL:0.25,samples:0.75" in capsys.readouterr().out
    prepare_data.run(["--verify", str(tmp_path / "samples")])
    assert len(tokens) == 1000 and meta["splits"]["train"]["documents"] >= 10 and (tokens[95::96] == 256).all()
    models = [sample.build_model(sample.read(path), path, "cpu") for path in trained]
    for k, one in enumerate(np.split(tokens, range(96, 1000, 96))):  # in turn by each model
        alone = drawn(models[k % 2], 95, [k])[0].numpy()
        assert np.array_equal(one[:95], alone[: len(one)])
    shas = [about["sha256"] for about in meta["checkpoints"]]
    assert shas == [subprocess.check_output(["sha256sum", p], text=True).split()[0] for p in trained]
    assert [about["step"] for about in meta["checkpoints"]] == [120, 60]
    for batch in (1, 7):
        again, _ = written_by(tmp_path / f"by{batch}", trained, **asked | {"batch": batch})
        assert np.array_equal(again, tokens)
    other, _ = written_by(tmp_path / "other", trained, **asked, seed=1)
    assert not np.array_equal(other, tokens)


def test_a_student_learns_from_samples(trained, tmp_path, capsys):
    folder = trained[0].parents[3]
    if not (folder / "samples").exists():
        written_by(folder / "samples", trained[:1], tokens="4k", length=128)
    options = BASE | {
        "data_dir": str(folder),
        "out_dir": str(tmp_path),
        "eval_tokens": 300,
        "seq_len": 64,
        "total_steps": 120,
    }
    result = train(Config(**options | {"name": "student", "dataset": "line.jsonl-bytes@500:0.1,samples:0.9"}))
    assert result["val_loss"] < 0.5 and result["epochs/samples"] > 10
    with pytest.raises(ValueError, match="has no 'val' split"):
        train(Config(**options | {"name": "alone", "dataset": "samples"}))


def test_killed_and_resumed_is_uninterrupted(trained, tmp_path):
    asked = [*map(str, trained), "--tokens=12k", "--length=200", "--batch=4"]
    sample.run([*asked, f"--out={tmp_path / 'whole'}"])
    expected = [(tmp_path / "whole" / name).read_bytes() for name in ("train.bin", "meta.json")]
    folder, kills = tmp_path / "killed", 0
    command = [sys.executable, HERE / "sample.py", *asked, f"--out={folder}"]
    for n_shards in (1, 3, 5):
        process = subprocess.Popen(command, env=ENV, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(folder.glob("shards.tmp/*.npz"))) < n_shards:
            os.sched_yield()
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "meta.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("shards.tmp/*.npz")}
    with pytest.raises(Mistake, match="was made with seed=0, not 1"):
        sample.run([*asked, f"--out={folder}", "--seed=1"])
    assert kept and {path: path.stat().st_mtime_ns for path in kept} == kept
    subprocess.run(command, env=ENV, check=True, capture_output=True)
    assert kills == 3 and [(folder / name).read_bytes() for name in ("train.bin", "meta.json")] == expected
    assert {path.name for path in folder.iterdir()} == {"train.bin", "meta.json"}
    before = (folder / "train.bin").stat().st_mtime_ns
    sample.run([*asked, f"--out={folder}"])  # it is there
    assert (folder / "train.bin").stat().st_mtime_ns == before


MISTAKES = [
    (["{0}", "{0}"], "are the same: give it once"),
    (["{0}", "{1}"], "several checkpoints: that is for --out"),
    (["{0}", "--out=x"], "--out: say how many --tokens"),
    (["{0}", "--out=a b", "--tokens=5"], "--out=a b: expected a name"),
    (["{0}", "--out=x", "--tokens=5", "--prompt=a"], "--prompt goes without --out"),
    (["{0}", "--out=x", "--tokens=5", "--stop"], "--stop goes without --out"),
    (["{0}", "--length=5"], "--length goes with --out"),
    (["{0}", "--temperature=-1"], "--temperature='-1': expected number at least 0"),
    (["{0}", "--top_p=0"], "--top_p='0'"),
    (["{0}", "--top_k=0"], "--top_k='0'"),
    (["{0}", "--tokens=0"], "--tokens='0'"),
    (["{1}", "--average=window"], "has no window average"),
    (["nowhere.pt"], "nowhere.pt cannot be read"),
]


@pytest.mark.parametrize("args, message", MISTAKES)
def test_mistakes(trained, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = [str(trained[int(arg[1])]) if arg.startswith("{") else arg for arg in args]
    if "window" in message:  # one without
        state = torch.load(args[0], weights_only=True)
        torch.save(state | {"averages": {}}, "bare.pt")
        args[0] = "bare.pt"
    with pytest.raises(ValueError) as error:
        sample.run(args)
    assert message in str(error.value) and not Path("x").exists()


def test_models_of_other_tokenizers_are_refused(trained, tmp_path):
    state = torch.load(trained[0], weights_only=True)
    for tokenizer in ("gpt2", "mine", None):
        torch.save(state | {"data": state["data"] | {"tokenizer": tokenizer}}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match="expected models of one tokenizer, and found"):
            sample.run([str(tmp_path / "other.pt"), str(trained[0]), "--tokens=5", f"--out={tmp_path / 'x'}"])
