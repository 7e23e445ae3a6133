"""Parameters, FLOPs and costs against the figures that the paper, its notebook and its logs print."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ladder
import scaling
from config import main
from laws import Fit, optimum
from laws.__main__ import run as laws_run
from laws.files import to_json
from model import Shape
from scaling import (
    CHINCHILLA_MODELS,
    PAPER_MODELS,
    chinchilla_run_costs,
    default_law,
    forward_flops,
    num_params,
    paper_run_costs,
    peak_flops,
    plan,
    separate_cost,
    shared_cost,
    train_flops,
    train_flops_6nd,
)

# name: parameters in the notebook, parameters in the logs, training FLOPs of a sequence of 512 (the authors' notebook)
PRINTED = {
    "33M": (33_454_464, 33_479_040, "1.718346e+11"),
    "53M": (52_994_560, 53_027_328, "2.548826e+11"),
    "60M": (59_810_304, 59_845_120, "2.790796e+11"),
    "93M": (93_112_960, 93_159_040, "4.092946e+11"),
    "124M": (123_532_032, 123_587_328, "5.273923e+11"),
    "151M": (151_843_584, 151_905_024, "6.241423e+11"),
    "166M": (166_140_800, 166_205_312, "6.829368e+11"),
    "210M": (208_466_688, 208_540_416, "8.176423e+11"),
    "360M": (359_744_512, 359_842_816, "1.341445e+12"),
}


@pytest.mark.parametrize("model", PAPER_MODELS, ids=lambda model: model.name)
def test_the_papers_models(model):
    notebook, real, flops = PRINTED[model.name]
    assert num_params(model.shape) == real
    rows = {row["name"]: row for row in scaling.table_command(None)["models"]}
    assert rows[model.name]["params_notebook"] == notebook
    assert f"{train_flops(model.shape):.6e}" == flops


def test_all_nine_models_are_there():
    assert [model.name for model in PAPER_MODELS] == list(PRINTED)


class Tiny(Shape):
    """V 10, d 4, 2 heads of 2, F 8; T 3; one layer."""

    mlp_width, padded_vocab = 8, 10


TINY = Tiny(vocab_size=10, seq_len=3, n_layer=1, n_head=2, n_embd=4)


def test_counts_by_hand_on_a_tiny_model():
    one_kv_head = dataclasses.replace(TINY, n_kv_head=1)
    assert num_params(TINY, norms=False) == 10 * 4 + 4 * 4 * 4 + 3 * 4 * 8
    assert num_params(TINY) == 10 * 4 + 4 * 4 * 4 + 3 * 4 * 8 + 3 * 4  # two norms and the final one
    assert num_params(dataclasses.replace(TINY, tied=False), norms=False) == 2 * 10 * 4 + 4 * 4 * 4 + 3 * 4 * 8
    assert num_params(one_kv_head, norms=False) == 10 * 4 + 4 * 4 * 3 + 3 * 4 * 8
    embedding = logits = 2 * 3 * 10 * 4
    qkv, logit, softmax, values, out = 6 * 3 * 4 * 2 * 2, 2 * 9 * 4, 3 * 2 * 9, 2 * 9 * 4, 2 * 3 * 4 * 4
    swiglu = 3 * 2 * 3 * 4 * 8
    rest = embedding + logits + qkv + out
    assert forward_flops(TINY) == rest + logit + softmax + values + swiglu
    assert forward_flops(TINY, causal=True) == rest + (logit + softmax + values) // 2 + swiglu
    assert forward_flops(one_kv_head) == rest - 2 * 2 * 3 * 4 * 2 + logit + softmax + values + swiglu
    assert train_flops(TINY) == 3 * forward_flops(TINY)


def test_6nd_understates_small_models():
    # paper.md 5.2: 1.67 at 33M, 1.21 at 360M
    for name, ratio in (("33M", "1.67"), ("360M", "1.21")):
        notebook, _, flops = PRINTED[name]
        assert f"{float(flops) / train_flops_6nd(notebook, 512):.2f}" == ratio


def test_savings_of_the_paper():
    runs = {model.name: paper_run_costs(model) for model in PAPER_MODELS if model.name != "166M"}
    printed = {"33M": 0.600, "60M": 0.573, "93M": 0.581, "124M": 0.543, "151M": 0.556, "210M": 0.533, "360M": 0.556}
    for name, ratio in printed.items():
        assert round(shared_cost(runs[name], 0.2) / separate_cost(runs[name]), 3) == ratio
    by_table_2 = paper_run_costs(PAPER_MODELS[4], as_run=False)
    assert round(shared_cost(by_table_2, 0.2) / separate_cost(by_table_2), 3) == 0.573  # 35k, where the run was 30k
    cosine = sum(map(separate_cost, runs.values()))
    a, b = (sum(shared_cost(costs, 0.2, formula) for costs in runs.values()) for formula in "AB")
    assert f"{cosine:.3e}" == "1.145e+20" and f"{b:.2e}" == "7.33e+19"  # the bars of Fig. 13a
    assert round(a / cosine, 3) == 0.552 and round(b / cosine, 3) == 0.640


def test_savings_of_chinchilla():
    runs = chinchilla_run_costs()
    assert len(runs) == len(CHINCHILLA_MODELS) == 50 and all(len(costs) == 4 for costs in runs)
    cosine, a, b = (
        sum(map(separate_cost, runs)),
        sum(shared_cost(costs, 0.1) for costs in runs),
        sum(shared_cost(costs, 0.1, "B") for costs in runs),
    )
    assert f"{cosine:.3e} {a:.3e} {b:.3e}" == "5.589e+23 2.355e+23 2.555e+23"  # 5.59 and 2.36 in the paper
    assert a / cosine == pytest.approx((25 + 0.1 * 45) / 70, rel=1e-12)


def test_chinchillas_sizes_agree_with_their_parameters():
    # they have relative positions, whose projection is another d h k per layer; with it every row agrees to 1%
    for model in CHINCHILLA_MODELS:
        count = num_params(model, norms=False) + model.n_layer * model.n_embd * model.n_head * model.head_size
        assert count / 1e6 == pytest.approx(model.million_params, rel=0.01), model


def test_shared_cost_at_its_edges():
    assert shared_cost([10, 20, 30], 0.2, "A") == 30 + 0.2 * 30
    assert shared_cost([30, 10, 20], 0.2, "B") == 30 + 0.2 * 60  # in any order
    assert shared_cost([7], 0.2, "A") == 7 and shared_cost([7], 0, "B") == 7
    assert shared_cost([10, 20], 1.0, "A") == separate_cost([10, 20])  # a cooldown of 100% shares nothing


def test_peak_flops_by_device_name():
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12  # the longer key counts
    assert peak_flops("NVIDIA L40S") == 362e12 and peak_flops("NVIDIA L4") == 121e12
    for name in (
        "cpu",
        "",
        "NVIDIA RTX A4000",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ):
        assert peak_flops(name) is None, name


def test_optimum_is_the_minimum_and_as_published():
    # Hoffmann et al.'s law as rounded and as in their TeX, and the default; tokens per parameter at Chinchilla's budget
    rounded = dict(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    exact = dict(E=1.6934, A=406.4, B=410.7, alpha=0.33917084, beta=0.2849083)
    for law, ratio in ((rounded, 92.65), (exact, 58.93), (scaling.DEFAULT_LAW["params"], 17.92)):
        N, D, loss = optimum(law, 5.76e23)
        assert D / N == pytest.approx(ratio, rel=1e-3) and 6 * N * D == pytest.approx(5.76e23, rel=1e-12)
        for other in (0.97 * N, 1.03 * N):
            assert law["E"] + law["A"] / other ** law["alpha"] + law["B"] / (5.76e23 / 6 / other) ** law["beta"] > loss


def test_plan_follows_from_the_law():
    made = plan(1e21)
    assert made == plan(1e21)  # the default's draws are always the same
    assert made.params == pytest.approx(2.792e9, rel=1e-3) and made.params * made.tokens * 6 == pytest.approx(1e21)
    assert made.steps * made.batch_tokens == pytest.approx(made.tokens)
    for name in ("params", "tokens", "loss", "steps"):
        low, high = made.intervals[name]
        assert low < getattr(made, name) < high, name
    assert plan(1e21, batch_tokens=1e6).steps == pytest.approx(made.tokens / 1e6)
    assert plan(1e21, Fit("chinchilla", scaling.DEFAULT_LAW["params"])).intervals == {}


def test_default_laws_draws_have_the_published_spread():
    # Besiroglu et al.'s own bootstrap: standard errors .0154 of alpha, .0206 of beta, .02566 of E
    draws = default_law(2000).draws
    for name, error in (("alpha", 0.0154), ("beta", 0.0206), ("E", 0.02566)):
        values = [draw[name] for draw in draws]
        mean = sum(values) / len(values)
        spread = (sum((x - mean) ** 2 for x in values) / len(values)) ** 0.5
        assert 0.7 * error < spread < 1.1 * error, name


def test_rules_give_the_papers_1b_run():
    # 100B tokens for 1B parameters: lr 8e-4 and 1.8M tokens per step (paper.md 4.3)
    made = plan(6 * 1e9 * 100e9)
    assert f"{made.lr:.0e} {made.batch_tokens:.1e}" == "8e-04 1.8e+06"


def test_shape_for_is_near():
    for params in (3e7, 1e9, 7e10):
        assert num_params(ladder.shape_for(params)) == pytest.approx(params, rel=0.2)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: shared_cost([], 0.2), "costs"),
        (lambda: shared_cost([1, -1], 0.2), "costs"),
        (lambda: shared_cost([1], 1.2), "cooldown_frac=1.2"),
        (lambda: shared_cost([1], 0.2, "C"), "formula='C'"),
        (lambda: plan(-1), "flops=-1"),
        (lambda: plan(float("nan")), "flops=nan"),
        (lambda: plan(1e21, batch_tokens=0), "batch_tokens=0"),
    ],
)
def test_mistakes_are_value_errors(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def command(*args):
    script = Path(scaling.__file__)
    return subprocess.run([sys.executable, script, *args], capture_output=True, text=True, cwd=script.parent)


def test_command_line():
    table, savings = command("table"), command("savings", "--json")
    assert table.returncode == 0 and "5.273923e+11" in table.stdout and "123,587,328" in table.stdout
    rows = {row["name"]: row for row in json.loads(savings.stdout)["studies"]}
    assert (
        round(rows["paper, total"]["B_ratio"], 3) == 0.640 and round(rows["chinchilla, f=0.1"]["A_ratio"], 4) == 0.4214
    )


def test_main_prints_one_line_for_a_mistake(capsys, tmp_path):
    empty, other, torn, wide, odd = (tmp_path / f"{name}.json" for name in ("empty", "other", "torn", "wide", "odd"))
    empty.write_text('{"law": "chinchilla", "params": {"E": 1}}')
    other.write_text('{"law": "isoflop"}')
    torn.write_text('{"law": "chin')
    odd.write_text(json.dumps(scaling.DEFAULT_LAW | {"ranges": {"N": [1e7]}}))
    draw = scaling.DEFAULT_LAW["params"] | {"beta": -0.1}
    wide.write_text(json.dumps(scaling.DEFAULT_LAW | {"draws": [draw]}))
    for args, word in (
        (["plan"], "--flops=1e21"),
        (["plan", "--flops=many"], "--flops"),
        (["plan", "--flops=inf"], "inf"),
        (["plan", "--gpu_hours=8", "--mfu=0.4", "--gpu=Abacus"], "Abacus"),
        (["plan", "--gpu_hours=8", "--gpu=H100"], "--mfu"),
        (["plan", "--gpu_hours=8", "--gpu=H100", "--mfu=40"], "--mfu='40': expected number above 0 and at most 1"),
        (["plan", "--gpu_hours=8", "--gpu=H100", "--mfu=nan"], "--mfu='nan'"),
        (["plan", "--gpu_hours=nan", "--gpu=H100", "--mfu=0.4"], "--gpu_hours='nan'"),
        (["plan", "--gpu_hours=1e308", "--gpu=H100", "--mfu=0.4"], "flops=inf"),
        (["plan", "--flops=-1e21"], "--flops='-1e21'"),
        (["plan", "--flops=1e21", "--batch_tokens=nan"], "--batch_tokens='nan'"),
        (["savings", "--cooldown_frac=nan"], "--cooldown_frac='nan'"),
        (["plan", "--flops=1e21", f"--law={tmp_path}/none.json"], "none.json"),
        *((["plan", "--flops=1e21", f"--law={path}"], path.name) for path in (empty, other, torn, wide, odd)),
        *((["savings", f"--lengths={text}"], text) for text in ("1,x", "10,nan", "10,-1", "inf", "")),
        (["savings", "--cooldown_frac=2"], "cooldown_frac"),
        (["table", "--unknown=1"], "--unknown=1"),
        (["tables"], "tables"),
        ([], "command"),
    ):
        with pytest.raises(SystemExit) as end:
            main(lambda args=args: scaling.run(args))
        assert end.value.code == 1, args
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and error.startswith("error: ") and word in error, (args, error)


def test_main_plans_from_gpu_hours_and_a_law(capsys, tmp_path):
    law = tmp_path / "law.json"
    law.write_text(json.dumps(to_json(scaling.default_law(20)._asdict())))
    scaling.run(["plan", "--gpu_hours=100", "--gpu=A100", "--mfu=0.5", f"--law={law}", "--json"])
    made = json.loads(capsys.readouterr().out)
    assert made["flops"] == pytest.approx(100 * 3600 * 312e12 * 0.5)
    assert made["intervals"]["params"][0] < made["params"] < made["intervals"]["params"][1]
    scaling.run(["plan", "--flops=1e21"])
    assert "2.792e+09" in capsys.readouterr().out


def test_a_plan_beyond_what_its_law_was_fitted_on_says_so(capsys, tmp_path):
    def notes(flops, law=None):
        scaling.run(["plan", f"--flops={flops}", "--json", *([f"--law={law}"] if law else [])])
        return json.loads(capsys.readouterr().out)["beyond"]

    assert notes(1e21) == []  # N from 57M to 16B, D from 0.8B to 318B
    assert notes(1e26) == [
        "D = 1.609e+13 is 50.6 times the largest fitted",
        "N = 1.036e+12 is 64 times the largest fitted",
    ]
    assert notes(1e17)[1] == "N = 2.456e+07 is 0.428 times the smallest fitted"
    law = tmp_path / "law.json"
    law.write_text(json.dumps(scaling.DEFAULT_LAW | {"ranges": {"N": (1e9, 1e10), "D": (1e10, 1e13)}}))
    assert notes(1e20, law) == ["N = 8.55e+08 is 0.855 times the smallest fitted"]
    law.write_text(json.dumps({"law": "chinchilla", "params": scaling.DEFAULT_LAW["params"]}))
    (unknown,) = notes(1e21, law)
    assert "does not say on what it was fitted" in unknown
    main(lambda: laws_run(["predict", str(law), "--N=1e9", "--D=1e10"]))
    assert unknown in capsys.readouterr().out  # the same words
    scaling.run(["plan", "--flops=1e26"])
    assert "N = 1.036e+12 is 64 times the largest fitted\n" in capsys.readouterr().out
