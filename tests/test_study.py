"""Studies trained for real, small ones: shared steps once, the bits of runs trained alone, and nothing done twice."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BASE, ENV, HERE, same, two_ranks, write_config

import checkpoint
import planner
import study
from train import Config, train

OPTIONS = {k: v for k, v in BASE.items() if not k.startswith(("cooldown", "schedule", "total"))}
COOLDOWNS = "dict(schedule='wsd', cooldown_frac=0.25, cooldown_shape=['linear', '1-sqrt'])"
LENGTHS = f"total_steps = [20, 40]\ngrids = [dict(schedule='cosine'), {COOLDOWNS}]"


pytestmark = pytest.mark.usefixtures("one_thread_and_short_trials")


def write(folder, data_dir, text, **options):
    """The arguments that run the study, two runs side by side."""
    return [write_config(folder, data_dir, text, **OPTIONS | options), "--jobs=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """The arguments of a study that is trained: two lengths of a cosine, and of cooldowns of two shapes."""
    folder = tmp_path_factory.mktemp("study")
    args = write(folder, data_dir, LENGTHS)
    study.run(args)
    return args


def runs_of(args):
    return Path(args[0]).parent / "runs" / "some"


def rows_of(args):
    with open(runs_of(args) / "results.csv") as file:
        return list(csv.DictReader(file))


def ages(args):
    return {path: path.stat().st_mtime_ns for path in runs_of(args).rglob("*.pt")}


# Warmup 5: all have the first 6 updates in common. Cosines: 14 + 34 more. Cooldowns of 5 and 10 updates, whose first
# still has the full learning rate: a trunk of 31, and twice 4 + 9.
STEPS_ALONE, STEPS = 3 * (20 + 40), 6 + (14 + 34) + (31 - 6) + 2 * (4 + 9)


def test_plan_counts_the_steps_by_hand(trained, capsys):
    study.run([*trained, "--plan"])
    out = capsys.readouterr().out
    assert f"all               6{STEPS_ALONE:>14}{STEPS:>12}" in out
    for line in (
        "└─      0 to      6  (shared)",
        "├─      6 to     20  cosine",
        "├─     16 to     20  wsd_total-steps20_linear",
    ):
        assert line in out
    assert "all of it is trained" in out


def test_every_run_has_the_bits_of_one_trained_alone(trained, tmp_path):
    _, runs = planner.read_study(trained[0])
    for name, config in runs.items():
        alone = {**vars(config), "out_dir": str(tmp_path), "name": name}
        train(Config(**alone))
        path = f"{name}/ckpt/step_{config.total_steps:08d}.pt"
        assert same(checkpoint.load(runs_of(trained) / path), checkpoint.load(tmp_path / path)), name
        alone, shared = (json.loads((f / name / "result.json").read_text()) for f in (tmp_path, runs_of(trained)))
        for key in alone.keys() - {"name", "train_s"}:
            assert alone[key] == shared[key], (name, key)


def test_cooldowns_on_other_data_share_a_trunk_and_have_the_bits_of_runs_alone(tmp_path, data_dir, capsys):
    mixes = "cooldown_dataset = [None, 'other', 'text:0.5,other:0.5']\nval_dataset = 'text,other'"
    args = write(tmp_path, data_dir, f"schedule = 'wsd'\ntotal_steps = 40\ncooldown_frac = 0.25\n{mixes}")
    study.run(args)
    assert "60 steps trained instead of 120" in capsys.readouterr().out
    _, runs = planner.read_study(args[0])
    states = []
    for name, config in runs.items():
        train(Config(**{**vars(config), "out_dir": str(tmp_path / "alone"), "name": name}))
        path = f"{name}/ckpt/step_00000040.pt"
        states += [checkpoint.load(runs_of(args) / path), checkpoint.load(tmp_path / "alone" / path)]
        assert same(*states[-2:]) and [*map(tuple, states[-2]["data"]["history"])] == states[-1]["data"]["history"], (
            name
        )
        alone, shared = (
            json.loads((f / name / "result.json").read_text()) for f in (tmp_path / "alone", runs_of(args))
        )
        for key in alone.keys() | shared.keys() - {"name", "train_s"}:
            assert key in ("name", "train_s") or alone[key] == shared[key], (name, key)
    assert not any(same(a, b) for a, b in ((states[0], states[2]), (states[0], states[4]), (states[2], states[4])))
    rows = rows_of(args)
    assert [row["cooldown_dataset"] for row in rows] == ["", "other", "text:0.5,other:0.5"]
    assert all(float(row[loss]) > 0 for row in rows for loss in ("val_loss/other", "val_loss_ema/other", "val_loss"))
    assert not any(row["val_loss/other"] == row["val_loss"] for row in rows)


def test_results_add_up_to_what_was_trained(trained):
    rows, (_, runs) = rows_of(trained), planner.read_study(trained[0])
    assert [row["name"] for row in rows] == list(runs)
    per_step = planner.flops_per_step(next(iter(runs.values())))
    assert sum(int(row["flops_paid"]) for row in rows) == STEPS * per_step
    assert [int(row["flops"]) for row in rows] == [n * per_step for n in (20, 40, 20, 20, 40, 40)]
    assert all(0 < float(row["train_s_paid"]) and float(row["val_loss"]) > 0 for row in rows)
    assert sum(float(row["train_s_paid"]) for row in rows) < sum(float(row["train_s"]) for row in rows)
    assert [r["cooldown_steps"] for r in rows] == ["", "", "5", "5", "10", "10"]
    assert [r["cooldown_frac"] for r in rows] == ["", "", *["0.25"] * 4]
    assert "total_steps" in rows[0] and "cooldown_shape" in rows[0] and not {"init_from", "out_dir"} & rows[0].keys()
    for name in "n_params tokens train_loss val_loss_window window_steps val_loss_ema lr seed warmup_steps".split():
        assert all(row[name] for row in rows), name


def test_plan_of_widths_and_learning_rates_with_mup(tmp_path, data_dir, capsys):
    """One worker tries out two models, the least and the largest."""
    text = "lr = [1e-2, 2e-2]\ngrids = [dict(n_embd=32, n_head=2), dict(n_embd=64, n_head=4)]"
    args = write(tmp_path, data_dir, text, mup_base=32, total_steps=10)
    study.run([args[0], "--plan"])
    out = capsys.readouterr().out
    assert out.count("2 times: lr0.01, lr0.02\n└─      0 to     10  n-embd") == 2
    assert "(by a trial)" in out or study.torch.cuda.is_available()  # there it is by arithmetic


def test_only_a_deleted_run_is_trained_again(trained, capsys):
    before, rows = ages(trained), rows_of(trained)
    study.run(trained)
    assert ages(trained) == before and "all of it is trained" in capsys.readouterr().out
    shutil.rmtree(runs_of(trained) / "wsd_total-steps40_linear")
    study.run(trained)
    assert "in 1 segments" in capsys.readouterr().out
    after = ages(trained)
    assert {p.parts[-3] for p in after if after[p] != before[p]} == {"wsd_total-steps40_linear"}
    timing = ("train_s", "train_s_paid")
    assert [{k: v for k, v in r.items() if k not in timing} for r in rows_of(trained)] == [
        {k: v for k, v in r.items() if k not in timing} for r in rows
    ]


def test_another_study_in_the_same_folder_is_refused(trained, tmp_path, data_dir):
    args = write(tmp_path, data_dir, LENGTHS.replace("40", "30"), out_dir=str(runs_of(trained).parent))
    with pytest.raises(ValueError, match="belongs to another study: .*some.py has no run cosine_total-steps40"):
        study.run(args)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_every_run_saves(tmp_path, data_dir, number):
    text = "schedule = 'wsd'\ntotal_steps = [20000, 25000]\nlr = [1e-2, 1e-3]"
    args = write(tmp_path, data_dir, text, log_every=1, save_every=50, eval_every=0, window_horizon=0, ema_half_life=())
    process = subprocess.Popen([sys.executable, str(HERE / "study.py"), *args], env=ENV, stderr=subprocess.DEVNULL)
    runs = runs_of(args) / "shared"

    def steps(run):
        return len((run / "log.jsonl").read_text().splitlines())

    try:
        while sum(steps(log.parent) >= 120 for log in runs.glob("*/log.jsonl")) < 2:
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=60) == (-9 if number == signal.SIGKILL else 130)
    finally:
        process.kill()
    for run in runs.iterdir():  # they are told, and save, even if the study is killed
        while study.is_locked(run):
            assert number == signal.SIGKILL  # else it waits for them
            time.sleep(0.05)
        assert checkpoint.list_steps(run / "ckpt")[-1] == steps(run) < 16_000


def test_a_run_that_fails_stops_no_other(tmp_path, data_dir, capsys):
    text = "schedule = 'wsd'\ntotal_steps = [20, 40]\nval_dataset = ['nowhere', 'text']"
    args = write(tmp_path, data_dir, text)
    with pytest.raises(SystemExit) as ended:
        study.run(args)
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert "error: these failed, and 2 that need them wait" in err and "nowhere" in err and "(exit status 1)" in err
    assert [(row["name"], row["val_dataset"]) for row in rows_of(args)] == [
        ("text_total-steps20", "text"),
        ("text_total-steps40", "text"),
    ] and "FAILED" in out


def test_a_worker_that_dies_takes_one_run_with_it(tmp_path, data_dir, monkeypatch, capsys):
    """Another one takes its place, and the same command trains that run to the bits of one trained alone."""
    text = "schedule = 'constant'\ntotal_steps = 120\nseed = [0, 1, 2]"
    args = write(tmp_path, data_dir, text, log_every=1, eval_every=0, window_horizon=0, ema_half_life=())
    wait, seen, killed = study.Jobs.wait, [], []

    def wait_or_kill(jobs, seconds):
        ((segment, (worker, _)),) = jobs.running.items()
        seen.append(worker.process.pid)
        if not killed and segment.steps_done() > 25:
            killed.append(segment)
            worker.process.kill()
        wait(jobs, 0.01)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(study.Jobs, "wait", wait_or_kill)
        study.run([*args, "--jobs=1"])
    assert f"{killed[0].folder}: " in (err := capsys.readouterr().err) and "(exit status -9)" in err
    assert len(set(seen)) == 2 and len(rows_of(args)) == 2
    assert not killed[0].is_trained() and checkpoint.list_steps(killed[0].folder / "ckpt")
    study.run(args)
    assert "in 1 segments" in capsys.readouterr().out and len(rows_of(args)) == 3
    train(Config(**{**vars(killed[0].config), "out_dir": str(tmp_path), "name": "alone"}))
    assert same(checkpoint.load(killed[0].checkpoint), checkpoint.load(tmp_path / "alone/ckpt/step_00000120.pt"))


def test_a_bug_leaves_its_traceback_and_stops_no_other(tmp_path, data_dir, capsys):
    args = write(tmp_path, data_dir, "schedule = 'constant'\ntotal_steps = 20\nseed = [0, 1]")
    (runs_of(args) / "seed0/log.jsonl").mkdir(parents=True)  # none of a user's mistakes, nor of the machine's faults
    with pytest.raises(SystemExit):
        study.run(args)
    assert "IsADirectoryError" in (err := capsys.readouterr().err) and "(exit status 1)" in err
    assert "Traceback" in (runs_of(args) / "seed0/output.txt").read_text()
    assert [row["name"] for row in rows_of(args)] == ["seed1"]


def test_a_run_without_its_checkpoint_has_failed(tmp_path, data_dir, capsys):
    """Or what is to start from there would wait for ever."""
    (tmp_path / "launch.py").write_text(f"""
import pathlib, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True)
for file in pathlib.Path({str(tmp_path)!r}).glob("runs/some/constant*/ckpt/*"):
    file.unlink()
""")
    args = write(tmp_path, data_dir, "grids = [dict(schedule='constant', total_steps=20), dict(total_steps=[30, 40])]")
    with pytest.raises(SystemExit):
        study.run([*args, f"--launch={sys.executable} {tmp_path / 'launch.py'}"])
    err = capsys.readouterr().err
    assert "that need them wait" in err and "where others go on from, is gone" in err, err


@two_ranks
def test_models_in_shards_share_their_steps_too(tmp_path, data_dir, capsys):
    """Each segment on two ranks, whose checkpoints are folders; the bits are those of one rank."""
    text = "schedule = 'wsd'\ntotal_steps = [20, 30]\ncooldown_steps = 8"
    args = write(tmp_path, data_dir, text, parallel="shard", save_every=0)
    launch = f"--launch={sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2"
    study.run([*args, launch])
    saved = [path.name for path in runs_of(args).rglob("step_*")]
    assert sorted(saved) == ["step_00000013", "step_00000020", "step_00000030"]
    study.run([*args, launch])
    assert "all of it is trained" in capsys.readouterr().out
    (run,) = (config for config in planner.read_study(args[0])[1].values() if config.total_steps == 30)
    alone = {"out_dir": str(tmp_path), "name": "alone", "parallel": "replicate"}
    train(Config(**{**vars(run), **alone}))
    in_shards = checkpoint.find(runs_of(args) / "total-steps30/ckpt", 30)
    assert same(checkpoint.load(in_shards), checkpoint.load(tmp_path / "alone/ckpt/step_00000030.pt"))


def test_commands_can_be_run_by_hand(tmp_path, data_dir, capsys):
    text = "schedule = 'wsd'\ntotal_steps = [20, 40]\nname = 'some'"
    args = write(tmp_path, data_dir, text, ema_half_life=(5.0, 10.0))
    study.run([*args, "--print"])
    waves = capsys.readouterr().out.split("\n\n")
    assert [len(wave.strip().splitlines()) for wave in waves] == [1, 2]
    assert all(line.split()[0] == "python" for wave in waves for line in wave.split("\n") if line)
    assert not (tmp_path / "runs").exists()
    for line in "\n".join(waves).splitlines():
        if line:
            subprocess.run(
                line.replace("python", sys.executable, 1), shell=True, env=ENV, check=True, capture_output=True
            )
    study.run(args)
    out = capsys.readouterr().out
    assert "all of it is trained" in out and len(rows_of(args)) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["b.py"], "b.py: expected one study"),
        (["--jobs=0"], "--jobs='0': expected whole number at least 1"),
        (["--jobs=1.5"], "--jobs='1.5'"),
        (["--jobs=nan"], "--jobs='nan'"),
        (["--dataset=nowhere"], "nowhere"),
        (["--schedule=wsd", "--cooldown_dataset=text:0.5,nowhere:0.5"], "dataset 'nowhere' is not in"),
        (["--schedule=cosine", "--cooldown_dataset=text"], "'cosine', does not end in a cooldown"),
        (["--data_dir=/nowhere"], "/nowhere"),
        (["--parallel=shard:2"], "without --launch each run has one rank: parallel='shard:2': groups of 2 ranks"),
        (["--dataset=text@400k:1,other:1"], "dataset=text@400000: text's train.bin has 396,000 tokens only"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, data_dir, args, message):
    own = write(tmp_path, data_dir, "total_steps = 20")
    with pytest.raises(ValueError, match=message):
        study.run([*own, *args])
    assert not (tmp_path / "runs").exists()


def test_no_room_on_the_disk(tmp_path, data_dir, monkeypatch):
    args = write(tmp_path, data_dir, "total_steps = 20\nschedule = 'constant'")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(ValueError, match="do not fit into .*--out_dir"):
        study.run(args)
    assert not (tmp_path / "runs").exists()


def test_several_seeds_are_told_as_mean_and_deviation(capsys):
    rows = [dict(name=f"a{s}", schedule="wsd", lr=1.0, seed=s, val_loss=1.0 + s, val_loss_window=None) for s in (0, 1)]
    rows.append(dict(name="b", schedule="onecycle", lr=1.0, seed=0, val_loss=3.0, val_loss_window=2.0, window_steps=60))
    study.print_results(rows)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "run                seeds  weights as they are  window of 60 steps",
        "cooldown               2      1.5000 ± 0.7071",
        "cosine (OneCycle)      1               3.0000              2.0000",
    ]
    study.print_results([row | {"val_loss/b": 5.0, "val_loss_window/b": None} for row in rows])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "run                seeds  weights as they are  weights as they are, on b  window of 60 steps",
        "cooldown               2      1.5000 ± 0.7071            5.0000 ± 0.0000",
        "cosine (OneCycle)      1               3.0000                     5.0000              2.0000",
    ]


def test_jobs_share_the_gpus(tmp_path, monkeypatch):
    seen = []

    class Recorded(study.Worker):
        def __init__(self, environment):
            seen.append(environment)
            self.process = subprocess.Popen(["true"])

        def start(self, *task):
            pass

    monkeypatch.setattr(study.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(study, "Worker", Recorded)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    (tmp_path / "some.py").write_text("schedule = 'constant'\nseed = [0, 1, 2]")
    _, runs = planner.read_study(tmp_path / "some.py", [f"--out_dir={tmp_path}"])
    jobs = study.Jobs(3, 1)
    for segment in planner.plan("some", runs):
        jobs.start(segment)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == ["3", "5", "3"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_a_copied_study_leaves_the_original_alone(tmp_path, data_dir):
    args = write(tmp_path, data_dir, COOLDOWNS.replace("dict(", "grids = [dict(total_steps=20, ") + "]\n")
    study.run(args)
    shutil.copytree(runs_of(args), tmp_path / "runs" / "copy")
    for folder in runs_of(args).glob("shared/*/ckpt"):
        shutil.rmtree(folder)
    text = (tmp_path / "some.py").read_text().replace("'1-sqrt'", "'1-sqrt', 'cosine'")
    (tmp_path / "copy.py").write_text(text)
    before = ages(args)
    study.run([str(tmp_path / "copy.py"), "--jobs=2"])
    assert ages(args) == before and not list(runs_of(args).glob("shared/*/ckpt"))


@pytest.mark.parametrize(
    "options, steps",
    [
        ({"cooldown_steps": 0}, 0),
        ({"cooldown_steps": 5, "final_lr_frac": 1.0}, 5),
        ({"cooldown_steps": 0, "warmup_steps": 20}, 0),
        ({"cooldown_frac": 0.29, "total_steps": 100}, 29),
        ({}, 4),
    ],
)
def test_the_cooldown_that_a_run_has(options, steps):
    config = Config(**{"schedule": "wsd", "total_steps": 20, "warmup_steps": 2, **options})
    assert study.cooldown_of(config)["cooldown_steps"] == steps


def test_a_run_that_diverged_is_left_out_and_not_tried_again(tmp_path, data_dir, capsys):
    args = write(tmp_path, data_dir, "lr = [1e-2, 2e-2]\nschedule = 'constant'\ntotal_steps = 8\n")
    study.run(args)
    result = runs_of(args) / "lr0.02" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"val_loss": None}))  # as train.py ends it
    before = ages(args)
    capsys.readouterr()
    study.run(args)
    out, error = capsys.readouterr()
    assert "all of it is trained" in out and ages(args) == before
    assert "left out, as their val_loss is not finite: lr0.02" in error
    assert [row["val_loss"] == "" for row in rows_of(args)] == [False, True]


def test_a_worker_that_did_not_hear_the_signal_ends_all_the_same(monkeypatch):
    """As if its task had ended between the signal and the next look at it."""
    worker = study.Worker(os.environ)
    monkeypatch.setattr(worker.process, "terminate", lambda: None)
    worker.terminate()
    assert worker.process.wait(60) == 0
