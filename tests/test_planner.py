"""What a study's config file means, how its runs share their steps, and what that costs, without training anything."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import HERE

import scaling
from model import Shape
from planner import (
    Cost,
    check_folder,
    disk,
    due,
    eval_tokens,
    flops_per_step,
    for_a_trial,
    name_runs,
    plan,
    read_study,
    time_left,
)

MODEL = "n_layer=2; n_head=1; n_embd=32; seq_len=64; global_batch_size=4; micro_batch_size=4; dataset='x-bytes'\n"


SHAPE = Shape(257, 64, n_layer=2, n_head=1, n_embd=32)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """study(text, *flags) -> (name, runs) of a config file with this text."""
    monkeypatch.chdir(tmp_path)

    def read(text, *flags):
        (tmp_path / "some.py").write_text(MODEL + text)
        return read_study("some.py", flags)

    return read


def segments(study_and_runs):
    return [s for root in plan(*study_and_runs) for s in root.below()]


def spans(study_and_runs):
    return sorted((s.start, s.end, s.run) for s in segments(study_and_runs))


# ----------------------------------------------------------------------------------------------------------------------
# From a file to runs


def test_lists_expand_to_their_product(study):
    name, runs = study("lr = [1e-3, 2e-3]\nseed = [0, 1]\ntotal_steps = 500\nschedule = 'constant'")
    assert name == "some" and list(runs) == ["lr0.001_seed0", "lr0.001_seed1", "lr0.002_seed0", "lr0.002_seed1"]
    assert [(c.lr, c.seed) for c in runs.values()] == [(1e-3, 0), (1e-3, 1), (2e-3, 0), (2e-3, 1)]
    assert all(c.total_steps == 500 and c.n_embd == 32 for c in runs.values())
    assert runs["lr0.001_seed0"].name == "some/lr0.001_seed0"
    name, runs = study("name = 'mine'\nlr = 1e-3\ntotal_steps = 500")
    assert name == "mine" and runs["run"].name == "mine/run"


def test_the_demo_with_more_seeds_has_the_runs_of_the_demo():
    """Their options stand in both configs: a change of one alone is noticed."""
    few, more = (read_study(HERE / "configs" / f"{name}.py")[1] for name in ("demo", "demo_seeds"))
    plain = [dataclasses.replace(config, name="") for config in more.values()]
    assert len(few) == 21 and all(dataclasses.replace(config, name="") in plain for config in few.values())


def test_grids_stand_side_by_side_on_top_of_the_rest(study):
    _, runs = study(
        "total_steps = [400, 500]\nlr = 1e-3\n"
        "grids = [dict(schedule='cosine'), dict(schedule='wsd', lr=5e-4, cooldown_shape=['linear', '1-sqrt'])]"
    )
    assert list(runs) == [
        *("cosine_total-steps400", "cosine_total-steps500"),
        *(f"wsd_total-steps{n}_{shape}" for n in (400, 500) for shape in ("linear", "1-sqrt")),
    ]
    assert {c.schedule: c.lr for c in runs.values()} == {"cosine": 1e-3, "wsd": 5e-4}


def test_base_file_grids_over_it_and_flags_over_all(study, tmp_path):
    (tmp_path / "base.py").write_text("lr = 3e-3\nweight_decay = 0.3\nbeta2 = 0.9\n")
    _, runs = study(
        "base = 'base.py'\nweight_decay = 0.2\nlr = [1e-3, 2e-3]\ntotal_steps = 400", "--lr=5e-3", "--keep=3"
    )
    (config,) = runs.values()
    assert (config.lr, config.weight_decay, config.beta2, config.keep) == (5e-3, 0.2, 0.9, 3)


def test_tuples_are_values_and_lists_are_choices(study):
    _, runs = study("ema_half_life = [(10.0,), (10.0, 20.0)]\ntotal_steps = 400")
    assert [c.ema_half_life for c in runs.values()] == [(10.0,), (10.0, 20.0)]
    assert list(runs) == ["ema-half-life10.0", "ema-half-life10.0+20.0"]


def test_names_say_what_tells_runs_apart_and_no_more():
    sizes = [dict(n_layer=1, n_embd=24), dict(n_layer=2, n_embd=32), dict(n_layer=2, n_embd=64)]
    runs = [size | dict(schedule="cosine", seed=s, data_seed=s, lr=1e-3) for size in sizes for s in (0, 1)]
    assert name_runs(runs)[:3] == ["n-embd24_seed0", "n-embd24_seed1", "n-embd32_seed0"]
    assert len(set(name_runs(runs))) == len(runs)
    assert name_runs([dict(name="a/b", lr=1), dict(name="c", lr=2)]) == ["a/b", "c"]
    assert name_runs([dict(dataset="a:0.5,b/c:0.5"), dict(dataset="a")]) == ["a:0.5,b-c:0.5", "a"]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("lr = []", (), r"some.py:2: lr=\[\]: an empty list makes no run"),
        ("learning_rate = [1e-3]", (), "some.py:2: learning_rate: no such option; did you mean lr"),
        ("grids = [dict(shedule='wsd')]", (), r"some.py: grids\[0\]: shedule: no such option; did you mean schedule"),
        ("grids = [dict(lr=['high'])]", (), r"grids\[0\]: lr='high': expected number"),
        ("grids = []", (), "expected a list of dicts"),
        ("grids = dict(lr=1e-3)", (), "some.py:2: grids=.*expected a list of dicts"),
        ("grids = [{1: 2}]", (), "some.py:2: grids=.*expected a list of dicts"),
        ("name = ['a', 'b']", (), "some.py: name=.'a', 'b'.: expected one name"),
        ("", ("--out_dir",), "--out_dir: write a value behind it"),
        ("lr = [1e-3, 1e-3]", (), "two runs with the name"),
        ("name = 'x'\ngrids = [dict(name='a'), dict(name='a', lr=1e-2)]", (), "two runs with the name 'a'"),
        ("grids = [dict(name='shared')]", (), "name='shared': that folder is for shared segments"),
        ("base = 'none.py'", (), "none.py: no such config file"),
        ("base = 'bad.py'", (), "bad.py: ZeroDivisionError"),
        ("base = 'branch.py'", (), "its base sets init_from, which a study sets itself"),
        ("init_from = 'x.pt'", (), "a study sets init_from itself"),
        ("save_at = [10]", (), "a study sets save_at itself"),
        ("", ("--stop_at=5",), "a study sets stop_at itself"),
        ("", ("--lr=",), "--lr='': expected number"),
        ("", ("--plam=1",), "--plam: no such option"),
        ("grids = [dict(schedule='cosine', cooldown_shape='linear')]", (), "some.py: run run: cooldown_shape='linear'"),
        ("total_steps = [100, 1000]", (), "run total-steps100: warmup_steps=300 .* more than total_steps=100"),
        ("window_horizon = [5, 38]", (), "run window-horizon38: horizon=38: expected a multiple of every=5"),
        ("out_dir = '/proc/nowhere'", (), "run run: out_dir='/proc/nowhere': cannot write"),
    ],
)
def test_mistakes_are_told_in_one_line(study, tmp_path, text, flags, message):
    (tmp_path / "bad.py").write_text("lr = 1 / 0")
    (tmp_path / "branch.py").write_text("init_from = 'x.pt'")
    with pytest.raises(ValueError, match=message) as error:
        study(text, *flags)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------------
# From runs to trees

WSD = "warmup_steps = 10\nschedule = 'wsd'\n"


def test_cooldowns_of_several_lengths_and_shapes_share_one_trunk(study):
    found = study(WSD + "total_steps = [100, 200, 300]\ncooldown_shape = ['linear', '1-sqrt']")
    assert spans(found) == [
        (0, 81, None),  # a cooldown's first update, N - D, still has the full learning rate
        (81, 100, "total-steps100_1-sqrt"),
        (81, 100, "total-steps100_linear"),
        (81, 161, None),
        (161, 200, "total-steps200_1-sqrt"),
        (161, 200, "total-steps200_linear"),
        (161, 241, None),
        (241, 300, "total-steps300_1-sqrt"),
        (241, 300, "total-steps300_linear"),
    ]


def test_every_segment_begins_where_its_parent_ends(study):
    found = segments(study(WSD + "total_steps = [100, 200]\nseed = [0, 1]"))
    for segment in found:
        if segment.start:
            assert segment.parent.end == segment.start and segment in segment.parent.children
            assert f"--init_from={segment.parent.checkpoint}" in segment.flags()
            assert segment.config.seed == segment.parent.config.seed
        else:
            assert segment.parent is None and not any("init_from" in flag for flag in segment.flags())
        assert (segment.config.stop_at is None) == (segment.run is not None)
    assert len({s.folder for s in found}) == len(found)


def test_a_constant_run_is_passed_through_by_the_others(study):
    grids = "[dict(schedule='constant', total_steps=[60, 100]), dict(schedule='wsd', total_steps=100)]"
    assert spans(study(f"warmup_steps = 10\ngrids = {grids}")) == [
        (0, 60, "constant_total-steps60"),
        (60, 81, None),
        (81, 100, "constant_total-steps100"),
        (81, 100, "wsd_total-steps100"),
    ]


def test_cosines_share_their_warmup_only(study):
    text = "warmup_steps = 10\nschedule = ['cosine', 'onecycle']\ntotal_steps = [100, 200]"
    shared = [(s.start, s.end) for s in segments(study(text)) if s.run is None]
    assert sorted(shared) == [(0, 10), (0, 11)]  # onecycle's warmup is a cosine; full at 9, and falls from 10 on


def test_cycles_of_wsd_s_share_what_is_equal(study):
    text = "warmup_steps = 10\ntotal_steps = 200\nschedule = 'wsd_s'\ncycle_ends = [(100,), (100, 150)]"
    assert spans(study(text))[0] == (0, 136, None)  # up to the second cooldown of the second, 15 updates before 150


@pytest.mark.parametrize(
    "option", ["lr = [1e-3, 2e-3]", "seed = [0, 1]", "n_embd = [32, 64]", "weight_decay = [0.1, 0.2]"]
)
def test_runs_that_differ_in_anything_else_share_nothing(study, option):
    found = segments(study(f"{WSD}total_steps = 100\n{option}"))
    assert [(s.start, s.end) for s in found] == [(0, 100)] * 2 and all(s.run for s in found)


def test_what_changes_no_result_does_not_part_runs(study):
    found = study(
        WSD + "grids = [dict(total_steps=100, eval_every=5, name='a'), dict(total_steps=200, eval_every=7, name='b')]"
    )
    assert spans(found)[0] == (0, 81, None)


def test_cooldowns_on_other_data_share_the_steps_before(study):
    grids = "[dict(cooldown_dataset=[None, 'b-bytes', 'c-bytes']), dict(total_steps=200, cooldown_dataset='b-bytes')]"
    found = study(f"{WSD}total_steps = 100\nname = 'some'\ngrids = {grids}")
    assert spans(found) == [
        (0, 80, None),  # of two cooldowns on other data also the first update, 80, is another
        (80, 81, None),  # which the plain cooldown shares with the longer run
        (80, 100, "b-bytes_total-steps100"),
        (80, 100, "c-bytes_total-steps100"),
        (81, 100, "total-steps100"),
        (81, 200, "b-bytes_total-steps200"),
    ]


def test_cooldowns_of_two_shapes_on_the_same_data_share_its_first_update(study):
    text = "total_steps = 100\ncooldown_shape = ['linear', '1-sqrt']\ncooldown_dataset = ['b-bytes', 'c-bytes']"
    found = segments(study(WSD + text))
    shared = {(s.start, s.end): s.config.cooldown_dataset for s in found if not s.run and s.start == 0}
    assert shared == {(0, 80): None}
    then = [(s.start, s.end, s.config.cooldown_dataset) for s in found if not s.run and s.start == 80]
    assert sorted(then) == [(80, 81, "b-bytes"), (80, 81, "c-bytes")]
    assert len({s.folder for s in found}) == len(found) == 7


def test_a_trunk_stays_where_it_is_when_cooldowns_on_other_data_join(study):
    lengths = "total_steps = [100, 200]\n"
    small = {s.folder for s in segments(study(WSD + lengths)) if not s.run}
    grown = segments(study(WSD + lengths + "cooldown_dataset = [None, 'b-bytes']"))
    digest = {s.folder.name for s in grown if not s.run and s.end == 80}
    assert len(small) == 1 and len(digest) == 1
    for segment in grown:
        finish(segment)
        (segment.folder / "config.json").write_text(json.dumps(dataclasses.asdict(segment.config)))
    again = segments(study(WSD + lengths + "cooldown_dataset = ['c-bytes', 'b-bytes', None]"))
    assert digest == {s.folder.name for s in again if not s.run and s.end == 80}
    assert {s.config.cooldown_dataset for s in again if not s.run and s.end == 80} == {None}


def test_equal_runs_under_two_names_are_refused(study):
    found = study(WSD + "total_steps = 100\ngrids = [dict(cooldown_steps=20), dict(cooldown_frac=0.2)]")
    with pytest.raises(ValueError, match="runs cooldown-steps20 and run are the same"):
        plan(*found)


def test_shared_segments_keep_their_folder_when_a_study_grows(study):
    small = {s.folder for s in segments(study(WSD + "total_steps = [100, 200]")) if not s.run}
    grown = segments(study(WSD + "total_steps = [100, 200, 150, 400]\nlr = [6e-4, 5e-4]"))
    assert small < {s.folder for s in grown if not s.run}
    other = {s.folder for s in segments(study(WSD + "total_steps = [100, 200]\nbeta2 = 0.9")) if not s.run}
    assert not small & other


# ----------------------------------------------------------------------------------------------------------------------
# What is still to train


def finish(segment):
    segment.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    segment.checkpoint.touch()
    if segment.run:
        (segment.folder / "result.json").write_text("{}")


def test_only_what_is_missing_is_trained(study):
    (root,) = plan(*study(WSD + "total_steps = [100, 200]\ncooldown_shape = ['linear', '1-sqrt']"))
    every = root.below()
    assert root.to_train() == every
    for segment in every:
        finish(segment)
    assert root.to_train() == []
    leaf = next(s for s in every if s.run == "total-steps200_linear")
    (leaf.folder / "result.json").unlink()
    assert root.to_train() == [leaf]
    leaf.parent.checkpoint.unlink()
    assert root.to_train() == [leaf.parent, leaf]
    root.checkpoint.unlink()
    assert root.to_train() == [root, leaf.parent, leaf]
    finish(leaf)
    assert root.to_train() == []  # nobody needs the shared ones


def test_what_was_begun_goes_on_from_where_it_began(study):
    """A study that grows gets new partings; a segment half trained from an earlier one has the same bits."""
    before = plan(*study(WSD + "total_steps = [200, 300]"))[0].below()
    half = next(s for s in before if s.run == "total-steps300")
    half.folder.mkdir(parents=True)
    began = dataclasses.replace(half.config, init_from=str(half.parent.checkpoint))
    (half.folder / "config.json").write_text(json.dumps(dataclasses.asdict(began)))
    grown = plan(*study(WSD + "total_steps = [200, 300]\ngrids = [{}, dict(total_steps=280)]"))[0].below()
    again = next(s for s in grown if s.run == "total-steps300")
    old, new = (f"--init_from={s.parent.checkpoint}" for s in (half, again))
    assert old != new and new in again.command(["python"])  # nothing saved: it may as well begin at the later one
    finish(dataclasses.replace(half, end=250, run=None))
    assert old in again.command(["python"]) and new not in again.command(["python"])


def test_a_folder_of_shards_is_a_checkpoint_too(study):
    """Where a segment starts is chosen when it does: only then it shows which kind its parent saved."""
    root, *others = plan(*study(WSD + "total_steps = [100, 200]\nparallel = 'shard'"))[0].below()
    leaf = next(s for s in others if s.parent is root)
    file = root.checkpoint
    assert not root.is_saved() and f"--init_from={file}" in leaf.flags()
    folder = file.with_suffix("")
    folder.mkdir(parents=True)
    assert not root.is_saved()
    (folder / "manifest.pt").touch()
    assert root.is_saved() and root.is_trained() and root.checkpoint == folder
    assert f"--init_from={folder}" in leaf.flags() and root not in root.to_train()
    for name in ("model_00000.pt", "manifest.pt"):
        (folder / name).touch(), (folder / name).unlink()
    assert not root.is_saved() and root in root.to_train()
    tried = for_a_trial(dataclasses.replace(root.config, eval_tokens=100), "x")
    assert tried.parallel == "replicate"  # of one process


def test_cost_and_disk(study):
    (root,) = plan(*study(WSD + "total_steps = [100, 200]"))
    config = root.config
    one = 4 * scaling.train_flops(SHAPE)
    assert flops_per_step(config) == one and root.flops == 81 * one
    assert root.reach() == 200 * one
    n = scaling.num_params(SHAPE)
    assert disk([root]) == 4 * 3 * n
    averaged = dataclasses.replace(
        root, config=dataclasses.replace(config, save_every=10, window_horizon=5, ema_decay=(0.9,))
    )
    assert disk([averaged]) == 2 * 4 * (3 + 6 + 1) * n


def test_disk_of_other_optimizers(study):
    """Two blocks of four matrices 32 x 32 (q, k, v, output) and three 256 x 32, with both their sides' squares."""
    n, matrices = scaling.num_params(SHAPE), 2 * (4 * 32 * 32 + 3 * 256 * 32)
    pairs = 2 * (4 * (32**2 + 32**2) + 3 * (256**2 + 32**2))
    kept = {"lion": n, "ademamix": 3 * n, "muon": 2 * n - matrices}
    kept |= {"soap": 2 * n + 2 * pairs, "kron": 2 * n - matrices + pairs}
    for name, numbers in kept.items():
        (root,) = plan(*study(f"optimizer = {name!r}\n{WSD}total_steps = 100\n"))
        assert disk([root]) == 4 * (n + numbers), name


def test_an_optimizer_that_reads_the_length_shares_it_only(study):
    """AdEMAMix's alpha and beta3 depend on total_steps: two lengths are two trees, two cooldowns of one length one."""
    text = WSD + "optimizer = {!r}\ntotal_steps = [100, 200]\ncooldown_shape = ['linear', '1-sqrt']\n"
    assert len(plan(*study(text.format("ademamix")))) == 2
    assert len(plan(*study(text.format("nadamw")))) == 1


# ----------------------------------------------------------------------------------------------------------------------
# Whose folder


def test_a_folder_of_other_runs_is_refused(study):
    text = WSD + "total_steps = [100, 200]"
    name, runs = study(text)
    folder = Path("runs") / name
    check_folder(folder, runs, "some.py")
    for segment in segments((name, runs)):
        segment.folder.mkdir(parents=True)
        (segment.folder / "config.json").write_text(json.dumps(dataclasses.asdict(segment.config)))
    check_folder(folder, runs, "some.py")  # with everything that the study itself leaves there
    check_folder(folder, study(text + "\neval_every = 7")[1], "some.py")
    with pytest.raises(ValueError, match="its run total-steps100 has lr=0.0005, here it is 0.1"):
        check_folder(folder, study(text + "\nlr = 0.1")[1], "some.py")
    with pytest.raises(ValueError, match="some.py has no run total-steps200"):
        check_folder(folder, study(WSD + "total_steps = [100, 300]")[1], "some.py")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is the folder of a single run"):
        check_folder(folder, runs, "some.py")


def test_the_vocabulary_is_known_before_the_data_is_there(study):
    _, runs = study("dataset = ['x-bytes', 'x-gpt2', 'x-other']\ntotal_steps = 400")
    ratio = [flops_per_step(c) for c in list(runs.values())[:2]]
    assert ratio[0] < ratio[1]
    with pytest.raises(ValueError, match="x-other"):
        flops_per_step(list(runs.values())[2])


# ----------------------------------------------------------------------------------------------------------------------
# How long it takes


def test_steps_that_are_due():
    for interval in (0, 1, 7, 10):
        for first, last in ((0, 70), (6, 7), (7, 14), (8, 13), (0, 3)):
            steps = [step for step in range(first + 1, last + 1) if interval and step % interval == 0]
            assert due(interval, first, last) == len(steps)


TIMES = "schedule='wsd'; warmup_steps=0; cooldown_steps=39; total_steps=[100, 200]; eval_every=50; save_every=80"


def test_time_by_hand(study):
    """A trunk of 62 steps, of which the short run takes 38 more; the long one 100 to the parting's end and 38."""
    found = segments(study(TIMES))
    assert [(s.start, s.end) for s in found] == [(0, 62), (62, 100), (62, 200)]
    config = found[0].config
    # updates, evaluations (at 0, 50; 100; 100, 150, 200), and for each segment the rest, as for each save at 80, 160
    parts = [62 * 1 + 2 * 10 + 100, 38 * 1 + 10 + 2 * 100, 138 * 1 + 3 * 10 + 3 * 100]
    seconds, updates = time_left(found, found, {config: Cost(1.0, 10.0, 100.0)}, n_jobs=1)
    assert seconds == sum(parts) and updates == 238 / sum(parts)
    seconds, _ = time_left(found, found, {config: Cost(1.0, 10.0, 100.0)}, n_jobs=2)
    assert seconds == parts[0] + parts[2]  # the longest way
    with_averages = dataclasses.replace(config, window_horizon=50, ema_half_life=(5.0, 10.0))
    for segment in found:
        segment.config = dataclasses.replace(segment.config, window_horizon=50, ema_half_life=(5.0, 10.0))
    seconds, _ = time_left(found, found, {with_averages: Cost(1.0, 10.0, 100.0)}, n_jobs=1)
    assert seconds == sum(parts) + 3 * 6 * 10


def test_an_evaluation_is_of_all_validation_sets(study, tmp_path):
    for name, tokens in (("x-bytes", 100_001), ("b-bytes", 5_001)):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        (folder / "val.bin").write_bytes(bytes(2 * tokens))
        about = {"format": 1, "dtype": "<u2", "tokenizer": "bytes", "vocab_size": 257}
        (folder / "meta.json").write_text(json.dumps(about | {"splits": {"val": {"tokens": tokens}}}))
    text = "total_steps = 10; schedule = 'constant'; warmup_steps = 0; "
    config = {val: study(f"{text}val_dataset = {val!r}")[1]["run"] for val in (None, "b-bytes", "x-bytes,b-bytes")}
    assert [eval_tokens(c) for c in config.values()] == [100_000, 5_000, 105_000]
    both = config["x-bytes,b-bytes"]
    assert eval_tokens(dataclasses.replace(both, eval_tokens=2_000)) == 4_000
    tried = [for_a_trial(c, "trial") for c in config.values()]  # all on one chunk of one set, which is what is counted
    assert [(c.val_dataset, c.eval_tokens) for c in tried] == [("x-bytes", 8192), ("b-bytes", 5_000), ("x-bytes", 8192)]


def test_time_between_two_models_and_as_it_was_so_far(study, tmp_path):
    """By FLOPs between the smallest and the largest; where a log tells of steps, by what they took."""
    found = segments(
        study("schedule = 'constant'; warmup_steps = 0; total_steps = 10; eval_every = 0; n_embd = [32, 64, 128]")
    )
    small, middle, large = (s.config for s in found)
    costs = {large: Cost(9.0, 0.0, 0.0), small: Cost(1.0, 0.0, 0.0)}
    share = (flops_per_step(middle) - flops_per_step(small)) / (flops_per_step(large) - flops_per_step(small))
    assert time_left(found, found[1:2], costs, n_jobs=1) == (pytest.approx(10 * (1 + 8 * share), rel=1e-12), 1.0)
    found[1].folder.mkdir(parents=True)
    line = {"step": 4, "tokens_per_s": middle.global_batch_size * middle.seq_len / 0.5}
    (found[1].folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    assert time_left(found, found[1:2], costs, n_jobs=1) == (pytest.approx(6 * 0.5, rel=1e-12), 1.0)
