"""Studies that `scaling.py plan --write` writes: planned as study.py does, never trained."""

import collections
import json
import math

import numpy as np
import pytest
from conftest import HERE

import ladder
import planner
import scaling
from config import main
from laws.__main__ import make_parser
from tables import read_rows


def write(tmp_path, *args, name="mine.py"):
    """What `plan --write --json` says of the study, and the runs of its file as study.py reads them."""
    path = tmp_path / name
    scaling.run(["plan", f"--write={path}", "--json", *args])
    return path, *planner.read_study(path)


@pytest.mark.parametrize("flops, near", [("3e11", 0.35), ("1e13", 0.2), ("1e15", 0.1), ("1e19", 0.2), ("1e21", 0.1)])
def test_a_study_costs_what_it_may_and_doubles_its_sizes(capsys, tmp_path, flops, near):
    path, study, runs = write(tmp_path, f"--flops={flops}")
    facts = json.loads(capsys.readouterr().out)["study"]
    roots = planner.plan(study, runs)
    cost = sum(segment.flops for root in roots for segment in root.below())
    assert facts["study_flops"] == cost == pytest.approx(float(flops), rel=near) and study == "mine"

    sizes = collections.defaultdict(list)
    for config in runs.values():
        sizes[scaling.num_params(planner.shape_of(config))].append(config)
    assert facts["sizes"] == sorted(sizes) and len(sizes) == (3 if flops == "3e11" else 5)
    assert len(roots) == 3 * len(sizes) and facts["runs"] == len(runs) == 9 * len(sizes)  # a trunk per size and seed
    steps = np.diff(np.log2(sorted(sizes)))
    assert ((0.5 < steps) & (steps < 1.5)).all() and math.log2(max(sizes) / min(sizes)) > 0.8 * (len(sizes) - 1)
    for params, configs in sizes.items():
        tokens = [c.total_steps * c.global_batch_size * c.seq_len / params for c in configs if c.seed == 0]
        assert sorted(tokens) == pytest.approx([10, 20, 40], rel=0.01)
        assert len({(c.lr, c.global_batch_size, c.warmup_steps) for c in configs}) == 1  # so they share their trunk
        assert {(c.seed, c.data_seed) for c in configs} == {(0, 0), (1, 1), (2, 2)}
        assert all(c.schedule == "wsd" and c.warmup_steps < 0.2 * c.total_steps for c in configs)
    dataset, seq_len = ("stdlib-bytes", 128) if float(flops) < 1e17 else ("slimpajama-6b-gpt2", 512)
    assert all((c.dataset, c.seq_len) == (dataset, seq_len) for c in runs.values())


def test_options_of_the_study(capsys, tmp_path):
    law = tmp_path / "law.json"
    law.write_text(json.dumps({"law": "chinchilla", "params": dict(E=1.0, A=1.0, B=1.0, alpha=0.3, beta=0.3)}))
    args = ["--flops=1e20", "--study_flops=1e18", "--dataset=other-bytes", f"--law={law}"]
    path, study, runs = write(tmp_path, *args)
    facts = json.loads(capsys.readouterr().out)["study"]
    assert facts["tokens_per_parameter"] == [0.5, 1.0, 2.0]  # of this law N and D are worth the same
    assert facts["study_flops"] == pytest.approx(1e18, rel=0.2) and facts["epochs"] is None
    assert {c.dataset for c in runs.values()} == {"other-bytes"}
    assert planner.vocabulary("data", "other-bytes") == planner.shape_of(runs.popitem()[1]).vocab_size


def test_the_commands_run_and_stand_in_the_file(capsys, tmp_path):
    path = tmp_path / "mine.py"
    scaling.run(["plan", "--flops=1e13", f"--write={path}"])
    out, text = capsys.readouterr().out, path.read_text()
    shown = [line.strip() for line in out.splitlines() if line.startswith("    python")]
    assert len(shown) == 3 and all(f"    {line}\n" in text for line in shown)
    assert shown[0] == f"python study.py {path} --jobs=2"
    for line in shown[1:]:
        assert line.startswith("python -m laws ") and "runs/mine/results.csv" in line
        args = make_parser().parse_args(line.split()[3:])
        assert args.command == "holdout" or args.budgets == (1e13, 1e14)
    assert f"written: {path}, 45 runs" in out and "times the run's (34% saved)" in out
    assert max(map(len, text.splitlines())) <= 120 and compile(text, path, "exec").co_consts[0].startswith("What would")


def test_the_peak_is_that_of_the_ladder():
    # the claim of ladder.py: on results/ladder the best peak lies within 0.78 to 1.33 times the rule
    losses = collections.defaultdict(list)
    for _, row in read_rows(HERE / "results/ladder/results.csv"):
        if row["schedule"] == "wsd":
            losses[int(row["n_params"]), int(row["tokens"]), float(row["lr"])].append(float(row["val_loss"]))
    ours, theirs = [], []
    for N, D in sorted({key[:2] for key in losses}):
        peaks = np.array(sorted(lr for n, d, lr in losses if (n, d) == (N, D)))
        y = np.array([np.mean(losses[N, D, lr]) for lr in peaks])
        first = min(max(int(y.argmin()) - 1, 0), len(y) - 3)
        a, b, _ = np.polyfit(np.log(peaks[first : first + 3]), y[first : first + 3], 2)
        flops, best = scaling.train_flops_6nd(N, D), math.exp(-b / 2 / a)
        lr, batch = scaling.deepseek_rules(flops)
        theirs.append(best / lr)
        ours.append(best / lr / math.sqrt(1024 / batch))
    assert len(ours) == 12 and 0.775 < min(ours) and max(ours) < 1.335, ours
    assert min(theirs) < 0.65  # without the root of the batch it does not hold


def test_batch_and_peak_keep_the_rule():
    for flops in (1e10, 1e15, 1e20):
        sequences, lr = ladder.batch_and_lr(flops, 128)
        rule_lr, rule = scaling.deepseek_rules(flops)
        assert sequences & (sequences - 1) == 0 and 0.7 < sequences * 128 / rule < 1.42
        assert lr / rule_lr == pytest.approx((sequences * 128 / rule) ** 0.5)


def test_mistakes_are_told_in_one_line_and_nothing_is_written(capsys, tmp_path):
    there = tmp_path / "there.py"
    there.write_text("lr = 1")
    new = tmp_path / "new.py"
    for args, word in (
        (["--flops=1e13", f"--write={there}"], "there.py is there already"),
        (["--flops=1e13", f"--write={tmp_path}/new.txt"], "expected a file such as configs/mine.py"),
        (["--flops=1e13", f"--write={tmp_path}/none/new.py"], "there is no folder"),
        (["--flops=1e9", f"--write={new}"], "1e9 FLOPs for a study: expected from 2"),
        (["--flops=1e30", f"--write={new}"], "1e30 FLOPs for a study"),
        (["--flops=1e13", f"--write={new}", "--dataset=none"], "dataset 'none' is not in data"),
        (["--flops=1e13", f"--write={new}", "--study_flops=nan"], "--study_flops='nan'"),
        (["--flops=1e13", f"--write={new}", "--batch_tokens=1e4"], "--batch_tokens is of one run"),
        (["--flops=1e13", "--study_flops=1e12"], "--write=configs/mine.py"),
        (["--flops=1e13", "--dataset=stdlib-bytes"], "--write=configs/mine.py"),
    ):
        with pytest.raises(SystemExit) as end:
            main(lambda args=args: scaling.run(["plan", *args]))
        out, error = capsys.readouterr()
        assert end.value.code == 1 and out == "" and error.count("\n") == 1 and word in error, (args, error)
    assert there.read_text() == "lr = 1" and not new.exists()
