"""tune.py: descents of others, come to again from their losses; and the command, on runs of a few steps."""

import csv
import itertools
import json
import math
import random
import shutil
from pathlib import Path

import pytest
from conftest import BASE, write_config

import planner
import study
import tune
from start import MAX_SKIPS

pytestmark = pytest.mark.usefixtures("one_thread_and_short_trials")

# ----------------------------------------------------------------------------------------------------------------------
# Decisions


WEN = {  # centre and best single change: 130M parameters, 20 tokens per parameter, each optimizer's last centre
    "muon": (3.463632, 3.462631),
    "lion": (3.551538, 3.549181),
    "soap": (3.483489, 3.482165),
    "kron": (3.492460, 3.490736),
    "scion": (3.476678, 3.473796),
    "mars": (3.537499, 3.536330),
    "cautious": (3.534510, 3.532454),
    "nadamw": (3.531227, 3.531139),
}


@pytest.mark.parametrize("optimizer", WEN)
def test_certificates_of_wen_et_al_hold_at_their_tolerance_only(optimizer):
    centre, changed = WEN[optimizer]
    losses = {(1e-3, 0.1): [centre], (2e-3, 0.1): [changed], (1e-3, 0.2): [centre + 0.01]}
    grid = {"lr": [1e-3, 2e-3], "weight_decay": [0.1, 0.2]}
    assert tune.certificate(losses, (1e-3, 0.1), grid, "all", 3e-3)["holds"]
    assert not tune.certificate(losses, (1e-3, 0.1), grid, "all", 0.0)["holds"]
    assert not tune.certificate(losses, (1e-3, 0.1), grid, "all", 0.99 * (centre - changed))["holds"]


GRID = {"epochs": [4, 8, 16, 32], "lr": [2e-3, 4e-3, 8e-3, 1.6e-2], "weight_decay": [0.1, 0.4, 0.8, 1.6, 3.2, 6.4]}
AT_8E_3 = {  # losses of runs on 262,144 bytes, over the weight decay
    4: (1.776, 1.770, 1.767, 1.797, 1.858, 1.963),
    8: (1.762, 1.694, 1.694, 1.716, 1.755, 1.860),
    16: (1.848, 1.715, 1.676, 1.674, 1.716, 1.783),
}
LOSSES = {(n, 8e-3, wd): [x] for n, row in AT_8E_3.items() for wd, x in zip(GRID["weight_decay"], row, strict=True)}
LOSSES |= {
    (16, 8e-3, 1.6): [1.6741],
    (32, 8e-3, 1.6): [1.669],
    (16, 2e-3, 1.6): [1.6839],
    (16, 4e-3, 1.6): [1.6574],
    (16, 1.6e-2, 1.6): [1.702],
}
LOSSES |= {(8, 4e-3, 1.6): [1.7029], (32, 4e-3, 1.6): [1.6899], (16, 4e-3, 0.8): [1.6838], (16, 4e-3, 3.2): [1.6830]}
START = (16, 8e-3, 1.6)


def test_a_descent_over_two_centres():
    rounds, missing = tune.descend(LOSSES, START, GRID, "adjacent")
    assert not missing and [tuple(found["centre"].values()) for found in rounds] == [START, (16, 4e-3, 1.6)]
    worse = [(row["option"], row["value"]) for row in rounds[0]["neighbours"] if row["holds"]]
    assert worse == [("epochs", 8), ("lr", 1.6e-2), ("weight_decay", 0.8), ("weight_decay", 3.2)]
    last = rounds[1]
    assert last["holds"] and last["at_edge"] == {} and len(last["neighbours"]) == 6
    assert min(row["difference"] for row in last["neighbours"]) == pytest.approx(0.0167)
    (only,), _ = tune.descend(LOSSES, START, GRID, "adjacent", tolerance=0.0170)
    assert tuple(only["centre"].values()) == START and only["holds"]
    assert len(tune.descend(LOSSES, START, GRID, "adjacent", tolerance=0.0165)[0]) == 2


def test_a_missing_neighbour_at_the_edge_counts_as_passed_and_is_told():
    """As Kim et al. have it: the grid ends at 16 epochs and at 8e-3, though what lies beyond is better."""
    grid = GRID | {"epochs": [4, 8, 16], "lr": [8e-3, 1.6e-2]}
    losses = LOSSES | {(16, 8e-3, 0.8): [1.68], (16, 1.6e-2, 1.6): [1.7]}
    found = tune.certificate(losses, START, grid, "adjacent")
    assert found["holds"] and found["at_edge"] == {"epochs": "highest", "lr": "lowest"}
    assert [row["option"] for row in found["neighbours"]] == ["epochs", "lr", "weight_decay", "weight_decay"]
    assert not tune.certificate(losses, START, GRID, "adjacent")["holds"]


def test_neighbours():
    grid = {"lr": [1.0, 2.0, 3.0, 4.0], "tied": [True, False], "schedule": ["wsd", "cosine", "linear"]}
    centre = (2.0, True, "cosine")
    words = [("tied", (2.0, False, "cosine")), ("schedule", (2.0, True, "wsd")), ("schedule", (2.0, True, "linear"))]
    near = [("lr", (1.0, True, "cosine")), ("lr", (3.0, True, "cosine"))]
    assert tune.neighbours(centre, grid, "adjacent") == near + words  # words have no order
    assert tune.neighbours(centre, grid, "all") == [*near, ("lr", (4.0, True, "cosine")), *words]
    assert tune.edges((4.0, True, "wsd"), grid) == {"lr": "highest"}


def test_differences_are_taken_seed_by_seed():
    difference, error = tune.compare([1.1, 2.3, 3.2], [1.0, 2.0, 3.0])
    assert difference == pytest.approx(0.2) and error == pytest.approx(0.1 / math.sqrt(3))
    assert tune.compare([2.0], [1.5]) == (0.5, None)
    inf = math.inf
    assert tune.compare([1.0, inf], [1.0, 2.0]) == (inf, None) == tune.compare([inf, 1.0], [1.0, inf])
    assert tune.compare([1.0, 2.0], [inf, 2.0]) == (-inf, None)


def test_a_centre_that_diverged_moves_to_the_best():
    losses = {(1.0,): [9.0], (2.0,): [math.inf], (3.0,): [8.0], (4.0,): [8.5]}
    rounds, _ = tune.descend(losses, (2.0,), {"lr": [1.0, 2.0, 3.0, 4.0]}, "adjacent")
    assert [found["centre"]["lr"] for found in rounds] == [2.0, 3.0]


@pytest.mark.parametrize("kind", tune.KINDS)
def test_a_descent_needs_no_losses_but_those_it_asks_for(kind):
    """And it ends where no single change is better, by losses that fall from round to round."""
    rng, grid = random.Random(0), {"lr": [1.0, 2.0, 3.0, 4.0], "beta1": [0.1, 0.2, 0.3], "schedule": ["a", "b", "c"]}
    lengths = set()
    for _ in range(50):
        table = {point: [rng.choice((rng.random(), math.inf))] for point in itertools.product(*grid.values())}
        start, known = rng.choice(list(table)), {}
        if table[start] == [math.inf]:
            table[start] = [2.0]
        while missing := tune.descend(known, start, grid, kind)[1]:
            assert not known.keys() & set(missing)
            known |= {point: table[point] for point in missing}
        rounds, _ = tune.descend(known, start, grid, kind)
        assert rounds == tune.descend(table, start, grid, kind)[0]
        centre = tuple(rounds[-1]["centre"].values())
        assert table[centre] == min([table[centre], *(table[p] for _, p in tune.neighbours(centre, grid, kind))])
        falling = [found["loss"] for found in rounds]
        assert falling == sorted(set(falling), reverse=True)
        lengths.add(len(rounds))
    assert len(lengths) > 2


# ----------------------------------------------------------------------------------------------------------------------
# The command


OPTIONS = {k: v for k, v in BASE.items() if k not in ("lr", "total_steps", "cooldown_steps", "eval_every")}
OPTIONS |= {"n_layer": 1, "global_batch_size": 4, "micro_batch_size": 4, "eval_tokens": 500}
TINY = "grid = dict(lr=[1e-4, 1e-3, 1e-2], total_steps=[8, 16])\nstart = dict(lr=1e-3, total_steps=8)\n"
TINY += "seeds = [0, 1]\ncooldown_frac = 0.25\neval_every = 0\n"


def write(folder, data_dir, text=TINY, **options):
    """The arguments that tune it."""
    return [write_config(folder, data_dir, text, **OPTIONS | options)]


@pytest.fixture(scope="module")
def stopped_and_tuned(tmp_path_factory, data_dir):
    """(arguments of a task that was stopped in the middle and then tuned, {result of a run before that: its age})."""
    args, wait = write(tmp_path_factory.mktemp("tune"), data_dir), study.Jobs.wait

    def wait_or_stop(jobs, seconds):
        if len(list(folder_of(args).glob("*/result.json"))) >= 3:
            raise KeyboardInterrupt
        wait(jobs, 0.01)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(study.Jobs, "wait", wait_or_stop)
        tune.run(args)
    done = {file: file.stat().st_mtime_ns for file in folder_of(args).glob("*/result.json")}
    assert not (folder_of(args) / "certificate.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "show_time", lambda *_: None)
        tune.run(args)
    return args, done


@pytest.fixture(scope="module")
def tuned(stopped_and_tuned):
    return stopped_and_tuned[0]


def folder_of(args):
    return Path(args[0]).parent / "runs" / "some"


def rows_of(args):
    with open(folder_of(args) / "results.csv") as file:
        return list(csv.DictReader(file))


def certificate_of(args):
    return json.loads((folder_of(args) / "certificate.json").read_text())


def ages(args):
    return {path: path.stat().st_mtime_ns for path in folder_of(args).rglob("*.pt")}


def test_the_certificate_is_what_the_runs_say(tuned):
    found = certificate_of(tuned)
    with open(folder_of(tuned) / "results.csv") as file:
        runs = {
            (float(r["lr"]), int(r["total_steps"]), int(r["seed"])): float(r["val_loss"]) for r in csv.DictReader(file)
        }
    assert found["centre"] == {"lr": 1e-2, "total_steps": 16}
    assert found["at_edge"] == {"lr": "highest", "total_steps": "highest"}
    assert found["holds"] and len(found["rounds"]) == 3
    assert found["losses"] == [runs[1e-2, 16, seed] for seed in (0, 1)]
    around = [(row["option"], row["value"], row["losses"]) for row in found["neighbours"]]
    points = [("lr", 1e-3, (1e-3, 16)), ("total_steps", 8, (1e-2, 8))]
    assert len(runs) == 10  # and none at 1e-4 with 16 steps
    assert around == [(option, value, [runs[(*point, seed)] for seed in (0, 1)]) for option, value, point in points]
    assert list((folder_of(tuned) / "shared").iterdir())  # lengths share their trunks


def test_the_same_command_again_trains_nothing(tuned, capsys):
    before, found, argv = ages(tuned), certificate_of(tuned), [*tuned, "--plan"]
    (folder_of(tuned) / "certificate.json").unlink()
    tune.run(argv)
    assert "certificate: lr 0.01, 16 steps" in capsys.readouterr().out
    assert not (folder_of(tuned) / "certificate.json").exists()
    tune.run(tuned)
    out = capsys.readouterr().out
    assert ages(tuned) == before and certificate_of(tuned) == found and "to train" not in out
    assert "AT THE EDGE: 16 steps is the highest of its grid, and nothing above it was tried" in out


def test_the_certificate_again_from_the_table_alone(tuned, tmp_path, data_dir):
    args = write(tmp_path, data_dir)
    folder_of(args).mkdir(parents=True)
    shutil.copy(folder_of(tuned) / "results.csv", folder_of(args))
    tune.run([*args, f"--results={folder_of(args)}"])
    assert certificate_of(args) == certificate_of(tuned)
    tune.run([*args, f"--results={folder_of(args)}", "--loss=val_loss_ema"])
    row = next(row for row in rows_of(args) if row["name"] == "lr0.01_total-steps16_seed1")
    assert certificate_of(args)["losses"][1] == float(row["val_loss_ema"]) != float(row["val_loss"])
    table = folder_of(args) / "results.csv"
    table.write_text("".join(line for line in table.open() if "lr0.001_total-steps16_seed1" not in line))
    with pytest.raises(ValueError, match="no run lr0.001_total-steps16_seed1 in this table"):
        tune.run([*args, f"--results={table}"])


def test_runs_of_other_starts_stay_and_count_and_those_of_other_options_are_refused(tuned, tmp_path, data_dir, capsys):
    text = TINY.replace("start = dict(lr=1e-3, total_steps=8)", "start = dict(lr=1e-2, total_steps=16)")
    args = write(tmp_path, data_dir, text, out_dir=str(folder_of(tuned).parent))
    before = ages(tuned)
    tune.run([*args, "--plan"])
    out = capsys.readouterr().out
    assert ages(tuned) == before and "certificate: lr 0.01, 16 steps" in out and "1 round, 3 points, 2 seeds" in out
    with pytest.raises(ValueError, match="belongs to another study: its run .* has beta1=0.9, here it is 0.8"):
        tune.run([*args, "--beta1=0.8"])
    text = text.replace("grid = dict(", "grid = dict(beta1=[0.8, 0.9], ").replace(
        "start = dict(", "start = dict(beta1=0.9, "
    )
    write(tmp_path, data_dir, text, out_dir=str(folder_of(tuned).parent))
    with pytest.raises(ValueError, match="belongs to another study: .* has no run lr0.0001_total-steps8_seed0"):
        tune.run(args)


def test_stopped_in_the_middle_it_goes_on(stopped_and_tuned):
    args, done = stopped_and_tuned
    assert 3 <= len(done) < 8 and len(list(folder_of(args).glob("*/result.json"))) == 10
    assert all(file.stat().st_mtime_ns == age for file, age in done.items())


def test_a_run_that_was_given_up_is_infinitely_bad_and_not_tried_again(tmp_path, data_dir, monkeypatch, capsys):
    """What train.py leaves of a run whose gradients stay infinite: its log."""
    text = "grid = dict(lr=[1e-3, 1e-2], total_steps=[40, 50])\nstart = dict(lr=1e-3, total_steps=50)\nseeds = [0]"
    args = write(tmp_path, data_dir, text)
    task = tune.read_task(args[0])
    trained = []

    def pretend(segments, waiting, jobs):
        for segment in waiting:
            segment.folder.mkdir(parents=True)
            config = {**vars(segment.config), "not_default": []}
            (segment.folder / "config.json").write_text(json.dumps(config))
            n = MAX_SKIPS if segment.config.lr == 1e-2 else MAX_SKIPS - 1
            line = {"tokens": 1, "flops": 2, "train_loss": None, "skipped": 1}
            (segment.folder / "log.jsonl").write_text("".join(json.dumps(line | {"step": s}) + "\n" for s in range(n)))
            if n < MAX_SKIPS:
                segment.checkpoint.parent.mkdir()
                segment.checkpoint.touch()
                result = {"val_loss": 3.0 - segment.end / 100, "tokens": 1, "flops": 2, "n_params": 3, "train_s": 1.0}
                (segment.folder / "result.json").write_text(json.dumps(result))
        trained.extend(segment.run for segment in waiting)
        return {segment: "it diverged" for segment in waiting if segment.config.lr == 1e-2}

    monkeypatch.setattr(study, "train_all", pretend)
    monkeypatch.setattr(study, "show_time", lambda *_: None)
    monkeypatch.setattr(planner, "shared_already", lambda *_: {})
    for _ in range(2):
        tune.run(args)
        found = certificate_of(args)
        assert found["centre"] == {"lr": 1e-3, "total_steps": 50} and found["holds"]
        assert [(row["value"], row["loss"]) for row in found["neighbours"]] == [(1e-2, None), (40, 2.6)]
    assert trained.count("lr0.01_total-steps50_seed0") == 1 and trained.count("lr0.001_total-steps50_seed0") == 1
    assert "no loss" in capsys.readouterr().out
    tune.run([*args, f"--results={folder_of(args)}"])
    assert certificate_of(args) == found and task.start == (1e-3, 50)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("start = dict(lr=1e-3,", "start = dict(lr=5e-3,", r"some.py:\d+: start: lr=0.005 is not in its grid"),
        ("start = dict(lr=1e-3, ", "start = dict(", "start={.*: expected a value for each of lr, total_steps"),
        ("lr=[1e-4, 1e-3, 1e-2]", "lr=[1e-3]", r"grid: lr=\[0.001\]: expected a list of two values or more"),
        ("lr=[1e-4, 1e-3, 1e-2]", "lr=[1e-3, 1e-3]", "grid: lr=.*: expected different values"),
        ("lr=[1e-4, 1e-3, 1e-2]", "lr=[1e-3, 2e-2, 1e-2]", "grid: lr=.*: .*numbers rising"),
        ("lr=[1e-4, 1e-3, 1e-2]", "lr=[1e-3, 'x']", "grid: lr='x': expected number"),
        ("lr=[1e-4", "learning=[1e-4", "grid: learning: no such option"),
        ("grid = dict(", "grid = dict(eval_every=[1, 2], ", "grid: eval_every is not for tuning"),
        ("grid = dict(", "grid = dict(seed=[1, 2], ", "grid: seed is not for tuning: .*`seeds` says it"),
        ("grid = dict(", "grid = dict(init_from=['a', 'b'], ", "a study sets init_from itself"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds=.*: expected one seed or more, all different"),
        ("seeds = [0, 1]", "seeds = []", "expected one seed or more"),
        ("seeds = [0, 1]", "", "some.py lacks seeds"),
        ("seeds = [0, 1]", "seeds = [0]\ntolerance = -1", "tolerance=-1: expected number at least 0"),
        ("seeds = [0, 1]", "seeds = [0]\nneighbours = 'some'", "neighbours='some': expected one of adjacent, all"),
        ("seeds = [0, 1]", "seeds = [0]\nloss = 'val_los'", "loss='val_los': run .* has val_loss, val_loss_w"),
        ("seeds = [0, 1]", "seeds = [0]\nlr = 1", "lr=1.0: grid or seeds say it"),
        ("seeds = [0, 1]", "seeds = [0]\nseed = 1", "seed=1: grid or seeds say it"),
        ("total_steps=[8, 16]", "total_steps=[2, 8]", "run some/lr0.001_total-steps2_seed0: .*warmup"),
        ("lr=[1e-4, 1e-3, 1e-2], t", "lr=[1e-3, 2e-3], dataset=['text', 'other'], t", "on other and on text"),
    ],
)  # fmt: skip
def test_mistakes_in_a_config(tmp_path, data_dir, old, new, message):
    text = TINY.replace(old, new)
    if "dataset" in new:
        text = text.replace("start = dict(", "start = dict(dataset='text', ")
    options = {k: v for k, v in OPTIONS.items() if k != "dataset"} if "dataset" in new else OPTIONS
    (tmp_path / "some.py").write_text("".join(f"{k} = {v!r}\n" for k, v in options.items()) + text)
    assert text != TINY
    with pytest.raises(ValueError, match=message) as caught:
        tune.run([str(tmp_path / "some.py"), f"--out_dir={tmp_path / 'runs'}", f"--data_dir={data_dir}"])
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_options_that_do_not_go_together_later_are_left_out(tmp_path, data_dir, capsys):
    """A warmup of 10 fits the start, and not the shorter run that the descent comes to."""
    text = "grid = dict(total_steps=[10, 40], warmup_steps=[1, 9])\nstart = dict(total_steps=40, warmup_steps=1)\n"
    args = write(tmp_path, data_dir, text + "seeds = [0]\ncooldown_frac = 0.25", warmup_steps=1)
    with pytest.raises(ValueError, match="warmup_steps=1: grid or seeds say it"):
        tune.read_task(args[0])
    args = write(tmp_path, data_dir, "".join([text, "seeds = [0]\ncooldown_frac = 0.25\ndel warmup_steps"]))
    task = tune.read_task(args[0])
    losses = {(40, 1): [2.0], (10, 1): [1.0], (40, 9): [3.0]}
    rounds, n_points = tune.all_rounds(task, lambda i, points: {point: losses[point] for point in points})
    assert "left out: 10 steps, warmup_steps 9: " in capsys.readouterr().out
    assert rounds[-1]["centre"] == {"total_steps": 10, "warmup_steps": 1} and rounds[-1]["holds"] and n_points == 4
