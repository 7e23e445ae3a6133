"""A study: write down the runs you want, and every step that several of them share is trained once.

    python study.py configs/demo.py --plan            # what would be trained, what it costs, how long it takes
    python study.py configs/demo.py --jobs=2          # train it, two runs side by side; the same command again goes on
    python study.py configs/demo.py --print           # the commands instead, for SLURM arrays or xargs
    python study.py configs/demo.py --out_dir=/big    # any option of train.py, for all runs
    python study.py configs/paper.py --launch="torchrun --nproc_per_node=2"      # instead of python

A study's config file assigns options of train.py. A list stands for one run with each of its values, several lists for
their product; `grids` is a list of dicts of the same kind, side by side, on top of what the file says for all:

    base = "configs/tiny.py"                             # a config of train.py to start from
    seed = [0, 1, 2]
    grids = [
        dict(schedule="cosine", total_steps=[200, 400]),
        dict(schedule="wsd", total_steps=[200, 400], cooldown_shape=["linear", "1-sqrt"]),
    ]

Runs that differ in schedule and length only have equal learning rates up to some step, and up to there they are one
run. So they form a tree: shared segments are trained once, and branched from their last checkpoint, which gives the
bits of a run trained alone, with as many threads: OMP_NUM_THREADS, or else the cores divided by --jobs.

A run is runs/<study>/<name>/ as train.py leaves it, with what it printed in output.txt; runs/<study>/shared/ has the
segments; results.csv, a row per run, comes last. Runs that are finished are not trained again.
"""

import csv
import ctypes
import inspect
import io
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import scaling
import schedules
from checkpoint import written
from config import Mistake, Parser, main, whole
from data import parse_mix, read_meta
from model import Llama
from parallel import autocast, use_bf16
from planner import check_folder, disk, flops_per_step, options_of_result, plan, read_study, shape_of, trained
from tables import AVERAGES, averaged, grouped, labels, print_table, read_results, settings
from tracking import clock, is_locked
from train import Config, make_schedule

COLUMNS = "schedule total_steps lr warmup_steps seed".split()  # of results.csv, even if all runs have them in common
TRIAL_FLOPS = 5e10  # of one pass of the trial that the estimate of the time rests on
POLL_S = 0.3  # between looks at the processes


# ----------------------------------------------------------------------------------------------------------------------
# What it costs


def flops_per_second(segments, threads):
    """(training FLOP/s of a job, where that is from): what is trained already tells, or a second's trial."""
    seconds = {s: trained(s) for s in segments}
    if total := sum(t for _, t in seconds.values()):
        return sum(n * flops_per_step(s.config) for s, (n, _) in seconds.items()) / total, "as in this study so far"
    if torch.cuda.is_available():
        return 0.4 * (scaling.peak_flops(torch.cuda.get_device_name()) or math.nan), "if that is 40% of the GPU's peak"
    config = min((s.config for s in segments), key=flops_per_step)
    flops = flops_per_step(config) / config.global_batch_size
    size = max(1, min(config.micro_batch_size, int(TRIAL_FLOPS / flops)))
    torch.set_num_threads(threads)
    model = Llama(shape_of(config))
    tokens = torch.zeros(size, config.seq_len, dtype=torch.long)
    bf16 = use_bf16(config.dtype, tokens.device)
    times = []
    while len(times) < 2 or len(times) < 5 and sum(times) < 2:
        began = time.perf_counter()
        with autocast(tokens.device, bf16):
            loss = model(tokens, tokens)
        loss.backward()
        times.append(time.perf_counter() - began)
    return size * flops / min(times), "tried on the smallest model"


def totals(segments):
    """{schedule: (runs, steps alone, steps paid, FLOPs alone, FLOPs paid)}, and of "all" of them."""
    runs = {s.run: s for s in segments if s.run}
    rows = {}
    for name in [*dict.fromkeys(s.config.schedule for s in runs.values()), "all"]:
        ends = [s for s in runs.values() if name in (s.config.schedule, "all")]
        paid = [s for s in segments if name in (runs[s.first].config.schedule, "all")]
        alone = sum(s.end for s in ends), sum(s.end * flops_per_step(s.config) for s in ends)
        shared = sum(s.end - s.start for s in paid), sum(s.flops for s in paid)
        rows[name] = len(ends), alone[0], shared[0], alone[1], shared[1]
    return rows


def show_plan(roots, n_jobs, threads):
    """Print the trees, their cost with and without sharing, and the time and disk that is still to be spent."""
    segments, waiting = [s for r in roots for s in r.below()], [s for r in roots for s in r.to_train()]
    alike = {}  # trees of the same shape, such as those of several seeds, are drawn once
    for root in roots:
        common = common_parts(root)
        alike.setdefault("\n".join(draw(root, common)), []).append("_".join(common))
    for tree, names in alike.items():
        few = names if len(names) <= 4 else [*names[:3], "...", names[-1]]
        print(f"{f'{len(names)} times: ' * (len(names) > 1)}{', '.join(few)}\n{tree}\n".lstrip())
    print(f"{'':14}{'runs':>5}{'steps alone':>14}{'shared':>12}{'FLOPs alone':>14}{'shared':>12}{'saved':>8}")
    for name, (n, alone, paid, flops, flops_paid) in totals(segments).items():
        print(f"{name:14}{n:>5}{alone:>14,}{paid:>12,}{flops:>14.4g}{flops_paid:>12.4g}{1 - flops_paid / flops:>8.1%}")
    print("(what several runs share is paid by the first of them)\n")
    if not waiting:
        print("all of it is trained")
        return
    flops = sum(s.flops for s in waiting)
    rate, source = flops_per_second(segments, threads)
    seconds = max(flops / n_jobs, max(s.reach() for s in waiting)) / rate
    print(f"to train: {flops:.4g} FLOPs in {len(waiting)} segments; checkpoints of up to {disk(waiting) / 1e9:,.2f} GB")
    if math.isfinite(seconds):
        about = clock(seconds) if seconds < 1e6 else f"{seconds / 86400:,.0f} days"
        print(f"time: about {about} with --jobs={n_jobs}, at {rate:.2g} FLOP/s each ({source})")


def common_parts(root):
    """What the names of all runs of a tree have in common, besides the schedule: by that trees of one shape differ."""
    names = [s.run.split("_") for s in root.below() if s.run]
    return [part for part in names[0][1:] if all(part in name for name in names)]


def draw(segment, common, before="", last=True):
    """Lines of a tree, from its first segment on."""
    parts = segment.run.split("_") if segment.run else ["(shared)"]
    name = "_".join(part for part in parts if part not in common)
    lines = [f"{before}{'└' if last else '├'}─ {segment.start:>6,} to {segment.end:>6,}  {name}"]
    for child in segment.children:
        lines += draw(child, common, before + ("   " if last else "│  "), child is segment.children[-1])
    return lines


# ----------------------------------------------------------------------------------------------------------------------
# Training it


class Jobs:
    """Processes that train segments, at most `n` at once, each with `threads` threads, and one GPU if there are any."""

    def __init__(self, n, threads, launch):
        self.free, self.threads, self.launch = list(range(n)), threads, launch
        self.running = {}  # segment: (process, slot)

    def start(self, segment):
        slot = self.free.pop(0)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if (gpus := torch.cuda.device_count()) and self.launch == [sys.executable]:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[slot % gpus]
        segment.folder.mkdir(parents=True, exist_ok=True)
        with open(segment.folder / "output.txt", "w") as file:
            output = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
            own_session = {"start_new_session": True, "preexec_fn": end_with_us}  # Ctrl-C is for us to pass on
            process = subprocess.Popen(segment.command(self.launch), env=environment, **output, **own_session)
        self.running[segment] = process, slot

    def ended(self):
        """[(segment, exit status)] of those that ended since the last call."""
        over = [(s, process.returncode) for s, (process, _) in self.running.items() if process.poll() is not None]
        self.free += [self.running.pop(segment)[1] for segment, _ in over]
        return over

    def stop(self):
        """Have all of them save and end."""
        for process, _ in self.running.values():
            process.terminate()
        for process, _ in self.running.values():
            process.wait()


def end_with_us():
    """In a child process: get SIGTERM when the parent is gone, were it killed (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def train_all(segments, waiting, jobs):
    """Train `waiting`, the longest way first; return {segment: why it failed, None for one that needs such a one}."""
    waiting, failed, flops_done = list(waiting), {}, 0
    n_runs, n_done = sum(s.run is not None for s in segments), sum(s.is_trained() for s in segments if s.run)
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"
    total, began = sum(s.flops for s in waiting), time.monotonic()
    with tqdm(total=total, bar_format=form, smoothing=0, disable=None, dynamic_ncols=True) as bar:
        while waiting or jobs.running:
            for segment in [s for s in waiting if s.parent in failed]:
                failed[segment] = None
                waiting.remove(segment)
            ready = [s for s in waiting if jobs.free and (not s.parent or s.parent.checkpoint.is_file())]
            ready = [s for s in ready if not is_locked(s.folder)]  # by a process that outlived an earlier study
            for segment in sorted(ready, key=lambda s: -s.reach())[: len(jobs.free)]:
                jobs.start(segment)
                waiting.remove(segment)
            time.sleep(POLL_S)
            for segment, status in jobs.ended():
                if not (segment.is_trained() and segment.checkpoint.is_file()):
                    said = [x for x in (segment.folder / "output.txt").read_text(errors="replace").splitlines() if x]
                    failed[segment] = f"{said[-1] if said else 'it said nothing'} (exit status {status})"
                    bar.write(f"FAILED  {segment.folder}: {failed[segment]}")
                    continue
                flops_done += segment.flops
                if segment.run:
                    n_done += 1
                    left = (time.monotonic() - began) * (total / flops_done - 1)
                    loss = segment.result()["val_loss"]
                    bar.write(f"{n_done:>4} of {n_runs}  {clock(left)} left  val loss {loss:.4f}  {segment.run}")
            steps = {s: s.steps_done() for s in jobs.running}
            bar.n = flops_done + sum(n * flops_per_step(s.config) for s, n in steps.items())
            bar.set_description_str(f"{n_done} of {n_runs} runs", refresh=False)
            bar.set_postfix_str("at step " + ", ".join(f"{s.start + n:,}/{s.end:,}" for s, n in steps.items()))
    return failed


# ----------------------------------------------------------------------------------------------------------------------
# What came out


def write_results(path, segments):
    """Write results.csv, a row for each finished run; return how many there are.

    First the options, those that runs differ in and those that figures need. `flops` and `train_s` are of the whole
    run, as if it had been trained alone; with `_paid`, of what was trained for it: shared segments are paid by the
    first run that goes through them, so the columns add up to what the study cost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = [s for s in segments if s.run and s.is_trained()]
    runs = [s.config for s in segments if s.run]
    differ = [o for o in options_of_result() if len({getattr(config, o) for config in runs}) > 1]
    options = [o for o in vars(Config()) if o in COLUMNS or o in differ]
    paid = {s.first: [0, 0.0] for s in segments}
    for segment in segments:
        steps, seconds = trained(segment)
        paid[segment.first][0] += segment.flops
        paid[segment.first][1] += seconds / max(steps, 1) * (segment.end - segment.start)
    rows = []
    for segment in ends:
        row = {o: getattr(segment.config, o) for o in options} | {"name": segment.run}
        row |= cooldown_of(segment.config) if segment.config.schedule == "wsd" else {}
        row |= {k: v for k, v in segment.result().items() if k not in ("name", "step", "skipped")}
        flops, seconds = paid.get(segment.run, (0, 0.0))
        rows.append(row | {"flops_paid": flops, "train_s_paid": round(seconds, 3)})
    columns = list(dict.fromkeys(("name", *(k for row in rows for k in row))))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in row.items()} for row in rows)
    with written(path) as file:
        file.write(text.getvalue().encode())
    return len(rows)


def cooldown_of(config):
    """The cooldown that a wsd run has, with the schedule's defaults filled in."""
    schedule, end = make_schedule(config), config.total_steps
    steps = end - next(step for step in range(end, -1, -1) if schedule(step) == 1)
    shape = config.cooldown_shape or inspect.signature(schedules.wsd).parameters["cooldown_shape"].default
    return {"cooldown_steps": steps, "cooldown_frac": round(steps / end, 6), "cooldown_shape": shape}


def print_results(rows):
    """Print final losses: mean and standard deviation over runs that differ in their seeds only."""
    columns = settings(rows)
    groups = grouped(rows, columns)
    names = labels([dict(zip(columns, key, strict=True)) for key in groups])
    heads = {loss: averaged(loss, rows) for loss in AVERAGES}
    table = []
    for name, runs in zip(names, groups.values(), strict=True):
        table.append({"run": name, "seeds": len(runs)})
        for loss, head in heads.items():
            values = [run[loss] for run in runs if run.get(loss) is not None]
            if values:
                spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
                table[-1][head] = f"{statistics.mean(values):.4f}{spread}"
    print("\nvalidation loss at the end, nats per token: mean ± standard deviation over the seeds")
    print_table(table)


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def print_commands(waiting, launch):
    """Print what trains `waiting`; commands up to an empty line can run side by side, and those after it need them."""
    depth, launch = {}, ["python"] if launch == [sys.executable] else launch
    for segment in waiting:  # parents come before
        depth[segment] = depth.get(segment.parent, -1) + 1
    for level in range(max(depth.values(), default=-1) + 1):
        print("\n" * bool(level) + "\n".join(shlex.join(s.command(launch)) for s in waiting if depth[s] == level))


def check_room(folder, waiting):
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    need, free = disk(waiting), shutil.disk_usage(there).free
    if need > free:
        raise Mistake(
            f"checkpoints of up to {need / 1e9:.2g} GB do not fit into {there}, which has {free / 1e9:.2g} GB left: "
            "make room, choose another --out_dir, or save less often (--save_every)"
        )


def parse_args(args):
    parser = Parser(description=__doc__)
    parser.add_argument("config", help="the study, such as configs/demo.py")
    parser.add_argument("--plan", action="store_true", help="say what would be trained, and what it costs")
    parser.add_argument("--print", action="store_true", help="print the commands")
    parser.add_argument("--jobs", type=whole(least=1, most=1000), default=1, help="runs side by side")
    parser.add_argument("--launch", default=sys.executable, help='instead of python: "torchrun --nproc_per_node=2"')
    args, flags = parser.parse_known_args(args)
    if others := [flag for flag in flags if not flag.startswith("--")]:
        raise Mistake(f"{others[0]}: expected one study, and options as --key=value")
    return args, flags


def run(args=None):
    args, flags = parse_args(args)
    study, runs = read_study(args.config, flags)
    folder = Path(next(iter(runs.values())).out_dir) / study
    check_folder(folder, runs, args.config)
    roots = plan(study, runs)
    segments, waiting = [s for r in roots for s in r.below()], [s for r in roots for s in r.to_train()]
    launch = shlex.split(args.launch)
    if args.print:
        print_commands(waiting, launch)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, cores // args.jobs)))
    show_plan(roots, args.jobs, threads)
    if args.plan:
        return
    for config in runs.values():
        for name in parse_mix(config.dataset):
            read_meta(Path(config.data_dir) / name)
    check_room(folder, waiting)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # KeyboardInterrupt
    jobs = Jobs(args.jobs, threads, launch)
    try:
        failed = train_all(segments, waiting, jobs)
    except KeyboardInterrupt:
        print("\nstopping, at the end of a step; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    finally:
        jobs.stop()

    if write_results(folder / "results.csv", segments):
        print_results(read_results([folder]))
        print(f"\n{folder}/results.csv: final losses, options and costs of every run")
    if failed:
        told = "\n".join(f"  {s.folder}: {why}" for s, why in failed.items() if why)
        lost = sum(not why for why in failed.values())
        print(f"error: these failed, and {lost} that need them wait; the same command tries again:", file=sys.stderr)
        print(told, file=sys.stderr)
        sys.exit(1)
    _, alone, paid, flops, flops_paid = totals(segments)["all"]
    print(f"{paid:,} steps trained instead of {alone:,}: {1 - flops_paid / flops:.0%} of the FLOPs saved by sharing")


if __name__ == "__main__":
    main(run)
