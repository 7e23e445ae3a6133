"""How far paired differences scatter from seed to seed."""

import numpy as np

from tables import grouped, over_seeds, std

from .lengths import STEPS, at_peaks
from .text import Study, cost, counted, gap, power, read, size, spread


def noise():
    rows = read("noise")
    table = [["heads", "peak", "beta2", "cosine (OneCycle)", "cooldown, linear", "cooldown minus cosine"]]
    table[0] += ["its scatter", "its error with three seeds"]
    for (n_head, lr, beta2), alike in grouped(rows, ["n_head", "lr", "beta2"]).items():
        cosine, cooled = (over_seeds(alike, schedule=name) for name in ("onecycle", "wsd"))
        apart = cooled - cosine
        row = [f"{n_head:g}", power(lr), f"{beta2:g}", spread(cosine), spread(cooled), gap(apart)]
        table.append([*row, f"{std(apart):.3f}", f"{std(apart) / np.sqrt(3):.4f}"])

    longer = [["steps, peak 8e-3", "linear to zero minus cosine to zero", "cooldown minus linear to zero"]]
    errors = []
    for n in STEPS:
        cooldown, linear, cosine = (
            at_peaks(read("lengths"), n)[name][0.008]
            for name in ("cooldown, 1-sqrt", "linear to zero", "cosine to zero")
        )
        longer.append([f"{n:,}", gap(linear - cosine, "+.4f"), gap(cooldown - linear, "+.4f")])
        errors += [std(x) / np.sqrt(3) for x in (linear - cosine, cooldown - linear)]
    peaks = read("lr_sensitivity")
    before = [r for r in peaks if r["lr"] == 0.016]
    old = over_seeds(before, cooldown_shape="linear") - over_seeds(before, schedule="onecycle")
    phrases = [
        f"{size(rows[0]['n_params'])} parameters, {rows[0]['total_steps']:,.0f} steps, {counted(rows, 'seed', 'seed')}",
        cost(rows),
        f"a difference scatters by up to {max(float(row[-2]) for row in table[1:]):.3f}",
        f"of 68,000 parameters, 1,320 steps and a peak of 1.6e-2: {gap(old)}",
        f"between {min(errors):.4f} and {max(errors):.4f}",
    ]
    return Study("noise", "Noise", "study.py configs/noise.py", rows, phrases, {"noise": table, "noise_longer": longer})
