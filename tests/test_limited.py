"""Tests of limited.py, with runs and ensembles made up by laws that are known.

python -m pytest tests/test_limited.py
"""

import csv
import json
import math

import pytest
from conftest import row, seeds_of
from matplotlib.figure import Figure

import evaluate
import limited
from config import Mistake

SIZES, AMOUNTS = (30_000, 70_000, 150_000), (1024, 2048, 4096, 8192)
CENTRES = dict(zip(SIZES, (0.4, 0.8, 1.6), strict=True))  # weight decays of the regularized recipe


def standard(D, n):
    return 1 + 20 / D**0.5 + 100 / n


def regularized(D, n):
    return standard(D, n) - 0.1 - 500 / n


def runs():
    """Standard and regularized runs at each D and N, the best of them with 16 epochs; students at one."""
    rows = []
    for D in AMOUNTS:
        for n in SIZES:
            for epochs, worse in ((8, 0.2), (16, 0.0), (32, 0.3)):
                length = dict(n_params=n, dataset=f"text@{D}", total_steps=D * epochs // 64, epochs=float(epochs))
                for lr, more in ((1e-3, 0.0), (2e-3, 0.1)):
                    rows += seeds_of("wsd", standard(D, n) + worse + more, weight_decay=0.1, lr=lr, **length)
                rows += seeds_of("wsd", regularized(D, n) + worse / 2, weight_decay=CENTRES[n], **length)
    mix = dict(
        n_params=SIZES[1], dataset="text@2048:0.25,samples-five:0.75", total_steps=999, epochs="", weight_decay=0.1
    )
    return rows + seeds_of("wsd", 1.3, **mix)


def ensemble(D, n, decay, limit):
    facts = {"dataset": f"text@{D}", "n_params": n, "weight_decay": decay, "lr": 1e-3, "total_steps": 9}
    return {"rows": [{"models": k, "val_loss": limit + 0.3 / k, **facts} for k in range(1, 6)]}


@pytest.fixture
def study(tmp_path):
    rows = runs()
    with open(tmp_path / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "ensembles").mkdir()
    for n in SIZES:
        for decay, limit in ((CENTRES[n], 1.05 + 500 / n), (CENTRES[n] / 2, 1.0 + 500 / n)):
            found = ensemble(2048, n, decay, limit)
            (tmp_path / f"ensembles/{n}_{decay}.json").write_text(json.dumps(found))
    return tmp_path


def table_of(study):
    limited.run([str(study)])
    with open(study / "recipes.csv") as file:
        rows = [
            {k: float(v) if k not in ("recipe", "note") and v else v for k, v in row.items()}
            for row in csv.DictReader(file)
        ]
    return {(row["recipe"], row["D"], row["n_params"]): row for row in rows}


def test_recipes_and_limits(study, capsys):
    found = table_of(study)
    for D in AMOUNTS:
        for n in SIZES:
            base, best = found["standard", D, n], found["regularized", D, n]
            assert base["loss"] == pytest.approx(standard(D, n)) and base["epochs"] == 16 and base["lr"] == 1e-3
            assert best["loss"] == pytest.approx(regularized(D, n)) and best["weight_decay"] == CENTRES[n]
            assert best["minus_standard"] == pytest.approx(-0.1 - 500 / n) and best["error"] == pytest.approx(
                0, abs=1e-9
            )
            assert best["std"] == pytest.approx(0.1) and base["n"] == 3
        limit = found["regularized, N to infinity", D, math.inf]
        assert limit["note"] == "not identified" and math.isnan(limit["loss"])  # of three sizes, by three numbers
    assert found["student of samples-five", 2048, SIZES[1]]["loss"] == pytest.approx(1.3)
    for n in SIZES:
        assert found["ensemble of 5", 2048, n]["loss"] == pytest.approx(1.06 + 500 / n)
        assert found["ensemble, K to infinity", 2048, n]["loss"] == pytest.approx(1.0 + 500 / n, abs=1e-6)
    joint = found["ensemble, K, then N to infinity", 2048, math.inf]
    assert joint["loss"] == pytest.approx(1.0, abs=1e-3)
    out = capsys.readouterr().out
    assert "standard recipe over D, 4 sizes of data" in out and "D = 2,048" in out


def test_data_efficiency_inverts_the_standard_law(study):
    found = table_of(study)
    n = SIZES[-1]
    for D in AMOUNTS:
        needed = (20 / (regularized(D, n) - 1 - 100 / n)) ** 2 if regularized(D, n) > 1 + 100 / n else math.inf
        assert found["regularized", D, n]["efficiency"] == pytest.approx(needed / D, rel=1e-3)
    assert "efficiency" not in found["standard", 2048, n] or found["standard", 2048, n]["efficiency"] == ""


def test_figures(study, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **how: figures.append((path.name, figure)))
    limited.run([str(study)])
    by_name = dict(figures)
    assert list(by_name) == ["epochs.png", "ensembles.png", "recipes.png"]
    panels = [axes for axes in by_name["epochs.png"].axes if axes.lines]
    assert len(panels) == 12
    for figure in by_name.values():
        figure.draw_without_rendering()
    bars = {axes.get_title(): len(axes.patches) for axes in by_name["recipes.png"].axes}
    assert bars["2,048 tokens"] == 5 and bars["1,024 tokens"] == 2


def test_with_few_sizes_of_data_there_is_no_efficiency(study, capsys):
    lines = (study / "results.csv").read_text().splitlines()
    (study / "results.csv").write_text("\n".join([lines[0], *(line for line in lines if "text@2048" in line)]))
    found = table_of(study)
    assert "the law needs the standard recipe at four sizes of data, and there are 1" in capsys.readouterr().out
    assert not any("efficiency" in row for row in found.values())


def test_ensembles_are_of_checkpoints_of_both_kinds(tmp_path, monkeypatch, table):
    """Files, and folders of shards; as long as one is missing, there is no ensemble."""
    alike = dict(dataset="text@1024", weight_decay=0.1)
    rows = [row("wsd", 1.0, seed, **alike) | {"name": f"a_seed{seed}"} for seed in range(4)]
    table(rows)
    monkeypatch.setattr(evaluate, "run", lambda args: print(json.dumps(args)))
    ends = []
    for i, one in enumerate(rows):
        limited.evaluate_ensembles(tmp_path)
        assert not (tmp_path / "ensembles").exists()
        ends.append(tmp_path / one["name"] / "ckpt" / f"step_00000100{'.pt' if i % 2 else '/manifest.pt'}")
        ends[-1].parent.mkdir(parents=True)
        (tmp_path / one["name"] / "config.json").write_text('{"eval_tokens": 7}')
        ends[-1].touch()
    limited.evaluate_ensembles(tmp_path)
    paths = [str(end.parent if end.name == "manifest.pt" else end) for end in ends]
    said = json.loads((tmp_path / "ensembles/a.json").read_text())
    assert said == ["--ensemble", *paths, "--tokens=7", "--json"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("text@1024", "text", "dataset text: expected NAME@TOKENS"),
        ("text@1024", "text@1K", "dataset text@1K: expected NAME@TOKENS"),
        (",0.1", ",0.3", "no run has a weight decay of 0.1"),
    ],
)
def test_mistakes(study, old, new, message):
    text = (study / "results.csv").read_text()
    (study / "results.csv").write_text(text.replace(old, new))
    with pytest.raises(Mistake, match=message):
        limited.run([str(study)])


def test_ensembles_of_several_kinds_are_refused(study):
    (study / "ensembles/mixed.json").write_text(
        json.dumps({"rows": [{"models": 1, "val_loss": 1.0, "dataset": "text@5"}]})
    )
    with pytest.raises(Mistake, match="mixed.json: its models differ in n_params"):
        limited.run([str(study)])
    with pytest.raises(Mistake, match="there is no such folder"):
        limited.run([str(study), "--out=nowhere"])
