"""Checks of a law against runs that it has not seen."""

import numpy as np

from .final import beyond, checked, chinchilla, overtraining, predict
from .fitting import Mistake

OF_N_AND_D = {"chinchilla": chinchilla, "overtraining": overtraining}


def last(N, D, by="N", k=1):
    """Which runs (n,) are of the k largest sizes, by="N", or of the k longest lengths of their size, by="D"."""
    N, D = checked(N=N, D=D)
    if by not in ("N", "D"):
        raise Mistake(f"by={by!r} must be 'N' (largest sizes) or 'D' (longest lengths of each size)")
    if k < 1:
        raise Mistake(f"holdout={k} must be at least 1")
    if by == "N":
        return np.isin(N, np.unique(N)[-k:])
    out = np.zeros(len(N), bool)
    for size in np.unique(N):
        out |= (N == size) & np.isin(D, np.unique(D[N == size])[-k:])
    return out


def holdout(N, D, loss, law="chinchilla", by="N", holdout=1, delta=None, draws=400, seed=0):
    """Fit a law without the largest sizes, or the longest lengths, and hold its predictions of them against the runs.

    -> (the Fit, a dict of columns, a row for each run held out, a list of sentences). The interval is that of predict:
    95% for one new run, the bootstrap of the law and the scatter of single runs about it. `off` is measured minus
    predicted in units of the interval: from the prediction to the end of the interval on that side is 1, and beyond 1
    or -1 a run lies outside of it. Where the data leave the law open the interval is wide, and says little by holding.

    It takes all runs for independent and equally noisy. Lengths that share a trunk share its luck, which makes it too
    narrow; small models that scatter more than large ones make it too wide. A law of the wrong form is no part of it:
    that is what the check is for.
    """
    N, D, loss = checked(N=N, D=D, loss=loss)
    if law not in OF_N_AND_D:
        raise Mistake(f"law={law!r} must be one of {', '.join(OF_N_AND_D)}")
    if not draws:
        raise Mistake("draws=0 gives no intervals to hold a prediction against; leave it out, or give 100 or more")
    out = last(N, D, by, holdout)
    if out.all():
        what = f"there are {len(np.unique(N))} sizes" if by == "N" else "no size has a length more"
        raise Mistake(f"holdout={holdout} by {by} leaves no run to fit: {what}")
    given = {} if delta is None else {"delta": delta}
    fit = OF_N_AND_D[law](N[~out], D[~out], loss[~out], draws=draws, seed=seed, **given)
    order = np.lexsort((D[out], N[out]))
    inputs, measured = {"N": N[out][order], "D": D[out][order]}, loss[out][order]
    alike, which = np.unique(np.stack([*inputs.values()]), axis=1, return_inverse=True)  # seeds: one prediction
    predicted = predict(fit, dict(zip("ND", alike, strict=True)), seed)
    value, low, high = (column[np.ravel(which)] for column in predicted)
    off = (measured - value) / np.where(measured > value, high - value, value - low)
    rows = inputs | {"predicted": value, "low": low, "high": high, "measured": measured, "off": off}
    return fit, rows, in_sentences(fit, rows, loss[~out].min())


def in_sentences(fit, rows, lowest):
    """What the rows of a holdout say, and how far to trust them; `lowest` is the lowest loss that was fitted."""
    n, off = len(rows["off"]), rows["off"]
    error = 100 * (rows["measured"] / rows["predicted"] - 1)
    worst = off[np.argmax(abs(off))]
    notes = [
        f"{(abs(off) <= 1).sum()} of {n} runs lie within the interval; the furthest is off by {worst:+.2f} of it",
        f"measured minus predicted is {error.mean():+.2f}% on average, from {error.min():+.2f}% to "
        f"{error.max():+.2f}%; the interval goes {100 * (rows['high'] / rows['low'] - 1).mean() / 2:.2f}% to each side",
    ]
    if n > 1 and abs(np.sign(off).sum()) == n:
        side = "below" if off[0] < 0 else "above"
        notes.append(f"all of them lie {side} what was predicted; those further out may lie further {side}")
    open_ended = ((rows["predicted"] < lowest) & (rows["high"] >= lowest)).sum()
    if open_ended:
        notes.append(
            f"of {open_ended} runs that are predicted below the lowest fitted loss, {lowest:.4f}, the interval reaches "
            "up to it: the fit does not tell that they are better at all"
        )
    if fit.unidentified:
        names = ", ".join(fit.unidentified)
        notes.append(f"the {fit.n_points} runs that were fitted do not identify {names}: hence the width")
    return notes + beyond(fit, rows)
