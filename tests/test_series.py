"""series.py: runs are called the same everywhere, and means over seeds are what the rows hold."""

import math

import pytest
from conftest import row, seeds_of

import series


def test_labels_say_what_differs():
    common = {"schedule": "wsd", "cooldown_shape": "linear", "dataset": "text", "n_params": 1.2e6}
    keys = [common | {"cooldown_frac": f, "total_steps": n} for f, n in ((0.1, 1e3), (0.2, 1e3), (0.2, 2e3))]
    assert series.labels(keys) == [
        "cooldown, linear, 1,000 steps, over the last 10%",
        "cooldown, linear, 1,000 steps, over the last 20%",
        "cooldown, linear, 2,000 steps, over the last 20%",
    ]
    assert series.labels(keys[1:]) == ["cooldown, linear, 1,000 steps", "cooldown, linear, 2,000 steps"]
    cosines = [{"schedule": name, "lr": lr} for name, lr in (("cosine", 0.1), ("onecycle", 0.1), ("onecycle", 0.2))]
    assert series.labels(cosines[:2]) == ["cosine", "cosine (OneCycle)"]
    assert series.labels(cosines) == ["cosine, lr 0.1", "cosine (OneCycle), lr 0.1", "cosine (OneCycle), lr 0.2"]
    assert series.labels([common | {"beta2": b} for b in (0.95, None)]) == [
        "cooldown, linear, beta2 0.95",
        "cooldown, linear",
    ]


def test_settings_in_words():
    assert [series.in_words("n_params", n) for n in (33e6, 1.5e9, 999.0)] == [
        "33M parameters",
        "1.5B parameters",
        "999 parameters",
    ]
    assert series.in_words("total_steps", 1980) == series.in_words("total_steps", 1980.0) == "1,980 steps"
    assert series.in_words("cooldown_steps", 264.0) == "over the last 264 steps"
    assert series.in_words("tokens_per_param", 20.0) == "20 tokens per parameter"
    assert [series.in_words("seed", 1), series.in_words("n_layer", 2.0)] == ["seed 1", "n_layer 2"]
    assert series.in_words("dataset", "books") == "books"


def test_averages_in_words():
    rows = [{"window_steps": steps} for steps in (60.0, 60.0, None)]
    assert series.averaged("val_loss_window", rows) == "window of 60 steps"
    assert series.averaged("val_loss_window", [*rows, {"window_steps": 2000.0}]) == "window of 60 to 2,000 steps"
    assert series.averaged("val_loss_window", [{}]) == "window" and series.averaged("val_loss_ema", rows) == "EMA"
    rows = [row("constant", 3.0, val_loss_window=2.9, window_steps=60.0)]
    (line,) = series.lines(rows, "lr", "val_loss_window")
    assert (line.kind, line.label, list(line.mean)) == ("val_loss_window", "constant, window of 60 steps", [2.9])


def test_at_best():
    rows = [r for lr, loss in ((1e-3, 3.2), (2e-3, 3.1)) for r in seeds_of("cosine", loss, lr=lr)]
    assert series.at_best_lr(rows) == rows[3:]
    lucky = row("cosine", 2.0, lr=4e-3)  # one seed against three
    assert series.at_best_lr([*rows, lucky]) == rows[3:]
    assert series.at_best_lr(rows + [row("wsd", 5.0)])[3:] == [row("wsd", 5.0)]  # other settings do not compete


def test_front():
    assert series.front([(3, 1.0), (1, 2.0), (2, 2.5), (4, 1.0), (5, 0.5)]) == [(1, 2.0), (3, 1.0), (5, 0.5)]
    assert series.front([(1, 3.0), (1, 2.0)])[-1] == (1, 2.0)


def test_pairs_need_equal_seeds_and_cells():
    cosine = [row("cosine", 3.0, seed) for seed in (0, 1)]
    others = [row("wsd", 2.9, 1), row("wsd", 2.8, 2), row("wsd", 2.7, 0, 200), row("wsd", 2.6, 0, dataset="other")]
    assert series.paired(others, cosine, "val_loss").tolist() == [[2.9, 3.0]]
    assert series.mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert math.isnan(series.mean_and_error([1.0])[1])
