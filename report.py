"""The numbers of README.md, GUIDE.md and results/README.md: each is computed from the files in results/, or explained.

    make results                # draws every figure, then does the next line
    python report.py            # writes every table in place, and looks for every number of the text
    python report.py --check    # compares only, as the tests do

findings/ has a function per study, which computes its tables, and its numbers in short phrases. A phrase has to be
found in the text of its section. There, line breaks are blanks, code is a single `, and bold marks and the targets of
links are gone; of blocks of code the comments stay. A number in no table and no phrase is an error, unless
findings/elsewhere.py says where it is from: the paper, a config, a measurement. So exit status 1 and a line each have a
phrase that is not found, a number that nothing accounts for and, with --check, a table that differs. Numbers in words
("three seeds") are checked only where a phrase has them, and no program checks what the words around a number claim.

To add a study:

1. `python tables.py runs/NAME results/NAME` keeps its files; its figures go into the Makefile, under `figures`.
2. A section of results/README.md with its text, and two lines for each table: `<!-- table: X -->` and `<!-- end -->`.
3. A function in findings/ that returns a Study, and its name in STUDIES of findings/__init__.py. `cooldown_shape` is
   one to copy. Its `claims` are rows of the first table of results/README.md, in the order of STUDIES; what README.md
   says of it stands in `readme`.
4. `python report.py` fills the tables in, and lists the numbers of the text that no phrase covers yet.
"""

import re
from pathlib import Path

import config
import findings
from findings.elsewhere import ELSEWHERE, GIVEN, GUIDE, README, RESULTS
from findings.text import facts

HERE = Path(__file__).parent

MARKED = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
BLOCK = re.compile(r"```.*?```", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)\d+(?:[.,]\d+)*(?:e-?\d+)?")
NAMES = re.compile(r"\b1-sqrt\b|\bFigure \d|\bet al\. 20\d\d|\bNeurIPS 20\d\d")  # what is no number


def markdown(rows):
    """A table of rows of cells, the first of which is its head."""
    head, *rest = ["|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|\n" for row in rows]
    return "".join([head, "|" + "---|" * len(rows[0]) + "\n", *rest])


def claims_table(studies):
    """The first table: what each study asks, what the answer is here and in the paper, and from how many runs."""
    rows = [
        ["question", "answer here", "in the paper", "study", "parameters", "steps", "seeds", "runs, time", "command"]
    ]
    for study in studies:
        link = f"[{study.name}](#{study.section.lower().replace(' ', '-').replace(':', '')})"
        rows += [[*claim, link, *facts(study), f"`{study.command}`"] for claim in study.claims]
    return rows


def plain(text):
    """The text as phrases are found in it: in one line, without our tables, code, targets of links and bold marks.

    Of blocks of code the comments stay, of code in a line a single `.
    """
    text = BLOCK.sub(lambda block: " ".join(re.findall(r" # (.*)", block[0])), MARKED.sub("", text))
    text = re.sub(r"^\d+\. ", "", text, flags=re.MULTILINE)  # of a list
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "`", text)).replace("**", "")
    return " ".join(text.split())


def sections(text):
    """{heading: text below it}; what stands above the first one is under ""."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def spans(phrase, text):
    """Where the phrase stands in the text, and not as a part of longer words or numbers."""
    return [m.span() for m in re.finditer(rf"(?<![\w.,+-]){re.escape(phrase)}(?!\w|%|[.,]\d)", text)]


class Page:
    """A page's sections as plain text, and which characters of these are accounted for."""

    def __init__(self, path, text):
        self.path, self.problems = path, []
        self.texts = {heading: plain(part) for heading, part in sections(text).items()}
        self.covered = {heading: set() for heading in self.texts}

    def find(self, phrases, section=None):
        """Mark phrases as accounted for, in one section or, for None, wherever they stand; a problem if nowhere."""
        if section not in (None, *self.texts):
            self.problems.append(f"{self.path}: there is no section {section!r}")
            return
        for phrase in (" ".join(phrase.split()) for phrase in phrases):
            found = 0
            for heading in self.texts if section is None else [section]:
                for start, end in spans(phrase, self.texts[heading]):
                    self.covered[heading].update(range(start, end))
                    found += 1
            if not found:
                where = f", section {section!r}" if section else ""
                self.problems.append(f"{self.path}{where}: not found: {phrase}")

    def unaccounted(self):
        """A line for each number that no phrase covers."""
        for heading, text in self.texts.items():
            covered, names = self.covered[heading], [m.span() for m in NAMES.finditer(text)]
            for start, end in (m.span() for m in NUMBER.finditer(text)):
                if start in covered or any(a <= start < b for a, b in names):
                    continue
                around = text[max(0, start - 40) : end + 30]
                yield f"{self.path}, section {heading!r}: {text[start:end]} is accounted for nowhere: ...{around}..."


def check(pages, studies):
    """({path: text with its tables as they should be}, [what else is wrong]) of the texts of both pages."""
    tables = {"claims": claims_table(studies)}
    for study in studies:
        tables |= study.tables
    written = {name: markdown(rows) for name, rows in tables.items()}
    right, problems = {}, []
    for path, text in pages.items():
        marked = [m[2] for m in MARKED.finditer(text)]
        problems += [f"{path}: no function in findings/ makes table {name}" for name in marked if name not in written]
        right[path] = MARKED.sub(lambda m: m[1] + written.get(m[2], m[3]) + m[4], text)
    there = [m[2] for text in pages.values() for m in MARKED.finditer(text)]
    problems += [f"{RESULTS}: no place for table {name}; add its markers" for name in written if name not in there]

    found = {path: Page(path, text) for path, text in pages.items()}
    for study in studies:
        found[RESULTS].find(study.phrases, study.section)
        found[README].find(study.readme)
    for path, section, _, phrases in GIVEN:
        found[path].find(phrases, section)
    for page in found.values():
        for section in page.texts:
            if (page.path, section) in ELSEWHERE:
                page.covered[section] = set(range(len(page.texts[section])))
        problems += [*page.problems, *page.unaccounted()]
    return right, problems


def differing(pages, right):
    """[(path, name of a table)] of those that are not as they should be."""
    tables = [(path, zip(MARKED.finditer(pages[path]), MARKED.finditer(right[path]), strict=True)) for path in pages]
    return [(path, old[2]) for path, pairs in tables for old, new in pairs if old[3] != new[3]]


def read_pages():
    return {path: (HERE / path).read_text(encoding="utf-8") for path in (README, GUIDE, RESULTS)}


def run(args=None):
    parser = config.Parser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; a table that differs is an error")
    args = parser.parse_args(args)
    studies = [study() for study in findings.STUDIES]
    pages = read_pages()
    right, problems = check(pages, studies)
    tables = differing(pages, right)
    if args.check:
        problems += [f"{path}: table {name} is not what the files say; run python report.py" for path, name in tables]
    else:
        for path, text in right.items():
            (HERE / path).write_text(text, encoding="utf-8")
        print(*(f"{path}: table {name} is written" for path, name in tables), sep="\n", end="\n" * bool(tables))
    for study in studies:
        print(f"{study.name}: {len(study.tables)} tables, {len(study.phrases) + len(study.readme)} phrases")
    given = sum(len(phrases) for *_, phrases in GIVEN)
    print(f"{given} phrases given with a reason, {len(ELSEWHERE)} sections of measurements elsewhere")
    if problems:
        print(*problems, sep="\n")
        raise config.Mistake(f"{len(problems)} problems, see above")


if __name__ == "__main__":
    config.main(run)
