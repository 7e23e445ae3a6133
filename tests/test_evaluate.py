"""evaluate.py on small runs, against losses computed by hand from the same checkpoints."""

import importlib.metadata
import json
import math
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import BASE, HERE, write_bins

import averaging
import checkpoint
import evaluate
from config import Mistake
from data import ValSet
from train import Config, train

AVERAGED = dict(window_horizon=10, window_every=2, window_keep=3, ema_half_life=(5.0, 20.0), ema_every=2)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory, data_dir):
    """Checkpoints at steps 20, 40, 60 of a run with averages."""
    out = tmp_path_factory.mktemp("runs")
    train(Config(**BASE | AVERAGED | {"out_dir": str(out), "data_dir": str(data_dir), "save_at": (20, 40)}))
    return out / "run" / "ckpt"


def table(capsys, *args):
    evaluate.run([*map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)


def loss_by_hand(*weights):
    """Mean loss over the whole validation split of the mean logits of models, one sequence at a time."""
    models = [evaluate.build_model(state, "x.pt", "cpu") for state in weights]
    config = weights[0]["config"]
    val = ValSet(f"{config['data_dir']}/text", 32)
    total, T = 0.0, 32
    tokens = torch.from_numpy(val.tokens[: val.n_targets + 1].astype("int64"))
    with torch.no_grad():
        for i in range(0, val.n_targets, T):
            x, y = tokens[i : i + T][: val.n_targets - i], tokens[i + 1 : i + 1 + T]
            logits = torch.stack([m(x[None]) for m in models]).double().mean(0)
            total += F.cross_entropy(logits[0], y, reduction="sum").item()
    return total / val.n_targets


def path(ckpt, step):
    return checkpoint.path_of(ckpt, step)


def test_each(ckpt, capsys):
    result = table(capsys, path(ckpt, 20), path(ckpt, 60))
    assert [row["step"] for row in result["rows"]] == [20, 60] and result["tokens"] == 3999
    for row in result["rows"]:
        by_hand = loss_by_hand(checkpoint.load(row["checkpoint"]))
        assert row["val_loss"] == pytest.approx(by_hand, rel=1e-5)  # fp32 sums of other shapes, on a GPU TF32
        assert row["perplexity"] == math.exp(row["val_loss"])


def test_of_several_validation_sets_it_takes_the_first_or_the_one_that_is_named(tmp_path, data_dir, capsys):
    options = {"out_dir": str(tmp_path), "data_dir": str(data_dir), "total_steps": 2, "schedule": "constant"}
    options |= {"warmup_steps": 0, "cooldown_steps": None, "val_dataset": "other,text"}
    losses = train(Config(**BASE | options))
    capsys.readouterr()
    ckpt, tokens = path(tmp_path / "run/ckpt", 2), ("--tokens", BASE["eval_tokens"])
    first, second = table(capsys, ckpt, *tokens), table(capsys, ckpt, *tokens, "--dataset=text")
    assert (first["dataset"], second["dataset"]) == ("other", "text")
    assert first["rows"][0]["val_loss"] == losses["val_loss"]
    assert second["rows"][0]["val_loss"] == losses["val_loss/text"] != losses["val_loss"]


def test_same_loss_as_in_the_log(ckpt, capsys):
    logged = [json.loads(line) for line in (ckpt.parent / "log.jsonl").read_text().splitlines()][-1]
    asked = ["--tokens", BASE["eval_tokens"]]
    assert table(capsys, path(ckpt, 60), *asked)["rows"][0]["val_loss"] == logged["val_loss"]
    ema = table(capsys, path(ckpt, 60), "--average=ema", *asked)["rows"]
    assert [row["val_loss"] for row in ema] == [logged[f"val_loss{x}"] for x in ("", "_ema", "_ema_2")]
    window = table(capsys, path(ckpt, 60), "--average=window", *asked)["rows"]
    assert [row["steps"] for row in window] == [1, 10, 20, 30]
    assert window[1]["val_loss"] == logged["val_loss_window"] and logged["window_steps"] == 10


def test_merge_is_the_mean_and_a_checkpoint(ckpt, capsys, tmp_path):
    paths, out = [path(ckpt, step) for step in (20, 40, 60)], tmp_path / "merged.pt"
    row = table(capsys, "--merge", *paths, "--weights=1-sqrt", "--out", out)["rows"][0]
    states = [checkpoint.load(p)["model"] for p in paths]
    weights = averaging.merge_weights("1-sqrt", 3)
    merged = checkpoint.load(out)
    for name, tensor in merged["model"].items():
        mean = sum(w * state[name].double() for w, state in zip(weights, states, strict=True))
        assert torch.equal(tensor, mean.float())
    assert row["val_loss"] == table(capsys, out)["rows"][0]["val_loss"]
    options = {"out_dir": str(tmp_path), "init_from": str(out), "total_steps": 65, "cooldown_steps": 5}
    assert train(Config(**BASE | options | {"data_dir": merged["config"]["data_dir"]}))["step"] == 65


def test_line_between_two(ckpt, capsys):
    rows = table(capsys, "--interpolate", path(ckpt, 40), path(ckpt, 60), "--points=5")["rows"]
    ends = table(capsys, path(ckpt, 40), path(ckpt, 60))["rows"]
    assert [row["t"] for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    assert [rows[0]["val_loss"], rows[-1]["val_loss"]] == [row["val_loss"] for row in ends]
    a, b = checkpoint.load(path(ckpt, 40)), checkpoint.load(path(ckpt, 60))
    a["model"] = {name: (a["model"][name] + b["model"][name]) / 2 for name in a["model"]}
    assert rows[2]["val_loss"] == pytest.approx(loss_by_hand(a), rel=1e-5)  # fp32 sums of other shapes, on a GPU TF32


def test_ensemble(ckpt, capsys):
    paths = [path(ckpt, step) for step in (20, 40, 60)]
    states = [checkpoint.load(p) for p in paths]
    found = table(capsys, "--ensemble", *paths)
    alone = [row["val_loss"] for row in table(capsys, *paths)["rows"]]
    assert [row["val_loss"] for row in found["members"]] == pytest.approx(alone, rel=1e-5)
    pairs = [loss_by_hand(states[i], states[j]) for i, j in ((0, 1), (1, 2), (2, 0))]
    by_hand = [np.mean(alone), np.mean(pairs), loss_by_hand(*states)]
    rows = found["rows"]  # fp32 sums of other shapes, on a GPU TF32
    assert [row["val_loss"] for row in rows] == pytest.approx(by_hand, rel=1e-5)
    assert [row["lowest"] for row in rows] == pytest.approx([min(alone), min(pairs), by_hand[2]], rel=1e-5)
    assert [row["highest"] for row in rows] == pytest.approx([max(alone), max(pairs), by_hand[2]], rel=1e-5)
    assert [(row["models"], row["ensembles"], row["n_params"]) for row in rows] == [
        (k, n, 67_744) for k, n in ((1, 3), (2, 3), (3, 1))
    ]
    evaluate.run(["--ensemble", *map(str, paths)])
    assert capsys.readouterr().out.count("step_000000") == 3  # members, and the table below them


def test_ensemble_of_averages(ckpt, capsys):
    averages = [table(capsys, path(ckpt, s), "--average=window")["rows"][1]["val_loss"] for s in (40, 60)]
    members = table(capsys, "--ensemble", path(ckpt, 40), path(ckpt, 60), "--average=window")["members"]
    assert [row["val_loss"] for row in members] == pytest.approx(averages, rel=1e-5)


@pytest.mark.parametrize(
    "args, message",
    [
        (["nowhere.pt"], "nowhere.pt cannot be read"),
        (["{20}", "{40}", "--average=window"], "--average takes one"),
        (["{20}", "--interpolate"], "--interpolate two"),
        (["{20}", "{40}", "--interpolate", "--points=1"], "--points='1': expected whole number at least 2"),
        (["{20}", "{40}", "--interpolate", "--points=1.5"], "--points='1.5'"),
        (["{20}", "{40}", "--interpolate", "--points=-1"], "--points='-1'"),
        (["{20}", "--tokens=-5"], "--tokens='-5': expected whole number at least 0"),
        (["{20}", "--tokens=nan"], "--tokens='nan'"),
        (["{20}", "--points=3"], "--points goes with --interpolate"),
        (["{20}", "--weights=linear"], "--weights goes with --merge"),
        (["{20}", "--out=x.pt"], "--out goes with --merge"),
        (["{20}", "--ensemble"], "--ensemble two or more"),
        (["{20}", "{40}", "--interpolate", "--average=ema"], "--average goes alone, or with --ensemble"),
        (["{20}", "{40}", "--merge", "--weights=x"], "shape='x': choose one of"),
        (["{20}", "{40}", "--merge", "--out=nowhere/x.pt"], "there is no folder nowhere"),
        (["{20}", "{40}", "{20}"], "are the same: give it once"),
        (["{20}", "--dataset=x"], "dataset 'x' is not in"),
    ],
)
def test_mistakes(ckpt, args, message):
    args = [str(path(ckpt, int(a[1:-1]))) if a.startswith("{") else a for a in args]
    with pytest.raises(ValueError) as error:
        evaluate.run(args)
    assert message in str(error.value)


def test_command_line(ckpt):
    command = [sys.executable, HERE / "evaluate.py", path(ckpt, 60)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0].startswith("dataset text  tokens 3999") and out[1].split()[:3] == ["checkpoint", "step", "val_loss"]


# ----------------------------------------------------------------------------------------------------------------------
# Nothing is believed


def refused(*args):
    """The one line that is said of a command."""
    with pytest.raises(Mistake) as caught:
        evaluate.run([*map(str, args)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(ckpt, tmp_path, name="x.pt", step=20, **parts):
    """A copy of a checkpoint with some of its parts changed; None takes one out."""
    state = checkpoint.load(path(ckpt, step)) | parts
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / name)
    return tmp_path / name


@pytest.fixture
def gpt2_data(data_dir, tmp_path):
    """The folder of a dataset of another vocabulary, whose tokens all lie below 257."""
    tokens = np.fromfile(data_dir / "text" / "train.bin", "<u2")
    write_bins(tmp_path / "text", tokens, tokenizer="gpt2", vocab_size=50257)
    return tmp_path


def test_another_tokenizer_is_refused_in_every_mode(ckpt, gpt2_data, tmp_path):
    said = refused(path(ckpt, 20), f"--data_dir={gpt2_data}")
    assert "dataset 'text' has another tokenizer (gpt2, 50,257 words)" in said
    assert "(bytes, 257 words): prepare it alike" in said
    shape = checkpoint.load(path(ckpt, 20))["shape"]
    wide = changed(ckpt, tmp_path, shape=shape | {"vocab_size": 300})  # 320 rows of the embedding, as before
    for how in ([], ["--merge"], ["--interpolate"], ["--ensemble"]):
        assert f"another tokenizer (bytes, 257 words) than {wide} (bytes, 300 words)" in refused(
            *how, path(ckpt, 40), wide
        )
    assert "300 words" in refused("--average=ema", wide)


def test_a_tokenizer_is_told_by_its_name_where_a_checkpoint_has_it(ckpt, capsys, tmp_path):
    named, data = path(ckpt, 20), checkpoint.load(path(ckpt, 20))["data"]
    older = changed(ckpt, tmp_path, data={k: v for k, v in data.items() if k != "tokenizer"})
    assert table(capsys, named)["rows"] and table(capsys, older, "--dataset=words")["rows"]
    assert f"(words, 257 words) than {named} (bytes, 257 words)" in refused(named, "--dataset=words")


def test_the_oldest_checkpoints_tell_the_padded_vocabulary(ckpt, gpt2_data, capsys, tmp_path):
    old = changed(ckpt, tmp_path, "old.pt", shape=None)
    assert len(table(capsys, old)["rows"]) == 1
    assert "(50,257 words) than" not in (said := refused(old, f"--data_dir={gpt2_data}")) and "320 words)" in said


def test_equal_names_of_datasets_in_two_folders_are_two_datasets(ckpt, data_dir, tmp_path):
    elsewhere = changed(ckpt, tmp_path, config=checkpoint.load(path(ckpt, 20))["config"] | {"data_dir": "data"})
    assert "dataset 'data/text', unlike the first" in refused(path(ckpt, 20), elsewhere)


@pytest.mark.parametrize("weights, said", [("1-sqrt", "they are merged by their steps, 20, 40, 60"), ("linear", "")])
def test_merge_goes_by_the_steps(ckpt, capsys, tmp_path, weights, said):
    evaluate.run(["--merge", *(str(path(ckpt, step)) for step in (60, 20, 40)), f"--weights={weights}", "--json"])
    shuffled = capsys.readouterr()
    assert shuffled.err == f"--merge: {said}\n" * bool(said)
    in_order = table(capsys, "--merge", *(path(ckpt, step) for step in (20, 40, 60)), f"--weights={weights}")
    assert json.loads(shuffled.out)["rows"] == in_order["rows"]


def test_merge_of_what_is_no_line_of_checkpoints(ckpt, capsys, tmp_path):
    state = checkpoint.load(path(ckpt, 40))
    twin = changed(ckpt, tmp_path, "twin.pt", 40)
    assert "two checkpoints are of one step" in refused("--merge", path(ckpt, 40), twin, "--weights=1-sqrt")
    assert table(capsys, "--merge", path(ckpt, 40), twin)["rows"]  # a uniform mean has no order
    other = changed(ckpt, tmp_path, "other.pt", 60, config=state["config"] | {"seed": 1, "name": "other"})
    assert "runs of seeds 0, 1 begin apart" in refused("--merge", path(ckpt, 40), other)
    branch = state["config"] | {"seed": 1, "name": "other", "init_from": "x.pt"}
    evaluate.run(["--merge", str(path(ckpt, 40)), str(changed(ckpt, tmp_path, "branch.pt", 60, config=branch))])
    assert capsys.readouterr().err == "--merge: they are of several runs, run, other\n"
    normed = changed(ckpt, tmp_path, "normed.pt", 60, shape=state["shape"] | {"qk_norm": True})
    for how in ("--merge", "--interpolate"):
        assert "qk_norm=True, and the first False: they do not mix" in refused(how, path(ckpt, 40), normed)
    late = changed(ckpt, tmp_path, "late.pt", 60, progress=state["progress"] | {"step": 90})
    evaluate.run(["--merge", *(str(path(ckpt, step)) for step in (20, 40)), str(late), "--weights=1-sqrt"])
    assert "not evenly apart" in capsys.readouterr().err


def test_out_overwrites_nothing_and_says_what_it_is(ckpt, capsys, tmp_path):
    merge, out = ["--merge", path(ckpt, 20), path(ckpt, 40)], tmp_path / "merged.pt"
    out.write_text("precious")
    assert "is there already" in refused(*merge, f"--out={out}") and out.read_text() == "precious"
    assert "is there already" in refused(*merge, f"--out={tmp_path}")
    assert "is a folder of checkpoints: give one of them, such as " in refused(path(ckpt, 20).parent)
    assert "are the same: give it once" in refused(path(ckpt, 20), path(ckpt, 20).with_suffix(""))
    assert "take it for a checkpoint of its own" in refused(*merge, f"--out={tmp_path}/step_00000040.pt")
    out.unlink()
    table(capsys, *merge, f"--out={out}")
    merged, last = checkpoint.load(out), checkpoint.load(path(ckpt, 40))
    assert merged["progress"] == last["progress"] | {"losses": None, "train_loss": None}  # of other weights, these are
    assert merged["averages"] == {} and merged["config"] == last["config"]
    assert merged["merged"]["paths"] == [str(path(ckpt, 20)), str(path(ckpt, 40))]
    assert table(capsys, out)["rows"][0]["merged"] == 2


def odd_files(state):
    """{name: (what torch.save gets, what is said)}"""
    weights = state["model"]
    nanogpt = {"model": weights, "optimizer": {}, "model_args": {}, "iter_num": 3, "config": {}}
    yield "weights.pt", weights, "holds weights alone, such as embedding.weight"
    yield "pytorch_model.bin", {"transformer.wte.weight": torch.zeros(2, 2)}, "holds weights alone"
    yield "nanogpt.pt", nanogpt, "a checkpoint of nanoGPT, and lacks progress, data, dataset"
    yield "list.pt", [1, 2], "holds a list"
    yield "tensor.pt", torch.zeros(2), "holds a Tensor"
    for part in ("model", "progress", "data", "config"):
        yield f"no_{part}.pt", {k: v for k, v in state.items() if k != part}, f"lacks {part}:"
    yield "no_step.pt", state | {"progress": {}}, "lacks step"
    yield "new.pt", state | {"format": 2}, "has format 2, and this code reads 1"
    yield "empty_model.pt", state | {"model": {}}, "has no weights"
    yield "words.pt", state | {"model": {"a": 1}}, "has no weights in its model, but a"
    yield "cut.pt", state | {"model": {k: v[:1] for k, v in weights.items()}}, "is (1, 32), and should be (320, 32)"
    yield "partial.pt", state | {"model": dict([*weights.items()][:-2])}, "norm.weight is missing"
    yield "more.pt", state | {"model": weights | {"twist": torch.zeros(1)}}, "twist is (1,), and should be missing"
    yield "shape.pt", state | {"shape": {"vocab_size": 257}}, "shape.pt: the checkpoint's model has the shape"


def test_files_that_are_no_checkpoint(ckpt, tmp_path):
    state = checkpoint.load(path(ckpt, 40))
    said = {}
    for name, content, words in odd_files(state):
        torch.save(content, tmp_path / name)
        said[name] = words
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("no checkpoint " * 99)
    (tmp_path / "half.pt").write_bytes(path(ckpt, 20).read_bytes()[:9999])
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    said |= dict.fromkeys(("empty.pt", "text.pt", "half.pt", "zip.pt"), "it is not a whole file of torch.save")
    for name, words in said.items():
        file = tmp_path / name
        assert str(file) in (line := refused(file)) and words in line, line
        for how in ("--merge", "--interpolate", "--ensemble"):
            assert str(file) in refused(how, path(ckpt, 20), file)
    assert "is a folder without checkpoints: give one" in refused(tmp_path)


def test_a_flipped_bit_is_noticed_before_it_counts(ckpt, tmp_path):
    data = bytearray(path(ckpt, 20).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    for how in ([], ["--merge"], ["--interpolate"], ["--ensemble"]):
        assert "x.pt is damaged" in refused(*how, path(ckpt, 40), tmp_path / "x.pt")


def test_what_an_evaluation_does_not_need_may_be_missing(ckpt, capsys, tmp_path):
    slim = changed(ckpt, tmp_path, optimizer=None)
    assert table(capsys, slim)["rows"][0]["val_loss"] == table(capsys, path(ckpt, 20))["rows"][0]["val_loss"]
    last = changed(ckpt, tmp_path, "last.pt", 40, optimizer=None)
    assert table(capsys, "--merge", slim, last)["rows"]
    assert "lacks optimizer" in refused("--merge", slim, last, f"--out={tmp_path}/merged.pt")


def test_tasks_without_lm_eval(ckpt, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delitem(sys.modules, "tasks", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    line = refused(path(ckpt, 20), "--tasks=piqa")
    assert line.startswith("--tasks needs lm-eval: pip install 'lm-eval>=0.4.13,<0.5'")


def test_losses_that_are_not_finite_are_null(ckpt, capsys, tmp_path):
    model = {name: t * math.nan for name, t in checkpoint.load(path(ckpt, 20))["model"].items()}
    evaluate.run([str(changed(ckpt, tmp_path, model=model)), "--json"])
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rows"]
    assert row["val_loss"] is None
