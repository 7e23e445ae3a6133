"""What the tests of laws share: each law with parameters that it is to find again, and the command line."""

import numpy as np

from laws import Curve, annealing, asymptote, chinchilla, diagonal, downstream, multi_power, overtraining
from laws.__main__ import main


def status(*args):
    """Run `python -m laws ARGS` in this process -> its exit status."""
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        return stop.code
    return 0


def run(capsys, *args):
    """What the command prints."""
    assert status(*args) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# Laws of final losses

SIZES, LENGTHS = (a.ravel() for a in np.meshgrid(np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 1e11, 6)))
OVER = np.repeat(np.geomspace(1e7, 1e9, 5), 4)
# law: true parameters, inputs, settings
FINAL_CASES = {
    "chinchilla": (
        {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
        {"N": SIZES, "D": LENGTHS},
        {},
    ),
    "overtraining": (
        {"E": 1.51, "a": 141.0, "b": 190.0, "eta": 0.121},
        {"N": OVER, "D": OVER * np.tile([10, 40, 160, 640], 5)},
        {},
    ),
    "asymptote": ({"C": 3.43, "A": 0.5, "b": 0.6}, {"x": np.geomspace(0.1, 10, 12)}, {}),
    "downstream": ({"epsilon": 0.85, "k": 2.08, "gamma": 0.756}, {"loss": np.linspace(2.3, 6, 12)}, {}),
    "diagonal": ({"slope": 0.99, "intercept": 0.23}, {"perplexity": np.linspace(15, 40, 12)}, {}),
}
FINAL_FIT = {
    "chinchilla": lambda x, y, **k: chinchilla(x["N"], x["D"], y, **k),
    "overtraining": lambda x, y, **k: overtraining(x["N"], x["D"], y, **k),
    "asymptote": lambda x, y, **k: asymptote(x["x"], y, **k),
    "downstream": lambda x, y, **k: downstream(x["loss"], y, **k),
    "diagonal": lambda x, y, **k: diagonal(np.log(x["perplexity"]), np.log(y), **k),
}

# ----------------------------------------------------------------------------------------------------------------------
# Laws of loss curves


def lr_curve(kind, total=300, warmup=20, peak=3e-3):
    """Learning rates of steps 0 .. total: linear warmup, then constant, cosine to 10%, a step down, or a cooldown."""
    step = np.arange(total + 1)
    lrs = peak * np.minimum(1, step / warmup)
    x = np.clip((step - warmup) / (total - warmup), 0, 1)
    if kind == "cosine":
        lrs = np.where(step > warmup, peak * (0.55 + 0.45 * np.cos(np.pi * x)), lrs)
    if kind == "drop":
        lrs = np.where(step >= 0.4 * total, 0.3 * peak, lrs)
    if kind == "cooldown":
        lrs = np.minimum(lrs, peak * (total - step) / (0.2 * total))
    return lrs


def make_curves(*kinds):
    steps = np.arange(30, 301, 15)
    return [Curve(lr_curve(kind), steps, np.ones(len(steps))) for kind in kinds]


def with_losses(curves, losses):
    parts = np.split(losses, np.cumsum([len(curve.steps) for curve in curves])[:-1])
    return [curve._replace(losses=part) for curve, part in zip(curves, parts, strict=True)]


CURVES = make_curves("cosine", "constant", "drop")
CURVE_CASES = {
    "annealing": ({"L0": 3.0, "A": 0.5, "alpha": 0.5, "C": 4.0}, CURVES, {"lam": 0.95, "warmup": "ramp"}),
    "multi_power": (
        {"L0": 3.0, "A": 0.5, "alpha": 0.5, "B": 360.0, "C": 2.0, "beta": 0.58, "gamma": 0.64},
        CURVES,
        {"merge": 0},
    ),
}
CURVE_FIT = {
    "annealing": lambda x, y, **k: annealing(with_losses(x, y), lam=0.95, **k),
    "multi_power": lambda x, y, **k: multi_power(with_losses(x, y), **k),
}

CASES = FINAL_CASES | CURVE_CASES  # law: true parameters, inputs, settings
FIT = FINAL_FIT | CURVE_FIT
