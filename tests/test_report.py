"""report.py: both READMEs say what the files in results/ say, and a digit that they do not say is noticed."""

import re

import numpy as np
import pytest

import findings
import report
from report import README, RESULTS


@pytest.fixture(scope="module")
def studies():
    return [study() for study in findings.STUDIES]


def wrong(pages, studies):
    """What report.py finds in these pages: tables that differ, and the rest."""
    right, problems = report.check(pages, studies)
    return [name for _, name in report.differing(pages, right)], problems


def edited(path, old, new):
    """The pages with the first `old` of one of them replaced, which is there."""
    pages = report.read_pages()
    assert old in pages[path]
    return pages | {path: pages[path].replace(old, new, 1)}


def test_every_number_of_both_pages_is_what_the_files_say(studies):
    assert wrong(report.read_pages(), studies) == ([], [])


def test_a_changed_digit_of_any_table_is_noticed(studies):
    text = report.read_pages()[RESULTS]
    names = [name for study in studies for name in study.tables]
    assert {m[2] for m in report.MARKED.finditer(text)} == {"claims", *names}
    for name in ("claims", *names):
        table = re.search(rf"<!-- table: {name} -->.*?<!-- end -->", text, re.DOTALL)[0]
        rows = table.split("\n")
        rows[-2] = re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), rows[-2])
        assert wrong(edited(RESULTS, table, "\n".join(rows)), studies)[0] == [name]


@pytest.mark.parametrize(
    "path, old, new",
    [
        (RESULTS, "took 4.1 hours", "took 4.2 hours"),
        (RESULTS, "by 0.048 or more", "by 0.049 or more"),
        (README, "better by 0.009 ± 0.002", "better by 0.009 ± 0.001"),
        (README, "a loss of 1.547", "a loss of 1.548"),
        (README, "loss 1.378", "loss 1.379"),  # a comment in a block of code
    ],
)
def test_a_changed_digit_of_a_phrase_is_noticed(studies, path, old, new):
    tables, problems = wrong(edited(path, old, new), studies)
    assert not tables and any("not found" in line for line in problems)
    assert any("is accounted for nowhere" in line for line in problems)


@pytest.mark.parametrize("path", [README, RESULTS])
@pytest.mark.parametrize("number", ["0.123", "-7%", "1,234", "3e-4", "12M"])
def test_a_number_that_nothing_accounts_for_is_noticed(studies, path, number):
    old = "\n\n## "
    tables, problems = wrong(edited(path, old, f"\nIt gains {number} here.{old}"), studies)
    assert not tables and len(problems) == 1
    assert f"{number.strip('-%M')} is accounted for nowhere" in problems[0]


def test_a_table_without_a_place_or_a_function_is_noticed(studies):
    _, problems = wrong(edited(RESULTS, "<!-- table: demo -->", "<!-- table: demonstration -->"), studies)
    assert [line.partition(": ")[2] for line in problems] == [
        "no function in findings/ makes table demonstration",
        "no place for table demo; add its markers",
    ]


def test_phrases_are_found_over_line_breaks_and_not_in_longer_numbers():
    page = report.Page("page", "## A\nIt is **0.5 ±\n0.1** and `--x=3` [so](http://2).\n## B\nIt is 10.5 and 0.55.\n")
    page.find(["is 0.5 ± 0.1 and"], "A")
    page.find(["0.5"], "B")
    page.find(["x"], "C")
    assert page.problems == ["page, section 'B': not found: 0.5", "page: there is no section 'C'"]
    assert [line.split()[3] for line in page.unaccounted()] == ["10.5", "0.55"]


def test_numbers_as_text():
    losses = np.array([1.0, 1.1, 1.2])
    assert findings.text.spread(losses) == "1.100 ± 0.100"
    assert findings.text.gap(losses - 1.0) == "+0.100 ± 0.058"
    assert findings.text.gap(losses - 1.2, ".2f") == "-0.10 ± 0.06"
    assert [findings.text.power(x) for x in (0.016, 0.008, 0.0005)] == ["1.6e-2", "8e-3", "5e-4"]
    assert findings.text.listed(["a", "b", "c"]) == "a, b and c" and findings.text.listed(["a"]) == "a"


def test_the_command(monkeypatch, tmp_path, capsys):
    for path, text in edited(RESULTS, "| 2.075 |", "| 2.074 |").items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    monkeypatch.setattr(report, "HERE", tmp_path)
    with pytest.raises(report.config.Mistake, match="1 problem"):
        report.run(["--check"])
    assert "table demo is not what the files say" in capsys.readouterr().out
    report.run([])
    assert "table demo is written" in capsys.readouterr().out
    report.run(["--check"])
