"""What a run or a study costs, and what a budget buys: parameters, FLOPs, cost of a study, compute-optimal plans.

    python scaling.py table                           # the paper's nine models: parameters, FLOPs, lengths
    python scaling.py savings --cooldown_frac=0.2     # one run per length against one run with cooldowns
    python scaling.py plan --flops=1e21               # N, tokens, steps, batch and lr, with intervals
    python scaling.py plan --gpu_hours=512 --gpu=H100 --mfu=0.4 --law=law.json      # from `laws.py ... --json`

FLOPs are counted two ways, and the name says which: `train_flops` is the paper's own count, operation by operation;
`train_flops_6nd` is 6 x parameters x tokens. At this size they differ by 1.2x (360M) to 1.7x (33M).

Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (arXiv 2405.18392), A.3;
Hoffmann et al., "Training Compute-Optimal Large Language Models" (arXiv 2203.15556), Table A9 and appendix F.
"""

import argparse
import json
import math
import random
import re
import sys
from typing import NamedTuple

from config import Mistake

# Dense bf16 FLOP/s with fp32 accumulation, from the makers' data sheets (half of the figure printed "with sparsity").
# Keys are whole words of torch.cuda.get_device_name(); the longest that matches counts.
PEAK_FLOPS = {
    "A100": 312e12,
    "A800": 312e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "RTX A6000": 154.8e12,
    "H100": 989e12,  # SXM; its name is "NVIDIA H100 80GB HBM3"
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H800": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
    "RTX 5090": 209.5e12,
    "RTX 6000 Ada": 364.2e12,
    "MI250X": 383e12,
    "MI300X": 1307e12,
}


def peak_flops(device_name: str) -> float | None:
    """Peak dense bf16 FLOP/s of a GPU by the name torch gives it; None where unknown (CPU, laptop chip, MIG slice)."""
    if re.search(r"\b(Laptop|Max-Q|MIG)\b", device_name):
        return None
    found = [key for key in PEAK_FLOPS if re.search(rf"\b{re.escape(key)}\b", device_name, re.IGNORECASE)]
    return PEAK_FLOPS[max(found, key=len)] if found else None


# ----------------------------------------------------------------------------------------------------------------------
# One run: parameters and FLOPs


def swiglu_width(n_embd: int) -> int:
    """Hidden width of the SwiGLU layers of the paper's models: int(8/3 d), rounded up to a multiple of 256."""
    return 256 * math.ceil(int(8 * n_embd / 3) / 256)


def model_sizes(n_layer, n_embd, n_head, n_kv_head, ffw, swiglu, head_size):
    """Fill in the sizes that follow from others -> (n_kv_head, ffw, head_size); ValueError where they do not fit."""
    n_kv_head = n_head if n_kv_head is None else n_kv_head
    if ffw is None and n_embd > 0:
        ffw = swiglu_width(n_embd) if swiglu else 4 * n_embd
    if head_size is None and n_head > 0:
        if n_embd % n_head:
            raise Mistake(f"n_embd={n_embd} is not a multiple of n_head={n_head}; change one, or give head_size")
        head_size = n_embd // n_head
    sizes = dict(n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_kv_head=n_kv_head, ffw=ffw, head_size=head_size)
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise Mistake(f"{name}={value} must be a positive integer")
    if n_head % n_kv_head:
        raise Mistake(f"n_head={n_head} is not a multiple of n_kv_head={n_kv_head}")
    return n_kv_head, ffw, head_size


def num_params(
    vocab_size: int,
    n_layer: int,
    n_embd: int,
    n_head: int,
    n_kv_head: int | None = None,
    ffw: int | None = None,
    tied: bool = True,
    norms: bool = True,
    swiglu: bool = True,
    head_size: int | None = None,
) -> int:
    """Count the parameters of a decoder without biases.

    V d + L (2 d h k + 2 d h_kv k + 3 d F), with 2 d F for a dense MLP; another V d if the output is not tied to the
    embedding, (2 L + 1) d for the norms. The paper's notebook counts without norms, and with a vocabulary of 50257.
    """
    n_kv_head, ffw, head_size = model_sizes(n_layer, n_embd, n_head, n_kv_head, ffw, swiglu, head_size)
    if vocab_size < 1:
        raise Mistake(f"vocab_size={vocab_size} must be a positive integer")
    embeddings = vocab_size * n_embd * (1 if tied else 2)
    attention = 2 * n_embd * head_size * (n_head + n_kv_head)  # q and output; k and v
    feed_forward = (3 if swiglu else 2) * n_embd * ffw
    return embeddings + n_layer * (attention + feed_forward) + (n_embd * (2 * n_layer + 1) if norms else 0)


def forward_flops(
    seq_len: int,
    vocab_size: int,
    n_layer: int,
    n_embd: int,
    n_head: int,
    n_kv_head: int | None = None,
    ffw: int | None = None,
    swiglu: bool = True,
    causal: bool = False,
    head_size: int | None = None,
) -> int:
    """Count the FLOPs of the forward pass of one sequence, as the paper does (A.3; Chinchilla's appendix F).

    The embedding look-up counts as a matmul, norms and activations as nothing. The paper counts the whole T x T square
    of the attention; causal=True counts the half that a causal kernel computes.
    """
    n_kv_head, ffw, head_size = model_sizes(n_layer, n_embd, n_head, n_kv_head, ffw, swiglu, head_size)
    if seq_len < 1 or vocab_size < 1:
        raise Mistake(f"seq_len={seq_len} and vocab_size={vocab_size} must be positive integers")
    embedding = 2 * seq_len * vocab_size * n_embd
    qkv = 2 * seq_len * n_embd * head_size * (n_head + 2 * n_kv_head)
    attention = n_head * seq_len**2 * (2 * head_size + 3 + 2 * head_size)  # logits, softmax, softmax times values
    output = 2 * seq_len * n_embd * n_head * head_size
    feed_forward = (3 if swiglu else 2) * 2 * seq_len * n_embd * ffw
    logits = 2 * seq_len * n_embd * vocab_size
    return embedding + n_layer * (qkv + (attention // 2 if causal else attention) + output + feed_forward) + logits


def train_flops(*args, **kwargs) -> int:
    """Count the FLOPs of training on one sequence: 3 x `forward_flops` (same arguments), as backward costs twice."""
    return 3 * forward_flops(*args, **kwargs)


def train_flops_6nd(params: float, tokens: float) -> float:
    """Estimate the FLOPs of a whole run as 6 x parameters x tokens: the C of the scaling laws."""
    return 6 * params * tokens


# ----------------------------------------------------------------------------------------------------------------------
# The models of the paper and of Chinchilla


class Model(NamedTuple):
    name: str
    n_embd: int
    n_layer: int
    n_head: int
    ffw: int
    lengths: tuple  # steps of its runs, Table 2
    lengths_run: tuple  # steps as the authors' logs have them: two differ from the table
    global_batch_size: int  # sequences of 512 tokens a step
    lr_cosine: float  # peak; a constant learning rate takes half of it


# Tables 1 and 2. 166M was trained on OpenWebText2 only and is in none of the totals.
PAPER_MODELS = (
    Model("33M", 384, 8, 6, 1024, (3000, 7000, 10000), (3000, 7000, 10000), 200, 2e-3),
    Model("53M", 512, 8, 8, 1536, (3750, 7500, 11250), (3650, 7500, 11250), 200, 2e-3),
    Model("60M", 512, 10, 8, 1536, (7500, 12500, 17500), (7500, 12500, 17500), 200, 2e-3),
    Model("93M", 640, 12, 10, 1792, (10000, 17500, 25000), (10000, 17500, 25000), 200, 2e-3),
    Model("124M", 768, 12, 12, 2048, (15000, 25000, 35000), (15000, 25000, 30000), 200, 1e-3),
    Model("151M", 768, 16, 12, 2048, (25000, 37500, 50000), (25000, 37500, 50000), 200, 1e-3),
    Model("166M", 896, 12, 14, 2560, (25000, 37500, 50000), (15000, 25000, 30000), 200, 1e-3),
    Model("210M", 768, 24, 12, 2048, (37500, 50000, 62500), (37500, 50000, 62500), 200, 1e-3),
    Model("360M", 1024, 24, 16, 2816, (25000, 37500, 50000), (25000, 37500, 50000), 400, 1e-3),
)
PAPER_SEQ_LEN, PAPER_VOCAB, NOTEBOOK_VOCAB = 512, 50304, 50257  # FLOPs are counted with the notebook's vocabulary

# Table A9 of Hoffmann et al.: million parameters / d_model / kv_size / n_heads / n_layers; ffw_size is 4 d_model.
# Written down from memory of the paper, and held against the two sums that Hägele et al. print, 5.59e23 and 2.36e23;
# with the projection of relative positions, another d h k a layer, every row gives its own count to 1%.
CHINCHILLA_MODELS = """
44/512/64/8/8 57/576/64/9/9 74/640/64/10/10 90/640/64/10/13 106/640/64/10/16
117/768/64/12/12 140/768/64/12/15 163/768/64/12/18 175/896/64/14/14 196/896/64/14/16
217/896/64/14/18 251/1024/64/16/16 278/1024/64/16/18 306/1024/64/16/20 425/1280/128/10/18
489/1280/128/10/21 509/1408/128/11/18 552/1280/128/10/24 587/1408/128/11/21 632/1536/128/12/19
664/1408/128/11/24 724/1536/128/12/22 816/1536/128/12/25 893/1792/128/14/20 1018/1792/128/14/23
1143/1792/128/14/26 1266/2048/128/16/22 1424/2176/128/17/22 1429/2048/128/16/25 1593/2048/128/16/28
1609/2176/128/17/25 1731/2304/128/18/24 1794/2176/128/17/28 2007/2304/128/18/28 2283/2304/128/18/32
2298/2560/128/20/26 2639/2560/128/20/30 2980/2560/128/20/34 3530/2688/128/22/36 3802/2816/128/22/36
4084/2944/128/22/36 4516/3072/128/24/36 6796/3584/128/28/40 9293/4096/128/32/42 11452/4352/128/32/47
12295/4608/128/36/44 12569/4608/128/32/47 13735/4864/128/32/47 14940/4992/128/32/49 16183/5120/128/40/47
"""
CHINCHILLA_TOKENS_PER_PARAM = (10, 15, 20, 25)
CHINCHILLA_SEQ_LEN, CHINCHILLA_VOCAB = 1024, 32000


def paper_run_costs(model: Model, as_run: bool = True) -> list:
    """FLOPs of the runs of one of the paper's models, shortest first: 3 runs, by its logs or by its Table 2."""
    flops = train_flops(PAPER_SEQ_LEN, NOTEBOOK_VOCAB, model.n_layer, model.n_embd, model.n_head, ffw=model.ffw)
    return [flops * model.global_batch_size * n for n in (model.lengths_run if as_run else model.lengths)]


def chinchilla_run_costs() -> list:
    """FLOPs of the runs of Chinchilla's 50 models, a list each: 10, 15, 20 and 25 tokens per nominal parameter."""
    runs = []
    for row in CHINCHILLA_MODELS.split():
        millions, n_embd, head_size, n_head, n_layer = map(int, row.split("/"))
        size = dict(n_layer=n_layer, n_embd=n_embd, n_head=n_head, head_size=head_size, swiglu=False)
        flops_per_token = train_flops(CHINCHILLA_SEQ_LEN, CHINCHILLA_VOCAB, **size) / CHINCHILLA_SEQ_LEN
        runs.append([flops_per_token * ratio * millions * 1e6 for ratio in CHINCHILLA_TOKENS_PER_PARAM])
    return runs


# ----------------------------------------------------------------------------------------------------------------------
# A study: one run per length, or one run with cooldowns


def separate_cost(costs: list) -> float:
    """Cost of training every length from scratch, as a cosine asks for: the sum of the costs of the runs."""
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

# Chinchilla's law, fitted to the 240 points that Besiroglu et al. (arXiv 2404.10102) read off a figure of Hoffmann et
# al.; here the optimum of the Huber loss (delta 1e-3) on them. C = 6ND, tokens of the Chinchilla tokenizer.
DEFAULT_LAW = {
    "law": "chinchilla",
    "source": "Huber optimum on the 240 points of Besiroglu et al. 2024 (arXiv 2404.10102)",
    "params": {"E": 1.817218, "A": 477.8258, "B": 2143.417, "alpha": 0.347310, "beta": 0.367172},
}
LAW_NAMES = ("E", "A", "B", "alpha", "beta")
# Cholesky factor of the covariance of ln E, ln A, ln B, alpha, beta over 2000 bootstrap fits of laws.py to these points
DEFAULT_SPREAD = (
    (0.01166,),
    (0.13386, 0.16542),
    (0.20273, -0.23880, 0.09434),
    (0.00784, 0.00984, -0.00027, 0.00043),
    (0.00993, -0.01178, 0.00441, -0.00035, 0.00015),
)


def default_law(draws: int = 400) -> dict:
    """DEFAULT_LAW with draws of its parameters, as a law of laws.py has them; always the same draws."""
    rng, law = random.Random(0), DEFAULT_LAW | {"draws": []}
    E, A, B, alpha, beta = law["params"].values()
    for _ in range(draws):
        z = [rng.gauss(0, 1) for _ in LAW_NAMES]
        e, a, b, *shift = (sum(x * z[j] for j, x in enumerate(row)) for row in DEFAULT_SPREAD)
        values = (E * math.exp(e), A * math.exp(a), B * math.exp(b), alpha + shift[0], beta + shift[1])
        law["draws"].append(dict(zip(LAW_NAMES, values, strict=True)))
    return law


def read_law(path: str) -> dict:
    """Read a law that `laws.py chinchilla ... --json` wrote; ValueError where it is another law or not whole."""
    try:
        with open(path) as f:
            law = json.load(f)
    except json.JSONDecodeError as error:
        raise Mistake(f"{path} is not JSON ({error}); make it with laws.py chinchilla ... --json > {path}") from None
    if not isinstance(law, dict) or law.get("law") != "chinchilla":
        raise Mistake(f"{path} holds no chinchilla law; a plan needs one: laws.py chinchilla ... --json > {path}")
    for values in [law.get("params", {}), *law.get("draws", [])]:
        if not all(isinstance(values.get(name), float | int) for name in LAW_NAMES):
            raise Mistake(f"{path}: a plan needs {', '.join(LAW_NAMES)}, not {values}")
        if min(values[name] for name in LAW_NAMES) <= 0:
            raise Mistake(f"{path}: its data leave the law so open that {values} fits too; no plan follows from it")
    return law


def optimal_size(flops: float, params: dict) -> tuple:
    """(parameters, tokens, loss) that minimize E + A/N^alpha + B/D^beta under 6ND = flops.

    N = G (C/6)^(beta/(alpha+beta)), D = (C/6) / N, G = (alpha A / (beta B))^(1/(alpha+beta)); Hoffmann et al., eq. 4.
    """
    E, A, B, alpha, beta = (params[name] for name in LAW_NAMES)
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    N = G * (flops / 6) ** (beta / (alpha + beta))
    D = flops / 6 / N
    return N, D, E + A / N**alpha + B / D**beta


def interval(values: list, level: float = 0.95) -> list:
    """[low, high]: the two quantiles of the draws that leave (1 - level) / 2 on either side."""
    values = sorted(values)
    return [values[round((len(values) - 1) * q)] for q in ((1 - level) / 2, (1 + level) / 2)]


def shape_for(params: float, vocab_size: int = PAPER_VOCAB) -> tuple:
    """(n_layer, n_embd, n_head) of a model with about so many parameters: heads of 64, one layer per head.

    Rule of thumb, not of the paper: its models have 0.75 to 2 layers per head, and loss hardly depends on the shape.
    """
    sizes = [(heads, 64 * heads, heads) for heads in range(1, 200)]
    return min(sizes, key=lambda size: abs(math.log(num_params(vocab_size, *size) / params)))


def deepseek_rules(flops: float) -> tuple:
    """(peak lr, tokens a step) for a budget: 0.3118 C^-0.125 and 0.292 C^0.3271, DeepSeek LLM (arXiv 2401.02954), 3.1.

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


def plan(flops: float, law: dict | None = None, batch_tokens: float | None = None) -> Plan:
    """Plan the compute-optimal run of a budget (C = 6ND) from a chinchilla law; intervals from its bootstrap draws.

    `batch_tokens` (tokens a step) replaces the rule. What the law cannot know: your data, your tokenizer, inference.
    """
    if not (isinstance(flops, float | int) and 0 < flops < math.inf):
        raise Mistake(f"flops={flops} must be a positive number, such as 1e21")
    if batch_tokens is not None and not 0 < batch_tokens < math.inf:
        raise Mistake(f"batch_tokens={batch_tokens} must be a positive number of tokens a step")
    law = default_law() if law is None else law
    lr, rule = deepseek_rules(flops)
    batch_tokens = rule if batch_tokens is None else batch_tokens
    N, D, loss = optimal_size(flops, law["params"])
    draws = [optimal_size(flops, draw) for draw in law.get("draws", [])]
    intervals = {}
    if draws:
        intervals = {name: interval([d[i] for d in draws]) for i, name in enumerate(("params", "tokens", "loss"))}
        intervals["steps"] = [x / batch_tokens for x in intervals["tokens"]]
    return Plan(flops, N, D, loss, D / batch_tokens, batch_tokens, lr, intervals)


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def table_command(args) -> dict:
    """The paper's models (params as trained, params_notebook as its notebook counts them)."""
    rows = []
    for m in PAPER_MODELS:
        size = (m.n_layer, m.n_embd, m.n_head)
        row = m._asdict() | {"params": num_params(PAPER_VOCAB, *size, ffw=m.ffw)}
        row["params_notebook"] = num_params(NOTEBOOK_VOCAB, *size, ffw=m.ffw, norms=False)
        row["flops_per_seq"] = train_flops(PAPER_SEQ_LEN, NOTEBOOK_VOCAB, *size, ffw=m.ffw)
        row["causal"] = train_flops(PAPER_SEQ_LEN, NOTEBOOK_VOCAB, *size, ffw=m.ffw, causal=True)
        row["over_6nd"] = row["flops_per_seq"] / train_flops_6nd(row["params"], PAPER_SEQ_LEN)
        rows.append(row)
    columns = "name n_embd n_layer n_head ffw params flops_per_seq causal over_6nd lengths lr_cosine".split()
    print_rows(rows, columns, args)
    return {"models": rows}


def savings_command(args) -> dict:
    """FLOPs of the paper's runs and Chinchilla's, and of `--lengths`, one run per length or one with cooldowns."""
    studies = {m.name: paper_run_costs(m) for m in PAPER_MODELS if m.name != "166M"}
    if args.lengths:
        studies = {f"lengths {args.lengths}": [float(x) for x in args.lengths.split(",")]}
    rows = [cost_row(name, [costs], args.cooldown_frac) for name, costs in studies.items()]
    if not args.lengths:
        rows.append(cost_row("paper, total", list(studies.values()), args.cooldown_frac))
        rows.append(cost_row("chinchilla, f=0.1", chinchilla_run_costs(), 0.1))
    print_rows(rows, list(rows[0]), args)
    return {"cooldown_frac": args.cooldown_frac, "studies": rows}


def cost_row(name, studies, cooldown_frac):
    total = sum(separate_cost(costs) for costs in studies)
    a, b = (sum(shared_cost(costs, cooldown_frac, formula) for costs in studies) for formula in "AB")
    return {"name": name, "separate": total, "A": a, "A_ratio": a / total, "B": b, "B_ratio": b / total}


def plan_command(args) -> dict:
    flops = args.flops
    if args.gpu_hours is not None:
        peak = peak_flops(args.gpu or "")
        if flops is not None or args.mfu is None or not 0 < args.mfu <= 1:
            raise Mistake("give --flops, or all of --gpu_hours, --gpu and --mfu (a share between 0 and 1)")
        if peak is None:
            raise Mistake(f"--gpu={args.gpu} is not known; known: {', '.join(PEAK_FLOPS)}")
        flops = args.gpu_hours * 3600 * peak * args.mfu
    if flops is None:
        raise Mistake("a plan needs a budget: --flops=1e21, or --gpu_hours=512 --gpu=H100 --mfu=0.4")
    law = read_law(args.law) if args.law else default_law()
    result = plan(flops, law, args.batch_tokens)
    n_layer, n_embd, n_head = shape_for(result.params)
    out = result._asdict() | {
        "n_layer": n_layer,
        "n_embd": n_embd,
        "n_head": n_head,
        "law": law.get("source", args.law),
    }
    if not args.json:
        print_plan(result, out)
    return out


def print_plan(result, out):
    notes = {
        "params": f"  e.g. --n_layer={out['n_layer']} --n_embd={out['n_embd']} --n_head={out['n_head']}",
        "tokens": f"  {result.tokens / result.params:.1f} per parameter",
        "batch_tokens": "  tokens a step; DeepSeek's rule 0.292 C^0.3271 unless given, no interval published",
        "lr": "  DeepSeek's rule 0.3118 C^-0.125, no interval published; sweep around it",
    }
    print(f"law: {out['law']}")
    for name in ("flops", "params", "tokens", "loss", "steps", "batch_tokens", "lr"):
        low_high = result.intervals.get(name)
        between = f"  [{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else ""
        print(f"{name:>12}  {getattr(result, name):.4g}{between}{notes.get(name, '')}")


def print_rows(rows, columns, args):
    """Print dicts as an aligned table, unless --json is to print them."""
    if args.json:
        return
    cells = [columns] + [[show(row[c]) for c in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(row[i].rjust(widths[i]) for i in range(len(columns))))


def show(value):
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    if isinstance(value, int) and value < 1e10:
        return f"{value:,}"
    return value if isinstance(value, str) else f"{value:.4f}" if value < 1e3 else f"{value:.6e}"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors, so that a mistake ends in one line."""

    def error(self, message):
        raise Mistake(message)


def main(argv=None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    table = commands.add_parser("table", allow_abbrev=False, help="the paper's models")
    savings = commands.add_parser("savings", allow_abbrev=False, help="one run per length against shared cooldowns")
    savings.add_argument("--cooldown_frac", type=float, default=0.2, help="share of each length that is its cooldown")
    savings.add_argument("--lengths", help="lengths of your own study, as 10,20,30 (any unit)")
    budget = commands.add_parser("plan", allow_abbrev=False, help="the compute-optimal run for a budget")
    budget.add_argument("--flops", type=float, help="budget, C = 6ND")
    budget.add_argument("--gpu_hours", type=float)
    budget.add_argument("--gpu", help="a name such as H100, or torch.cuda.get_device_name()")
    budget.add_argument("--mfu", type=float, help="share of the peak FLOP/s that training reaches")
    budget.add_argument("--law", help="JSON of laws.py chinchilla")
    budget.add_argument("--batch_tokens", type=float, help="tokens a step, instead of the rule")
    for command in (table, savings, budget):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    try:
        args = parser.parse_args(argv)
        run = {"table": table_command, "savings": savings_command, "plan": plan_command}[args.command]
        out = run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
