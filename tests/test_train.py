"""Whole runs, small ones: what was stopped, branched, spread over ranks or looked at often ends in the same bits."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
from conftest import BASE, DEVICE, ENV, HERE, command, launched, lines, newest, same, tensors, two_ranks, write_bins

import checkpoint
import evaluate
import parallel
import planner
import schedules
import sealed
import train as trainer
from model import Llama
from train import Config

# ----------------------------------------------------------------------------------------------------------------------
# Exactness


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stops", [[25], [1, 2, 40, 59]])
def test_resumed_equals_uninterrupted(run, tmp_path, stops, dtype):
    whole = run("whole", dtype=dtype)
    for step in stops:
        assert run("parts", dtype=dtype, stop_at=step)["progress"]["step"] == step
    assert same(run("parts", dtype=dtype), whole)
    assert lines(tmp_path, "parts") == lines(tmp_path, "whole")


@pytest.mark.parametrize("drop", ["moments", "position", "weights", "averages"])
def test_resuming_without_one_thing_differs(run, tmp_path, drop):
    whole, state = run("whole"), run("parts", stop_at=25)
    if drop == "moments":
        state["optimizer"]["state"] = {}
    elif drop == "position":
        state["progress"]["position"] += 1
    elif drop == "averages":
        state["averages"]["ema"]["blocks"] = []
    else:
        state["model"]["norm.weight"][0] += 1e-6
    checkpoint.save(tmp_path / "runs" / "parts" / "ckpt", 25, state)
    assert not same(run("parts"), whole)


def test_branch_equals_direct_run(run, tmp_path):
    direct = run("direct")
    trunk = run("trunk", schedule="constant", cooldown_steps=None, save_at=(40,), total_steps=80)
    source = tmp_path / "runs/trunk/ckpt/step_00000040.pt"
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in source.parent.parent.rglob("*") if p.is_file()}
    assert same(run("branch", init_from=str(source)), direct)
    assert lines(tmp_path, "branch") == lines(tmp_path, "direct")  # its ancestor's lines included
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in source.parent.parent.rglob("*") if p.is_file()} == before
    assert not same(run("early", init_from=str(source), cooldown_steps=19), direct)
    assert not same(trunk, direct)


def test_branch_stopped_and_resumed(run, tmp_path):
    run("trunk", schedule="constant", cooldown_steps=None, save_at=(40,))
    branch = dict(init_from=str(tmp_path / "runs/trunk/ckpt/step_00000040.pt"))
    run("branch", **branch, stop_at=47)
    assert same(run("branch", **branch), run("direct"))


def test_the_first_tokens_of_a_dataset_are_a_dataset(run, tmp_path, data_dir):
    few = dict(dataset="text@5000")  # 155 sequences: 4.6 epochs
    tokens = np.fromfile(data_dir / "text/train.bin", "<u2")
    write_bins(tmp_path / "few", np.concatenate((tokens[:5000], tokens[-4000:])))
    whole = run("whole", **few)
    of_its_own = dict(dataset="few", data_dir=str(tmp_path), val_dataset="text")
    shutil.copytree(data_dir / "text", tmp_path / "text")
    assert same(run("bin", **of_its_own), whole) and lines(tmp_path, "bin") == lines(tmp_path, "whole")
    run("parts", **few, stop_at=25)
    assert same(run("parts", **few), whole)
    run("trunk", **few, schedule="constant", cooldown_steps=None, save_at=(40,))
    assert same(run("branch", **few, init_from=str(tmp_path / "runs/trunk/ckpt/step_00000040.pt")), whole)
    assert lines(tmp_path, "whole")[-1]["epochs"] == round(60 * 12 / 155, 4)
    for other in ("text@5032", "text"):  # a sequence more
        assert not same(run(other, dataset=other), whole)
    with pytest.raises(ValueError, match="dataset='text@5032', but .* was trained with 'text@5000'"):
        run("whole", dataset="text@5032", total_steps=80)


@two_ranks
def test_the_first_tokens_on_two_ranks(run, tmp_path, data_dir):
    few = dict(dataset="text@5000:0.6,other:0.4")
    alone = run("alone", **few)
    assert same(launched(2, tmp_path, data_dir, "pair", **few), alone)
    assert lines(tmp_path, "pair") == lines(tmp_path, "alone")
    ends = {f"epochs/{name}": lines(tmp_path, "alone")[-1][f"epochs/{name}"] for name in ("text@5000", "other")}
    assert ends == {"epochs/text@5000": round(432 / 155, 4), "epochs/other": round(288 / 12374, 4)}


def test_looking_changes_nothing(run):
    quiet = run("quiet", eval_every=0, log_every=0, save_every=0)
    assert same(quiet, run("busy", eval_every=1, log_every=1, save_every=1, eval_tokens=500))
    assert not same(quiet, run("other", data_seed=1))


@two_ranks
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_equal_one(run, tmp_path, data_dir, dtype):
    alone = run("alone", dtype=dtype)
    assert same(launched(2, tmp_path, data_dir, "pair", dtype=dtype), alone)
    assert lines(tmp_path, "pair") == lines(tmp_path, "alone")


@two_ranks
def test_one_rank_two_one(run, tmp_path, data_dir):
    run("moved", stop_at=25)
    assert launched(2, tmp_path, data_dir, "moved", stop_at=37)["progress"]["step"] == 37
    assert same(run("moved"), run("alone"))


@pytest.mark.skipif(DEVICE == "cuda", reason="needs as many GPUs as ranks")
def test_four_ranks_equal_one_and_a_run_may_go_from_one_to_four_to_two(run, tmp_path, data_dir):
    small = dict(micro_batch_size=1)  # 3 for each of four ranks

    def ranks(n, name, **options):
        return launched(n, tmp_path, data_dir, name, **small, **options)

    alone = run("alone", **small)
    assert same(ranks(4, "four"), alone) and lines(tmp_path, "four") == lines(tmp_path, "alone")
    run("moved", **small, stop_at=25)
    ranks(4, "moved", stop_at=37)
    assert same(ranks(2, "moved"), alone)
    assert not same(ranks(4, "as-fast", exact_sums=False), alone)  # the control


def test_gradient_adds_up_by_halves(run):
    """The same sequences in larger micro-batches round differently: what makes ranks equal is the order of addition."""
    assert not same(run("small"), run("large", micro_batch_size=6))


@pytest.mark.parametrize("micro_batch_size", [1, 4, 16])
def test_val_loss_does_not_depend_on_the_micro_batch(run, tmp_path, micro_batch_size):
    run("a", stop_at=1, total_steps=60, save_at=(1,), eval_every=0)
    source = str(tmp_path / "runs/a/ckpt/step_00000001.pt")
    options = dict(init_from=source, eval_every=1, stop_at=2, total_steps=60, global_batch_size=16)
    run("two", **options)
    run("other", **options, micro_batch_size=micro_batch_size)
    first, other = lines(tmp_path, "two")[0], lines(tmp_path, "other")[0]
    assert first["step"] == 1 and first["val_loss"] == other["val_loss"]  # exactly: chunks do not depend on it


# ----------------------------------------------------------------------------------------------------------------------
# The run's folder


def test_run_folder(run, tmp_path):
    state = run(save_at=(13,), keep=2)
    folder = tmp_path / "runs/run"
    assert {p.name for p in folder.iterdir()} == {"config.json", "log.jsonl", "result.json", "ckpt", "code"}
    assert checkpoint.list_steps(folder / "ckpt") == [13, 40, 60]
    assert (folder / "code/train.py").read_bytes() == (HERE / "train.py").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    options = {f.name for f in dataclasses.fields(Config)}
    assert config.keys() == options | {"not_default"} and config["lr"] == 1e-2
    log = lines(tmp_path, "run")
    training, evaluation = [x for x in log if "train_loss" in x], [x for x in log if "val_loss" in x]
    assert [x["step"] for x in training] == [10, 20, 30, 40, 50, 60]
    assert [x["step"] for x in evaluation] == [0, 20, 40, 60]
    assert all(x.keys() == {"step", "tokens", "flops", "epochs", "train_loss", "lr", "grad_norm"} for x in training)
    assert all(x["tokens"] == x["step"] * 12 * 32 for x in log)
    assert all(x["epochs"] == round(x["step"] * 12 / (396_000 // 32 - 1), 4) for x in log)
    schedule = schedules.wsd(60, warmup_steps=5, cooldown_steps=20)
    averaged = {"step", "tokens", "flops", "epochs", "val_loss", "val_loss_window", "window_steps", "val_loss_ema"}
    assert all(x.keys() == averaged for x in evaluation[1:]) and "val_loss_window" not in evaluation[0]
    assert [x["window_steps"] for x in evaluation[1:]] == [10, 10, 10]
    assert [x["lr"] for x in training] == [1e-2 * schedule(x["step"] - 1) for x in training]
    assert evaluation[0]["val_loss"] > evaluation[-1]["val_loss"]
    result = json.loads((folder / "result.json").read_text())
    assert result["val_loss"] == evaluation[-1]["val_loss"] and result["step"] == 60 == state["progress"]["step"]
    assert result["n_params"] == sum(t.numel() for name, t in state["model"].items() if name != "head.weight")


def test_a_run_that_is_computed_otherwise_says_so(run, capsys):
    said = "computed with threads 2, until step 20 with 1: bits are not those of one run"
    run(stop_at=20)
    run(stop_at=30)
    assert "bits" not in capsys.readouterr().out
    run("other", stop_at=20)
    torch.set_num_threads(2)
    try:
        run("other")
    finally:
        torch.set_num_threads(1)
    assert said in capsys.readouterr().out


def test_loss_by_rows_trains_and_evaluates_as_from_all_logits(run, tmp_path, capsys):
    losses = {}
    for name, options in {"all": {}, "rows": {"loss_rows": 50}}.items():
        losses[name] = run(name, total_steps=20, cooldown_steps=5, **options)["progress"]["losses"]["val_loss"]
    assert losses["rows"] == pytest.approx(losses["all"], rel=1e-5) and losses["rows"] != losses["all"]
    for name in losses:
        capsys.readouterr()
        evaluate.run([str(tmp_path / f"runs/{name}/ckpt/step_00000020.pt"), "--tokens=2000", "--json"])
        assert json.loads(capsys.readouterr().out)["rows"][0]["val_loss"] == losses[name]


def test_finished_run_is_left_alone(run, tmp_path, capsys):
    run()
    files = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    run()
    assert "finished: val loss" in capsys.readouterr().out.splitlines()[-1]
    assert files == {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}


def test_a_finished_run_can_be_extended(run):
    run("a", schedule="constant", cooldown_steps=None)
    assert same(run("a", schedule="constant", cooldown_steps=None, total_steps=80),
                run("b", schedule="constant", cooldown_steps=None, total_steps=80))  # fmt: skip


def test_a_start_says_what_changes(run, tmp_path, capsys):
    """Every option that is another, and where the learning rates made so far are not those of the new schedule."""
    run("trunk", schedule="constant", cooldown_steps=None, save_at=(40, 50))
    for name, step, options, change in (
        ("joins", 40, {}, None),
        (
            "too late",
            50,
            {},
            "from step 50 on this is not the rest of its schedule: update 41 was made at lr 0.01, here",
        ),
        ("another lr", 40, {"lr": 5e-3}, "update 0 was made at lr 0.0001, here its lr is 5e-05"),
    ):
        capsys.readouterr()
        branch = {"init_from": str(tmp_path / f"runs/trunk/ckpt/step_{step:08d}.pt"), **options}
        state = run(name, **branch)
        said = capsys.readouterr().out.splitlines()
        assert f"changed: schedule='wsd', until step {step} it was 'constant'" in said
        assert any(line.startswith("changed: lr=0.005") for line in said) == ("lr" in options)
        warnings = [line for line in said if line.startswith("warning")]
        assert len(warnings) == (change is not None) and all(change in line for line in warnings)
        result = json.loads((tmp_path / f"runs/{name}/result.json").read_text())
        assert result.get("lr_changed_at") == state["progress"]["lr_changed_at"] == (step if change else None)
    run("joins", total_steps=80, init_from=str(tmp_path / "runs/trunk/ckpt/step_00000040.pt"))  # back to the peak
    assert "warning: from step 60 on this is not the rest" in capsys.readouterr().out


def test_the_header_counts_what_is_left(run, tmp_path, capsys):
    run("trunk", save_at=(40,), stop_at=40)
    run("larger", init_from=str(tmp_path / "runs/trunk/ckpt/step_00000040.pt"), global_batch_size=24)
    tokens = 40 * 12 * 32, 20 * 24 * 32
    assert f"run: 60 steps = {sum(tokens):,} tokens, " in capsys.readouterr().out
    run("more", init_from=str(tmp_path / "runs/trunk/ckpt/step_00000040.pt"))
    assert f"to train: 20 steps = {20 * 12 * 32:,} tokens" in capsys.readouterr().out


def test_the_same_path_in_other_words(run, tmp_path, monkeypatch):
    run("trunk", save_at=(40,))
    run("branch", init_from=str(tmp_path / "runs/trunk/ckpt/step_00000040.pt"), stop_at=45)
    monkeypatch.chdir(tmp_path)
    assert run("branch", init_from="runs/../runs/trunk/ckpt/step_00000040.pt")["progress"]["step"] == 60
    with pytest.raises(ValueError, match="init_from=.*but .* was trained with .*: choose another --name"):
        run("branch", init_from="runs/trunk/ckpt/step_00000060.pt", total_steps=70)


def test_a_folder_that_holds_anything_of_a_run_is_a_run(run, tmp_path, capsys):
    run(), run("short", stop_at=30)
    for name in ("run", "short"):
        shutil.rmtree(tmp_path / "runs" / name / "ckpt")  # to save space
    files = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    trainer.train(config_of("run", tmp_path))
    assert "is finished: val loss" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(ValueError, match="lr=0.02, but the finished .* was trained with 0.01"):
        trainer.train(config_of("run", tmp_path, lr=2e-2))
    with pytest.raises(ValueError, match="holds the log of a run up to step 30, but no checkpoint: restore its ckpt/"):
        trainer.train(config_of("short", tmp_path))
    assert files == {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    for name in ("config.json", "result.json"):
        (tmp_path / "runs/run" / name).write_text("")
        with pytest.raises(ValueError, match=f"{name} is missing or damaged: restore it"):
            trainer.train(config_of("run", tmp_path))
        (tmp_path / "runs/run" / name).write_bytes(files[tmp_path / "runs/run" / name])


def test_a_run_killed_before_its_first_checkpoint_begins_anew(run, tmp_path):
    whole = run("whole")
    run(stop_at=20)
    shutil.rmtree(tmp_path / "runs/run/ckpt")
    assert same(run(), whole)
    source = {"init_from": str(tmp_path / "runs/whole/ckpt/step_00000040.pt"), "total_steps": 80, "save_every": 30}
    expected = run("branch", **source)
    run("killed", **source, stop_at=60)  # its log begins with its trunk's 40 steps
    shutil.rmtree(tmp_path / "runs/killed/ckpt")
    assert same(run("killed", **source), expected)
    shutil.rmtree(tmp_path / "runs/killed/ckpt")
    (tmp_path / "runs/killed/result.json").unlink()
    with pytest.raises(ValueError, match="holds the log of a run up to step 80"):
        run("killed", **source)
    with pytest.raises(ValueError, match="total_steps=30: .* is past it already"):
        run("shorter", **source | {"total_steps": 30, "save_every": 0})
    run("late", save_every=30, stop_at=20)
    shutil.rmtree(tmp_path / "runs/late/ckpt")
    config = tmp_path / "runs/late/config.json"  # as of a run that was killed before its first save at 30
    config.write_text(json.dumps(json.loads(config.read_text()) | {"stop_at": None}))
    assert same(run("late", save_every=5), whole)  # it had no checkpoint then, whatever is asked for now


def config_of(name, tmp_path, **options):
    return Config(**{**BASE, "name": name, "out_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path), **options})


def test_a_run_that_diverges_in_the_end_is_not_finished(run, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "chunk_losses", lambda *args, **kw: torch.tensor([math.nan], dtype=torch.float64))
    for _ in range(2):  # nor is it when it is asked for again
        with pytest.raises(FloatingPointError, match="validation loss is not a number: training diverged; lower --lr"):
            run(eval_every=0)
    text = (tmp_path / "runs/run/result.json").read_text()
    assert json.loads(text)["val_loss"] is None and "NaN" not in text


def test_a_log_is_taken_over_only_from_the_run_it_is_of(run, tmp_path, capsys):
    run("trunk", save_at=(40,))
    source = tmp_path / "runs/trunk/ckpt/step_00000040.pt"
    (tmp_path / "x/y").mkdir(parents=True)
    shutil.copy(source, tmp_path / "x/y/best.pt")
    (tmp_path / "x/log.jsonl").write_text('{"step": 3, "val_loss": 9}\n')  # of whatever
    run("a", init_from=str(source)), run("b", init_from=str(tmp_path / "x/y/best.pt"))
    assert "log: it begins at step 40" in capsys.readouterr().out
    a, b = lines(tmp_path, "a"), lines(tmp_path, "b")
    assert min(line["step"] for line in b) == 50 and [line for line in a if line["step"] > 40] == b
    (tmp_path / "other/ckpt").mkdir(parents=True)
    shutil.copy(source, tmp_path / "other/ckpt")
    shutil.copy(tmp_path / "x/log.jsonl", tmp_path / "other")
    (tmp_path / "other/config.json").write_text('{"name": "other"}')
    run("c", init_from=str(tmp_path / "other/ckpt/step_00000040.pt"))
    assert lines(tmp_path, "c") == b


def test_an_evaluation_of_other_tokens_is_made_again(run, tmp_path):
    run("short", schedule="constant", cooldown_steps=None, stop_at=40)  # evaluated at 40
    for name in ("short", "direct"):
        run(name, schedule="constant", cooldown_steps=None, total_steps=40, eval_tokens=500)
    results = [json.loads((tmp_path / f"runs/{name}/result.json").read_text()) for name in ("short", "direct")]
    assert results[0]["val_loss"] == results[1]["val_loss"]


def test_a_second_validation_set_adds_its_losses_and_changes_nothing(run, tmp_path, capsys):
    one, other = run("one"), run("other", val_dataset="other")
    both = run("both", val_dataset="text,other")
    assert same(both, one)
    names = ["val_loss", "val_loss_window", "window_steps", "val_loss_ema"]
    further = {name: f"{name}/other" for name in names if name != "window_steps"}
    evaluated = [[line for line in lines(tmp_path, name) if "val_loss" in line] for name in ("one", "other", "both")]
    assert [len(of_run) for of_run in evaluated] == [4, 4, 4]
    for alone, there, line in zip(*evaluated, strict=True):
        assert line == alone | {further[name]: there[name] for name in further if name in there}
        assert there["val_loss"] != alone["val_loss"]
    last = evaluated[2][-1]
    assert {name for name in last if "val_loss" in name} == {*further, *further.values()}
    assert both["progress"]["losses"] == {name: last[name] for name in (*names, *further.values())}
    result = json.loads((tmp_path / "runs/both/result.json").read_text())
    assert {name: result[name] for name in further.values()} == {name: last[name] for name in further.values()}
    assert f"ema/other {last['val_loss_ema/other']:.4f}" in capsys.readouterr().out
    assert one["progress"]["losses"].keys() == {*names} and same(other, one)


def test_validation_sets_of_a_resume_and_a_branch(run, tmp_path):
    """Stopped and resumed with two the log is the same; a second one that a resume adds is evaluated there at once."""
    run("both", val_dataset="text,other")
    run("parts", val_dataset="text,other", stop_at=40)
    run("parts", val_dataset="text,other")
    assert lines(tmp_path, "parts") == lines(tmp_path, "both")
    run("later", stop_at=40)
    later = run("later", val_dataset="text,other")
    source = str(tmp_path / "runs/parts/ckpt/step_00000040.pt")
    for name, state in (("later", later), ("branch", run("branch", val_dataset="text,other", init_from=source))):
        of_name = [line for line in lines(tmp_path, name) if line["step"] >= 40]
        assert of_name == [line for line in lines(tmp_path, "both") if line["step"] >= 40]
        assert same(state, newest(tmp_path, "both"))


@two_ranks
def test_two_validation_sets_on_two_ranks(run, tmp_path, data_dir):
    tokens = np.fromfile(data_dir / "text/train.bin", "<u2")[:80_000]
    write_bins(tmp_path / "a", tokens, n_val=20_000)  # three chunks, and of the other five
    write_bins(tmp_path / "b", tokens[::-1], n_val=40_000)
    options = dict(dataset="a", val_dataset="a,b", eval_tokens=0, total_steps=25, cooldown_steps=5)
    run("one", data_dir=str(tmp_path), **options)
    launched(2, tmp_path, tmp_path, "two", **options)
    assert lines(tmp_path, "two") == lines(tmp_path, "one")


def test_a_merged_checkpoint_says_what_it_is(run, tmp_path, capsys):
    run("trunk", save_at=(40,))
    path = tmp_path / "runs/trunk/ckpt/step_00000040.pt"
    merged = checkpoint.load(path) | {"merged": {"paths": ["a.pt", "b.pt"], "weights": [0.5, 0.5]}}
    sealed.write(tmp_path / "merged.pt", merged)
    run("branch", init_from=str(tmp_path / "merged.pt"), stop_at=45)
    assert "merged: its weights are of 2 checkpoints" in capsys.readouterr().out
    sealed.write(tmp_path / "runs/branch/ckpt/step_00000050.pt", merged)
    with pytest.raises(ValueError, match="was merged from others, and is not this run's own: move it away"):
        run("branch", init_from=str(tmp_path / "merged.pt"))


def test_a_cooldown_on_new_data_does_without_the_old(run, tmp_path, data_dir):
    run("trunk", save_at=(40,))
    branch = {"init_from": str(tmp_path / "runs/trunk/ckpt/step_00000040.pt"), "dataset": "other"}
    expected = run("with", **branch)
    shutil.copytree(data_dir / "other", tmp_path / "new/other")
    shutil.copytree(data_dir / "words", tmp_path / "new/words")
    branch["data_dir"] = str(tmp_path / "new")
    run("without", **branch, stop_at=50)
    assert same(run("without", **branch), expected)  # resumed, too
    assert expected["data"]["sha256"].keys() == {"text", "other"}
    with pytest.raises(ValueError, match="'words' has another tokenizer .words, 257 words. than .* .bytes, 257 words"):
        run("words", **branch | {"dataset": "words"})
    with pytest.raises(ValueError, match="dataset 'text' is not in"):  # its own is needed
        run("mixed", **branch | {"dataset": "text:0.5,other:0.5"})


def test_a_cooldown_can_change_the_mix(run, tmp_path):
    run("trunk", save_at=(40,))
    source = str(tmp_path / "runs/trunk/ckpt/step_00000040.pt")
    mixed = run("mixed", init_from=source, dataset="text:0.5,other:0.5", stop_at=50)
    assert [tuple(x) for x in mixed["data"]["history"]] == [(0, "text"), (480, "text:0.5,other:0.5")]
    assert same(run("mixed", init_from=source, dataset="text:0.5,other:0.5"),
                run("again", init_from=source, dataset="text:0.5,other:0.5"))  # fmt: skip
    assert not same(run("mixed", init_from=source, dataset="text:0.5,other:0.5"), run("plain", init_from=source))


def test_a_cooldown_on_its_own_data_is_a_branch_on_them(run, tmp_path):
    """It has the bits of one by hand, stopped wherever; and what it shares with a run without is that run's."""
    mix = "text:0.3,other:0.7"
    run("trunk", dataset=mix, val_dataset="text", save_at=(40,), stop_at=40)
    source = str(tmp_path / "runs/trunk/ckpt/step_00000040.pt")
    by_hand = run("hand", init_from=source, dataset="other", val_dataset="text")
    whole = run("whole", dataset=mix, cooldown_dataset="other", save_at=(30, 40))
    assert lines(tmp_path, "hand") == lines(tmp_path, "whole")
    assert same(whole, by_hand) and not same(whole, run("plain", dataset=mix))
    assert [tuple(x) for x in whole["data"]["history"]] == [(0, mix), (480, "other")]
    for step in (25, 40, 41, 55):  # before, at and in the cooldown, which begins with update 40
        run("parts", dataset=mix, cooldown_dataset="other", stop_at=step)
    parts = run("parts", dataset=mix, cooldown_dataset="other")
    assert same(parts, whole) and parts["data"]["history"] == whole["data"]["history"]
    assert lines(tmp_path, "parts") == lines(tmp_path, "whole")
    for step in (30, 40):  # a plan for what comes then is none of a branch
        source = tmp_path / f"runs/whole/ckpt/step_000000{step}.pt"
        assert [tuple(x) for x in checkpoint.load(source)["data"]["history"]] == [(0, mix)]
        assert same(run(f"from-{step}", init_from=str(source), dataset=mix), newest(tmp_path, "plain"))


def test_averages_cost_no_accuracy_and_can_be_switched(run, tmp_path):
    """Off, on the CPU, or begun by a branch: the weights are the same, and what is averaged is what was asked for."""
    on, off = run("on"), run("off", window_horizon=0, ema_half_life=())
    assert off["averages"] == {} and all(torch.equal(on["model"][k], off["model"][k]) for k in on["model"])
    source = str(tmp_path / "runs/off/ckpt/step_00000040.pt")
    later = run("later", window_horizon=0, ema_half_life=(), ema_decay=(0.5,), init_from=source)
    assert list(later["averages"]) == ["ema"] and later["averages"]["ema"]["blocks"][0]["first"] == 41
    assert all(torch.equal(on["model"][k], later["model"][k]) for k in on["model"])


def test_an_average_that_a_resume_switches_on_starts_then(run, capsys):
    """Or that it changes; and says so. The weights are those of a run without."""
    whole = run("whole", stop_at=45)
    run("on", window_horizon=0, ema_half_life=(3.0,), stop_at=30)
    capsys.readouterr()
    on = run("on", stop_at=45)  # a window, and an EMA of another half-life
    said = [line for line in capsys.readouterr().out.splitlines() if "this average begins" in line]
    assert [line.split(":")[0] for line in said] == ["window", "ema"] and "begins at step 30" in said[0]
    assert on["averages"]["ema"]["blocks"][0]["first"] == 31 and on["averages"]["window"]["blocks"][0]["first"] == 31
    assert all(torch.equal(on["model"][k], whole["model"][k]) for k in on["model"])


# ----------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_more_ranks_than_gpus(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {
        "RANK": "2",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="rank 2 of this machine finds 2 GPU.*--nproc_per_node=2"):
        run(device="auto")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(warmup_steps=50), "warmup_steps=50 + cooldown_steps=20 is more than total_steps=60"),
        (dict(schedule="cosine", knee_steps=9), "knee_steps=9: schedule 'cosine' takes no knee_steps"),
        (dict(dataset="nowhere"), "dataset 'nowhere' is not in"),
        (dict(global_batch_size=13), "micro_batch_size can be 1, 13"),
        (dict(n_head=3), "n_embd=32, n_head=3"),
        (dict(lr=0.0), "lr=0.0: expected number at least 1e-12"),
        (dict(lr=float("nan")), "lr=nan: expected"),
        (dict(keep=1), "keep=1: expected whole number at least 2"),
        (dict(save_at=(61,)), "steps up to total_steps=60"),
        (dict(name="../x"), "name='../x'"),
        (dict(name="/x"), "name='/x'"),
        (dict(seq_len=10**6), "needs 2,000,000"),
        (dict(eval_tokens=10**6), "eval_tokens=1,000,000"),
        (dict(init_from="nowhere.pt"), "nowhere.pt cannot be read"),
        (dict(device="cuda"), "no CUDA device"),
        (dict(total_steps=0), "total_steps=0"),
        (dict(stop_at=0), "stop_at=0"),
        (dict(val_dataset="words"), "one tokenizer, not bytes (text) and words (words)"),
        (dict(val_dataset="text,words"), "one tokenizer, not bytes (text) and words (words)"),
        (dict(val_dataset="text,other,text"), "val_dataset='text,other,text': expected NAME or NAME,NAME"),
        (dict(val_dataset="text,"), "val_dataset='text,': expected NAME or NAME,NAME"),
        (dict(val_dataset="text,nowhere"), "dataset 'nowhere' is not in"),
        (dict(cooldown_dataset="nowhere"), "dataset 'nowhere' is not in"),
        (dict(cooldown_dataset="words"), "one tokenizer, not bytes (text) and words (words)"),
        (dict(cooldown_dataset="other", cooldown_steps=0), "this schedule, 'wsd', does not end in a cooldown"),
        (
            dict(cooldown_dataset="other", schedule="constant", cooldown_steps=None),
            "'constant', does not end in a coold",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(run, tmp_path, options, message):
    if options == {"device": "cuda"} and torch.cuda.is_available():
        return
    with pytest.raises(ValueError) as error:
        run(**options)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda d: (d / "meta.json").unlink(), "has no meta.json"),
        (lambda d: os.truncate(d / "train.bin", 1000), "has 1,000 bytes"),
        (lambda d: d.joinpath("train.bin").open("r+b").write(b"\xff\xff"), "beyond the vocabulary of 257"),
    ],
)
def test_bad_bins_are_refused(run, tmp_path, data_dir, harm, message):
    tokens = np.fromfile(data_dir / "text/train.bin", "<u2")
    write_bins(tmp_path / "text", tokens[:20_000])
    harm(tmp_path / "text")
    with pytest.raises(ValueError, match=message):
        run(data_dir=str(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_read_only_folder_is_refused(run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o555)  # root could write there all the same: it is refused by its mode
    with pytest.raises(ValueError, match="cannot write to"):
        run()
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "options", [dict(n_layer=1), dict(seed=1), dict(dataset="other"), dict(global_batch_size=6), dict(data_seed=1)]
)
def test_another_run_of_the_same_name_is_refused(run, options):
    run(stop_at=5)
    with pytest.raises(ValueError, match="choose another --name"):
        run(**options)


def test_what_was_to_be_kept_still_is(run, tmp_path):
    run(save_at=(7, 13), stop_at=20)
    run(save_at=(33,))
    assert checkpoint.list_steps(tmp_path / "runs/run/ckpt") == [7, 13, 33, 40, 60]


def test_options_that_would_be_for_nothing_are_refused(run):
    run(stop_at=20)
    with pytest.raises(ValueError, match="stop_at=10: .* is past it already"):
        run(stop_at=10)
    run()
    with pytest.raises(ValueError, match=r"lr=0.02, but the finished .* was trained with 0.01: choose another --name"):
        run(lr=0.02)
    run(eval_every=7, stop_at=60)


def test_unsaved_evaluation_is_not_logged_twice(run, tmp_path):
    run(stop_at=20, eval_every=0)
    run(stop_at=20, eval_every=20)  # evaluates at 20, and has nothing to save
    run(stop_at=21, eval_every=20)
    assert [x["step"] for x in lines(tmp_path, "run") if "val_loss" in x] == [20]


def test_changed_bins_are_refused(run, tmp_path, data_dir):
    tokens = np.fromfile(data_dir / "text/train.bin", "<u2")
    write_bins(tmp_path / "text", tokens)
    run(data_dir=str(tmp_path), stop_at=5)
    for file in (tmp_path / "text").iterdir():
        file.unlink()
    (tmp_path / "text").rmdir()
    write_bins(tmp_path / "text", tokens[::-1])
    with pytest.raises(ValueError, match="is not what"):
        run(data_dir=str(tmp_path))


def test_command_line_errors_are_one_line(tmp_path, data_dir):
    for flag, message in (("--lerning_rate=1", "no such option"), ("--schedule=wds", "expected one of constant, wsd")):
        process = subprocess.run([*command(tmp_path, data_dir, "x"), flag], env=ENV, capture_output=True, text=True)
        assert process.returncode == 1 and process.stdout == ""
        assert (
            process.stderr.count("\n") == 1 and flag.partition("=")[0] in process.stderr and message in process.stderr
        )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_exits(run, tmp_path, data_dir, number, status):
    process = subprocess.Popen(
        command(tmp_path, data_dir, "run", log_every=1), env=ENV, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    for line in process.stdout:
        if line.startswith("step      7  loss"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    assert process.wait(30) == status and "stopped by a signal" in rest
    state = newest(tmp_path, "run")
    assert 7 <= state["progress"]["step"] < 60
    assert lines(tmp_path, "run")[-1]["step"] == state["progress"]["step"]  # not a finished step was lost
    assert same(run(log_every=1), run("whole", log_every=1))


def test_z_loss_is_minimized_and_kept_apart_from_the_loss(run, tmp_path):
    plain, with_z = run("plain"), run("z", z_loss=0.1)
    assert not same(plain, with_z)
    first = [next(line for line in lines(tmp_path, name) if "train_loss" in line) for name in ("plain", "z")]
    assert "z_loss" not in first[0] and first[1]["z_loss"] > 0
    starts = [next(line for line in lines(tmp_path, name) if "val_loss" in line) for name in ("plain", "z")]
    assert starts[0] == starts[1]  # the same weights, so the same loss: z-loss is in no evaluation
    z = [line["z_loss"] for line in lines(tmp_path, "z") if "z_loss" in line]
    assert z[-1] < 0.2 * z[0]  # it is minimized
    run("z in two", z_loss=0.1, stop_at=25)
    assert same(run("z in two", z_loss=0.1), with_z)


class Faulty(Llama):
    """Its loss is not a number on the calls in `bad`, counting from 0."""

    calls, bad = 0, ()

    def forward(self, *args):
        loss = super().forward(*args)
        if torch.is_grad_enabled():
            Faulty.calls += 1
            if Faulty.calls - 1 in Faulty.bad:
                return loss * float("nan")
        return loss


def test_update_with_bad_gradient_is_skipped(run, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "Llama", Faulty)
    Faulty.calls, Faulty.bad = 0, {6 * 12 + 3}  # one micro-batch of step 12
    state = run()
    assert state["progress"]["skipped"] == 1 and state["progress"]["step"] == 60
    assert all(torch.isfinite(t).all() for t in tensors(state).values())
    skipped = [x for x in lines(tmp_path, "run") if "skipped" in x]
    assert [(x["step"], x["skipped"], x["train_loss"]) for x in skipped] == [(13, 1, None)]
    assert state["optimizer"]["state"][0]["step"] == 59


def test_ten_bad_gradients_in_a_row_end_the_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "Llama", Faulty)
    Faulty.calls, Faulty.bad = 0, set(range(6 * 33, 6 * 50))  # the evaluation at step 40 falls into it
    with pytest.raises(FloatingPointError, match="10 gradients in a row"):
        run()
    assert newest(tmp_path, "run")["progress"]["step"] == 40
    assert not (tmp_path / "runs/run/result.json").exists()
    segment = planner.Segment(0, 60, Config(name="run", out_dir=str(tmp_path / "runs")), "run", "run")
    later = planner.Segment(60, 80, Config(name="later", out_dir=str(tmp_path / "runs")), "later", "run", segment)
    assert segment.given_up()["step"] == 43 == later.given_up()["step"]
    log = tmp_path / "runs/run/log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))  # one fewer
    assert segment.given_up() is None
