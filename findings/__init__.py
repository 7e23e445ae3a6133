"""What the studies in results/ came to: a function per study computes its tables, and its numbers in short phrases.

`python report.py` looks for them in results/README.md and README.md; its docstring tells how to add a study.
"""

from .cooldowns import cooldown_length, cooldown_shape, lr_sensitivity, tiny
from .demo import demo
from .elsewhere import overview
from .far import far
from .few_data import data_limited
from .ladder import ladder
from .lengths import lengths
from .mixes import cooldown_mix
from .noise import noise
from .optimizers import optimizers, schedule_free, tune_small
from .sizes import sizes
from .transfer import mup, supar

# In the order of the first table of results/README.md
STUDIES = (
    overview,
    ladder,
    lengths,
    far,
    noise,
    demo,
    tiny,
    lr_sensitivity,
    cooldown_shape,
    cooldown_length,
    cooldown_mix,
    sizes,
    tune_small,
)
STUDIES += (optimizers, schedule_free, mup, supar, data_limited)
