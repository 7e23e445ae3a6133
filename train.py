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
weights, so a run that was stopped, branched or moved to 2, 4, 8 ranks goes on as if nothing had happened, to the bit.
"""

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path

import torch

import averaging
import checkpoint
import optim
import scaling
import schedules
from config import Mistake, check_values, load, main, mistakes, names, option, to_record
from data import check_sources, open_data
from devices import autocast, check_device, computed_with, use_bf16, use_compile
from model import Shape
from parallel import Gradients, Ranks, build, check_batch, check_gathers, chunk_losses
from start import Progress, check_result, check_skips, find_start, state_of
from tracking import RunFolder, Speed, caught_signals, check_folder, clock, finite

# Kinds of options. What they say of an option is read here by all: which may change when, what tells runs apart.
#   model     shape of the weights and of the optimizer's state: a branch keeps it
#   run       what a run is, beside that: a resume keeps it
#   schedule  of the learning rate: runs that differ in nothing else share their first steps
#   mix       what a cooldown trains on: runs that differ in nothing else share the steps before it
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
    dataset: str = option("slimpajama-6b-gpt2", "run")  # in data_dir; of a only 10M tokens: a@10M; mixed: a:0.7,b:0.3
    val_dataset: str | None = option(None, "result")  # whose validation splits: a or a,b; none: the (first) dataset's
    cooldown_dataset: str | None = option(None, "mix")  # what the cooldown trains on, as in `dataset`; none: the same
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
    qk_norm: bool = option(False, "model")  # normalize queries and keys of every head
    mup_base: int | None = option(None, "model", least=1)  # muP: n_embd for which lr was found; same n_embd / n_head
    alpha_in: float = option(1.0, "model", above=0)  # times the embedding's output; with muP find both at mup_base
    alpha_out: float = option(1.0, "model", above=0)  # times the logits
    density: float = option(1.0, "model", above=0, most=1)  # share of the blocks' weights that are not 0
    supar: bool = option(True, "model")  # scale initial weights and lr for the density; False: as for a dense model
    n_inner: int | None = option(None, "model", least=1)  # channels within the MLP; none: 8/3 n_embd, rounded up
    rope_theta: float = option(10_000.0, "model", above=0)  # base of the rotation's wavelengths
    norm_eps: float = option(1e-5, "model", above=0)  # of RMSNorm
    vocab_multiple: int = option(64, "model", least=1)  # the vocabulary is padded to a multiple of it
    z_loss: float = option(0.0, "result", least=0)  # of (ln Z)^2, added to what is minimized, but not to train_loss
    # optimizer, see optim.py
    optimizer: str = option("adamw", "model", choices=optim.OPTIMIZERS)  # schedule_free: with schedule=constant
    lr: float = option(5e-4, "result", least=1e-12, most=100.0)  # peak
    lr_other: float | None = option(None, "result", least=1e-12, most=100.0)  # of embedding, head, norms; none: lr
    weight_decay: float = option(0.1, "result", least=0)  # of the matrices in the blocks; lr * weight_decay per step
    beta1: float = option(0.9, "result", least=0, below=1)  # of the mean of gradients
    beta2: float = option(0.95, "result", least=0, below=1)  # of the mean of their squares
    grad_clip: float = option(1.0, "result", least=0)  # largest norm of the gradient; 0: no clipping
    # of some optimizers only, an error with others; none: the optimizer's own default
    momentum: float | None = option(None, "result", least=0, below=1)  # muon, scion, kron: of the mean of gradients
    beta3: float | None = option(None, "result", above=0, below=1)  # ademamix: of the slow mean; soap: of the factors
    alpha: float | None = option(None, "result", least=0)  # ademamix: weight of the slow mean
    gamma: float | None = option(None, "result", least=0)  # mars: weight of the gradient's change
    precondition_every: int | None = option(None, "result", least=1)  # soap: updates between those of its bases
    # schedule, see schedules.py; none: the schedule's own default
    schedule: str = option("wsd", "schedule", choices=schedules.SCHEDULES)  # of the learning rate
    total_steps: int = option(25_000, "schedule", least=1)  # updates
    warmup_steps: int = option(300, "schedule", least=0)  # updates until the peak lr
    warmup_init_frac: float | None = option(None, "schedule")  # of the peak lr, at update 0
    cooldown_steps: int | None = option(None, "schedule")  # this or cooldown_frac; wsd: default 0.2 of total_steps
    cooldown_frac: float | None = option(None, "schedule")  # of total_steps
    cooldown_shape: str | None = option(None, "schedule")  # linear, 1-sqrt (default), ..., power:a, exponential:h
    final_lr_frac: float | None = option(None, "schedule")  # of the peak lr, at total_steps
    cosine_steps: int | None = option(None, "schedule")  # cosine_inf: end of the cosine
    cycle_ends: tuple[int, ...] | None = option(None, "schedule")  # wsd_s: ends of the cycles before the last
    knee_steps: int | None = option(None, "schedule")  # power: end of the constant part
    exponent: float | None = option(None, "schedule")  # power: of the decay
    anneal: str | None = option(None, "schedule", choices=("cosine", "linear"))  # onecycle: its form
    # averages of the weights, see averaging.py
    window_horizon: int = option(0, "average", least=0)  # steps in a window; 0: no windows (the paper: 500)
    window_every: int = option(5, "average", least=1)  # steps between samples
    window_keep: int = option(5, "average", least=1)  # windows held, for evaluate.py to sweep the horizon over
    ema_decay: tuple[float, ...] = option((), "average", above=0, below=1)  # an EMA for each, from sample to sample
    ema_half_life: tuple[float, ...] = option((), "average", above=0)  # an EMA for each, in steps
    ema_every: int = option(5, "average", least=1)  # steps between samples
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
    device: str = option("auto", "free", choices=("auto", "cpu", "cuda", "mps"))  # auto: cuda if there is one
    dtype: str = option("auto", "result", choices=("auto", "float32", "bfloat16"))  # auto: bf16 where native
    compile: bool | None = option(None, "result")  # torch.compile; none: on cuda only
    checkpoint_activations: bool = option(False, "free")  # compute blocks twice, for less memory
    parallel: str = option("replicate", "free")  # shard: FSDP; shard:8: shards within groups of 8 ranks
    gather_dtype: str = option("float32", "free", choices=("float32", "bfloat16"))  # how matrices of shards travel
    exact_sums: bool = option(True, "result")  # 4, 8, ... ranks add as one does; False: faster, in another order
    loss_rows: int | None = option(None, "result", least=0)  # of logits at a time; 0: all; none: 512 if compiled on cpu


def make_schedule(config):
    """schedule(step) -> factor of the peak lr."""
    options = {name: getattr(config, name) for name in names(Config, "schedule")}
    return schedules.build(options.pop("schedule"), **options)


def make_averages(config, model):
    """The averages that are asked for: {"window": ..., "ema": ..., "ema_2": ...}."""
    options = {name: getattr(config, name) for name in names(Config, "average")}
    return averaging.build(model, **options, averages_on=config.averages_on)


def make_optimizer(config, model):
    """The optimizer, with the options and facts of the run that its rules read."""
    recipe = optim.OPTIMIZERS[config.optimizer]
    read = [name for name in (*recipe.options, *recipe.facts) if hasattr(config, name)]
    settings = {name: getattr(config, name) for name in ("lr", "weight_decay", "lr_other", *read)}
    return optim.build(config.optimizer, model, **settings)


def check(config, ranks=checkpoint.ALONE):
    """Raise Mistake for what the bounds of single options cannot say, before anything is read, built or written."""
    check_values(config)
    late = [step for step in (*config.save_at, config.stop_at) if step is not None and step > config.total_steps]
    if late:
        raise Mistake(f"save_at or stop_at={late[0]}: expected steps up to total_steps={config.total_steps}")
    check_batch(config.global_batch_size, config.micro_batch_size, ranks.world_size)
    check_gathers(config.gather_dtype, config.parallel, bf16=config.dtype != "float32")
    check_folder(config.out_dir, config.name)
    check_device(config.device)
    with mistakes():  # these are built for their checks; files that others copy raise ValueError
        check_sources(config, make_schedule(config))
        averages = make_averages(config, [torch.zeros(1)])
        Shape.of(config, vocab_size=1)
        options = [name for name in optim.options() if hasattr(config, name)]
        given = {name: getattr(config, name) for name in options if getattr(config, name) != getattr(Config, name)}
        optim.check(config.optimizer, given, averaged=bool(averages), in_shards=ranks.shard_size > 1)


def every(interval, step):
    """Whether `step` is one of every `interval`; 0 is never."""
    return interval > 0 and step % interval == 0


def train(config):
    """Train `config` from wherever it stands; return what its result.json says, or None if it ended at `stop_at`.

    Mistake for a user's mistake, before anything is written; FloatingPointError where training diverged; SystemExit
    143 after SIGTERM and 130 after Ctrl-C, with a checkpoint.
    """
    ranks = Ranks(config.device, config.exact_sums, config.parallel)
    check(config, ranks)
    with ranks.connected():
        return train_on(ranks, config)


def train_on(ranks, config):
    """Train on these ranks, which are connected."""
    device, bf16 = ranks.device, use_bf16(config.dtype, ranks.device)
    check_gathers(config.gather_dtype, config.parallel, bf16)

    # start: new weights, a checkpoint of this run, or one to branch from
    run = Path(config.out_dir) / config.name
    start = find_start(config, run, ranks)
    if len(starts := set(ranks.gather(start.step))) > 1:
        raise Mistake(f"ranks would start at different steps, {starts}: do all of them see the same {run}?")
    if start.how == "resumed":  # what was to be kept for ever still is
        config = dataclasses.replace(config, save_at=tuple(sorted({*config.save_at, *start.options["save_at"]})))
    if start.result:
        if ranks.is_main:
            print(f"{run} is finished: val loss {start.result['val_loss']:.4f} at step {start.result['step']}")
        return start.result

    # data, model, optimizer, averages: all that can be refused is, before anything is written
    at = Progress(**start.state["progress"])
    if any(name in ("eval_tokens", "val_dataset", "dtype") for name, _, _ in start.changes(config)):
        at.losses = None  # those of the checkpoint are of another evaluation
    lr_change = start.first_change_of_lr(config, make_schedule)
    if lr_change:
        at.lr_changed_at = at.step
    schedule = make_schedule(config)
    stream, val_sets = checkpoint.together(lambda: open_data(config, start, schedule), ranks, (Mistake, OSError))
    shape = Shape.of(config, stream.vocab_size)
    model, weights = build(ranks, shape, config.seed, config.gather_dtype)  # weights: what is kept of it here
    optimizer = make_optimizer(config, weights)
    averages = make_averages(config, weights)
    begun = start.restore(weights, optimizer, averages)
    masks = weights.masks(config.seed)
    compiled = use_compile(config.compile, device)
    model.set_up(compiled, config.loss_rows, config.checkpoint_activations)
    z_loss = {"z_loss": config.z_loss} if config.z_loss else {}  # what the model is called with, besides tokens
    versions = computed_with(device, compiled)

    # sizes
    rank_batch = config.global_batch_size // ranks.world_size  # sequences per update, of this rank
    accum_steps = rank_batch // config.micro_batch_size
    gradients = Gradients(ranks, model, weights, accum_steps)
    left = config.total_steps - at.step  # updates
    tokens_per_step = config.global_batch_size * config.seq_len
    flops_per_sequence = scaling.train_flops(shape)  # as the paper counts them
    n_params = scaling.num_params(shape)
    peak_flops = scaling.peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None

    def validation_losses(name):
        """{name: mean over the first validation set, name/b: over a further one}; None if a signal came meanwhile."""
        means = {}
        for further, val in val_sets.items():
            with autocast(device, bf16):
                losses = chunk_losses(model, val, device, ranks, stop=lambda: ranks.told(received))
            *losses, signals = ranks.sum(losses, len(received))
            means[name + further] = None if signals else math.fsum(losses) / val.n_targets
        return means

    def evaluate():
        """Validation losses of the weights and of their averages, by name; None if a signal came meanwhile."""
        trained = weights.state_dict()
        final = optim.final_weights(config.optimizer, trained, optimizer.state_dict())
        with contextlib.nullcontext() if final is trained else averaging.swapped(weights, final):
            losses = validation_losses("val_loss")
        for name, average in averages.items():
            if None in losses.values():
                return None
            if span := average.span():  # None before its first sample
                with averaging.swapped(weights, average.average()):
                    losses |= validation_losses(f"val_loss_{name}")
                if name == "window":
                    losses["window_steps"] = span.steps  # that the mean is over: the window may be filling
        return None if None in losses.values() else losses

    def counters():
        done = {"step": at.step, "tokens": at.position * config.seq_len, "flops": at.position * flops_per_sequence}
        return done | stream.epochs(at.position)

    with contextlib.ExitStack() as at_exit:
        # the run's folder; from here on things are written
        def open_folder():
            if ranks.is_main:
                return RunFolder(run, to_record(config), start.log, at.step, evaluated=at.losses is not None)

        folder = checkpoint.together(open_folder, ranks, (Mistake, OSError))
        if folder:
            at_exit.callback(folder.close)
            if start.how == "resumed":  # a kill may have come between a save and this
                checkpoint.prune(run / "ckpt", at.step, config.keep, config.save_at)
            end = at.position + left * config.global_batch_size  # sequences
            tokens, epochs = end * config.seq_len, ", ".join(f"{v:.2f} {k}" for k, v in stream.epochs(end).items())
            print(
                f"{run}: {n_params:,} parameters, {'bf16' if bf16 else 'fp32'}, {'compiled' if compiled else 'eager'}, "
                f"on {ranks.world_size} x {device.type}{ranks.shards()}\n"
                f"step: {config.global_batch_size} sequences x {config.seq_len} = {tokens_per_step:,} tokens, "
                f"{accum_steps} x {config.micro_batch_size} sequences per rank\n"
                f"run: {config.total_steps:,} steps = {tokens:,} tokens, {tokens / n_params:.1f} per parameter, "
                f"{epochs}; to train: {left:,} steps = {left * tokens_per_step:,} tokens"
            )
            if masks:
                n_off = sum(int(is_off.sum()) for _, is_off in masks)
                print(f"density: {n_params - n_off:,} parameters are not 0; speed and FLOPs are those of all")
            start.tell(config, versions, lr_change, begun)
        received = at_exit.enter_context(caught_signals())  # they ask for a checkpoint at the end of the step

        stop, failed_saves, speed = False, 0, Speed()
        batches = ranks.micro_batches(stream, at.position, left, rank_batch, config.micro_batch_size)
        tokens = next(batches, None)
        for step in range(at.step, config.total_steps + 1):
            last = step == config.total_steps

            # evaluate
            due = last or every(config.eval_every, step)
            if due and at.losses is None and not stop:
                at.losses = evaluate()
                stop = at.losses is None
                if folder and not stop:
                    folder.log({**counters(), **at.losses})

            # save
            ending = last or stop or step == config.stop_at
            due = ending or step in config.save_at or every(config.save_every, step)
            if due and step > start.step:  # that of the first step is there
                state = state_of(weights, optimizer, averages, at, stream, config) | {"versions": versions}
                failed_saves = checkpoint.try_save(
                    run / "ckpt", step, state, config.keep, config.save_at, failed_saves, ending, ranks
                )
            if ending:
                break

            # the gradient: of the mean over all tokens of the step
            began = time.perf_counter()
            optim.set_lr(optimizer, schedule(step))
            sums = torch.zeros(1 + len(z_loss), dtype=ranks.sum_dtype, device=device)
            for _ in gradients.micro_steps():  # summed at the end, over ranks, too: 2, 4, 8 add as one does
                with autocast(device, bf16):
                    loss = model(tokens[:, :-1], tokens[:, 1:], **z_loss)  # a sum over tokens, with z-loss two
                (loss.sum() / tokens_per_step).backward()
                tokens = next(batches, None)  # read while a GPU is at work
                sums += loss.detach()
            for p, is_off in masks:
                p.grad.masked_fill_(is_off, 0.0)
            norm = gradients.clip(config.grad_clip or math.inf)
            loss_sum, *z_loss_sum, signals = ranks.sum(sums, len(received))  # here a GPU is waited for
            stop = signals > 0

            # the update, unless the gradient is not finite; its norm is the same on all ranks, so they decide alike
            norm = norm.item()
            is_finite = math.isfinite(norm)
            if is_finite:
                optimizer.step()
                for p, is_off in masks:  # of rules for matrices: others leave a 0 without a gradient as it is
                    p.detach().masked_fill_(is_off, 0.0)
            else:
                at.skipped += 1
            optimizer.zero_grad()
            at.skipped_in_a_row = 0 if is_finite else at.skipped_in_a_row + 1
            at.step += 1
            at.position += config.global_batch_size
            at.train_loss, at.losses = loss_sum / tokens_per_step, None
            for average in averages.values():
                average.update(at.step)

            at.train_s += speed.add(time.perf_counter() - began)

            # log
            due = every(config.log_every, at.step) or not is_finite
            if folder and due:
                per_s = speed.per_second()
                line = {**counters(), "train_loss": at.train_loss, "lr": config.lr * schedule(step), "grad_norm": norm}
                line["tokens_per_s"] = tokens_per_step * per_s
                if peak_flops:
                    line["mfu"] = flops_per_sequence * config.global_batch_size * per_s / peak_flops / ranks.world_size
                if z_loss:
                    line["z_loss"] = z_loss_sum[0] / tokens_per_step
                if not is_finite:
                    line["skipped"] = at.skipped
                folder.log(line, left_s=speed.step_s * ((config.stop_at or config.total_steps) - at.step))
            check_skips(at, run)

        ranks.gather(at.step)  # nobody ends before the checkpoint is written: launchers would kill the others
        if stop:
            if ranks.is_main:
                print(f"stopped by a signal at step {at.step}; the same command goes on from there", flush=True)
            sys.exit(128 + (received[0] if received else 15))  # 15: SIGTERM, on another rank
        if not last:
            return None
        result = {"name": config.name, **counters(), "n_params": n_params, "train_loss": at.train_loss}
        result |= {**at.losses, "skipped": at.skipped, "train_s": round(at.train_s, 3)}
        if at.lr_changed_at is not None:
            result["lr_changed_at"] = at.lr_changed_at
        result = finite(result)
        if folder:
            folder.finish(result)
        check_result(result, run)
        if folder:
            print(f"{run} is finished: val loss {result['val_loss']:.4f} after {clock(at.train_s)} of training")
        return result


if __name__ == "__main__":
    main(lambda: train(load(Config, sys.argv[1:])))
