"""Predictions of laws held against runs that they have not seen."""

import json

import numpy as np
import pytest
from laws_cases import FINAL_CASES, LENGTHS, SIZES, run, status

from laws import LAWS, evaluate, holdout, last, predict


def losses(law, noise, seed, inputs=None):
    """Losses of a law of known parameters at its inputs, with so much noise on ln loss."""
    true, at, _ = FINAL_CASES[law]
    at = at if inputs is None else inputs
    return evaluate(LAWS[law], true, at) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(at["N"])))


@pytest.mark.parametrize("law, times", [("chinchilla", 12), ("overtraining", 60)])
def test_intervals_of_the_true_law_hold_as_often_as_they_say(law, times):
    at, off, alone = FINAL_CASES[law][1], [], []
    for seed in range(times):
        fit, rows, _ = holdout(**at, loss=losses(law, 0.01, seed), law=law, draws=60, seed=seed)
        off.append(rows["off"])
        _, low, high = predict(fit._replace(scatter=0.0), {name: rows[name] for name in "ND"})
        alone.append((low <= rows["measured"]) & (rows["measured"] <= high))
    held = (abs(np.array(off)) <= 1).mean(1)  # of each draw of the data; its runs share the law's error
    error = max(held.std() / times**0.5, (0.95 * 0.05 / np.size(off)) ** 0.5)
    assert abs(held.mean() - 0.95) < 3 * error, (held.mean(), error)
    assert abs(np.mean(off)) < 0.2  # on both sides
    assert np.mean(alone) < held.mean() - 0.03  # control: the law without the scatter of runs


def test_a_wrong_law_is_off_by_many_intervals():
    true, at, _ = FINAL_CASES["chinchilla"]
    for bent, wrong in ((at["N"], False), (np.minimum(at["N"], 2e9), True)):  # sizes above 2e9 are worth no more
        _, rows, notes = holdout(**at, loss=losses("chinchilla", 0.001, 0, at | {"N": bent}), draws=100)
        assert (rows["off"].max() > 5) == wrong, rows["off"]
        inside = int(notes[0].split()[0])
        assert (inside < 4) == wrong, notes
    assert any("all of them lie above what was predicted" in note for note in notes)


def test_what_is_held_out():
    N, D = np.repeat([1, 2, 3], 3), np.tile([10, 20, 30], 3) * np.repeat([1, 2, 3], 3)
    assert last(N, D, "N", 1).tolist() == [False] * 6 + [True] * 3
    assert last(N, D, "N", 2).tolist() == [False] * 3 + [True] * 6
    assert last(N, D, "D", 1).tolist() == [False, False, True] * 3
    assert last(N, D, "D", 2).tolist() == [False, True, True] * 3


def test_runs_are_predicted_from_the_others_only():
    loss = losses("chinchilla", 0.01, 0)
    changed = np.where(SIZES == SIZES.max(), 2 * loss, loss)
    (fit, rows, _), (same, moved, _) = (holdout(SIZES, LENGTHS, y, draws=20) for y in (loss, changed))
    assert fit.params == same.params and (rows["predicted"] == moved["predicted"]).all()
    assert (moved["measured"] == 2 * rows["measured"]).all() and fit.n_points == 30
    assert (SIZES.max() == rows["N"]).all() and len(rows["N"]) == 6


def test_seeds_of_a_run_have_one_prediction():
    N, D, loss = (np.tile(x, 2) for x in (SIZES, LENGTHS, losses("chinchilla", 0.01, 0)))
    _, rows, _ = holdout(N, D, loss * np.repeat([1.01, 0.99], len(SIZES)), draws=20)
    assert (rows["low"][::2] == rows["low"][1::2]).all() and (rows["measured"][::2] != rows["measured"][1::2]).all()


def test_a_law_that_is_not_identified_says_so():
    few = SIZES < 5e8  # two sizes are left when the largest is held out
    loss = losses("chinchilla", 0.02, 0)
    _, rows, notes = holdout(SIZES[few], LENGTHS[few], loss[few], draws=100)
    assert any("do not identify" in note for note in notes)
    _, more, _ = holdout(SIZES, LENGTHS, loss, draws=100)
    assert np.mean(rows["high"] / rows["low"] - 1) > 1.5 * np.mean(more["high"] / more["low"] - 1)
    assert any("times the largest fitted" in note for note in notes)


# ----------------------------------------------------------------------------------------------------------------------
# The command line


@pytest.fixture
def table(tmp_path):
    """A CSV as study.py writes it, of a law with noise, at a good and a bad peak."""
    good = losses("chinchilla", 0.005, 1)
    rows = ["n_params,tokens,lr,val_loss"]
    for lr, loss in ((0.1, good * 1.2), (0.2, good)):
        rows += [f"{n},{d},{lr},{y}" for n, d, y in zip(SIZES, LENGTHS, loss, strict=True)]
    (tmp_path / "results.csv").write_text("\n".join(rows))
    return tmp_path / "results.csv"


def test_holdout_prints_a_table_and_draws_it(capsys, table, tmp_path):
    out = run(capsys, "holdout", table, "--where=lr=0.2", "--holdout=2", "--draws=50", f"--plot={tmp_path}/fig.png")
    head, *lines = out.splitlines()
    assert head.split() == ["N", "D", "predicted", "low", "high", "measured", "off"]
    assert sum(line.startswith(("5e+09", "1.9905e+09")) for line in lines) == 12 and "of 12 runs lie within" in out
    assert (tmp_path / "fig.png").stat().st_size > 10_000
    found = json.loads(run(capsys, "holdout", table, "--where=lr=0.2", "--by=D", "--draws=50", "--json"))
    assert len(found["held_out"]) == 6 and found["fit"]["n_points"] == 30 and found["notes"]
    assert {row["D"] for row in found["held_out"]} == {LENGTHS.max()}


def test_best_takes_the_better_of_two_peaks(capsys, table):
    of_one = run(capsys, "holdout", table, "--where=lr=0.2", "--draws=20")
    assert run(capsys, "holdout", table, "--best=lr", "--draws=20") == of_one
    assert run(capsys, "holdout", table, "--draws=20") != of_one
    of_one = run(capsys, "chinchilla", table, "--where=lr=0.2", "--draws=20")
    assert run(capsys, "chinchilla", table, "--best=lr", "--draws=20") == of_one


def test_budgets_are_predicted_at_ratios_that_were_fitted(capsys, table):
    out = json.loads(run(capsys, "chinchilla", table, "--best=lr", "--draws=50", "--budgets=1e20,1e25", "--json"))
    for row, C in zip(out["budgets"], (1e20, 1e25), strict=True):
        assert (
            6 * row["N"] * row["D"] == pytest.approx(C) == row["C"]
            and row["95% from"] < row["predicted loss"] < row["to"]
        )
        truth = evaluate(LAWS["chinchilla"], FINAL_CASES["chinchilla"][0], {"N": [row["N"]], "D": [row["D"]]})
        assert row["95% from"] < truth < row["to"]
    ratio = LENGTHS / SIZES
    for row in out["budgets"]:
        assert 0.99 * ratio.min() < row["D"] / row["N"] < 1.01 * ratio.max()
    text = run(capsys, "chinchilla", table, "--best=lr", "--draws=50", "--budgets=1e25")
    assert "1e+25" in text and "times the largest fitted" in text and "edge" not in text
    many = ["--where=n_params<4e8", "--where=tokens>1e10"]  # 50 tokens per parameter or more
    near = run(capsys, "chinchilla", table, "--best=lr", "--draws=20", "--budgets=1e25", *many)
    assert "the best D/N lies at the edge of those fitted, or beyond" in near


@pytest.mark.parametrize(
    "args, word",
    [
        (["--by=C"], "by='C' must be 'N'"),
        (["--holdout=6"], "there are 6 sizes"),
        (["--holdout=6", "--by=D"], "no size has a length more"),
        (["--holdout=0"], "--holdout='0'"),
        (["--holdout=5"], "1 different N; this law needs 2"),
        (["--draws=0"], "draws=0"),
        (["--law=isoflop"], "law='isoflop' must be one of chinchilla, overtraining"),
        (["--best=peak"], "no column 'peak'"),
    ],
)
def test_mistakes_of_holdout_are_told_in_one_line(capsys, table, args, word):
    assert status("holdout", table, *args) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and word in error, error
