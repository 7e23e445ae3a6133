"""evaluate.py on small runs, against losses computed by hand from the same checkpoints."""

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import BASE, HERE

import averaging
import checkpoint
import evaluate
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
    models = [evaluate.build_model(state, "cpu") for state in weights]
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
    rows = table(capsys, "--ensemble", path(ckpt, 40), path(ckpt, 60))["rows"]
    by_hand = loss_by_hand(checkpoint.load(path(ckpt, 40)), checkpoint.load(path(ckpt, 60)))
    assert rows[-1]["val_loss"] == pytest.approx(by_hand, rel=1e-5)  # fp32 sums of other shapes, on a GPU TF32
    assert rows[-1]["val_loss"] not in [row["val_loss"] for row in rows[:-1]]


@pytest.mark.parametrize(
    "args, message",
    [
        (["nowhere.pt"], "nowhere.pt cannot be read"),
        (["{20}", "{40}", "--average=window"], "--average takes one"),
        (["{20}", "--interpolate"], "--interpolate two"),
        (["{20}", "{40}", "--interpolate", "--points=1"], "--points=1"),
        (["{20}", "--merge", "--weights=x"], "shape='x': choose one of"),
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
