"""One training run, from top to bottom.

    python prepare_data.py --tokenizer=bytes                     # real text, once
    python train.py configs/tiny.py                              # on one CPU or GPU; the same command again resumes
    python train.py configs/tiny.py --lr=5e-4 --name=low         # any option of any config
    torchrun --nproc_per_node=2 train.py configs/tiny.py         # on two

A constant learning rate, and a cooldown from any of its checkpoints, without fixing the length in advance:

    python train.py configs/tiny.py --name=trunk --schedule=constant --save_at=320
    python train.py configs/tiny.py --name=short --init_from=runs/trunk/ckpt/step_00000320.pt

`step` counts finished updates. Update k uses schedule(k) and the sequences k * G .. k * G + G - 1 of the data order; a
checkpoint or an evaluation at step s is of the weights after s updates. Nothing in a run is random after the initial
weights, so a run that was stopped, branched, or moved to other ranks goes on as if nothing had happened, to the bit.
"""

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import averaging
import checkpoint
import optim
import scaling
import schedules
from config import Mistake, check_values, load, main, mistakes, names, option
from data import TrainStream, ValSet, parse_mix, to_device
from model import Llama, choose_device, chunk_losses, native_bf16
from tracking import RunFolder, caught_signals, check_folder, clock

MAX_SKIPS = 10  # updates skipped in a row, before a run ends


# Kinds of options. What they say of an option is read here by all: which may change when, what tells runs apart.
#   model     shape of the weights and of the optimizer's state: a branch keeps it
#   run       what a run is, beside that: a resume keeps it
#   schedule  of the learning rate: runs that differ in nothing else share their first steps
#   average   which averages of the weights are kept
#   result    what else changes a result: a resume may change it, and says so
#   free      changes no bit of the weights


@dataclasses.dataclass(frozen=True)
class Config:
    # run
    name: str = option("run", "free")  # the run's folder is out_dir/name
    out_dir: str = option("runs", "free")  # folder of all runs
    seed: int = option(0, "run", least=0, most=2**63 - 1)  # of the initial weights
    init_from: str | None = option(None, "run")  # checkpoint to branch from: weights, optimizer, step, position go on
    stop_at: int | None = option(None, "free", least=1)  # end early at this step, with a checkpoint
    # data
    dataset: str = option("slimpajama-6b-gpt2", "run")  # folder in data_dir, or a mix by weight: a:0.7,b:0.3
    val_dataset: str | None = option(None, "result")  # whose validation split is used; none: the (first) dataset's own
    data_dir: str = option("data", "free")  # folder of all datasets
    data_seed: int = option(1337, "run", least=0, most=2**63 - 1)  # of the data order
    seq_len: int = option(512, "model", least=1)  # tokens in a sequence
    global_batch_size: int = option(200, "run", least=1)  # sequences per update, over all ranks
    micro_batch_size: int = option(50, "result", least=1)  # sequences at once on a device
    # model, see model.py
    n_layer: int = option(12, "model", least=1)  # blocks
    n_head: int = option(12, "model", least=1)  # attention heads, of n_embd / n_head channels
    n_kv_head: int | None = option(None, "model", least=1)  # key and value heads; none: as many as n_head
    n_embd: int = option(768, "model", least=1)  # channels
    tied: bool = option(True, "model")  # one matrix for embedding and output head
    # optimizer, see optim.py
    optimizer: str = option("adamw", "model", choices=optim.OPTIMIZERS)  # its rule
    lr: float = option(5e-4, "result", least=1e-12, most=100.0)  # peak
    weight_decay: float = option(0.1, "result", least=0)  # of the matrices in the blocks; lr * weight_decay per step
    beta1: float = option(0.9, "result", least=0, below=1)  # of the mean of gradients
    beta2: float = option(0.95, "result", least=0, below=1)  # of the mean of their squares
    grad_clip: float = option(1.0, "result", least=0)  # largest norm of the gradient; 0: no clipping
    # schedule, see schedules.py; none: the schedule's own default
    schedule: str = option("wsd", "schedule", choices=schedules.SCHEDULES)  # of the learning rate
    total_steps: int = option(25_000, "schedule", least=1)  # updates
    warmup_steps: int = option(300, "schedule", least=0)  # updates until the peak lr
    warmup_init_frac: float | None = option(None, "schedule")  # of the peak lr, at update 0
    cooldown_steps: int | None = option(None, "schedule")  # this or cooldown_frac; default 0.2 of total_steps
    cooldown_frac: float | None = option(None, "schedule")  # of total_steps
    cooldown_shape: str | None = option(
        None, "schedule"
    )  # linear, 1-sqrt (default), ..., power:a, exponential:half_life
    final_lr_frac: float | None = option(None, "schedule")  # of the peak lr, at total_steps
    cosine_steps: int | None = option(None, "schedule")  # cosine_inf: end of the cosine
    cycle_ends: tuple[int, ...] | None = option(None, "schedule")  # wsd_s: ends of the cycles before the last
    knee_steps: int | None = option(None, "schedule")  # power: end of the constant part
    exponent: float | None = option(None, "schedule")  # power: of the decay
    # averages of the weights, see averaging.py
    window_horizon: int = option(0, "average", least=0)  # steps in a window; 0: no windows (the paper: 500)
    window_every: int = option(5, "average")  # steps between samples
    window_keep: int = option(5, "average")  # windows held, for evaluate.py to sweep the horizon over
    ema_decay: tuple[float, ...] = option((), "average")  # an EMA for each, from sample to sample
    ema_half_life: tuple[float, ...] = option((), "average")  # an EMA for each, in steps
    ema_every: int = option(5, "average")  # steps between samples
    averages_on: str = option("device", "free", choices=("device", "cpu"))  # cpu spares GPU memory
    # evaluation, logging, saving; intervals are in steps, 0 is never
    eval_every: int = option(250, "free", least=0)  # evaluate, and at the end
    eval_tokens: int = option(0, "result", least=0)  # first tokens of the validation split; 0: all
    log_every: int = option(10, "free", least=0)  # write a training line
    save_every: int = option(1000, "free", least=0)  # save a checkpoint, and at the end
    keep: int = option(2, "free", least=2)  # newest checkpoints kept; two, as one may turn out damaged
    save_at: tuple[int, ...] = option((), "free", least=1)  # steps saved and kept for ever, to branch from
    wandb: str = option("off", "free", choices=("off", "online", "offline"))  # track with Weights & Biases, too
    # machine
    device: str = option("auto", "free", choices=("auto", "cpu", "cuda"))  # auto: cuda if there is one
    dtype: str = option("auto", "result", choices=("auto", "float32", "bfloat16"))  # auto: bf16 where native
    compile: bool | None = option(None, "result")  # torch.compile; none: on cuda only


SCHEDULE_OPTIONS = [name for name in names(Config, "schedule") if name != "schedule"]


def make_schedule(config):
    """schedule(step) -> factor of the peak lr."""
    return schedules.build(config.schedule, **{name: getattr(config, name) for name in SCHEDULE_OPTIONS})


def average_options(config):
    return {name: getattr(config, name) for name in (*names(Config, "average"), "averages_on")}


def check(config, world_size):
    """Raise ValueError for what the types of the options cannot say, before anything is read, built or written."""
    check_values(config)
    for step in (*config.save_at, 1 if config.stop_at is None else config.stop_at):
        if not 1 <= step <= config.total_steps:
            raise Mistake(f"save_at or stop_at={step}: expected steps from 1 to total_steps={config.total_steps}")
    at_once = config.micro_batch_size * world_size
    if config.global_batch_size % at_once:
        share, left = divmod(config.global_batch_size, world_size)
        fits = [b for b in range(1, share + 1) if share % b == 0] if not left else []
        raise Mistake(
            f"global_batch_size={config.global_batch_size} is not a multiple of "
            f"micro_batch_size={config.micro_batch_size} x {world_size} rank(s) = {at_once}: "
            + (f"micro_batch_size can be {', '.join(map(str, fits))}" if fits else "change the number of ranks")
        )
    check_folder(config.out_dir, config.name)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise Mistake("device='cuda': torch sees no CUDA device here; use --device=cpu")
    with mistakes():
        make_schedule(config)
        averaging.build([torch.zeros(1)], **average_options(config))


@dataclasses.dataclass
class Progress:
    """How far a run is: all that changes from step to step, besides weights, optimizer and averages."""

    step: int = 0  # updates made
    position: int = 0  # sequences trained on
    skipped: int = 0  # updates skipped for gradients that were not finite
    skipped_in_a_row: int = 0
    train_s: float = 0.0  # seconds spent in updates
    train_loss: float | None = None  # of the last update
    losses: dict | None = None  # val_loss and those of the averages, if this step was evaluated


def train(config):
    """Train `config` from wherever it stands; return what its result.json says, or None if it ended at `stop_at`.

    ValueError for a user's mistake, before anything is written; FloatingPointError where training diverged; SystemExit
    143 after SIGTERM and 130 after Ctrl-C, with a checkpoint.
    """
    with contextlib.ExitStack() as at_exit:
        return run_training(config, at_exit)


def run_training(config, at_exit):
    # ranks and device
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    check(config, world_size)
    device = choose_device(config.device, int(os.environ.get("LOCAL_RANK", 0)))
    bf16 = native_bf16(device) if config.dtype == "auto" else config.dtype == "bfloat16"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    # start, data, model: all that can be refused is, before anything is written
    run = Path(config.out_dir) / config.name
    state, source, resumed = checkpoint.find_start(config, run, warn=rank == 0)
    if resumed:  # what was to be kept for ever still is
        config = dataclasses.replace(config, save_at=tuple(sorted({*config.save_at, *state["config"]["save_at"]})))
    if resumed and (run / "result.json").is_file() and state["progress"]["step"] == config.total_steps:
        checkpoint.check_finished(config, state, run)
        result = json.loads((run / "result.json").read_text())
        if rank == 0:
            print(f"{run} is finished: val loss {result['val_loss']:.4f} at step {result['step']}")
        return result
    at = Progress(**state["progress"]) if state else Progress()
    start = at.step
    history = state["data"]["history"] if state else []
    if not history or history[-1][1] != config.dataset:
        history = [*history, (at.position, config.dataset)]  # a branch may change the mix, from its first step on
    stream = TrainStream(config.data_dir, history, config.seq_len, config.data_seed)
    val_dataset = config.val_dataset or next(iter(parse_mix(config.dataset)))
    val = ValSet(Path(config.data_dir) / val_dataset, config.seq_len, config.eval_tokens)
    if any(val.meta[key] != next(iter(stream.meta.values()))[key] for key in ("tokenizer", "vocab_size")):
        raise Mistake(
            f"val_dataset={val_dataset!r} has another tokenizer than dataset={config.dataset!r}: prepare it alike"
        )
    sha256 = {name: meta["splits"]["train"]["sha256"] for name, meta in stream.meta.items()}
    for name, trained_on in state["data"]["sha256"].items() if state else ():
        if sha256[name] != trained_on:
            raise Mistake(f"dataset {name!r} is not what {source} was trained on: restore that, or start another run")
    shape = dict(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd, n_kv_head=config.n_kv_head)
    raw_model = Llama(stream.vocab_size, **shape, seq_len=config.seq_len, tied=config.tied, seed=config.seed).to(device)
    parameters = list(raw_model.parameters())
    betas = (config.beta1, config.beta2)
    optimizer = optim.build(config.optimizer, raw_model, lr=config.lr, weight_decay=config.weight_decay, betas=betas)
    averages = averaging.build(raw_model, **average_options(config))
    if state:
        raw_model.load_state_dict(state["model"])
        optim.load_state(optimizer, state["optimizer"])
        for name, average in averages.items():
            saved = state["averages"].get(name, {})
            if resumed or all(saved.get(key) == value for key, value in average.settings.items()):
                average.load_state_dict(saved)  # a branch may average otherwise, and then begins with that
    compiled = device.type == "cuda" if config.compile is None else config.compile
    model = torch.compile(raw_model, dynamic=False) if compiled else raw_model
    schedule = make_schedule(config)

    # sizes
    rank_batch = config.global_batch_size // world_size  # sequences a step on this rank
    accum_steps = rank_batch // config.micro_batch_size
    tokens_per_step = config.global_batch_size * config.seq_len
    flops_per_sequence = scaling.train_flops(config.seq_len, stream.vocab_size, **shape)  # as the paper: not padded
    n_params = sum(p.numel() for p in parameters)
    peak_flops = scaling.peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None

    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        at_exit.callback(dist.destroy_process_group)
        starts = [None] * world_size
        dist.all_gather_object(starts, start)
        if len(set(starts)) > 1:
            raise Mistake(f"ranks would start at different steps, {starts}: do all of them see the same {run}?")

    # the run's folder; from here on things are written
    folder = None
    if rank == 0:
        log_from = (run if resumed or not state else source.parent.parent) / "log.jsonl"
        folder = RunFolder(run, dataclasses.asdict(config), log_from, start, evaluated=at.losses is not None)
        at_exit.callback(folder.close)
        if resumed:  # a kill may have come between a save and this
            checkpoint.prune(run / "ckpt", start, config.keep, config.save_at)
        tokens = config.total_steps * tokens_per_step
        print(
            f"{run}: {n_params:,} parameters, {'bf16' if bf16 else 'fp32'}, {'compiled' if compiled else 'eager'}, "
            f"on {world_size} x {device.type}\n"
            f"step: {config.global_batch_size} sequences x {config.seq_len} = {tokens_per_step:,} tokens, "
            f"{accum_steps} x {config.micro_batch_size} sequences a rank\n"
            f"run: {config.total_steps:,} steps = {tokens:,} tokens, {tokens / n_params:.1f} a parameter\n"
            f"from: {f'step {at.step} of {source}' if source else 'new weights'}"
        )
        for name, before in state["config"].items() if resumed else ():
            if (now := getattr(config, name)) != before and name != "stop_at":
                print(f"changed: {name}={now!r}, until step {at.step} it was {before!r}")
    received = at_exit.enter_context(caught_signals())  # they ask for a checkpoint at the end of the step

    def sum_over_ranks(*tensors):
        """Sums of fp64 tensors, and whether a signal reached any rank: (list of numbers, bool)."""
        flat = torch.cat([t.reshape(-1).to(device) for t in (*tensors, torch.tensor(float(bool(received))).double())])
        if world_size > 1:
            dist.all_reduce(flat)
        *sums, stop = flat.tolist()
        return sums, stop > 0

    def evaluate():
        """Mean validation loss of the model as it is, and whether a signal came, after which the loss means nothing."""
        with autocast:
            losses = chunk_losses(model, val, device, rank, world_size, stop=lambda: bool(received))
        sums, stop = sum_over_ranks(losses)
        return math.fsum(sums) / val.n_targets, stop

    def counters():
        return {"step": at.step, "tokens": at.position * config.seq_len, "flops": at.position * flops_per_sequence}

    stop, failed_saves, interval_steps, interval_s, step_s = False, 0, 0, 0.0, None
    for step in range(at.step, config.total_steps + 1):
        last = step == config.total_steps

        # evaluate
        due = last or config.eval_every and step % config.eval_every == 0
        if due and not stop and at.losses is None:
            losses = {}
            losses["val_loss"], stop = evaluate()
            for name, average in averages.items():
                if (span := average.span()) and not stop:
                    with averaging.swapped(raw_model, average.average()):
                        losses[f"val_loss_{name}"], stop = evaluate()
                    if name == "window":
                        losses["window_steps"] = span.steps  # that the mean is over: the window may be filling
            if not stop:
                at.losses = losses
                if folder:
                    folder.log({**counters(), **losses})

        # save
        ending = last or stop or step == config.stop_at
        due = ending or step in config.save_at or config.save_every and step % config.save_every == 0
        if folder and due and step > start:
            state = {
                "format": checkpoint.FORMAT,
                "model": raw_model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "averages": {name: average.state_dict() for name, average in averages.items()},
                "progress": dataclasses.asdict(at),
                "data": {"history": history, "sha256": sha256},
                "config": dataclasses.asdict(config),
                "versions": {"torch": str(torch.__version__), "threads": torch.get_num_threads()},
            }
            failed_saves = checkpoint.try_save(
                run / "ckpt", step, state, config.keep, config.save_at, failed_saves, ending
            )
        if ending:
            break

        # the gradient
        began = time.perf_counter()
        optim.set_lr(optimizer, schedule(step))
        loss_sum, halves = torch.zeros((), dtype=torch.float64, device=device), []
        for micro_step in range(accum_steps):
            first = at.position + rank * rank_batch + micro_step * config.micro_batch_size
            tokens = to_device(stream.batch(first, config.micro_batch_size), device)  # (B, T + 1)
            with autocast:
                loss = model(tokens[:, :-1], tokens[:, 1:])  # a sum over tokens
            (loss / tokens_per_step).backward()
            loss_sum += loss.detach()
            optim.add_by_halves(parameters, halves, micro_step + 1, accum_steps)
        if world_size > 1:
            for work in [dist.all_reduce(p.grad, async_op=True) for p in parameters]:
                work.wait()
        (loss_sum,), stop = sum_over_ranks(loss_sum)

        # the step, unless the gradient is not finite; its norm is the same on all ranks, so they decide alike
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf).item()
        finite = math.isfinite(norm)
        if finite:
            optimizer.step()
        optimizer.zero_grad()
        at.step, at.position = step + 1, at.position + config.global_batch_size
        at.skipped, at.skipped_in_a_row = at.skipped + (not finite), 0 if finite else at.skipped_in_a_row + 1
        at.train_loss, at.losses = loss_sum / tokens_per_step, None
        for average in averages.values():
            average.update(at.step)
        seconds = time.perf_counter() - began
        at.train_s += seconds
        step_s = seconds if step_s is None or step <= start + 1 else 0.9 * step_s + 0.1 * seconds  # first: compilation
        interval_steps, interval_s = interval_steps + 1, interval_s + seconds

        # log
        if folder and (not finite or config.log_every and at.step % config.log_every == 0):
            speed = interval_steps / interval_s  # steps a second, evaluations and saves left out
            line = {**counters(), "train_loss": at.train_loss, "lr": config.lr * schedule(step), "grad_norm": norm}
            line["tokens_per_s"] = tokens_per_step * speed
            if peak_flops:
                line["mfu"] = config.global_batch_size * flops_per_sequence * speed / (peak_flops * world_size)
            if not finite:
                line["skipped"] = at.skipped
            folder.log(line, left_s=step_s * ((config.stop_at or config.total_steps) - at.step))
            interval_steps, interval_s = 0, 0.0
        if at.skipped_in_a_row == MAX_SKIPS:
            raise FloatingPointError(
                f"{MAX_SKIPS} gradients in a row, up to step {at.step}, were not finite: lower --lr; "
                f"the checkpoints in {run / 'ckpt'} are as they were"
            )

    if stop:
        if rank == 0:
            print(f"stopped by a signal at step {at.step}; the same command goes on from there", flush=True)
        sys.exit(128 + (received[0] if received else 15))  # 15: SIGTERM, on another rank
    if not last:
        return None
    result = {"name": config.name, **counters(), "n_params": n_params, "train_loss": at.train_loss}
    result |= {**at.losses, "skipped": at.skipped, "train_s": round(at.train_s, 3)}
    if folder:
        folder.finish(result)
        print(f"{run} is finished: val loss {at.losses['val_loss']:.4f} after {clock(at.train_s)} of training")
    return result


if __name__ == "__main__":
    main(lambda: train(load(Config, sys.argv[1:])))
