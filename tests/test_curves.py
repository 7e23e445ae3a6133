"""Laws of whole loss curves, held against their definitions and published fits; curves read from files.

Real numbers stand here as literals with their source. That every law is recovered is in test_fitting.py.
"""

import json
import math

import numpy as np
import pytest
from conftest import HERE
from laws_cases import CASES, CURVES, FIT, lr_curve, make_curves, run, with_losses

import laws
from laws import LAWS, Curve, annealing, curve_errors, evaluate, predict, schedule_bound
from laws.files import read_curve, read_lrs

# Luo et al. 2025, 25M model (thu-yao-01-luo/MultiPowerLaw @ 8da9f19): the published fit, and some points of two curves
PUBLISHED = {
    "L0": 3.04045406,
    "A": 0.52468604,
    "alpha": 0.50786857,
    "B": 363.78751622,
    "C": 2.06560812,
    "beta": 0.58279013,
    "gamma": 0.64142257,
}
COSINE_25M = {2160: 4.1114, 5232: 3.6117, 8304: 3.4968, 14448: 3.3809, 20592: 3.3178, 23664: 3.3049}
DROP_25M = {2176: 4.0723, 3712: 3.735, 6784: 3.5487, 8256: 3.4549, 9792: 3.426, 12864: 3.3987}


def curves_25m():
    """The two curves: peak 3e-4, warmup of 2160 steps; a cosine to 3e-5, and a drop to 9e-5 at step 8000."""
    warmup, step = np.linspace(0, 3e-4, 2160), np.arange(2160, 24001)
    cosine = 3e-5 + 1.35e-4 * (1 + np.cos(np.pi * (step - 2160) / (24000 - 2160)))
    drop = np.where(step < 8000, 3e-4, 9e-5)[: 16001 - 2160]
    return [
        Curve(np.concatenate([warmup, lrs]), np.array(list(points)), np.array(list(points.values())))
        for lrs, points in ((cosine, COSINE_25M), (drop, DROP_25M))
    ]


def test_multi_power_at_the_published_parameters():
    curves = curves_25m()
    measured = np.concatenate([curve.losses for curve in curves])
    error = evaluate(LAWS["multi_power"], PUBLISHED, curves, {"merge": 0}) - measured
    assert abs(error).mean() < 0.008 and abs(error[1:]).max() < 0.011  # 0.04 at the end of warmup
    peak_at_once = [c._replace(lrs=np.where(np.arange(len(c.lrs)) < 2160, 3e-4, c.lrs)) for c in curves]
    shift = evaluate(LAWS["multi_power"], PUBLISHED, peak_at_once, {"merge": 0}) - measured
    assert abs(shift).min() > 0.1  # the convention counts: the rises of the warmup belong to the sum


def test_multi_power_against_its_definition():
    params, curve = CASES["multi_power"][0], Curve(lr_curve("cooldown", 60, 5), np.array([7, 30, 59, 60]), np.ones(4))
    lrs, expected = curve.lrs, []
    for t in curve.steps:
        loss = params["L0"] + params["A"] * sum(lrs[: t + 1]) ** -params["alpha"]
        for k in range(1, t + 1):
            x = max(lrs[k], 1e-12) ** -params["gamma"] * sum(lrs[k : t + 1])
            loss -= params["B"] * (lrs[k - 1] - lrs[k]) * (1 - (1 + params["C"] * x) ** -params["beta"])
        expected.append(loss)
    np.testing.assert_allclose(evaluate(LAWS["multi_power"], params, [curve], {"merge": 0}), expected, rtol=1e-12)
    merged = evaluate(LAWS["multi_power"], params, [curve], {"merge": 4 / 61})
    assert 0 < abs(merged / expected - 1).max() < 3e-3  # nearly right, and not exact: merging does something


@pytest.mark.parametrize("warmup", ["ramp", "peak"])
def test_annealing_against_its_definition(warmup):
    params, lam = CASES["annealing"][0], 0.9
    curve = Curve(lr_curve("cooldown", 60, 5), np.array([7, 30, 59, 60]), np.ones(4))
    lrs, S1, S2, m, expected = curve.lrs.copy(), 0.0, 0.0, 0.0, {}
    for i in range(1, 61):
        S1 += 3e-3 if warmup == "peak" and i < 5 else lrs[i]
        m = lam * m + (lrs[i - 1] - lrs[i] if i > 5 else 0)
        S2 += m
        expected[i] = params["L0"] + params["A"] * S1 ** -params["alpha"] - params["C"] * S2
    got = evaluate(LAWS["annealing"], params, [curve], {"lam": lam, "warmup": warmup})
    np.testing.assert_allclose(got, [expected[s] for s in curve.steps], rtol=1e-12)
    assert annealing(make_fitted(warmup), lam=lam, warmup=warmup, draws=0).params == pytest.approx(params, rel=1e-6)


def make_fitted(warmup):
    params, curves = CASES["annealing"][0], make_curves("constant", "cooldown")
    return with_losses(curves, evaluate(LAWS["annealing"], params, curves, {"lam": 0.9, "warmup": warmup}))


def test_curves_predict_curves():
    params, _, settings = CASES["annealing"]
    fit = FIT["annealing"](CURVES, evaluate(LAWS["annealing"], params, CURVES, settings), draws=20)
    unseen = make_curves("cooldown")
    unseen = with_losses(unseen, evaluate(LAWS["annealing"], params, unseen, settings))[0]
    errors = curve_errors(fit, unseen)
    assert errors["R2"] == pytest.approx(1) and errors["mae"] < 1e-9
    value, low, high = predict(fit, [unseen])
    np.testing.assert_allclose(value, unseen.losses, rtol=1e-9)
    off = curve_errors(fit, unseen._replace(losses=unseen.losses + 0.01))
    assert [round(off[name], 9) for name in ("mae", "rmse")] == [0.01, 0.01]
    assert off["max_relative"] == pytest.approx(0.01 / (unseen.losses.min() + 0.01))
    low_end = unseen.losses - 0.02 * (unseen.steps == unseen.steps[-1])  # the last loss alone, measured lower
    assert curve_errors(fit, unseen._replace(losses=low_end))["final"] == pytest.approx(0.02)


def test_schedule_bound_in_closed_form():
    # constant: d g sqrt((1 + H_{T-1}) / T); T = 1: d^2 / (2 lr) + g^2 lr / 2
    assert schedule_bound([0.1], distance=2, gradient=3) == pytest.approx((20 + 0.45, 6, 2 / 3 / 0.1))
    for T in (2, 5, 100):
        harmonic = sum(1 / k for k in range(1, T))
        bound, best, scale = schedule_bound(np.full(T, 0.1))
        assert best == pytest.approx(math.sqrt((1 + harmonic) / T), rel=1e-12)
        assert schedule_bound(np.full(T, 0.1 * scale))[0] == pytest.approx(best, rel=1e-12)
        assert bound > best


def test_schedule_bound_against_its_definition_and_the_papers_ranking():
    lrs = lr_curve("cooldown", 40, 5)[1:]
    direct, T = (1 + sum(lrs**2)) / (2 * sum(lrs)), len(lrs) - 1  # the last is 0, and changes nothing
    for k in range(T - 1):
        direct += 0.5 * lrs[k] / sum(lrs[k + 1 : T]) * sum(lrs[k:T] ** 2) / sum(lrs[k:T])
    assert schedule_bound(lrs)[0] == pytest.approx(direct, rel=1e-12)
    step, best = np.arange(1000) / 1000, {}
    best["constant"] = schedule_bound(np.ones(1000))[1]
    for share in (0.1, 0.2, 0.6):
        best[share] = schedule_bound(np.minimum(1, (1 - step) / share))[1]
    best["1-sqrt"] = schedule_bound(1 - np.sqrt(np.maximum(0, (step - 0.8) / 0.2)))[1]
    # 124M, 50k steps: constant 3.1405, 10% linear 2.9825, 20% linear 2.9660, 20% 1-sqrt 2.9599, 60% linear 2.9529
    assert best["constant"] > best[0.1] > best[0.2] > best["1-sqrt"] > best[0.6]


# ----------------------------------------------------------------------------------------------------------------------
# Files and command line


def test_plots_of_curves_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    params, _, settings = CASES["annealing"]
    curves = with_losses(CURVES, evaluate(LAWS["annealing"], params, CURVES, settings))
    path = tmp_path / "fit.png"
    laws.plot(annealing(curves, lam=0.95, draws=10), curves, path)
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 10_000


def test_api_mistakes_are_value_errors():
    ones = np.append(0, np.ones(4))
    for call, word in (
        (lambda: annealing([]), "at least one curve"),
        (lambda: annealing([Curve(np.zeros(5), [1], [3.0])]), "some positive"),
        (lambda: annealing([Curve(ones, [1, 9], [3.0, 2.0])]), "to 4"),
        (lambda: annealing([Curve(ones, [2, 1], [3.0, 2.0])]), "must increase"),
        (lambda: annealing([Curve(ones, [1, 2], [3.0, math.nan])]), "step 2 is nan"),
        (lambda: annealing([Curve(ones + 1, [1, 2], [3.0, 2.0])]), "first update"),
        (lambda: annealing([Curve(ones, [1, 2, 3, 4], [3.0, 2.0, 1.9, 1.8])]), "no learning rate falls"),
        (lambda: annealing(CURVES, lam=1.0), "lam=1.0"),
        (lambda: schedule_bound([0.0, 0.0]), "some positive"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


def test_log_jsonl_as_points_and_as_curve(tmp_path, capsys):
    params, _, settings = CASES["annealing"]
    paths = []
    for kind in ("cosine", "constant", "drop", "cooldown"):
        lrs, steps = lr_curve(kind), np.arange(30, 301, 15)
        losses = evaluate(LAWS["annealing"], params, [Curve(lrs, steps, np.ones(len(steps)))], settings)
        lines = [{"step": 0, "tokens": 0, "flops": 0, "val_loss": 10.9}]
        for step in range(1, 301):
            lines.append({"step": step, "tokens": step * 64, "flops": step, "train_loss": 5.0, "lr": lrs[step]})
            if step in steps:
                lines.append(
                    {"step": step, "tokens": step * 64, "flops": step, "val_loss": losses[list(steps).index(step)]}
                )
        paths.append(tmp_path / kind / "log.jsonl")
        paths[-1].parent.mkdir()
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = run(capsys, "annealing", *paths[:3], f"--test={paths[3]}", "--lam=0.95", "--draws=20", "--json")
    fit = json.loads(out)
    assert fit["params"] == pytest.approx(params, rel=1e-6) and fit["n_points"] == 57
    assert fit["tests"][str(paths[3])]["mae"] < 1e-9
    law = tmp_path / "law.json"
    law.write_text(out)
    knots = "--lr=0:0,20:3e-3,240:3e-3,300:0"
    told = json.loads(run(capsys, "predict", law, knots, "--every=50", "--json"))
    assert told["step"][-1] == 300 and told["lr"][-1] == 0
    exact = evaluate(LAWS["annealing"], params, [Curve(lr_curve("cooldown"), np.array([300]), np.ones(1))], settings)
    assert told["predicted"][-1] == pytest.approx(exact[0], rel=1e-9)
    points = json.loads(run(capsys, "asymptote", paths[1], "--draws=0", "--json"))
    assert points["n_points"] == 19  # its evaluations, without that of step 0


def test_curves_from_csv_with_late_rows_and_gaps(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("step,lr,loss\n100,1e-3,4\n200,1e-3,3.5\n300,,3.2\n400,5e-4,3.1\n500,0,\n")
    curve = read_curve(str(path), warmup_steps=11)
    assert list(curve.steps) == [100, 200, 300, 400] and list(curve.losses) == [4, 3.5, 3.2, 3.1]
    np.testing.assert_allclose(curve.lrs[[0, 5, 10, 150, 300, 450, 500]], [0, 5e-4, 1e-3, 1e-3, 7.5e-4, 2.5e-4, 0])
    path.write_text("step,lr,loss\n0,1,4\n10,1,4\n20,1,4\n30,.5,3\n40,.5,3\n50,.2,3\n60,.1,3\n")
    lrs = read_curve(str(path)).lrs
    assert lrs[[29, 30, 45, 55]].tolist() == pytest.approx([1, 0.5, 0.35, 0.15])  # a jump, then a slope
    path.write_text("step,lr,loss\n100,1e-3,4\n200,1e-3,3.5\n300,,3.2\n400,5e-4,3.1\n500,0,\n")
    for bad, word in (("100.5", "whole number"), ("1e12", "1e\\+12 steps")):
        (tmp_path / "bad.csv").write_text(path.read_text().replace("200", bad))
        with pytest.raises(ValueError, match=word):
            read_curve(str(tmp_path / "bad.csv"), warmup_steps=11)
    with pytest.raises(ValueError, match="warmup_steps=101"):
        read_curve(str(path), warmup_steps=101)
    with_loss_only = path.read_text().replace("1e-3", "").replace("5e-4", "").replace("500,0,", "500,,")
    path.write_text(with_loss_only)
    with pytest.raises(ValueError, match="no 'lr' in any row"):
        read_curve(str(path))


def test_no_learning_rate_before_the_first_update():
    # S1 and S2 begin at 0, and the first update's rate is a rise
    assert read_lrs("0:1,4:1").tolist() == [0, 1, 1, 1, 1]
    assert read_lrs("2:1,4:0", warmup_steps=0).tolist() == [0, 1, 1, 0.5, 0]


def test_logs_kept_in_results_and_several_tests(capsys):
    demo, fit = HERE / "results/demo", {}
    for log in ("", "/log.jsonl"):
        runs = [f"{demo}/constant_total-steps900_seed0{log}", f"{demo}/wsd_total-steps900_seed0{log}"]
        tests = (
            f"{demo}/onecycle_total-steps300_seed0{log},{demo}/onecycle_total-steps600_seed0{log}",
            f"{demo}/onecycle_total-steps900_seed0",
        )
        out = run(capsys, "annealing", *runs, "--draws=0", "--json", *(f"--test={paths}" for paths in tests))
        fit[log] = json.loads(out)
        assert list(fit[log]["tests"]) == [*",".join(tests).split(","), "mean"]
        maes = [errors["mae"] for errors in fit[log]["tests"].values()]
        assert maes[3] == pytest.approx(sum(maes[:3]) / 3)
    assert fit[""]["params"] == fit["/log.jsonl"]["params"] and fit[""]["n_points"] == 28
    packed = (f"{demo}/logs.jsonl.gz", "--where=run=constant_total-steps900_seed0")
    assert json.loads(run(capsys, "asymptote", *packed, "--draws=0", "--json"))["n_points"] == 15  # not that of step 0


def test_a_planned_curve_is_judged_by_its_length_and_peak(tmp_path, capsys):
    law = tmp_path / "law.json"
    ranges = {"step": [200, 300], "lr": [1e-3, 1e-3]}
    law.write_text(json.dumps({"law": "annealing", "params": CASES["annealing"][0], "ranges": ranges}))
    told = json.loads(run(capsys, "predict", law, "--lr=0:0,20:1e-3,240:1e-3,300:0", "--json"))
    assert told["beyond"] == []  # though it begins at step 1, and ends at lr 0
    told = json.loads(run(capsys, "predict", law, "--lr=0:0,20:2e-3,600:0", "--json"))
    assert told["beyond"] == ["lr = 0.002 is 2 times the largest fitted", "step = 600 is 2 times the largest fitted"]


def test_schedule_bound_command_ranks(capsys, tmp_path):
    file = tmp_path / "planned.csv"
    file.write_text("step,lr\n0,1\n1000,0\n")
    lines = run(capsys, "schedule_bound", "0:1,1000:1", file, "0:1,800:1,1000:0").splitlines()
    assert [line.split()[-1] for line in lines] == [str(file), "0:1,800:1,1000:0", "0:1,1000:1"]
    assert lines[0].startswith("1.0000")
