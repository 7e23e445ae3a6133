"""plot.py: the pictures are made, and hold what the logs and the tables of studies hold."""

import json
import math
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import HERE, row, seeds_of, write_log
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import plot
import schedules
import tables
import tune
from config import Mistake
from figures import looks, runs


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
    assert drawn["a, window"] == ((5, 10), (3.5, 3.0)) and "b, window" not in drawn
    assert drawn["b"] == ((5, 10), (4.5, 3.5))  # from the last point that it shares
    x, y = drawn[None]
    assert list(x) == [9, 10] and list(y) == [1e-3, 5e-4]


def spy(function, drawn):
    def plot_and_tell(axes, x, y, *args, **kwargs):
        drawn[kwargs.get("label")] = (x, y)
        return function(axes, x, y, *args, **kwargs)

    return plot_and_tell


def test_curves_of_a_folder_of_runs(tmp_path, figure):
    write_log(tmp_path / "runs/b", 0.5)
    write_log(tmp_path / "runs/a")
    top, _ = figure("curves", str(tmp_path / "runs")).axes
    assert list(lines_of(top)) == ["a", "a, window", "b"]


def write_run(folder, end, **options):
    """A run with a config.json beside its log; options that are not at their defaults are told in it."""
    path = write_log(folder, end)
    (folder / "config.json").write_text(json.dumps({"lr": 1e-3, **options, "not_default": [*options]}))
    return path


def test_curves_say_in_words_what_the_runs_are(tmp_path, figure):
    runs = [write_run(tmp_path / "a", 0.0, schedule="constant", total_steps=2000, window_horizon=60)]
    runs += [write_run(tmp_path / f"b{i}", 0.1 * i, schedule="wsd", total_steps=1000 * i) for i in (2, 1)]
    runs += [write_run(tmp_path / "c", 0.3, schedule="onecycle", total_steps=2000, cooldown_shape=None)]
    drawn = figure("curves", *runs)
    steps = [line["step"] for line in tables.read_log(tmp_path / "a")[1]]
    assert legend_of(drawn) == [
        "constant, 2,000 steps",
        "constant, window",
        "cooldown, 1-sqrt, 2,000 steps",  # as given, for their logs are of one length
        "cooldown, 1-sqrt, 1,000 steps",
        "cosine (OneCycle), 2,000 steps",
    ]
    top, _ = drawn.axes
    colors = {line.get_label(): line.get_color() for line in top.get_lines()}
    assert colors["constant, 2,000 steps"] == looks.LOOKS["constant"][0]
    assert colors["cosine (OneCycle), 2,000 steps"] == looks.LOOKS["cosine (OneCycle)"][0]
    pale, dark = colors["cooldown, 1-sqrt, 2,000 steps"], colors["cooldown, 1-sqrt, 1,000 steps"]
    assert dark == to_rgb(looks.LOOKS["cooldown, 1-sqrt"][0]) and min(pale) > min(dark)
    assert steps == [0, 5, 10]


def test_averages_are_those_of_the_constant_run_wherever_it_stands(tmp_path, figure):
    runs = [write_run(tmp_path / name, 0.1 * i, schedule=name) for i, name in enumerate(("onecycle", "constant"))]
    assert legend_of(figure("curves", *runs)) == ["constant", "constant, window", "cosine (OneCycle)"]


def test_the_learning_rate_of_a_branch_begins_where_it_leaves_its_trunk():
    thinned = [{"step": step, "lr": lr} for step, lr in ((10, 1.0), (20, 1.0), (40, 0.5), (50, 0.2))]  # 30 is left out
    assert runs.rates_of(thinned, start=30) == [(20, 1.0), (40, 0.5), (50, 0.2)]
    assert runs.rates_of(thinned, start=0) == [(10, 1.0), (20, 1.0), (40, 0.5), (50, 0.2)]


def test_curves_of_an_archive_know_the_runs_from_the_table(tmp_path, table, figure):
    rows = [row("onecycle", 3.0) | {"name": "x"}, row("cosine", 3.0) | {"name": "y"}, row("wsd", 3.0) | {"name": "z"}]
    table(rows)
    for i, r in enumerate(rows):
        write_log(tmp_path / r["name"], i / 10)
    tables.keep(tmp_path, tmp_path / "kept")
    top, _ = figure("curves", *(str(tmp_path / "kept" / r["name"]) for r in rows)).axes
    assert list(lines_of(top)) == ["cosine (OneCycle)", "cosine (OneCycle), window", "cosine", "cooldown, 1-sqrt"]


def test_twins_are_told_apart_by_their_folders(tmp_path, figure):
    runs = [write_run(tmp_path / name, i / 10, schedule="constant") for i, name in enumerate("ab")]
    top, _ = figure("curves", *runs).axes
    assert list(lines_of(top)) == ["constant (a)", "constant, window", "constant (b)"]


def test_runs_that_differ_in_their_seeds_are_one_line_with_a_band(tmp_path, figure):
    runs = [write_run(tmp_path / f"a{i}", i / 10, schedule="constant", seed=i, data_seed=i) for i in (0, 1, 2)]
    runs += [write_run(tmp_path / "b", 0.5, schedule="wsd")]
    drawn = figure("curves", *runs)
    top, bottom = drawn.axes
    losses = [[line["val_loss"] for line in tables.read_log(tmp_path / f"a{i}")[1]] for i in (0, 1, 2)]
    losses = np.array(losses)[:, 1:]  # before that they are alike, as if the later ones were branches
    lines, bands = lines_of(top), top.collections
    assert list(lines) == ["constant", "constant, window", "cooldown, 1-sqrt"] and len(bottom.get_lines()) == 2
    assert lines["constant"][1] == list(np.mean(losses, axis=0))
    assert len(bands) == 1  # of the constant runs, and not of their windows, which are alike, or of the single cooldown
    heights = bands[0].get_paths()[0].vertices[:, 1]
    assert min(heights) == np.min(losses) and max(heights) == np.max(losses)
    assert drawn.legends[0].get_title().get_text() == "mean over 3 seeds, and from the least to the greatest"


def test_a_branch_shows_its_learning_rate_from_where_it_leaves(tmp_path, figure):
    """Even if the two logs hold other steps, as thinned ones do."""
    for name, steps, last in (("trunk", range(1, 11), 1e-3), ("branch", range(1, 11, 3), 2e-4)):
        write_log(tmp_path / name, 0.5 * (name == "branch"))
        log = tmp_path / name / "log.jsonl"
        kept = [line for line in map(json.loads, log.read_text().splitlines()) if "val_loss" in line]
        kept += [{"step": s, "train_loss": 1.0, "lr": min(s / 2, 1) * (last if s == 10 else 1e-3)} for s in steps]
        log.write_text("".join(json.dumps(line) + "\n" for line in kept))
    _, bottom = figure("curves", str(tmp_path / "trunk"), str(tmp_path / "branch")).axes
    trunk, branch = bottom.get_lines()
    assert len(trunk.get_xdata()) == 10 and list(branch.get_xdata()) == [7, 10]


def test_same_svg_twice(tmp_path, table):
    path, out = table(seeds_of("cosine", 3.0)), tmp_path / "figure.svg"
    plot.run(["lr", path, f"--out={out}"])
    first = out.read_bytes()
    plot.run(["lr", path, f"--out={out}"])
    assert out.read_bytes() == first and first.startswith(b"<?xml")


def test_schedules(figure):
    names = ["cosine", "wsd:linear", "wsd:cooldown_frac=0.5,cooldown_shape=1-square", "inverse_sqrt:cooldown_steps=20"]
    (axes,) = figure("schedules", *names, "--steps=100", "--warmup_steps=10").axes
    lines = lines_of(axes)
    assert list(lines)[:3] == ["cosine", "cooldown, linear", "cooldown, 1-square"]
    x, y = lines["cooldown, linear"]
    assert x == list(range(101)) and y == [schedules.wsd(100, 10, cooldown_shape="linear")(k) for k in x]
    assert lines["cosine"][1] == [schedules.cosine(100, 10)(k) for k in x]
    given = {"cooldown_frac": 0.5, "cooldown_shape": "1-square"}
    assert lines["cooldown, 1-square"][1] == [schedules.wsd(100, 10, **given)(k) for k in x]
    cooled = schedules.cooldown(schedules.inverse_sqrt(10), 100, 20)
    assert list(lines.values())[3][1] == [cooled(k) for k in x]


def test_schedules_with_the_shares_of_the_updates(figure, capsys):
    args = ["schedules", "linear", "constant", "--steps=100", "--warmup_steps=10", "--lr=0.1", "--weight_decay=0.5"]
    top, bottom = figure(*args).axes
    said, (linear, constant) = capsys.readouterr().out, [line.get_ydata() for line in bottom.get_lines()]
    assert constant[-1] == pytest.approx(0.05) and constant[-2] == pytest.approx(0.05 * 0.95) and len(constant) == 100
    assert linear[-1] == pytest.approx(0.05 / 90) and f"constant: of the last weights {sum(constant[80:]):.1%}" in said
    with pytest.raises(ValueError, match="--lr and --weight_decay: give both"):
        figure("schedules", "--lr=0.1")


@pytest.mark.parametrize(
    "name",
    [*schedules.SCHEDULES, *(f"wsd:{shape}" for shape in schedules.SHAPES), "wsd:power:0.3", "wsd:cooldown_steps=2e2"],
)
def test_every_schedule_has_defaults(name):
    assert runs.parse_schedule(name, 1000, 50)[0](60) > 0


def test_downstream(tmp_path, figure):
    """Raw weights and averages of two checkpoints of two seeds, a cooldown, and a run whose schedule was not told."""
    for step, error in ((40, 0.5), (20, 0.6)):
        rows = []
        for worse in (0, 0.02):
            point = {"step": step, "val_loss": 3 - error, "error_stderr": 0.01, "schedule": "constant"}
            rows.append({"average": "raw weights", "steps": 1, **point, "error": error + worse})
            rows.append({"average": "window x 1", "steps": 10, **point, "error": error + worse - 0.1})
        (tmp_path / f"at{step}.json").write_text(json.dumps({"rows": rows}))
    end = {"checkpoint": "runs/gone/ckpt/step_00000050.pt", "step": 50, "error": 0.3, "val_loss": 2.0}
    rows = [end, end | {"schedule": "wsd", "cooldown_shape": "linear"}]
    (tmp_path / "cooled.json").write_text(json.dumps({"rows": rows}))
    files = [str(tmp_path / name) for name in ("at40.json", "at20.json", "cooled.json", "at20.json")]
    drawn = figure("downstream", *files)
    errors, losses, both = drawn.axes
    named = {"constant", "window of 10 steps", "cooldown, linear", "gone"}
    assert {*legend_of(drawn)} == named == {*lines_of(losses)}
    assert lines_of(errors)["constant"] == ([20, 40], [pytest.approx(0.61), pytest.approx(0.51)])
    assert lines_of(errors)["window of 10 steps"] == ([20, 40], [pytest.approx(0.51), pytest.approx(0.41)])
    assert lines_of(losses)["constant"] == ([20, 40], [2.4, 2.5])
    assert lines_of(losses)["cooldown, linear"] == ([50], [2.0])
    assert both.lines[0].get_xydata()[:, 1].tolist() == pytest.approx([0.6, 0.62, 0.5, 0.52])  # every run
    (tmp_path / "old.json").write_text(json.dumps({"rows": [{"average": "raw weights", "steps": 1, **end}]}))
    assert legend_of(figure("downstream", str(tmp_path / "old.json"))) == ["gone"]


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
        "cosine": ([1e-3, 2e-3], [3.2, 3.1]),
        "cooldown, 1-sqrt": ([1e-3, 2e-3], [3.0, 3.4]),  # in order of x, not of the rows
    }
    bars = [bar for container in axes.containers for bar in container.lines[2][0].get_segments()]
    assert [np.ptp(bar[:, 1]) for bar in bars] == pytest.approx([0.2] * 4)  # a standard deviation of 0.1 to each side
    assert drawn.legends[0].get_title().get_text() == "mean over 3 seeds ± 1 standard deviation"
    assert points_of(axes)[-2:] == [([2e-3], [pytest.approx(3.1)]), ([1e-3], [pytest.approx(3.0)])]  # the rings
    assert "cosine: best of 2 at lr 0.002, loss 3.1000" in capsys.readouterr().out
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.001", "0.002"]
    assert axes.get_xscale() == "log"


def test_lr_of_several_sizes(table, figure, capsys):
    """Lengths are told in tokens per parameter, which sizes have in common, and look the same in each panel."""
    rows = []
    for size, steps in ((1_000_000, 100), (2_000_000, 200)):
        for n in (steps, 2 * steps):
            both = dict(n_params=size, total_steps=n, tokens=n * 100_000 - 1000)
            rows += [row("wsd", loss, lr=lr, **both) for lr, loss in ((1e-3, 3.0), (2e-3, 3 - n / size * 1e3))]
    drawn = figure("lr", table(rows))
    assert [axes.get_title() for axes in drawn.axes] == ["1M parameters", "2M parameters"]
    for axes in drawn.axes:
        expected = {10: ([1e-3, 2e-3], [3.0, 2.9]), 20: ([1e-3, 2e-3], [3.0, 2.8])}
        assert lines_of(axes) == {f"cooldown, 1-sqrt, {n} tokens per parameter": expected[n] for n in expected}
    assert len(legend_of(drawn)) == 2
    assert (
        "2M parameters, cooldown, 1-sqrt, 20 tokens per parameter: best of 2 at lr 0.002, loss 2.8000"
        in capsys.readouterr().out
    )


def test_lr_of_several_densities(table, figure, capsys):
    rows = [r for density in (0.5, 1.0) for r in seeds_of("cosine", 3.0 + density, density=density)]
    panels = {axes.get_title(): lines_of(axes) for axes in figure("lr", table(rows)).axes if lines_of(axes)}
    assert panels == {f"1.2M parameters, density {d:g}": {"cosine": ([1e-3], [3.0 + d])} for d in (0.5, 1.0)}
    assert "density 0.5, cosine: best of 1 at lr 0.001, loss 3.5000" in capsys.readouterr().out


def test_a_seed_that_diverged(table, figure, capsys):
    rows = seeds_of("wsd", 3.0) + seeds_of("wsd", 4.0, lr=2e-3)
    rows[5]["val_loss"] = "nan"  # of seed 2, which had 4.0
    drawn = figure("lr", table(rows))
    assert lines_of(drawn.axes[0]) == {"cooldown, 1-sqrt": ([1e-3, 2e-3], [3.0, 4.0])}
    assert drawn.legends[0].get_title().get_text().startswith("mean over 2 to 3 seeds")
    assert rows[5]["name"] in capsys.readouterr().err


def test_one_seed_has_no_spread(table):
    rows = tables.read_results([table([row("wsd", 3.0)])])
    (line,) = tables.mean_lines(rows, "lr")
    assert line.n == [1] and math.isnan(line.std[0]) and "unknown" in looks.spread([line])


def test_equal_runs_are_no_seeds(table):
    twins = [row("wsd", 3.0), row("wsd", 3.1) | {"name": "twin"}]
    with pytest.raises(ValueError, match="and twin have equal seed and settings"):
        plot.run(["lr", table(twins)])


def test_studies_are_joined_and_rows_chosen(table, figure):
    a = table(seeds_of("wsd", 3.0) + seeds_of("cosine", 3.1), "a.csv")
    b = table(seeds_of("wsd", 3.3, lr=2e-3), "b.csv")
    (axes,) = figure("lr", a, b, "--only", "schedule=wsd", "seed=0,1").axes
    assert lines_of(axes) == {"cooldown, 1-sqrt": ([1e-3, 2e-3], [3.0, 3.3])}


def test_cooldown_length(table, figure):
    rows = [
        r
        for n, share, loss in ((100, 0.1, 3.3), (100, 0.4, 3.1), (200, 0.1, 2.9))
        for r in seeds_of("wsd", loss, total_steps=n, cooldown_frac=share, cooldown_steps=int(n * share))
    ]
    rows += seeds_of("cosine", 3.25) + seeds_of("cosine", 3.15, lr=2e-3)
    left, right = figure("cooldown_length", table(rows)).axes
    assert [axes.get_title() for axes in (left, right)] == [f"1.2M parameters, {n} steps" for n in (100, 200)]
    assert lines_of(left) == {
        "cooldown, 1-sqrt": ([0.1, 0.4], [3.3, 3.1]),
        "cosine": ([0.1, 0.4], [3.15, 3.15]),  # at the better of its peaks
    }
    assert lines_of(right) == {"cooldown, 1-sqrt": ([0.1], [2.9])}


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
    means, at = right.containers[0].lines[0].get_data()
    assert dict(zip(at, means, strict=True)) == pytest.approx({2: 0.2, 0: 0.0, 1: 0.1})
    assert right.get_ylim() == (2.5, -0.5)  # the lowest on top
    spread = right.containers[0].lines[2][0].get_segments()[0]
    assert np.ptp(spread[:, 0]) == pytest.approx(0.04)


def test_averages(table, figure):
    rows = []
    for size in (1_200_000, 3_000_000):
        for n in (100, 200):
            loss = 4 - n / 100 - (size > 2e6) / 2
            window = {"val_loss_window": loss - 0.2, "window_steps": 20 if size < 2e6 else 50}
            rows += [row("constant", loss, total_steps=n, n_params=size, **window)]
            rows += [row("wsd", loss - 0.3, total_steps=n, n_params=size)]
            rows += [row("cosine", loss - 0.25, total_steps=n, n_params=size)]
            rows += [row("wsd", loss - (0.31 if n == 200 else 0.2), total_steps=n, n_params=size, lr=0.1)]
    drawn = figure("averages", table(rows))
    small, large = drawn.axes
    assert [axes.get_title() for axes in drawn.axes] == ["1.2M parameters", "3M parameters"]
    assert lines_of(small) == {  # the second peak is better at 200 steps
        "constant": ([100, 200], [3.0, 2.0]),
        "constant, window of 20 to 50 steps": ([100, 200], [2.8, 1.8]),  # those of all sizes
        "cooldown, 1-sqrt": ([100, 200], [2.7, 1.69]),
        "cosine": ([100, 200], [2.75, 1.75]),
    }
    assert lines_of(large)["cooldown, 1-sqrt"] == ([100, 200], [2.2, 1.19])
    assert len(legend_of(drawn)) == 4


def test_cooldowns_of_equal_steps_are_one_line(table, figure):
    rows = [row("constant", 3.0, total_steps=n) for n in (100, 200)]
    rows += [row("wsd", 2.9, total_steps=n, cooldown_steps=20, cooldown_frac=20 / n) for n in (100, 200)]
    (axes,) = figure("averages", table(rows)).axes
    assert lines_of(axes)["cooldown, 1-sqrt"] == ([100, 200], [2.9, 2.9])


def test_envelope(table, figure):
    rows = seeds_of("wsd", 3.5) + seeds_of("wsd", 3.0, n_params=3_000_000) + seeds_of("wsd", 3.6, total_steps=300)
    rows += [row("cosine", 4.0)]
    drawn = figure("envelope", table(rows))
    (axes,) = drawn.axes
    points = points_of(axes)
    flops = [6 * n * steps * 64 for n, steps in ((1.2e6, 100), (3e6, 100))]
    assert lines_of(axes)["cooldown, 1-sqrt"] == (flops, [3.5, 3.0])  # without the one of 300 steps, which is no better
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert legend_of(drawn) == ["cooldown, 1-sqrt", "cosine", "1.2M parameters", "3M parameters"]
    assert sum(len(x) == 1 for x, _ in points) == 4  # the ends, seeds as one


def test_diagonal(table, figure, capsys):
    rows, differences = [], []
    for seed, (n, loss) in enumerate(((100, 3.4), (100, 3.3), (200, 3.1), (400, 2.9))):
        cosine = math.log(0.99 * math.exp(loss) + 0.5)
        differences.append(loss - cosine)
        rows += [row("wsd", loss, seed, n), row("cosine", cosine, seed, n, lr=2e-3)]
        rows += [row("cosine", cosine + 1, seed, n)]  # not its best learning rate
    rows += [row("wsd", 2.0, 9)]  # of a seed that cosine has not
    (axes,) = figure("diagonal", table(rows)).axes
    assert "cooldown, 1-sqrt: cosine = 0.990 x + 0.50" in lines_of(axes)
    mean, error = np.mean(differences), np.std(differences, ddof=1) / 2
    told = f"its loss minus cosine's {mean:+.4f} ± {error:.4f} nats (standard error, 4 pairs)"
    assert told in capsys.readouterr().out and mean < 0
    x, y = next(data for data in points_of(axes) if len(data[0]) == 4)
    assert x == pytest.approx(np.exp([3.4, 3.3, 3.1, 2.9])) and y == pytest.approx(0.99 * np.array(x) + 0.5)
    span = lines_of(axes)["y = x: equal"]
    assert span[1] == span[0]


def test_methods_against_a_baseline(table, figure, capsys):
    rows = []
    for steps, gains in ((100, (0.1, 0.2, 0.3)), (200, (0.1, 0.1, 0.4))):
        for seed, gain in enumerate(gains):
            base = 4 - steps / 100 + seed / 10
            rows += [
                row("wsd", base, seed, steps, optimizer="adamw"),
                row("wsd", base - gain, seed, steps, 0.02, optimizer="muon"),
            ]
    rows += [row("wsd", 1.0, 9, 200, 0.02, optimizer="muon")]  # of a seed that the baseline has not
    left, right = figure("methods", table(rows), "--baseline=adamw").axes
    assert lines_of(left)["adamw"] == ([100, 200], [3.1, 2.1])
    error = np.std([0.1, 0.1, 0.4], ddof=1) / math.sqrt(3)
    assert f"muon, 200 steps: -0.2000 ± {error:.4f} (standard error, 3 pairs)" in capsys.readouterr().out
    assert lines_of(right)["muon"] == ([100, 200], [-0.2, -0.2])
    with pytest.raises(Mistake, match="--baseline=cosine: expected one of adamw, muon"):
        figure("methods", table(rows), "--baseline=cosine")


def test_methods_differ_in_optimizer_and_schedule(table, figure):
    rows = [row("onecycle", 3.0, optimizer="adamw"), row("wsd", 2.9, optimizer="adamw")]
    rows += [row("constant", 2.8, optimizer="schedule_free")]
    drawn = figure("methods", table(rows), "--baseline=adamw, cosine (OneCycle)")
    assert legend_of(drawn) == ["adamw, cosine (OneCycle)", "adamw, cooldown, 1-sqrt", "schedule_free, constant"]


def test_what_goes_with_a_size_is_no_kind_of_its_own(table, figure):
    rows = [
        row(schedule, 3.0, n_params=n, n_head=n // 10**6, beta2=beta2)
        for n, beta2s in ((10**6, (0.9, 0.95)), (2 * 10**6, (0.9,)))
        for schedule in ("cosine", "wsd")
        for beta2 in (beta2s if schedule == "wsd" else (0.9,))
    ]
    (axes,) = figure("diagonal", table(rows)).axes
    kinds = [label.partition(": ")[0] for label in lines_of(axes)]
    assert kinds == ["cooldown, 1-sqrt, beta2 0.9", "cooldown, 1-sqrt, beta2 0.95", "y = x"]


def mixed(seed, loss, other, **data):
    return row("wsd", loss, seed, **data, **{"val_loss/b": other})


def test_mix(table, figure, capsys):
    """Differences are to the runs that go on with the trunk's data, seed by seed, also of data spread over runs."""
    rows = [mixed(3, 9.0, 9.0, dataset="a", cooldown_dataset="b")]  # of a seed that the trunk has not
    for seed, (gain, loss) in enumerate(((0.1, 0.3), (0.2, 0.3), (0.3, 0.6))):
        rows += [
            mixed(seed, 4 + seed + loss / 2, 5 + seed - gain / 2, dataset="a:0.9,b:0.1", cooldown_dataset=""),
            mixed(seed, 4 + seed + loss, 5 + seed - gain, dataset="a", cooldown_dataset="b"),
            mixed(seed, 4 + seed, 5 + seed, dataset="a", cooldown_dataset=""),
        ]
    drawn = figure("mix", table(rows))
    names = [text.get_text() for text in drawn.axes[0].get_yticklabels()]
    assert names == ["a", "a,\nthen b", "a:0.9,b:0.1"]
    told = capsys.readouterr().out.splitlines()
    error = np.std([0.1, 0.2, 0.3], ddof=1) / math.sqrt(3)
    assert told[0] == "a: val_loss 5.0000 ± 1.0000"
    assert told[4].startswith("a, then b: val_loss/b ")
    assert told[4].endswith(f"minus the trunk's -0.2000 ± {error:.4f} (standard error, 3 pairs)")
    assert "minus the trunk's +0.2000" in told[2] and "minus the trunk's +0.4000" in told[1]
    right = [container.lines[0].get_xydata().tolist() for container in drawn.axes[3].containers]
    assert right == [[[pytest.approx(-0.2), 1]], [[pytest.approx(-0.1), 2]]]
    assert [axes.get_xlabel().split(" (")[0] for axes in drawn.axes[::2]] == ["val_loss", "val_loss/b"]
    assert len(figure("mix", table(rows), "--val_dataset=b").axes) == 2  # on that set alone
    with pytest.raises(Mistake, match="expected runs of one dataset, some with a cooldown_dataset and some without"):
        figure("mix", table([r for r in rows if r["cooldown_dataset"]]))


def test_losses_on_another_validation_set_can_be_drawn(tmp_path, table, figure):
    rows = [r | {"val_loss/b": 2 * r["val_loss"]} for lr in (1e-3, 2e-3) for r in seeds_of("wsd", 3.0 + lr, lr=lr)]
    drawn = figure("lr", table(rows), "--val_dataset=b")
    assert [*lines_of(drawn.axes[0]).values()] == [([1e-3, 2e-3], [6.002, 6.004])]
    assert drawn.get_suptitle().endswith(", on b")
    assert "on b" not in figure("lr", table(rows)).get_suptitle()
    lines = [{"step": s, "val_loss": 5 - s, "val_loss/b": 7 - s} for s in (0, 1)] + [{"step": 1, "train_loss": 1.0}]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    top, _ = figure("curves", str(tmp_path / "run"), "--val_dataset=b").axes
    assert lines_of(top) == {"run": ([0, 1], [7, 6])}
    with pytest.raises(Mistake, match="--val_dataset=c: these runs have no losses on it"):
        figure("curves", str(tmp_path / "run"), "--val_dataset=c")


def test_cost(table, figure, capsys):
    rows = seeds_of("wsd", 3.0) + seeds_of("cosine", 3.0, n_params=3_000_000)
    rows[0]["val_loss"] = "nan"  # it was paid for all the same
    rows[5]["train_s_paid"] = 3600.0
    left, right = figure("cost", table(rows)).axes
    alone, shared = ([bar.get_height() for bar in bars] for bars in left.containers)
    small, large = 3 * 6 * 1.2e6 * 6400 / 1e11, 3 * 6 * 3e6 * 6400 / 1e11
    assert alone == pytest.approx([small, large, small + large]) and left.get_ylabel() == "training FLOPs (1e11)"
    assert shared == pytest.approx([height / 4 for height in alone]) and left.get_title() == "shared: 25% of alone"
    alone, shared = ([bar.get_height() for bar in bars] for bars in right.containers)
    assert (alone, shared) == (pytest.approx([3, 3, 6]), pytest.approx([1.5, 2, 3.5]))
    assert "58.3% of each run alone" in capsys.readouterr().out


def test_certificate(tmp_path, figure):
    losses = {(1e-3, 0.1): [3.0, 3.2], (2e-3, 0.1): [2.0, 2.2], (4e-3, 0.1): [math.inf, 2.0], (2e-3, 0.4): [2.5, 2.5]}
    grid = {"lr": [1e-3, 2e-3, 4e-3], "weight_decay": [0.1, 0.4, 1.6]}
    found = tune.certificate(losses, (2e-3, 0.1), grid, "adjacent")
    file = tmp_path / "certificate.json"
    file.write_text(json.dumps({"name": "x", "grid": grid, "seeds": [0, 1], **found}).replace("Infinity", "null"))
    drawn = figure("certificate", str(tmp_path))
    left, right = drawn.axes
    assert lines_of(left) == {"one option changed": ([0, 1], [3.1, 2.1]), "no loss": ([2], [0.97])}
    assert lines_of(right)["one option changed"] == ([0, 1], [2.1, 2.5])
    assert [label.get_text() for label in right.get_xticklabels()] == ["0.1", "0.4", "1.6"]
    assert drawn.get_suptitle() == "x: final loss around lr 0.002, weight_decay 0.1 (ring)"
    file.write_text("{")
    with pytest.raises(Mistake, match="certificate.json: "):
        plot.run(["certificate", str(file), f"--out={tmp_path / 'x.png'}"])


def test_a_schedule_looks_the_same_everywhere_and_lines_differ_in_grey():
    kinds = [*looks.LOOKS, *"abcdefghijkl"]
    alone = looks.styles([(kind, kind) for kind in kinds])
    assert len({(look["marker"], str(look["linestyle"])) for look in alone.values()}) == len(kinds)
    assert len({look["color"] for look in alone.values()}) == len(kinds)
    assert len({str(alone[kind]["linestyle"]) for kind in looks.LOOKS}) == len(looks.LOOKS)  # if markers say the length
    several = looks.styles([(kind, f"{kind} {n}") for n in range(3) for kind in kinds])
    for kind in kinds:
        first, _, last = (several[f"{kind} {n}"] for n in range(3))
        assert last["color"] == to_rgb(alone[kind]["color"]) and last["linestyle"] == alone[kind]["linestyle"]
        assert sum(first["color"]) > sum(last["color"]) and first["marker"] != last["marker"]


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: "", "no run in it"),
        (lambda text: text.replace("val_loss,", "loss,"), "no run has a finite val_loss"),
        (lambda text: text.splitlines()[0], "no run in it"),
        (lambda text: text[:-40], "line 2: fewer cells than the header"),
        (lambda text: text.replace(",0.001,", ",much,"), "line 2: lr='much' is not a number"),
        (lambda text: text.replace(",0.001,", ",,"), "not every run has lr;"),
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
        (["lr", "nowhere.csv"], "nowhere.csv: no such file"),
        (["cooldown_length", "TABLE"], "no run of schedule wsd among constant, cosine"),
        (["cooldown_shape", "TABLE"], "no run of schedule wsd"),
        (["diagonal", "TABLE", "--only", "schedule=constant"], "no run of schedule cosine or onecycle"),
        (["diagonal", "TABLE"], "no cosine run has another of equal seed"),
        (["lr", "TABLE", "--only", "lr=1e-9"], "--only lr=1e-9: no run is left"),
        (["lr", "TABLE", "--only", "rate=1"], "--only rate=1: expected COLUMN=VALUE"),
        (["lr", "TABLE", "--only", "lr"], "--only lr: expected COLUMN=VALUE"),
        (["lr", "TABLE", "--out=figure.txt"], "--out=figure.txt: expected a .png, .svg or .pdf"),
        (["schedules", "sine"], "schedule='sine': choose one of"),
        (["schedules", "wsd:sine"], "cooldown_shape='sine': choose one of"),
        (["schedules", "cosine:linear"], "takes no cooldown_shape"),
        (["schedules", "wsd:cooldown_steps=abc"], "cooldown_steps='abc': expected a whole number of steps"),
        (["schedules", "wsd:cooldown_steps=-1"], "cooldown_steps=-1: expected a whole number of steps"),
        (["schedules", "--steps=1.5"], "--steps='1.5': expected whole number at least 1"),
        (["curves", "LOG", "--from_step=-1"], "--from_step='-1': expected whole number"),
        (["schedules", "--colour"], "unrecognized arguments: --colour"),
        (["lr", "TABLE", "--out=nowhere/figure.png"], "nowhere/figure.png: expected .* in a folder that is there"),
        (["interpolation", "nowhere.json"], "nowhere.json: no such file"),
        (["downstream", "nowhere.json"], "nowhere.json: expected what evaluate.py --json prints"),
        (["downstream", "TABLE"], "has no step, error and val_loss: expected what evaluate.py --tasks --json prints"),
        (["interpolation", "TABLE"], "expected what evaluate.py --interpolate"),
        (["curves", "TABLE"], "no log.jsonl there"),
        (["curves", "LOG", "--from_step=11"], "nothing to draw"),
    ],
)
def test_mistakes(tmp_path, table, arguments, message):
    given = {"TABLE": table([row("cosine", 3.0), row("constant", 3.1)]), "LOG": write_log(tmp_path / "log")}
    with pytest.raises(Mistake, match=message):
        plot.run([given.get(argument, argument) for argument in arguments])


def test_a_mistake_is_one_line(table):
    command = [sys.executable, "plot.py", "diagonal", table([row("constant", 3.0)])]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: no run of schedule")
