"""plot.py: the pictures are made, and hold what the logs hold."""

import json

import matplotlib.pyplot as plt
import pytest

import plot


def write_log(folder, end=0.0):
    """Ten steps, the last of which ends `end` lower."""
    folder.mkdir()
    lines = [{"step": s, "train_loss": 5 - s / 10, "lr": 1e-3 - end * (s == 10) / 1e3} for s in range(1, 11)]
    lines += [{"step": s, "val_loss": 5 - s / 10 - end * (s == 10), "val_loss_window": 4 - s / 10} for s in (0, 5, 10)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_curves(tmp_path, monkeypatch, suffix, start):
    drawn = {}
    monkeypatch.setattr(plt.Axes, "plot", spy(plt.Axes.plot, drawn))
    out = tmp_path / f"fig.{suffix}"
    arguments = ["plot.py", "curves", write_log(tmp_path / "a"), write_log(tmp_path / "b", 0.5), "--from_step=5"]
    monkeypatch.setattr("sys.argv", [*arguments, f"--out={out}"])
    plot.run()
    assert out.read_bytes().startswith(start)
    assert drawn["a: weights as they are"] == ((5, 10), (4.5, 4.0))
    assert drawn["a: window"] == ((5, 10), (3.5, 3.0)) and "b: window" not in drawn
    assert drawn["b: weights as they are"] == ((5, 10), (4.5, 3.5))  # from the last point that it shares
    assert drawn[None] == ((9, 10), (1e-3, 5e-4))


def spy(function, drawn):
    def plot_and_tell(axes, x, y, *args, **kwargs):
        drawn[kwargs.get("label")] = (x, y)
        return function(axes, x, y, *args, **kwargs)

    return plot_and_tell


def test_no_log(tmp_path):
    with pytest.raises(ValueError, match=r"no log\.jsonl there"):
        plot.read_log(tmp_path)
