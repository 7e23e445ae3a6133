"""tables.py: files are read patiently or refused in one line, and what is kept of a study is whole."""

import gzip
import json
import subprocess
import sys

import pytest
from conftest import HERE, row, write_log

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
        with pytest.raises(tables.Mistake, match="no such file"):
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
    with pytest.raises(tables.Mistake, match=r"config\.json is not a JSON object"):
        tables.read_settings(run)


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
