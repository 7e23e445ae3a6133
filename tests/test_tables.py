"""tables.py: files are read patiently or refused in one line; words and means of runs; what is kept of a study."""

import gzip
import json
import math
import subprocess
import sys

import pytest
from conftest import HERE, row, seeds_of, write_log

import tables


def written(tmp_path, text, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


# ----------------------------------------------------------------------------------------------------------------------
# Tables


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,x\n2,y\n",
        "\ufeffa;b\r\n1;x\r\n2;y\r\n",  # a spreadsheet's
        "\n\na\tb\n1\tx\n\n  \n2\ty",
        "a, b\n1, x\n,\n2, y\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, text):
    rows = tables.read_rows(written(tmp_path, text))
    assert [row for _, row in rows] == [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
    lines = text.replace("\r", "").split("\n")
    for where, first in zip((where for where, _ in rows), "12", strict=True):
        assert lines[int(where.split()[-1]) - 1].startswith(first)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2,3\n", "line 2: more cells than the header has"),
        ("a,b\n1,2\n1\n", "line 3: fewer cells than the header has"),
        ("a,b,a\n1,2,3\n", "column 'a' stands twice in the header"),
        ("a,b\n1,2\n".encode("utf-16"), "is not text in UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "is not text in UTF-8"),
        ("a,é\n1,2\n".encode("latin-1"), "is not text in UTF-8"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    with pytest.raises(tables.Mistake, match=message):
        tables.read_rows(written(tmp_path, text))


def test_no_table(tmp_path):
    for path in (tmp_path / "no.csv", tmp_path, written(tmp_path, "") / "x.csv"):
        with pytest.raises(tables.Mistake, match="no such file, and no run's folder"):
            tables.read_lines(path)
    with pytest.raises(tables.Mistake, match=r"is not a whole \.gz file"):
        tables.read_lines(written(tmp_path, "plain", "log.jsonl.gz"))
    with pytest.raises(tables.Mistake, match=r"is not a whole \.gz file"):
        tables.read_lines(written(tmp_path, gzip.compress(b"some text")[:-3], "log.jsonl.gz"))


def test_results_saved_by_a_spreadsheet(table):
    path = table([row("wsd", 3.0), row("cosine", 3.1)])
    first = tables.read_results([path])
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8-sig") as file:
        file.write(text.replace(",", ";") + ";" * text.splitlines()[0].count(",") + "\n")
    assert tables.read_results([path]) == first and first[1]["val_loss"] == 3.1


# ----------------------------------------------------------------------------------------------------------------------
# Logs


def test_a_cut_off_last_line_is_passed_over(tmp_path, capsys):
    for text in ('{"a": 1}\n{"a": 2}\n{"a"', '{"a": 1}\n{"a": 2}\n\n{"a": \n\n'):
        path = written(tmp_path, text, "log.jsonl")
        assert [row for _, row in tables.read_rows(path)] == [{"a": 1}, {"a": 2}]
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "is cut off, and passed over" in err and f"{path} line" in err


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a"\n{"a": 3}\n', '{"a": 1}\n3\n', '{"a": 1}\ntext\n'])
def test_bad_lines_are_refused(tmp_path, text):
    with pytest.raises(tables.Mistake, match=r"log\.jsonl line 2 is not a JSON object"):
        tables.read_rows(written(tmp_path, text, "log.jsonl"))


def test_no_log(tmp_path):
    with pytest.raises(tables.Mistake, match=r"no log\.jsonl there"):
        tables.read_log(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "train_loss": 1.0}\n')
    with pytest.raises(tables.Mistake, match="no val_loss in it"):
        tables.read_log(tmp_path)


def test_what_a_run_is(tmp_path, table):
    run = tmp_path / "runs/a"
    write_log(run)
    assert tables.read_settings(run) == {}
    table([row("wsd", 3.0) | {"name": "runs/a", "beta2": 0.9}])
    told = tables.read_settings(run)
    assert (told["schedule"], told["cooldown_shape"], told["beta2"], told["seed"]) == ("wsd", "1-sqrt", 0.9, 0.0)
    assert not {"name", "val_loss", "train_s"} & told.keys()
    record = {"schedule": "wsd", "total_steps": 100, "lr": 0.1, "seed": 3, "init_from": "x", "name": "a"}
    record |= {"cooldown_shape": None, "beta2": 0.95, "ema_half_life": [5.0]}
    record["not_default"] = ["seed", "init_from", "ema_half_life"]
    (run / "config.json").write_text(json.dumps(record))
    expected = {"schedule": "wsd", "cooldown_shape": "1-sqrt", "total_steps": 100, "lr": 0.1, "seed": 3}
    assert tables.read_settings(run) == tables.read_settings(run / "log.jsonl") == expected  # rather than the table's
    (run / "config.json").write_text('{"schedule')
    with pytest.raises(tables.Mistake, match=r"config\.json: Unterminated"):
        tables.read_settings(run)


# ----------------------------------------------------------------------------------------------------------------------
# Words and means


def test_labels_say_what_differs():
    common = {"schedule": "wsd", "cooldown_shape": "linear", "dataset": "text", "n_params": 1.2e6}
    keys = [common | {"cooldown_frac": f, "total_steps": n} for f, n in ((0.1, 1e3), (0.2, 1e3), (0.2, 2e3))]
    assert tables.labels(keys) == [
        "cooldown, linear, 1,000 steps, over the last 10%",
        "cooldown, linear, 1,000 steps, over the last 20%",
        "cooldown, linear, 2,000 steps, over the last 20%",
    ]
    assert tables.labels(keys[1:]) == ["cooldown, linear, 1,000 steps", "cooldown, linear, 2,000 steps"]
    cosines = [{"schedule": name, "lr": lr} for name, lr in (("cosine", 0.1), ("onecycle", 0.1), ("onecycle", 0.2))]
    assert tables.labels(cosines[:2]) == ["cosine", "cosine (OneCycle)"]
    assert tables.labels(cosines) == ["cosine, lr 0.1", "cosine (OneCycle), lr 0.1", "cosine (OneCycle), lr 0.2"]
    optimizers = [common | {"optimizer": name} for name in ("adamw", "muon")]
    assert tables.labels(optimizers) == ["adamw, cooldown, linear", "muon, cooldown, linear"]
    assert tables.labels([common | {"beta2": b} for b in (0.95, None)]) == [
        "cooldown, linear, beta2 0.95",
        "cooldown, linear",
    ]


def test_settings_in_words():
    assert [tables.in_words("n_params", n) for n in (33e6, 1.5e9, 999.0)] == [
        "33M parameters",
        "1.5B parameters",
        "999 parameters",
    ]
    assert tables.in_words("total_steps", 1980) == tables.in_words("total_steps", 1980.0) == "1,980 steps"
    assert tables.in_words("cooldown_steps", 264.0) == "over the last 264 steps"
    assert tables.in_words("tokens_per_param", 20.0) == "20 tokens per parameter"
    assert [tables.in_words("seed", 1), tables.in_words("n_layer", 2.0)] == ["seed 1", "n_layer 2"]
    assert tables.in_words("dataset", "books") == "books"


def test_averages_in_words():
    rows = [{"window_steps": steps} for steps in (60.0, 60.0, None)]
    assert tables.averaged("val_loss_window", rows) == "window of 60 steps"
    assert tables.averaged("val_loss_window", [*rows, {"window_steps": 2000.0}]) == "window of 60 to 2,000 steps"
    assert tables.averaged("val_loss_window", [{}]) == "window" and tables.averaged("val_loss_ema", rows) == "EMA"
    rows = [row("constant", 3.0, val_loss_window=2.9, window_steps=60.0)]
    (line,) = tables.mean_lines(rows, "lr", "val_loss_window")
    assert (line.kind, line.label, list(line.mean)) == ("val_loss_window", "constant, window of 60 steps", [2.9])


def test_losses_on_a_further_validation_set():
    rows = [row("wsd", 3.0) | {"val_loss/b": 2.0, "val_loss_ema/b": 1.9, "val_loss/a/b": 1.0}, row("constant", 3.5)]
    assert tables.val_sets(rows) == ["b", "a/b"] and tables.val_sets(rows[1:]) == []
    assert tables.measured_on(rows, None) is rows
    there, without = tables.measured_on(rows, "b")
    assert {k: v for k, v in there.items() if k.startswith("val_loss")} == {"val_loss": 2.0, "val_loss_ema": 1.9}
    assert without == {k: v for k, v in rows[1].items() if not k.startswith("val_loss")}
    assert {k: v for k, v in there.items() if not k.startswith("val")}.items() <= rows[0].items() and "lr" in there
    with pytest.raises(ValueError, match="--val_dataset=c: these runs have no losses on it; further .*: b, a/b"):
        tables.measured_on(rows, "c")
    with pytest.raises(ValueError, match="further validation sets: none"):
        tables.measured_on(rows[1:], "b")
    assert tables.settings(rows) == tables.settings(rows[1:])  # a loss is no setting
    steps = [{"window_steps": 60.0}]
    assert tables.averaged("val_loss_window/a/b", steps) == "window of 60 steps, on a/b"


def test_at_best():
    rows = [r for lr, loss in ((1e-3, 3.2), (2e-3, 3.1)) for r in seeds_of("cosine", loss, lr=lr)]
    assert tables.at_best(rows) == rows[3:]
    lucky = row("cosine", 2.0, lr=4e-3)  # one seed against three
    assert tables.at_best([*rows, lucky]) == rows[3:]
    assert tables.at_best(rows + [row("wsd", 5.0)])[3:] == [row("wsd", 5.0)]  # other settings do not compete


def test_spread():
    assert [tables.span(n, "seed") for n in ([1], [3, 3], [2000.0, 2, 3])] == ["1 seed", "3 seeds", "2 to 2,000 seeds"]
    assert tables.std([1.0, 3.0]) == pytest.approx(2**0.5) and math.isnan(tables.std([1.0]))


def test_pairs_need_equal_seeds_and_cells():
    cosine = [row("cosine", 3.0, seed) for seed in (0, 1)]
    others = [row("wsd", 2.9, 1), row("wsd", 2.8, 2), row("wsd", 2.7, 0, 200), row("wsd", 2.6, 0, dataset="other")]
    assert tables.paired(others, cosine, "val_loss").tolist() == [[2.9, 3.0]]


def test_losses_over_seeds_are_in_their_order():
    """So that differences of two such arrays are of equal seeds."""
    rows = seeds_of("wsd", 1.0)[::-1] + seeds_of("wsd", 2.0, lr=1e-2)
    assert tables.over_seeds(rows, lr=1e-3).tolist() == [0.9, 1.1, 1.0]
    assert tables.over_seeds(rows, "train_loss", lr=1e-2).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(tables.Mistake, match="several runs of one seed have {'schedule': 'wsd'}: name more"):
        tables.over_seeds(rows, schedule="wsd")
    with pytest.raises(tables.Mistake, match="no run has {'schedule': 'cosine'}"):
        tables.over_seeds(rows, schedule="cosine")


def test_the_error_of_a_mean_of_differences():
    mean, error = tables.mean_error([0.1, 0.2, 0.6])  # deviations of -0.2, -0.1 and 0.3: a variance of 0.07
    assert mean == pytest.approx(0.3, rel=1e-12) and error == pytest.approx(math.sqrt(0.07 / 3), rel=1e-12)
    assert math.isnan(tables.mean_error([0.1])[1])


# ----------------------------------------------------------------------------------------------------------------------
# Rows, and what is kept of a study


def test_averages_of_several_kinds_are_results_too():
    rows = [row("wsd", 3.0) | {"val_loss_ema": 2.9, "val_loss_ema_2": 2.8, "beta2": 0.9}]
    assert "beta2" in tables.settings(rows) and not [c for c in tables.settings(rows) if c.startswith("val_loss")]


def test_what_is_kept_of_a_study(tmp_path, table):
    path = table([row("wsd", 3.0) | {"name": name} for name in ("a", "b/c")])
    for name in ("a", "b/c"):
        write_log(tmp_path / name)
    tables.keep(tmp_path, tmp_path / "kept", points=3)
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"results.csv", "logs.jsonl.gz"}
    assert (tmp_path / "kept/results.csv").read_text() == open(path).read()
    whole, kept = tables.read_log(tmp_path / "a"), tables.read_log(tmp_path / "kept/a")
    assert kept[1] == whole[1] and kept[2] == "a"  # every evaluation
    assert [line["step"] for line in kept[0]] == [1, 5, 9, 10]  # every fourth, and the last
    lines = tables.read_lines(tmp_path / "kept/logs.jsonl.gz")
    assert len(lines) == len(set(lines)) == 14  # none twice
    assert [x["step"] for x in map(json.loads, lines) if x["run"] == "b/c"] == [0, 1, 5, 5, 9, 10, 10]
    assert tables.find_runs([tmp_path / "kept"]) == [tmp_path / "kept/a", tmp_path / "kept/b/c"]
    assert tables.read_log(tmp_path / "kept/b/c/log.jsonl")[:2] == kept[:2]
    tables.keep(tmp_path, tmp_path / "all")  # points enough for every line
    assert len(tables.read_rows(tmp_path / "all/a")) == len(whole[0]) + len(whole[1])


def test_keeping_says_what_it_wrote_and_writes_all_or_nothing(tmp_path, table):
    table([row("wsd", 3.0) | {"name": "a"}])
    command = [sys.executable, "tables.py", str(tmp_path)]
    for target, message in (("kept", "a: no log.jsonl there"), (".", "are one folder")):
        done = subprocess.run([*command, str(tmp_path / target)], cwd=HERE, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "kept").exists()
    write_log(tmp_path / "a")
    done = subprocess.run([*command, str(tmp_path / "kept")], cwd=HERE, capture_output=True, text=True)
    assert "kept/results.csv: 1 runs" in done.stdout and "kept/logs.jsonl.gz: 13 lines" in done.stdout
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: the following arguments are required: target")
