"""What a run or a study costs, and what a budget buys: parameters, FLOPs, cost of a study, compute-optimal plans.

    python scaling.py table                           # the paper's nine models: parameters, FLOPs, lengths
    python scaling.py savings --cooldown_frac=0.2     # one run per length against one run with cooldowns
    python scaling.py plan --flops=1e21               # N, tokens, steps, batch and lr, with intervals
    python scaling.py plan --flops=1e15 --write=configs/mine.py     # a study that predicts this run; see ladder.py
    python scaling.py plan --gpu_hours=512 --gpu=H100 --mfu=0.4 --law=law.json      # of `python -m laws`
    python scaling.py memory configs/8b.py --gpus=48 --gpu=H100    # does it fit, and with which options? hours and cost
    python scaling.py traffic configs/8b.py           # what 1 to 1,024 GPUs send each other; see traffic.py

FLOPs are counted two ways, and the name says which: `train_flops` is the paper's own count, operation by operation;
`train_flops_6nd` is 6 x parameters x tokens. At this size they differ by 1.2x (360M) to 1.7x (33M).

Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (arXiv 2405.18392), A.3;
Hoffmann et al., "Training Compute-Optimal Large Language Models" (arXiv 2203.15556), Table A9 and appendix F.
"""

import json
import math
import random
import re
from typing import NamedTuple

import numpy as np

from config import HERE, Mistake, Parser, main, mistakes, number, typed
from model import Shape
from tables import print_table, read_rows

# Dense bf16 FLOP/s with fp32 accumulation, from the makers' data sheets (half of the figure printed "with sparsity").
# Keys are whole words of torch.cuda.get_device_name(); the longest that matches counts.
PEAK_FLOPS = {
    "A100": 312e12, "A800": 312e12, "A30": 165e12, "A40": 149.7e12, "A10": 125e12, "RTX A6000": 154.8e12,
    "H100": 989e12,  # SXM; its name is "NVIDIA H100 80GB HBM3"
    "H100 NVL": 835e12, "H100 PCIe": 756e12, "H200": 989e12, "H200 NVL": 835e12, "H800": 989e12, "GH200": 989e12,
    "B200": 2250e12, "GB200": 2500e12,
    "L4": 121e12, "L40": 181e12, "L40S": 362e12,
    "RTX 3090": 71e12, "RTX 4090": 165.2e12, "RTX 5090": 209.5e12, "RTX 6000 Ada": 364.2e12,
    "MI250X": 383e12, "MI300X": 1307e12,
}  # fmt: skip


# GiB of memory, after the same sheets; where a GPU is sold with several sizes the smallest
GPU_MEMORY = {
    "A100": 40, "A100-SXM4-80GB": 80, "A100 80GB PCIe": 80, "A800": 80, "A30": 24, "A40": 48, "A10": 24,
    "RTX A6000": 48, "H100": 80, "H100 NVL": 94, "H200": 141, "H800": 80, "GH200": 96,
    "B200": 180, "GB200": 186,
    "L4": 24, "L40": 48, "L40S": 48,
    "RTX 3090": 24, "RTX 4090": 24, "RTX 5090": 32, "RTX 6000 Ada": 48,
    "MI250X": 64,  # of each of its two dies, which torch counts as two GPUs
    "MI300X": 192,
}  # fmt: skip


def look_up(table: dict, device_name: str):
    """What a table says of a GPU by the name torch gives it; None where unknown (CPU, laptop chip, MIG slice)."""
    if re.search(r"\b(Laptop|Max-Q|MIG)\b", device_name):
        return None
    found = [key for key in table if re.search(rf"\b{re.escape(key)}\b", device_name, re.IGNORECASE)]
    return table[max(found, key=len)] if found else None


def peak_flops(device_name: str) -> float | None:
    """Peak dense bf16 FLOP/s of a GPU by the name torch gives it; None where unknown."""
    return look_up(PEAK_FLOPS, device_name)


# ----------------------------------------------------------------------------------------------------------------------
# One run: parameters and FLOPs


def num_params(shape, norms: bool = True) -> int:
    """Count the parameters of a decoder without biases, as they are: with the vocabulary padded.

    V d + L (2 d h k + 2 d h_kv k + 3 d F); another V d if the output is not tied to the embedding; (2 L + 1) d for the
    norms. `shape` is model.Shape, or has its sizes.
    """
    s, d = shape, shape.n_embd
    embeddings = s.padded_vocab * d * (1 if s.tied else 2)
    attention = 2 * d * s.head_size * (s.n_head + s.kv_heads)  # q and output; k and v
    mlp = s.mlp_matrices * d * s.mlp_width
    return embeddings + s.n_layer * (attention + mlp) + (d * (2 * s.n_layer + 1) if norms else 0)


def forward_flops(shape, causal: bool = False) -> int:
    """Count the FLOPs of the forward pass of one sequence, as the paper does (A.3; Chinchilla's appendix F).

    The embedding look-up counts as a matmul, norms and activations as nothing. The vocabulary counts without padding.
    The paper counts the whole T x T square of the attention; causal=True counts the half that a causal kernel computes.
    """
    s, d, T = shape, shape.n_embd, shape.seq_len
    qkv = 2 * T * d * s.head_size * (s.n_head + 2 * s.kv_heads)
    attention = s.n_head * T**2 * (2 * s.head_size + 3 + 2 * s.head_size)  # logits, softmax, softmax times values
    output = 2 * T * d * s.n_head * s.head_size
    mlp = s.mlp_matrices * 2 * T * d * s.mlp_width
    embedding = logits = 2 * T * d * s.vocab_size
    return embedding + s.n_layer * (qkv + (attention // 2 if causal else attention) + output + mlp) + logits


def train_flops(shape, causal: bool = False) -> int:
    """Count the FLOPs of training on one sequence: three times the forward pass, as backward costs twice as much."""
    return 3 * forward_flops(shape, causal)


def train_flops_6nd(params: float, tokens: float) -> float:
    """Estimate the FLOPs of a whole run as 6 x parameters x tokens: the C of the scaling laws."""
    return 6 * params * tokens


# ----------------------------------------------------------------------------------------------------------------------
# The models of the paper and of Chinchilla

PAPER_SEQ_LEN, PAPER_VOCAB = 512, 50257  # the vocabulary of its notebook, which counts neither padding nor norms


class PaperModel(NamedTuple):
    """Tables 1 and 2 of Hägele et al. 166M was trained on OpenWebText2 only, and is in none of their totals."""

    name: str
    shape: Shape
    steps_in_table: tuple  # steps of its three runs, Table 2
    steps_as_run: tuple  # as the authors' logs have them: two differ from the table
    global_batch_size: int  # sequences of 512 tokens per step
    lr_cosine: float  # peak; a constant learning rate takes half of it


class ChinchillaModel(NamedTuple):
    """A row of Table A9 of Hoffmann et al., with the sizes of a Shape: a dense MLP, heads of a width of their own.

    It gives the two sums that Hägele et al. print (5.59e23 and 2.36e23 FLOPs) and, with the projection of relative
    positions, another d h k per layer, each row's number of parameters to 1%.
    """

    million_params: int  # as the table prints them
    n_embd: int
    head_size: int
    n_head: int
    n_layer: int
    vocab_size: int = 32000
    padded_vocab: int = 32000
    seq_len: int = 1024
    tied: bool = True
    mlp_matrices: int = 2

    @property
    def kv_heads(self):
        return self.n_head

    @property
    def mlp_width(self):
        return 4 * self.n_embd


def paper_model(row):
    sizes = {name: int(row[name]) for name in ("n_layer", "n_head", "n_embd")}
    steps = [tuple(map(int, row[name].split())) for name in ("steps_in_table", "steps_as_run")]
    shape = Shape(PAPER_VOCAB, PAPER_SEQ_LEN, **sizes)
    return PaperModel(row["name"], shape, *steps, int(row["global_batch_size"]), float(row["lr_cosine"]))


TABLES = HERE / "configs"
PAPER_MODELS = [paper_model(row) for _, row in read_rows(TABLES / "paper_models.csv")]
CHINCHILLA_MODELS = [ChinchillaModel(*map(int, row.values())) for _, row in read_rows(TABLES / "chinchilla_models.csv")]


def paper_run_costs(model: PaperModel, as_run: bool = True) -> list:
    """FLOPs of the runs of one of the paper's models, shortest first: 3 runs, by its logs or by its Table 2."""
    flops = train_flops(model.shape) * model.global_batch_size
    return [flops * steps for steps in (model.steps_as_run if as_run else model.steps_in_table)]


def chinchilla_run_costs() -> list:
    """FLOPs of the runs of Chinchilla's 50 models, a list for each: 10, 15, 20 and 25 tokens per nominal parameter."""
    runs = []
    for model in CHINCHILLA_MODELS:
        flops_per_token = train_flops(model) / model.seq_len
        runs.append([flops_per_token * ratio * model.million_params * 1e6 for ratio in (10, 15, 20, 25)])
    return runs


# ----------------------------------------------------------------------------------------------------------------------
# A study: one run per length, or one run with cooldowns


def separate_cost(costs: list) -> float:
    """Cost of training every length from scratch, as a cosine asks for."""
    if not costs or min(costs) <= 0:
        raise Mistake(f"costs={list(costs)} must be one or more positive numbers, one per length")
    return sum(costs)


def shared_cost(costs: list, cooldown_frac: float, formula: str = "A") -> float:
    """Cost of the same lengths as cooldowns from one run at a constant learning rate; `costs` as if trained apart.

    "A": the longest run ends in its own cooldown, every other length adds one: C_m + f sum_{i<m} C_i (the paper's
    notebook and its Chinchilla figure). "B": the long run stays constant to its end, so that its averages are worth
    something, and every length adds a cooldown: C_m + f sum_i C_i (the paper's bars).
    """
    total = separate_cost(costs)
    if not 0 <= cooldown_frac <= 1:
        raise Mistake(f"cooldown_frac={cooldown_frac} must be between 0 and 1")
    if formula not in ("A", "B"):
        raise Mistake(f"formula={formula!r} must be 'A' (long run ends in its cooldown) or 'B' (stays constant)")
    longest = max(costs)
    return longest + cooldown_frac * (total - longest if formula == "A" else total)


# ----------------------------------------------------------------------------------------------------------------------
# A budget: the compute-optimal run

# Chinchilla's law, with delta 1e-3: of points read off a figure of Hoffmann et al., in tokens of their tokenizer
DEFAULT_SOURCE = "Huber optimum on the 240 points of Besiroglu et al. 2024 (arXiv 2404.10102)"
DEFAULT_LAW = {
    "law": "chinchilla",
    "params": {"E": 1.817218, "A": 477.8258, "B": 2143.417, "alpha": 0.347310, "beta": 0.367172},
    "ranges": {"N": (5.7334e7, 1.61833e10), "D": (8.1868e8, 3.17755e11)},  # of the 240 points
}
# Cholesky factor of the covariance of ln E, ln A, ln B, alpha, beta over 2000 bootstrap fits of laws/ to these points
DEFAULT_SPREAD = (
    (0.01166, 0, 0, 0, 0),
    (0.13386, 0.16542, 0, 0, 0),
    (0.20273, -0.23880, 0.09434, 0, 0),
    (0.00784, 0.00984, -0.00027, 0.00043, 0),
    (0.00993, -0.01178, 0.00441, -0.00035, 0.00015),
)


def default_law(draws: int = 400):
    """DEFAULT_LAW as a laws.Fit, with draws of its parameters; always the same draws."""
    from laws import LAWS, Fit, fitting  # in functions only: scipy is slow to load, and train.py needs none

    law, rng = LAWS["chinchilla"], random.Random(0)
    theta = fitting.to_theta(law, DEFAULT_LAW["params"])[0]
    many = [theta + DEFAULT_SPREAD @ np.array([rng.gauss(0, 1) for _ in theta]) for _ in range(draws)]
    return Fit(**DEFAULT_LAW, draws=[fitting.to_params(law, moved) for moved in many])


def read_law(path: str):
    """Read a laws.Fit that `python -m laws chinchilla ... --json` wrote; Mistake where no plan follows from it."""
    from laws import files, optimum

    with mistakes():
        law = files.read_fit(path)
    if law.law != "chinchilla":
        raise Mistake(f"{path} holds a law of kind {law.law}; make one with python -m laws chinchilla ... --json")
    with mistakes(path):
        for params in (law.params, *law.draws):
            optimum(params, C=1e21)
    return law


def deepseek_rules(flops: float) -> tuple:
    """(peak lr, tokens per step) for a budget: 0.3118 C^-0.125 and 0.292 C^0.3271, DeepSeek LLM (2401.02954), 3.1.

    They gave the paper its 1B run: 100B tokens, 8e-4 and 1.8M tokens (Table 3), for cosine and cooldown alike. Fitted
    to schedules that stay constant for 80% of the tokens; no interval was published.
    """
    return 0.3118 * flops**-0.125, 0.2920 * flops**0.3271


class Plan(NamedTuple):
    flops: float  # 6 x params x tokens
    params: float
    tokens: float
    loss: float
    steps: float
    batch_tokens: float
    lr: float
    intervals: dict  # 95%, of params, tokens, loss and steps; empty if the law comes without draws
    beyond: list  # sentences that say how far outside of what the law was fitted on the plan lies


def plan(flops: float, law=None, batch_tokens: float | None = None) -> Plan:
    """Plan the compute-optimal run of a budget (C = 6ND) from a chinchilla law, a laws.Fit; intervals from its draws.

    `batch_tokens` (tokens per step) replaces the rule. What the law cannot know: your data, your tokenizer, inference.
    """
    import laws

    if not (isinstance(flops, float | int) and 1 <= flops < math.inf):
        raise Mistake(f"flops={flops} must be a number of at least 1, such as 1e21")
    if batch_tokens is not None and not 1 <= batch_tokens < math.inf:
        raise Mistake(f"batch_tokens={batch_tokens} must be at least 1 token per step")
    law = law or default_law()
    lr, rule = deepseek_rules(flops)
    batch_tokens = batch_tokens or rule
    N, D, loss = laws.optimum(law.params, flops)
    intervals = {}
    if law.draws:
        many = [laws.optimum(params, flops) for params in law.draws]
        low_high = np.transpose(laws.fitting.quantiles(many, method="nearest")).tolist()
        intervals = dict(zip(("params", "tokens", "loss"), low_high, strict=True))
        intervals["steps"] = [x / batch_tokens for x in intervals["tokens"]]
    beyond = laws.beyond(law, {"N": N, "D": D})
    return Plan(flops, N, D, loss, D / batch_tokens, batch_tokens, lr, intervals, beyond)


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def table_command(args) -> dict:
    """The paper's models (params as trained, params_notebook as its notebook counts them)."""
    rows = []
    for model in PAPER_MODELS:
        shape, params, flops = model.shape, num_params(model.shape), train_flops(model.shape)
        padding = (shape.padded_vocab - shape.vocab_size) * shape.n_embd
        sizes = {name: getattr(shape, name) for name in ("n_embd", "n_layer", "n_head", "mlp_width")}
        counts = {
            "params": params,
            "params_notebook": num_params(shape, norms=False) - padding,
            "flops_per_seq": flops,
            "causal": train_flops(shape, causal=True),
            "over_6nd": flops / train_flops_6nd(params, PAPER_SEQ_LEN),
            "steps": model.steps_in_table,
            "lr_cosine": model.lr_cosine,
        }
        rows.append({"name": model.name} | sizes | counts)
    return {"models": rows}


def savings_command(args) -> dict:
    """FLOPs of the paper's runs and Chinchilla's, and of `--lengths`, one run per length or one with cooldowns."""
    if args.lengths is not None:
        name = ",".join(f"{length:g}" for length in args.lengths)
        rows = [cost_row(f"lengths {name}", [args.lengths], args.cooldown_frac)]
    else:
        studies = {m.name: paper_run_costs(m) for m in PAPER_MODELS if m.name != "166M"}
        rows = [cost_row(name, [costs], args.cooldown_frac) for name, costs in studies.items()]
        rows.append(cost_row("paper, total", list(studies.values()), args.cooldown_frac))
        rows.append(cost_row("chinchilla, f=0.1", chinchilla_run_costs(), 0.1))
    return {"cooldown_frac": args.cooldown_frac, "studies": rows}


def cost_row(name, studies, cooldown_frac):
    total = sum(separate_cost(costs) for costs in studies)
    a, b = (sum(shared_cost(costs, cooldown_frac, formula) for costs in studies) for formula in "AB")
    return {"name": name, "separate": total, "A": a, "A_ratio": a / total, "B": b, "B_ratio": b / total}


def plan_command(args) -> dict:
    flops = args.flops
    if args.gpu_hours is not None:
        peak = peak_flops(args.gpu or "")
        if flops is not None or args.mfu is None:
            raise Mistake("give --flops, or all of --gpu_hours, --gpu and --mfu (a share between 0 and 1)")
        if peak is None:
            raise Mistake(f"--gpu={args.gpu} is not known; known: {', '.join(PEAK_FLOPS)}")
        flops = args.gpu_hours * 3600 * peak * args.mfu
    if flops is None:
        raise Mistake("a plan needs a budget: --flops=1e21, or --gpu_hours=512 --gpu=H100 --mfu=0.4")
    import ladder  # here, as it imports train.py, which imports this file

    result = plan(flops, read_law(args.law) if args.law else default_law(), args.batch_tokens)
    shape = ladder.shape_for(result.params)
    sizes = ladder.shape_options(shape) | {"n_params": num_params(shape)}
    return result._asdict() | sizes | {"law": args.law or DEFAULT_SOURCE} | written_study(args, flops)


def written_study(args, flops) -> dict:
    """Write the study that --write asks for: what it comes to, as --json prints it."""
    if not args.write:
        if args.dataset or args.study_flops:
            raise Mistake("--dataset and --study_flops are of a study: say where with --write=configs/mine.py")
        return {}
    if args.batch_tokens:
        raise Mistake("--batch_tokens is of one run, and a study has a batch for each size: change it in the file")
    import ladder

    law = read_law(args.law) if args.law else None
    return {"study": ladder.write(args.write, flops, law, args.dataset, args.study_flops), "write": args.write}


def print_plan(out):
    sizes = " ".join(f"--{name}={out[name]}" for name in ("n_layer", "n_head", "n_embd", "n_inner") if name in out)
    notes = {
        "params": f"e.g. {out['n_params']:.3g}: {sizes}",
        "tokens": f"{out['tokens'] / out['params']:.1f} per parameter",
        "batch_tokens": "tokens per step; DeepSeek's rule 0.292 C^0.3271 unless given, no interval published",
        "lr": "DeepSeek's rule 0.3118 C^-0.125, no interval published; sweep around it",
    }
    print(f"law: {out['law']}")
    for name in ("flops", "params", "tokens", "loss", "steps", "batch_tokens", "lr"):
        low_high = out["intervals"].get(name)
        between = f"[{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else ""
        print("  ".join(filter(None, (f"{name:>12}", f"{out[name]:.4g}", between, notes.get(name)))))
    for note in out["beyond"]:
        print(note)
    if "study" in out:
        import ladder

        ladder.print_study(out["write"], out["study"])


def show(value):
    """A cell of a table."""
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    if isinstance(value, int) and value < 1e10:
        return f"{value:,}"
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if value < 1e3 else f"{value:.6e}"


def run(args=None):
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="the paper's models")
    savings = commands.add_parser("savings", help="one run per length against shared cooldowns")
    share = number(least=0, most=1)
    savings.add_argument("--cooldown_frac", type=share, default=0.2, help="share of each length that is its cooldown")
    lengths = typed(tuple[float, ...], above=0, most=1e100)
    savings.add_argument("--lengths", type=lengths, help="lengths of your own study, as 10,20,30 (any unit)")
    budget = commands.add_parser("plan", help="the compute-optimal run for a budget")
    budget.add_argument("--flops", type=number(least=1), help="budget, C = 6ND")
    budget.add_argument("--gpu_hours", type=number(above=0))
    budget.add_argument("--gpu", help="a name such as H100, or torch.cuda.get_device_name()")
    budget.add_argument("--mfu", type=number(above=0, most=1), help="share of the peak FLOP/s that training reaches")
    budget.add_argument("--law", help="JSON of python -m laws chinchilla")
    budget.add_argument("--batch_tokens", type=number(least=1), help="tokens per step, instead of the rule")
    budget.add_argument("--write", metavar="FILE.py", help="write a study that predicts this run, for study.py")
    budget.add_argument("--dataset", help="of the study (default: stdlib-bytes, from 1e17 FLOPs slimpajama-6b-gpt2)")
    text = "about what the study costs in all (default: as much as the run, --flops)"
    budget.add_argument("--study_flops", type=number(least=1), help=text)
    import memory  # here, as they import train.py, which imports this file
    import traffic

    for command in (table, savings, budget, memory.add_command(commands), traffic.add_command(commands)):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    args, rest = parser.parse_known_args(args)
    takes_options = {"memory": memory.memory_command, "traffic": traffic.traffic_command}  # of train.py
    if args.command in takes_options:
        out = takes_options[args.command](args, rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        out = {"table": table_command, "savings": savings_command, "plan": plan_command}[args.command](args)
    printed = {"plan": print_plan, "memory": memory.print_memory, "traffic": traffic.print_traffic}
    if args.json:
        print(json.dumps(out))
    elif args.command in printed:
        printed[args.command](out)
    else:
        print_table(out.get("models") or out["studies"], show)


if __name__ == "__main__":
    main(run)
