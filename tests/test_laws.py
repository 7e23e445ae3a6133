"""Laws of final losses held against published fits, and the command line asked what happens to bad input.

Real numbers stand here as literals with their source. That every law is recovered is in test_fitting.py.
"""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import HERE
from laws_cases import CASES, LENGTHS, SIZES, run, status

import laws
from laws import (
    LAWS,
    asymptote,
    chinchilla,
    diagonal,
    downstream,
    evaluate,
    isoflop,
    optimum,
    overtraining,
    predict,
    speedup,
)
from laws.files import meets, number_in
from tables import read_rows

# ----------------------------------------------------------------------------------------------------------------------
# Published numbers

# Gadre et al. 2024, RedPajama (mlfoundations/scaling @ a003c49): N, D, C4 loss, mean error of 17 tasks
GADRE = (
    (10569312, 211386240, 5.38702091510821, 0.8134857367566677),
    (10569312, 3382179840, 4.572292613487238, 0.7671019083970938),
    (78914048, 1578280960, 3.899942990231468, 0.7250451834543663),
    (153677376, 3073547520, 3.531147408490181, 0.6710080283365267),
    (411616256, 8232325120, 3.149769456671634, 0.6365529066499542),
    (1439795200, 28795904000, 2.768756661738063, 0.5473253052024281),
    (1439795200, 921468928000, 2.502053562117363, 0.47521523167105284),  # held out, as is the next
    (6889410560, 137788211200, 2.424993099368689, 0.47163718062288623),
)
# Hägele et al. 2024, SlimPajama (fabian-sp/lr-scheduling @ 8ace3a3): N, D, final loss with 20% cooldown, with cosine
HAGELE = (
    (33479040, 307200000, 3.666621, 3.658385),
    (33479040, 716800000, 3.497585, 3.496942),
    (53027328, 373760000, 3.520366, 3.517178),
    (53027328, 768000000, 3.379873, 3.382677),
    (59845120, 768000000, 3.342373, 3.343801),
    (59845120, 1280000000, 3.266383, 3.271039),
    (93159040, 1024000000, 3.214184, 3.218893),
    (93159040, 1792000000, 3.133645, 3.139119),
    (123587328, 1536000000, 3.122699, 3.120253),
    (123587328, 2560000000, 3.049664, 3.050982),
    (151905024, 2560000000, 3.0101, 3.009287),
    (151905024, 3840000000, 2.960442, 2.961966),
    (208540416, 3840000000, 2.895868, 2.897183),
    (208540416, 5120000000, 2.863119, 2.869183),
    (359842816, 5120000000, 2.781151, 2.780218),
    (359842816, 7680000000, 2.73585, 2.737945),
)


def test_gadre_fit_and_held_out_predictions():
    N, D, loss, error = np.array(GADRE).T
    law = overtraining(N[:5], D[:5], loss[:5])
    assert {k: f"{v:.4f}" for k, v in law.params.items()} == {
        "E": "1.8366", "a": "212.2361", "b": "366.6872", "eta": "0.1364"
    }  # fmt: skip
    assert law.unidentified == ["E", "a", "b", "eta"]  # five points, four parameters
    tasks = downstream(loss[:6], error[:6], draws=0)
    assert [round(x, 4) for x in tasks.params.values()] == [0.8570, 2.2065, 0.7146]
    predicted = evaluate(LAWS["overtraining"], law.params, {"N": N[6:], "D": D[6:]})
    errors = evaluate(LAWS["downstream"], tasks.params, {"loss": predicted})
    off = [f"{100 * x:.4f}" for x in np.concatenate([abs(predicted / loss[6:] - 1), abs(errors / error[6:] - 1)])]
    assert off == ["0.7103", "0.7320", "3.6365", "0.0464"]  # percent, as the authors' notebook prints them


def test_hagele_diagonal():
    _, _, cooldown, cosine = np.array(HAGELE).T
    fit = diagonal(cooldown, cosine)
    assert round(fit.params["slope"], 3) == 0.991 and round(fit.params["intercept"], 3) == 0.226
    assert (
        round(fit.settings["mean_difference"], 4) == -0.0009 and round(fit.settings["largest_difference"], 4) == 0.0082
    )
    low, high = fit.intervals["slope"]
    assert low < 1 < high  # 16 pairs of one seed do not tell the two schedules apart


def test_a_tenfold_range_of_sizes_does_not_identify_chinchilla():
    N, D, _, cosine = np.array(HAGELE).T
    fit = chinchilla(N, D, cosine, draws=200)
    assert fit.scatter < 0.003 and {"E", "A", "B"} <= set(fit.unidentified)  # residuals of 0.2% prove nothing


def test_optimum_is_the_published_one():
    # Besiroglu et al.'s data, Huber optimum: N = 7.319e10 and 17.92 tokens per parameter at Chinchilla's budget
    params = {"E": 1.817218, "A": 477.8258, "B": 2143.417, "alpha": 0.347310, "beta": 0.367172}
    N, D, loss = optimum(params, 5.76e23)
    assert f"{N:.3e} {D / N:.2f}" == "7.319e+10 17.92" and 6 * N * D == pytest.approx(5.76e23)
    near = evaluate(LAWS["chinchilla"], params, {"N": N * np.array([0.9, 1.1]), "D": D / np.array([0.9, 1.1])})
    assert (near > loss).all()


# ----------------------------------------------------------------------------------------------------------------------
# isoflop, speedup


def isoflop_data(noise=0.0, seed=0):
    params, C = CASES["chinchilla"][0], np.repeat(np.geomspace(1e18, 1e21, 4), 9)
    N = optimum(params, C)[0] * np.tile(np.geomspace(0.15, 8, 9), 4)
    loss = evaluate(LAWS["chinchilla"], params, {"N": N, "D": C / 6 / N})
    return C, N, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))


def test_isoflop_is_exact_on_parabolas():
    C, x = np.repeat([1e18, 3e18, 1e19, 3e19], 9), np.tile(np.linspace(-1.5, 1.5, 9), 4)
    best = 2e8 * (C / 1e18) ** 0.49
    N = best * np.exp(x - 0.13)  # the minimum lies between two sizes
    fit = isoflop(C, N, 3 * np.exp(0.02 * np.log(N / best) ** 2))
    at_C0 = 2e8 * (fit.settings["C0"] / 1e18) ** 0.49
    assert fit.params == pytest.approx({"N0": at_C0, "exponent": 0.49}, rel=1e-6)
    assert np.array(fit.settings["minima"]) == pytest.approx(np.stack([C, best], 1)[::9], rel=1e-6)


def test_isoflop_follows_chinchilla():
    C, N, loss = isoflop_data()
    exponent = 0.3658 / (0.3658 + 0.3478)
    fit = isoflop(C, N, loss)
    assert fit.params["exponent"] == pytest.approx(exponent, abs=2e-3)
    assert predict(fit, {"C": np.array([1e20])})[0][0] == pytest.approx(
        optimum(CASES["chinchilla"][0], 1e20)[0], rel=0.03
    )
    hits = 0
    for seed in range(100):
        low, high = isoflop(*isoflop_data(0.01, seed), draws=30, seed=seed).intervals["exponent"]
        hits += low <= exponent <= high
    assert hits >= 90


def test_isoflop_drops_minima_at_an_edge():
    C, N, loss = isoflop_data()
    keep = (C > 2e18) | (N > 1.2 * optimum(CASES["chinchilla"][0], C)[0])  # the first budget has large models only
    fit = isoflop(C[keep], N[keep], loss[keep])
    assert fit.n_points == 3 and len(fit.settings["minima"]) == 3
    assert fit.params["exponent"] == pytest.approx(0.5126, abs=3e-3)


def test_speedup_through_the_baselines_law():
    D = np.array([1.0, 2, 4, 8, 16])
    law = {"C": 2.665, "A": 0.239, "b": 0.485}
    base = evaluate(LAWS["asymptote"], law, {"x": D})
    fast = evaluate(LAWS["asymptote"], law, {"x": 1.3 * D})
    by = ["adamw"] * 5 + ["muon"] * 5 + ["beyond"]
    fit, rows = speedup([*D, *D, 1.0], [*base, *fast, 2.6], by, "adamw")
    assert fit.params == pytest.approx(law, rel=1e-6)
    assert [row["speedup"] for row in rows] == pytest.approx([1.3] * 5 + [math.inf], rel=1e-6)
    assert [row["by"] for row in rows] == ["muon"] * 5 + ["beyond"]


# ----------------------------------------------------------------------------------------------------------------------
# Prediction


def test_predictions_hold_new_runs():
    rng, x, new = np.random.default_rng(5), np.geomspace(1, 64, 12), {"x": np.array([200.0])}
    law, inside = {"C": 3.0, "A": 1.0, "b": 0.5}, 0
    for seed in range(40):
        measured = evaluate(LAWS["asymptote"], law, {"x": x}) * np.exp(0.003 * rng.standard_normal(12))
        fit = asymptote(x, measured, draws=100, seed=seed)
        value, low, high = predict(fit, new)
        runs = evaluate(LAWS["asymptote"], law, new) * np.exp(0.003 * rng.standard_normal(50))
        inside += ((low < runs) & (runs < high)).mean() / 40
        assert low < value < high
        band = predict(fit._replace(scatter=0.0), new)  # of the law alone, without the scatter of a run
        assert band[2] - band[1] < high - low
    assert 0.92 < inside < 1


def test_predictions_say_how_far_they_reach():
    fit = chinchilla(
        SIZES, LENGTHS, evaluate(LAWS["chinchilla"], CASES["chinchilla"][0], CASES["chinchilla"][1]), draws=0
    )
    notes = laws.beyond(fit, {"N": np.array([1e9, 5e10]), "D": np.array([1e8, 1e10])})
    assert notes == ["D = 1e+08 is 0.1 times the smallest fitted", "N = 5e+10 is 10 times the largest fitted"]
    assert laws.beyond(fit, {"N": np.array([1e9]), "D": np.array([1e11])}) == []
    assert np.isinf(predict(fit, {"N": np.array([1e9]), "D": np.array([1e11])})[1:]).all()  # no draws, no interval


def test_a_vanished_term_is_not_called_precise():
    # A/N^alpha is gone from these losses: no draw can bring it back, and a width of 0 would be a lie
    loss = 2.0 + 2085 / LENGTHS**0.3658
    fit = chinchilla(SIZES, LENGTHS, loss * np.exp(1e-9 * np.random.default_rng(0).standard_normal(36)), draws=20)
    assert {"A", "alpha"} <= set(fit.unidentified) and not {"E", "beta"} & set(fit.unidentified)


# ----------------------------------------------------------------------------------------------------------------------
# Files and command line


@pytest.fixture
def results(tmp_path):
    """A results.csv as study.py would write it: chinchilla's law on 36 runs, and 6 that did not cool down."""
    params, inputs, _ = CASES["chinchilla"]
    loss = evaluate(LAWS["chinchilla"], params, inputs)
    rows = ["name,schedule,seed,n_params,steps,batch,tokens,final_val_loss"]
    for i in range(36):
        rows.append(f"r{i},wsd,0,{SIZES[i]:.17g},{LENGTHS[i] / 51200:.17g},100,{LENGTHS[i]:.17g},{loss[i]:.17g}")
    rows += [f"c{i},constant,0,{SIZES[i]:.17g},1,1,{LENGTHS[i]:.17g},{loss[i] + 0.2:.17g}" for i in range(6)]
    path = tmp_path / "results.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_results_csv_to_law_to_prediction(results, tmp_path, capsys):
    out = json.loads(run(capsys, "chinchilla", results, "--where=schedule=wsd", "--draws=20", "--json"))
    assert out["params"] == pytest.approx(CASES["chinchilla"][0], rel=1e-6) and out["n_points"] == 36
    assert {"objective", "intervals", "unidentified", "residuals", "draws"} <= out.keys()
    assert out["N_opt_exponent"][0] == pytest.approx(0.3658 / 0.7136, rel=1e-6)
    law = tmp_path / "law.json"
    law.write_text(json.dumps(out))
    told = json.loads(run(capsys, "predict", law, "--N=1e9,2e10", "--D=2e10,2e11", "--json"))
    expected = evaluate(
        LAWS["chinchilla"], CASES["chinchilla"][0], {"N": np.array([1e9, 2e10]), "D": np.array([2e10, 2e11])}
    )
    assert told["predicted"] == pytest.approx(expected, rel=1e-6) and "4 times" in told["beyond"][1]
    at_budget = json.loads(run(capsys, "predict", law, "--C=1e21", "--json"))
    assert at_budget["N"] == pytest.approx([optimum(CASES["chinchilla"][0], 1e21)[0]], rel=1e-5)
    text = run(capsys, "chinchilla", results, "--where=schedule=wsd", "--draws=20")
    assert "alpha" in text and "not identified" not in text
    text = run(capsys, "chinchilla", results, "--draws=20")  # with the runs that did not cool down
    assert "not identified" in text


def test_the_loss_on_a_further_validation_set_is_a_column_and_no_quotient():
    row = {"val_loss/b": "2.5", "val_loss": "3", "b": "2"}
    assert number_in(row, "val_loss/b", "here") == 2.5 and number_in(row, "val_loss/2", "here") == 1.5


def test_columns_may_be_products_and_quotients(results, capsys):
    expression = "--D=steps*batch*1024/2"
    out = json.loads(run(capsys, "chinchilla", results, expression, "--where=schedule=wsd", "--draws=0", "--json"))
    assert out["params"] == pytest.approx(CASES["chinchilla"][0], rel=1e-6)
    assert out["intervals"]["E"] == [None, None]  # no draws: JSON has no infinity


def test_diagonal_and_speedup_from_csv(tmp_path, capsys):
    path = tmp_path / "results.csv"
    rows = ["schedule,params,tokens,val_loss"]
    for N, D, cooldown, cosine in HAGELE:
        rows += [f"wsd,{N},{D},{cooldown}", f"cosine,{N},{D},{cosine}", f"constant,{N},{D},{cooldown + 0.12}"]
    path.write_text("\n".join(reversed(rows[1:])).join((rows[0] + "\n", "\n")))
    flags = ("--by=schedule", "--pair=wsd,cosine", "--match=params,tokens", "--json")
    out = json.loads(run(capsys, "diagonal", path, *flags))
    assert round(out["params"]["slope"], 3) == 0.991 and out["n_points"] == 16
    D = np.array([1.0, 2, 4, 8, 16])
    law = {"C": 2.665, "A": 0.239, "b": 0.485}
    rows = ["opt,tokens,loss"] + [f"adamw,{d},{evaluate(LAWS['asymptote'], law, {'x': np.array([d])})[0]}" for d in D]
    rows += [f"muon,4,{evaluate(LAWS['asymptote'], law, {'x': np.array([5.0])})[0]}"]
    path.write_text("\n".join(rows))
    flags = ("--by=opt", "--baseline=adamw")
    assert json.loads(run(capsys, "speedup", path, *flags, "--json"))["speedups"][0]["speedup"] == pytest.approx(1.25)
    assert "1.250" in run(capsys, "speedup", path, *flags)


def ensembles(noise=0.0):
    """Losses of ensembles of 1 .. 5 models of three sizes, which have the limits 1.8, 1.75, 1.72."""
    rng, rows = np.random.default_rng(0), []
    for n, limit in ((3e4, 1.8), (7e4, 1.75), (1.5e5, 1.72)):
        rows += [
            {"n_params": n, "models": k, "val_loss": 0.2 / k + limit + noise * rng.standard_normal()}
            for k in range(1, 6)
        ]
    return rows


def test_limits_and_the_limit_of_limits(tmp_path, capsys):
    path = tmp_path / "ensembles.json"
    path.write_text(json.dumps({"dataset": "text", "rows": ensembles()}))
    flags = (path, "--x=models", "--by=n_params")
    out = json.loads(run(capsys, "joint", *flags, "--json"))
    limits = {float(n): fit["params"]["C"] for n, fit in out["limits"].items()}
    assert limits == pytest.approx({3e4: 1.8, 7e4: 1.75, 1.5e5: 1.72}, rel=1e-6)
    by_hand = asymptote([*limits], [*limits.values()], draws=0)
    assert out["joint"]["params"] == pytest.approx(by_hand.params) and by_hand.params["C"] == pytest.approx(
        1.6555, abs=1e-3
    )
    assert "1.7500" in run(capsys, "joint", *flags)
    path.write_text(json.dumps({"rows": ensembles(noise=0.01)}))
    out = json.loads(run(capsys, "joint", *flags, "--json"))
    low, high = out["joint"]["intervals"]["C"]
    assert low < out["joint"]["params"]["C"] < high and high - low > 0.05 and "b" in out["joint"]["unidentified"]
    assert "not identified" in run(capsys, "joint", *flags)
    assert json.loads(run(capsys, "joint", *flags, "--json", "--draws=0"))["joint"]["intervals"]["C"] == [None, None]
    one = json.loads(run(capsys, "asymptote", path, "--x=models", "--where=n_params=7e4", "--json"))  # what joint has
    assert one["params"] == out["limits"]["70000.0"]["params"]


def test_the_published_law_of_asymptotes():
    """Kim et al. 2025: losses of ensembles and models without limit, at four sizes of data in billions of tokens.

    They give .9617 D^-.2281 + 1.7984, from losses of more digits than these.
    """
    fit = asymptote([0.2097152, 0.4194304, 0.8388608, 1.6777216], [3.1690, 2.980, 2.7893, 2.6568])
    assert fit.params == pytest.approx({"A": 0.9617, "b": 0.2281, "C": 1.7984}, abs=1e-3)
    assert fit.unidentified == ["C", "A", "b"]


def test_plots_are_written(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    path, iso = tmp_path / "fit.png", tmp_path / "iso.csv"
    np.savetxt(iso, np.stack(isoflop_data(0.002), 1), delimiter=",", header="flops,params,loss", comments="")
    for args in (("chinchilla", results, "--where=schedule=wsd"), ("isoflop", iso)):
        run(capsys, *args, "--draws=20", f"--plot={path}")
        assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 10_000
        path.unlink()


GOOD = "params,tokens,loss\n1e7,1e8,5\n1e7,1e9,4.5\n1e8,1e8,4\n1e8,1e9,3.5\n1e9,1e9,3.2\n1e9,1e10,3.0\n"


@pytest.mark.parametrize(
    "change, flags, word",
    [
        (lambda t: t.replace("tokens", "toks"), [], "'tokens'"),
        (lambda t: t.replace("4.5", "four"), [], "line 3: loss is 'four'"),
        (lambda t: t.replace("4.5", ""), [], "line 3: loss is ''"),
        (lambda t: t.replace(",4.5", ""), [], "line 3: fewer cells"),
        (lambda t: t.replace("4.5", "nan"), [], "line 3: loss is nan"),
        (lambda t: t.replace("4.5", "inf"), [], "line 3: loss is inf"),
        (lambda t: t.replace("4.5", "0"), [], "line 3: loss is 0"),
        (lambda t: t.replace("4.5", "-4.5"), [], "line 3: loss is -4.5"),
        (lambda t: t.replace("1e9,3.2", "-1e9,3.2"), [], "tokens is -1e+09"),
        (lambda t: "\n".join(t.splitlines()[:5]), [], "5 parameters"),
        (lambda t: t.replace("\n1e8", "\n1e7").replace("\n1e9", "\n1e7"), [], "1 different N"),
        (lambda t: t.splitlines()[0] + "\n", [], "no rows"),
        (lambda t: "", [], "no rows"),
        (lambda t: t.replace("tokens", "params"), [], "twice"),
        (lambda t: t.replace("1e9,4.5", "1,000,000,4.5"), [], "line 3: more cells"),
        (lambda t: t.replace("1e9,4.5", '"1,000,000",4.5'), [], "line 3: tokens is '1,000,000'"),
        (lambda t: t, ["--D=tokens*steps"], "'steps'"),
        (lambda t: t, ["--D=tokens/0"], "number"),
        (lambda t: t, ["--where=schedule=wsd"], "'schedule'"),
        (lambda t: t, ["--where=params=7"], "no rows"),
        (lambda t: t, ["--draw=3"], "--draw=3"),
        (lambda t: t, ["--draws=many"], "many"),
    ],
)
def test_bad_tables_end_in_one_line(change, flags, word, tmp_path, capsys):
    path = tmp_path / "points.csv"
    path.write_text(change(GOOD))
    assert status("chinchilla", path, *flags) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: ") and error.count("\n") == 1 and word in error, error


def test_other_mistakes_end_in_one_line(tmp_path, capsys):
    names = ("a.csv", "log.jsonl", "curve.csv", "flat.csv", "law.json", "iso.csv")
    good, log, curve, flat, law, iso = (tmp_path / name for name in names)
    good.write_text(GOOD)
    log.write_text('{"step": 1, "lr": 1}\n{"step": 2, "val_loss": 3\n{"step": 3, "lr": 1}\n')
    curve.write_text("step,lr,loss\n1000,1e-3,4\n1100,5e-4,3\n")
    flat.write_text("step,lr,loss\n1000,1e-3,4\n1100,1e-3,3\n")
    iso.write_text("flops,params,loss\n1e18,1e8,3\n1e18,2e8,2.9\n1e18,3e8,3\n")
    law.write_text('{"law": "chinchilla"}')
    for args, word in (
        ([], "COMMAND"),
        (["chinchila", good], "chinchila"),
        (["chinchilla"], "files"),
        (["chinchilla", tmp_path / "none.csv"], "none.csv"),
        (["annealing", log], "line 2 is not a JSON object"),
        (["annealing", curve], "--warmup_steps"),
        (["annealing", curve, "--warmup_steps=10"], "4 parameters"),
        (["annealing", flat, "--warmup_steps=10"], "no learning rate falls"),
        (["annealing", curve, "--warmup_steps=10", "--warmup=none"], "warmup='none'"),
        (["multi_power", good], "'lr'"),
        (["isoflop", iso], "3 model sizes"),
        (["speedup", good, "--by=tokens"], "--baseline"),
        (["speedup", good, "--by=tokens", "--baseline=adamw"], "adamw"),
        (["diagonal", good, "--by=params", "--pair=1e7,1e8", "--match=tokens"], "3.5"),
        (["diagonal", good, "--by=params", "--pair=a,b", "--match=tokens"], "no pairs"),
        (["predict", law, "--N=1", "--D=1"], "law.json"),
        (["predict", good, "--N=1", "--D=1"], "a.csv"),
        (["schedule_bound", "0:0,10:0"], "learning rates must be"),
        (["schedule_bound", "0:1,x:0"], "0:1,x:0"),
        (["schedule_bound", good], "a.csv"),
    ):
        ended = status(*args)
        out, error = capsys.readouterr()
        if "--pair=1e7,1e8" in args:  # two good pairs: 2 points for 2 parameters, and no mistake
            assert ended == 0
            continue
        assert ended == 1 and error.startswith("error: ") and error.count("\n") == 1 and word in error, (args, error)


def test_tables_as_spreadsheets_write_them(tmp_path):
    path, expected = tmp_path / "a.csv", {"params": "1e7", "tokens": "1e8", "loss": "5"}
    for text in (
        "\ufeffparams,tokens,loss\n1e7,1e8,5\n",
        "params;tokens;loss\r\n1e7;1e8;5\r\n",
        "params\ttokens\tloss\n1e7\t1e8\t5\n",
        'params , "tokens", loss\n1e7, "1e8", 5\n',
        "params,tokens,loss\n\n1e7,1e8,5\n,,\n",
    ):
        path.write_text(text, encoding="utf-8")
        assert [row for _, row in read_rows(str(path))] == [expected], text


def test_where_picks_rows():
    row = {"schedule": "wsd", "loss": "3.5", "empty": ""}
    for condition in ("loss=3.50", "loss<4", "loss>3", "schedule=wsd", "schedule!=cosine", "empty=", "loss!=3"):
        assert meets(row, condition, "")
    for condition in ("loss=3", "loss<3.5", "loss>3.5", "schedule=cosine", "schedule!=wsd", "empty>0", "empty<9"):
        assert not meets(row, condition, "")
    with pytest.raises(ValueError, match="column=value"):
        meets(row, "loss", "")


def test_a_published_law_predicts_what_it_can(tmp_path, capsys):
    law, params = tmp_path / "law.json", CASES["chinchilla"][0]
    law.write_text(json.dumps({"law": "chinchilla", "params": params}))
    told = json.loads(run(capsys, "predict", law, "--N=1e9", "--D=2e10", "--json"))
    exact = evaluate(LAWS["chinchilla"], params, {"N": np.array([1e9]), "D": np.array([2e10])})
    assert told["predicted"] == pytest.approx(exact, rel=1e-12) and told["low"] == [None]
    for change, flags, word in (
        ({}, ["--lr=0:0,9:1"], "no --lr"),
        ({}, ["--N=1e9"], "--N and --D"),
        ({}, ["--N=1e9", "--C=1e21"], "not all"),
        ({}, ["--N=1B", "--D=1"], "--N=1B"),
        ({"alpha": -0.3}, ["--C=1e21"], "alpha=-0.3"),
        ({"alpha": None}, ["--C=1e21"], "law.json"),
        ({"A": "x"}, ["--C=1e21"], "law.json"),
    ):
        law.write_text(json.dumps({"law": "chinchilla", "params": params | change}))
        assert status("predict", law, *flags) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and word in error, error


def test_api_mistakes_are_value_errors():
    for call, word in (
        (lambda: chinchilla([1e7, 1e8], [1e8], [3, 4]), "different length"),
        (lambda: chinchilla([1e7] * 6, np.arange(1, 7), np.arange(1, 7)), "1 different N"),
        (lambda: chinchilla(np.arange(1, 7), [5.0] * 6, np.arange(1, 7)), "1 different D"),
        (lambda: overtraining([1e7, 1e8, 1e9, 1e10], [2e8, 2e9, 2e10, 2e11], [4, 3, 2, 1]), "1 different M"),
        (lambda: asymptote([1, 1, 2, 2], [4, 4, 3, 3]), "2 different x"),
        (lambda: asymptote([1, 2, math.nan, 4], [4, 3, 2, 1]), "x of point 3 is nan"),
        (lambda: downstream([3, 4, 5, 6], [0.1, 0.2, -0.3, 0.4]), "error of point 3"),
        (lambda: isoflop([1e18] * 9, np.arange(1, 10), np.arange(1, 10)), "0 of 1 budgets"),
        (lambda: chinchilla(SIZES, LENGTHS, LENGTHS, draws=1), "draws=1"),
        (lambda: asymptote([1, 2, 3, 4], [4, 3, 2, 1], delta=0), "delta=0"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


def test_as_a_script():
    command = [sys.executable, "-m", "laws"]
    done = subprocess.run([*command, "chinchilla", "none.csv"], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "none.csv" in done.stderr
    done = subprocess.run([*command, "--help"], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0 and "multi_power" in done.stdout


def test_the_same_file_twice_is_refused(tmp_path, capsys):
    path = tmp_path / "points.csv"
    path.write_text(GOOD)
    (tmp_path / "run").mkdir()
    log, kept = tmp_path / "run" / "log.jsonl", HERE / "results/demo/constant_total-steps900_seed0"
    log.write_text('{"step": 1, "lr": 1}\n')
    for args in (
        ["chinchilla", path, tmp_path / "run" / ".." / "points.csv"],
        ["annealing", log, log.parent],
        ["annealing", kept, kept / "log.jsonl"],
    ):
        assert status(*args) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "give it once" in error, error


def test_odd_numbers_end_in_one_line(tmp_path, capsys):
    names = ("points.csv", "iso.csv", "law.json", "curves.json")
    points, iso, law, curves = (tmp_path / name for name in names)
    points.write_text(GOOD)
    np.savetxt(iso, np.stack(isoflop_data(0.002), 1), delimiter=",", header="flops,params,loss", comments="")
    law.write_text(json.dumps({"law": "chinchilla", "params": CASES["chinchilla"][0]}))
    curves.write_text(json.dumps({"law": "annealing", "params": CASES["annealing"][0]}))
    for args, word in (
        (["chinchilla", points, "--draws=-10"], "--draws='-10': expected whole number at least 0"),
        (["chinchilla", points, "--draws=10.5"], "10.5"),
        (["chinchilla", points, "--seed=-1"], "--seed='-1'"),
        (["chinchilla", points, "--delta=nan"], "delta=nan"),
        (["chinchilla", points, "--delta=-1"], "delta=-1"),
        (["chinchilla", points, f"--plot={tmp_path}/none/fit.png"], "none/fit.png"),
        (["chinchilla", points, "--plot=fit.csv"], "fit.csv"),
        (["isoflop", iso, "--noise=-1"], "--noise='-1'"),
        (["isoflop", iso, "--noise=inf"], "--noise='inf'"),
        (["isoflop", iso, "--draws=3"], "draws=3"),
        (["predict", law, "--N=nan", "--D=1"], "N of point 1 is nan"),
        (["predict", law, "--N=1", "--D=-1"], "D of point 1 is -1"),
        (["predict", law, "--C=0"], "C of point 1 is 0"),
        (["predict", law, "--N=1", "--D=1", "--seed=-1"], "--seed='-1'"),
        (["predict", curves, "--lr=0:0,9:1,20:0", "--every=0"], "--every='0': expected whole number at least 1"),
        (["predict", curves, "--lr=0:0,9:1,20:0", "--every=1.5"], "1.5"),
        (["predict", curves, "--lr=0:0,9:1,20:0", "--loss=x"], "no --loss"),
        (["predict", curves, "--lr=0:0,9.5:1,20:0"], "9.5"),
        (["predict", curves, "--lr=0:0,9:1,9:0"], "stands twice"),
        (["predict", curves, "--lr=0:0,9:nan"], "finite"),
        (["predict", curves, "--lr=0:0,9:-1"], "none negative"),
        (["predict", curves, "--lr=0:0,9"], "'9'"),
        (["predict", tmp_path, "--N=1"], "folder"),
    ):
        assert status(*args) == 1, args
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("error: ") and error.count("\n") == 1 and word in error, (args, error)


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    path = tmp_path / "points.csv"
    path.write_text(GOOD)
    monkeypatch.setattr(np.linalg, "solve", lambda *_: np.zeros(3) + np.zeros(2))
    with pytest.raises(ValueError, match="broadcast"):
        status("chinchilla", path)
