"""tables.py: rows and means over seeds are what the files hold, and what is kept of a study is whole."""

import json
import math

import pytest
from conftest import row, seeds_of, write_log

import tables


def test_labels_say_what_differs():
    common = {"schedule": "wsd", "dataset": "text", "n_params": 1.2e6}
    keys = [common | {"cooldown_frac": f, "total_steps": n} for f, n in ((0.1, 100.0), (0.2, 100.0), (0.2, 200.0))]
    assert tables.labels(keys) == [f"wsd, {f} % cooldown, {n} steps" for f, n in ((10, 100), (20, 100), (20, 200))]
    assert tables.labels(keys[:2], "mine") == ["mine, 10 % cooldown", "mine, 20 % cooldown"]
    assert tables.labels([common | {"beta2": b} for b in (0.95, 0.99)]) == ["wsd, beta2 0.95", "wsd, beta2 0.99"]
    assert [tables.in_words("n_params", n) for n in (33e6, 1.5e9, 999.0)] == [
        "33M parameters",
        "1.5B parameters",
        "999 parameters",
    ]


def test_at_best():
    rows = [r for lr, loss in ((1e-3, 3.2), (2e-3, 3.1)) for r in seeds_of("cosine", loss, lr=lr)]
    assert tables.at_best_lr(rows) == rows[3:]
    lucky = row("cosine", 2.0, lr=4e-3)  # one seed against three
    assert tables.at_best_lr([*rows, lucky]) == rows[3:]
    assert tables.at_best_lr(rows + [row("wsd", 5.0)])[3:] == [row("wsd", 5.0)]  # other settings do not compete


def test_front():
    assert tables.front([(3, 1.0), (1, 2.0), (2, 2.5), (4, 1.0), (5, 0.5)]) == [(1, 2.0), (3, 1.0), (5, 0.5)]
    assert tables.front([(1, 3.0), (1, 2.0)])[-1] == (1, 2.0)


def test_pairs_need_equal_seeds_and_cells():
    cosine = [row("cosine", 3.0, seed) for seed in (0, 1)]
    others = [row("wsd", 2.9, 1), row("wsd", 2.8, 2), row("wsd", 2.7, 0, 200), row("wsd", 2.6, 0, dataset="other")]
    assert tables.paired(others, cosine, "val_loss").tolist() == [[2.9, 3.0]]
    assert tables.mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert math.isnan(tables.mean_and_error([1.0])[1])


def test_no_log(tmp_path):
    with pytest.raises(ValueError, match=r"no log\.jsonl there"):
        tables.read_log(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "train_loss": 1.0}\n')
    with pytest.raises(ValueError, match="no val_loss in it"):
        tables.read_log(tmp_path)


def test_averages_of_several_kinds_are_results_too():
    rows = [row("wsd", 3.0) | {"val_loss_ema": 2.9, "val_loss_ema_2": 2.8, "beta2": 0.9}]
    assert "beta2" in tables.settings(rows) and not [c for c in tables.settings(rows) if c.startswith("val_loss")]


def test_what_is_kept_of_a_study(tmp_path, table):
    path = table([row("wsd", 3.0) | {"name": name} for name in ("a", "b/c")])
    for name in ("a", "b/c"):
        write_log(tmp_path / name)
    tables.keep(tmp_path, tmp_path / "kept", points=3)
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"results.csv", "a.jsonl", "b-c.jsonl"}
    assert (tmp_path / "kept/results.csv").read_text() == open(path).read()
    whole, kept = tables.read_log(tmp_path / "a"), tables.read_log(tmp_path / "kept/a.jsonl")
    assert kept[1] == whole[1] and kept[2] == "a"  # every evaluation
    assert [line["step"] for line in kept[0]] == [1, 5, 9, 10]  # every fourth, and the last
    again = (tmp_path / "kept/a.jsonl").read_text().splitlines()
    assert len(again) == len(set(again)) == 7 and [json.loads(x)["step"] for x in again] == [0, 1, 5, 5, 9, 10, 10]
    tables.keep(tmp_path, tmp_path / "all")  # points enough for every line, none twice
    assert (tmp_path / "all/a.jsonl").read_text().count("\n") == len(whole[0]) + len(whole[1])
