"""Scaling laws: fit what runs show, say how well the data pin it down, predict the next run.

    python -m laws chinchilla results.csv --N=params --D=tokens --loss=final_val_loss --plot=fit.png
    python -m laws chinchilla results.csv --json > law.json && python -m laws predict law.json --N=1e9 --D=2e10
    python -m laws holdout results.csv --holdout=2 --plot=holdout.png    # fit the small models, predict the two largest
    python -m laws annealing runs/a runs/b --test=runs/c --json > curves.json
    python -m laws predict curves.json --lr=0:0,300:1e-3,8000:1e-3,10000:0     # a planned cooldown
    python -m laws schedule_bound 0:1,1000:0 0:1,800:1,1000:0                  # ranks schedules without any run

Of final losses (final.py): chinchilla, isoflop, overtraining, downstream, asymptote, joint, speedup, diagonal. Of whole
loss curves (curves.py): annealing, multi_power, schedule_bound. Each tells its law with `python -m laws LAW --help`.
`holdout` holds a law's predictions against runs that it has not seen (checks.py); --test does so for loss curves.
Columns may be products and quotients (--D=steps*batch*512, --D=flops/6/params); --where=dataset=c4 --where='loss<3.4'
picks rows. Files are CSV, .jsonl (packed as .gz or not), .json of evaluate.py --json, folders of runs, or runs kept in
results/: results/demo/RUN.

In Python: `import laws; fit = laws.chinchilla(N, D, loss)`. Without files.py and __main__.py, which read files and the
command line, the folder needs nothing but numpy, scipy and, to plot, matplotlib: copy it into other projects.
"""

from .checks import holdout, last
from .curves import Curve, annealing, curve_errors, multi_power, schedule_bound
from .figure import plot, plot_holdout
from .fitting import Fit, Law, Mistake, evaluate

from .final import (  # isort: skip
    LAWS, asymptote, beyond, chinchilla, diagonal, downstream, isoflop, joint, optimum, overtraining, predict,
    speedup,
)  # fmt: skip
