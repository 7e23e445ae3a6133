"""plot.py: the pictures are made, and hold what the logs and the tables of studies hold."""

import math
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import HERE, row, seeds_of, write_log
from matplotlib.figure import Figure

import plot
import schedules
import tables


@pytest.fixture
def figure(tmp_path, monkeypatch):
    """The figure that a command draws, laid out but not painted."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))

    def draw(*arguments):
        plot.run([*arguments, f"--out={tmp_path / 'figure.png'}"])
        figures[-1].draw_without_rendering()
        return figures[-1]

    return draw


def lines_of(axes):
    """{label: (x, y)} of the lines, those with error bars included."""
    lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    data = {label: getattr(line, "lines", [line])[0].get_data() for label, line in lines.items()}
    return {label: (list(x), pytest.approx(list(y))) for label, (x, y) in data.items()}


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def points_of(axes):
    """[(x, y)] of the lines without a label."""
    lines = [line for line in axes.lines if line.get_label().startswith("_")]
    return [tuple(map(list, line.get_data())) for line in lines]


# ----------------------------------------------------------------------------------------------------------------------
# From logs and formulas


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_curves(tmp_path, monkeypatch, suffix, start):
    drawn = {}
    monkeypatch.setattr(plt.Axes, "plot", spy(plt.Axes.plot, drawn))
    out = tmp_path / f"fig.{suffix}"
    arguments = ["plot.py", "curves", write_log(tmp_path / "a"), write_log(tmp_path / "b", 0.5), "--from_step=5"]
    monkeypatch.setattr("sys.argv", [*arguments, f"--out={out}"])
    plot.run()
    assert out.read_bytes().startswith(start)
    assert drawn["a"] == ((5, 10), (4.5, 4.0))
    assert drawn["a: window"] == ((5, 10), (3.5, 3.0)) and "b: window" not in drawn
    assert drawn["b"] == ((5, 10), (4.5, 3.5))  # from the last point that it shares
    assert drawn[None] == ((9, 10), (1e-3, 5e-4))


def spy(function, drawn):
    def plot_and_tell(axes, x, y, *args, **kwargs):
        drawn[kwargs.get("label")] = (x, y)
        return function(axes, x, y, *args, **kwargs)

    return plot_and_tell


def test_curves_of_a_folder_of_runs(tmp_path, figure):
    write_log(tmp_path / "runs/b", 0.5)
    write_log(tmp_path / "runs/a")
    top, _ = figure("curves", str(tmp_path / "runs")).axes
    assert list(lines_of(top)) == ["a", "a: window", "b"]


def test_curves_of_one_schedule_have_one_colour(tmp_path, figure):
    for name in ("wsd_1", "wsd_2", "cosine_1"):
        write_log(tmp_path / name, end=len(name) / 10)
    top, bottom = figure("curves", *(str(tmp_path / name) for name in ("wsd_1", "wsd_2", "cosine_1"))).axes
    looks = {line.get_label(): (line.get_color(), line.get_marker()) for line in top.get_lines()}
    assert looks["wsd_1"][0] == looks["wsd_2"][0] != looks["cosine_1"][0]
    assert len({marker for _, marker in looks.values()}) == 4  # three runs, and the dashes of an average


def test_same_svg_twice(tmp_path, table):
    path, out = table(seeds_of("cosine", 3.0)), tmp_path / "figure.svg"
    plot.run(["lr", path, f"--out={out}"])
    first = out.read_bytes()
    plot.run(["lr", path, f"--out={out}"])
    assert out.read_bytes() == first and first.startswith(b"<?xml")


def test_schedules(figure):
    names = ["cosine", "wsd:linear", "wsd:cooldown_frac=0.5,cooldown_shape=1-square"]
    (axes,) = figure("schedules", *names, "--steps=100", "--warmup_steps=10", "--lr=0.002").axes
    lines = lines_of(axes)
    assert list(lines) == names
    x, y = lines["wsd:linear"]
    assert x == list(range(101)) and y == [2e-3 * schedules.wsd(100, 10, cooldown_shape="linear")(k) for k in x]
    assert lines["cosine"][1] == [2e-3 * schedules.cosine(100, 10)(k) for k in x]
    given = {"cooldown_frac": 0.5, "cooldown_shape": "1-square"}
    assert lines[names[2]][1] == [2e-3 * schedules.wsd(100, 10, **given)(k) for k in x]


@pytest.mark.parametrize(
    "name", [*schedules.SCHEDULES, *(f"wsd:{shape}" for shape in schedules.SHAPES), "wsd:power:0.3"]
)
def test_every_schedule_has_defaults(name):
    assert plot.parse_schedule(name, 1000, 50)(60) > 0


def test_interpolation(tmp_path, figure):
    (tmp_path / "drop.json").write_text('{"rows": [{"t": 0.0, "val_loss": 3.0}, {"t": 1.0, "val_loss": 2.5}]}')
    (axes,) = figure("interpolation", str(tmp_path / "drop.json")).axes
    assert lines_of(axes) == {"drop": ([0.0, 1.0], [3.0, 2.5])}


# ----------------------------------------------------------------------------------------------------------------------
# From results.csv


def test_lr(table, figure, capsys):
    rows = [r for lr, loss in ((1e-3, 3.2), (2e-3, 3.1)) for r in seeds_of("cosine", loss, lr=lr)]
    rows += [r for lr, loss in ((2e-3, 3.4), (1e-3, 3.0)) for r in seeds_of("wsd", loss, lr=lr)]
    drawn = figure("lr", table(rows))
    (axes,) = drawn.axes
    assert lines_of(axes) == {
        "cosine (3 seeds)": ([1e-3, 2e-3], [3.2, 3.1]),
        "wsd (3 seeds)": ([1e-3, 2e-3], [3.0, 3.4]),  # in order of x, not of the rows
    }
    band = next(c for c in axes.collections if hasattr(c, "get_data") or type(c).__name__.startswith("Fill"))
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(3.0)
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(3.3)  # 3.2 and a standard deviation of 0.1
    assert "± 1 standard deviation" in drawn.legends[0].get_title().get_text()
    assert points_of(axes)[-2:] == [([2e-3], [pytest.approx(3.1)]), ([1e-3], [pytest.approx(3.0)])]  # the rings
    assert "cosine: best of 2 at lr 0.002, loss 3.1000" in capsys.readouterr().out
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.001", "0.002"]
    assert axes.get_xscale() == "log"


def test_lr_of_several_sizes(table, figure, capsys):
    """Lengths are told in tokens a parameter, which sizes have in common, and look the same in each panel."""
    rows = []
    for size, steps in ((1_000_000, 100), (2_000_000, 200)):
        for n in (steps, 2 * steps):
            both = dict(n_params=size, total_steps=n, tokens=n * 100_000 - 1000)
            rows += [row("wsd", loss, lr=lr, **both) for lr, loss in ((1e-3, 3.0), (2e-3, 3 - n / size * 1e3))]
    drawn = figure("lr", table(rows))
    assert [axes.get_title() for axes in drawn.axes] == ["1M parameters", "2M parameters"]
    for axes in drawn.axes:
        expected = {10: ([1e-3, 2e-3], [3.0, 2.9]), 20: ([1e-3, 2e-3], [3.0, 2.8])}
        assert lines_of(axes) == {f"wsd, {n} tokens a parameter (1 seed)": expected[n] for n in expected}
    assert len(legend_of(drawn)) == 2
    assert "2M parameters, wsd, 20 tokens a parameter: best of 2 at lr 0.002, loss 2.8000" in capsys.readouterr().out


def test_a_seed_that_diverged(table, figure, capsys):
    rows = seeds_of("wsd", 3.0) + seeds_of("wsd", 4.0, lr=2e-3)
    rows[5]["val_loss"] = "nan"  # of seed 2, which had 4.0
    (axes,) = figure("lr", table(rows)).axes
    assert lines_of(axes) == {"wsd (2 to 3 seeds)": ([1e-3, 2e-3], [3.0, 4.0])}
    assert rows[5]["name"] in capsys.readouterr().err


def test_one_seed_has_no_spread(table):
    rows = tables.read_results([table([row("wsd", 3.0)])])
    (line,) = tables.series(rows, "lr")
    assert line.n == [1] and math.isnan(line.std[0]) and "unknown" in plot.spread([line])


def test_equal_runs_are_no_seeds(table):
    twins = [row("wsd", 3.0), row("wsd", 3.1) | {"name": "twin"}]
    with pytest.raises(ValueError, match="and twin have equal seed and settings"):
        plot.run(["lr", table(twins)])


def test_studies_are_joined_and_rows_chosen(table, figure):
    a = table(seeds_of("wsd", 3.0) + seeds_of("cosine", 3.1), "a.csv")
    b = table(seeds_of("wsd", 3.3, lr=2e-3), "b.csv")
    (axes,) = figure("lr", a, b, "--only", "schedule=wsd", "seed=0,1").axes
    assert lines_of(axes) == {"wsd (2 seeds)": ([1e-3, 2e-3], [3.0, 3.3])}


def test_cooldown_length(table, figure):
    rows = [
        r
        for n, share, loss in ((100, 0.1, 3.3), (100, 0.4, 3.1), (200, 0.1, 2.9))
        for r in seeds_of("wsd", loss, total_steps=n, cooldown_frac=share, cooldown_steps=int(n * share))
    ]
    rows += seeds_of("cosine", 3.25) + seeds_of("cosine", 3.15, lr=2e-3)
    left, right = figure("cooldown_length", table(rows)).axes
    best = "best cosine, 100 steps, lr 0.002 (3 seeds)"
    assert lines_of(left) == {
        "wsd, 100 steps (3 seeds)": ([0.1, 0.4], [3.3, 3.1]),
        "wsd, 200 steps (3 seeds)": ([0.1], [2.9]),
        best: ([0.1, 0.4], [3.15, 3.15]),
    }
    assert lines_of(right)["wsd, 100 steps (3 seeds)"] == ([10, 40], [3.3, 3.1])
    assert lines_of(right)[best][0] == [10, 40]


def test_cooldown_shape(table, figure):
    losses = {"1-square": 3.3, "linear": 3.1, "power:0.3": 3.2}
    rows = [r for shape, loss in losses.items() for r in seeds_of("wsd", loss, cooldown_shape=shape)]
    for r, more in zip(rows[:3], (0.02, -0.02, 0.0), strict=True):
        r["val_loss"] += more  # beyond what its seed adds to all shapes
    left, right = figure("cooldown_shape", table(rows)).axes
    shapes = lines_of(left)
    assert list(shapes) == ["linear", "power:0.3", "1-square"]  # as below, lowest loss first
    assert shapes["linear"][1] == [1 - x for x in shapes["linear"][0]]
    assert shapes["1-square"][1] == [1 - x**2 for x in shapes["1-square"][0]]
    assert [tick.get_text() for tick in right.get_yticklabels()] == list(shapes)
    ((means, at),) = lines_of(right).values()
    assert dict(zip(at.expected, means, strict=True)) == pytest.approx({2: 0.2, 0: 0.0, 1: 0.1})
    assert right.get_ylim() == (2.5, -0.5)  # the lowest on top
    spread = right.containers[0].lines[2][0].get_segments()[0]
    assert np.ptp(spread[:, 0]) == pytest.approx(0.04)


def test_averages(table, figure):
    rows = []
    for size in (1_200_000, 3_000_000):
        for n in (100, 200):
            loss = 4 - n / 100 - (size > 2e6) / 2
            rows += [row("constant", loss, total_steps=n, n_params=size, val_loss_window=loss - 0.2)]
            rows += [row("wsd", loss - 0.3, total_steps=n, n_params=size)]
            rows += [row("cosine", loss - 0.25, total_steps=n, n_params=size)]
            rows += [row("wsd", loss - (0.31 if n == 200 else 0.2), total_steps=n, n_params=size, lr=0.1)]
    drawn = figure("averages", table(rows))
    small, large = drawn.axes
    assert [axes.get_title() for axes in drawn.axes] == ["1.2M parameters", "3M parameters"]
    assert lines_of(small) == {  # the second peak is better at 200 steps
        "constant: weights as they are (1 seed)": ([100, 200], [3.0, 2.0]),
        "constant: window (1 seed)": ([100, 200], [2.8, 1.8]),
        "wsd (1 seed)": ([100, 200], [2.7, 1.69]),
        "cosine (1 seed)": ([100, 200], [2.75, 1.75]),
    }
    assert lines_of(large)["wsd (1 seed)"] == ([100, 200], [2.2, 1.19])
    assert len(legend_of(drawn)) == 4


def test_cooldowns_of_equal_steps_are_one_line(table, figure):
    rows = [row("constant", 3.0, total_steps=n) for n in (100, 200)]
    rows += [row("wsd", 2.9, total_steps=n, cooldown_steps=20, cooldown_frac=20 / n) for n in (100, 200)]
    (axes,) = figure("averages", table(rows)).axes
    assert lines_of(axes)["wsd (1 seed)"] == ([100, 200], [2.9, 2.9])


def test_envelope(tmp_path, table, figure):
    rows = seeds_of("wsd", 3.5) + seeds_of("wsd", 3.0, n_params=3_000_000) + seeds_of("wsd", 3.6, total_steps=300)
    rows += [row("cosine", 4.0) | {"name": "logged"}]
    drawn = figure("envelope", table(rows), "--runs", write_log(tmp_path / "logged"))
    (axes,) = drawn.axes
    points = points_of(axes)
    flops = [6 * n * steps * 64 for n, steps in ((1.2e6, 100), (3e6, 100))]
    assert (flops, pytest.approx([3.5, 3.0])) in points  # without the one of 300 steps, which is no better
    assert ([5e9, 1e10], [4.5, 4.0]) in points  # the run on its way; step 0 has no place on a logarithmic axis
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert legend_of(drawn) == ["1.2M parameters", "3M parameters", "wsd: lower envelope", "cosine: lower envelope"]
    assert sum(len(x) == 1 for x, _ in points) == 4  # the ends, seeds as one
    with pytest.raises(ValueError, match="no run of that name"):
        figure("envelope", table(rows[:3]), "--runs", str(tmp_path / "logged"))


def test_diagonal(table, figure, capsys):
    rows, differences = [], []
    for seed, (n, loss) in enumerate(((100, 3.4), (100, 3.3), (200, 3.1), (400, 2.9))):
        cosine = math.log(0.99 * math.exp(loss) + 0.5)
        differences.append(loss - cosine)
        rows += [row("wsd", loss, seed, n), row("cosine", cosine, seed, n, lr=2e-3)]
        rows += [row("cosine", cosine + 1, seed, n)]  # not its best learning rate
    rows += [row("wsd", 2.0, 9)]  # of a seed that cosine has not
    (axes,) = figure("diagonal", table(rows)).axes
    assert "wsd: cosine = 0.990 x +0.50" in lines_of(axes)
    mean, error = np.mean(differences), np.std(differences, ddof=1) / 2
    told = f"its loss - cosine's {mean:+.4f} ± {error:.4f} nats (standard error, 4 pairs)"
    assert told in capsys.readouterr().out and mean < 0
    x, y = next(data for data in points_of(axes) if len(data[0]) == 4)
    assert x == pytest.approx(np.exp([3.4, 3.3, 3.1, 2.9])) and y == pytest.approx(0.99 * np.array(x) + 0.5)
    span = lines_of(axes)["y = x: equal"]
    assert span[1] == span[0]


def test_bars(table, figure):
    rows = seeds_of("cosine", 3.5, val_loss_window=3.4) + seeds_of("cosine", 3.2, lr=2e-3, val_loss_window=3.3)
    rows += seeds_of("wsd", 3.0) + seeds_of("wsd", 2.8, total_steps=200)
    drawn = figure("bars", table(rows))
    (axes,) = drawn.axes
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in axes.containers if hasattr(c, "patches")}
    assert heights == {
        "cosine (3 seeds)": pytest.approx([3.2]),
        "cosine: window (3 seeds)": pytest.approx([3.3]),
        "wsd (3 seeds)": pytest.approx([3.0, 2.8]),
    }
    errors = axes.containers[0].lines[2][0].get_segments()[0]
    assert np.ptp(errors[:, 1]) == pytest.approx(0.2)
    start = axes.get_ylim()[0]
    assert start == pytest.approx(2.8 - 0.5 / 4) and f"axis from {start:.3g}, not 0" in axes.get_title()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["100", "200"]


def test_cost(table, figure, capsys):
    rows = seeds_of("wsd", 3.0) + seeds_of("cosine", 3.0, n_params=3_000_000)
    rows[0]["val_loss"] = "nan"  # it was paid for all the same
    rows[5]["train_s_paid"] = 3600.0
    left, right = figure("cost", table(rows)).axes
    alone, shared = ([bar.get_height() for bar in bars] for bars in left.containers)
    small, large = 3 * 6 * 1.2e6 * 6400 / 1e11, 3 * 6 * 3e6 * 6400 / 1e11
    assert alone == pytest.approx([small, large, small + large]) and left.get_ylabel() == "training FLOPs (1e11)"
    assert shared == pytest.approx([height / 4 for height in alone]) and left.get_title() == "shared: 25 % of alone"
    alone, shared = ([bar.get_height() for bar in bars] for bars in right.containers)
    assert (alone, shared) == (pytest.approx([3, 3, 6]), pytest.approx([1.5, 2, 3.5]))
    assert "58.3 % of each run alone" in capsys.readouterr().out


def test_lines_differ_in_grey():
    looks = [plot.style(i) for i in range(30)]
    assert len({(look["marker"], str(look["linestyle"])) for look in looks}) == 30


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: "", "no column name, schedule"),
        (lambda text: text.replace("val_loss,", "loss,"), "no column val_loss;"),
        (lambda text: text.splitlines()[0], "no run in it"),
        (lambda text: text[:-40], "line 2: not .* cells"),
        (lambda text: text.replace(",0.001,", ",much,"), "line 2: lr='much' is not a number"),
        (lambda text: text.replace(",0.001,", ",,"), "line 2: lr is empty"),
        (lambda text: text.replace(",3.0,", ",nan,"), "no run has a finite val_loss"),
    ],
)
def test_bad_tables(tmp_path, table, change, message):
    path = Path(table([row("wsd", 3.0)]))
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        plot.run(["lr", str(tmp_path)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["lr", "nowhere.csv"], "nowhere.csv: no results.csv there"),
        (["cooldown_length", "TABLE"], "no run of schedule wsd among constant, cosine"),
        (["cooldown_shape", "TABLE"], "no run of schedule wsd"),
        (["averages", "TABLE", "--only", "schedule=cosine"], "no run of schedule constant"),
        (["diagonal", "TABLE", "--only", "schedule=constant"], "no run of schedule cosine or onecycle"),
        (["diagonal", "TABLE"], "no cosine run has another of equal seed"),
        (["lr", "TABLE", "--only", "lr=1e-9"], "--only lr=1e-9: no run is left"),
        (["lr", "TABLE", "--only", "rate=1"], "--only rate=1: expected COLUMN=VALUE"),
        (["lr", "TABLE", "--only", "lr"], "--only lr: expected COLUMN=VALUE"),
        (["lr", "TABLE", "--out=figure.txt"], "--out=figure.txt: its suffix"),
        (["schedules", "sine"], "schedule='sine': choose one of"),
        (["schedules", "wsd:sine"], "cooldown_shape='sine': choose one of"),
        (["interpolation", "TABLE"], "expected what evaluate.py --interpolate"),
        (["curves", "TABLE"], "a line of it is not JSON"),
        (["curves", "LOG", "--from_step=11"], "nothing to draw"),
    ],
)
def test_mistakes(tmp_path, table, arguments, message):
    given = {"TABLE": table([row("cosine", 3.0), row("constant", 3.1)]), "LOG": write_log(tmp_path / "log")}
    with pytest.raises(ValueError, match=message):
        plot.run([given.get(argument, argument) for argument in arguments])


def test_a_mistake_is_one_line(table):
    command = [sys.executable, "plot.py", "averages", table([row("cosine", 3.0)])]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: no run of schedule")
