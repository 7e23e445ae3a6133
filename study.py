"""A study: write down the runs you want, and every step that several of them share is trained once.

    python study.py configs/demo.py --plan            # what would be trained, what it costs, how long it takes
    python study.py configs/demo.py --jobs=2          # train it, two runs side by side; the same command again goes on
    python study.py configs/demo.py --print           # the commands instead, for SLURM arrays or xargs
    python study.py configs/demo.py --out_dir=/big    # any option of train.py, for all runs
    python study.py configs/paper.py --launch="torchrun --nproc_per_node=2"      # started so, each

A study's config file assigns options of train.py. A list stands for one run with each of its values, several lists for
their product; `grids` is a list of dicts of the same kind, side by side, on top of what the file says for all:

    base = "configs/tiny.py"                             # a config of train.py to start from
    seed = [0, 1, 2]
    grids = [
        dict(schedule="cosine", total_steps=[200, 400]),
        dict(schedule="wsd", total_steps=[200, 400], cooldown_shape=["linear", "1-sqrt"]),
    ]

Runs that differ in schedule and length only have equal learning rates up to some step, and up to there they are one
run; those whose `cooldown_dataset` differs, too, up to the cooldown. So they form a tree: shared segments are trained
once, and branched from their last checkpoint, which gives the bits of a run trained alone, with as many threads:
OMP_NUM_THREADS, or else the cores divided by --jobs. As many workers as --jobs says train one segment after another;
with --launch every segment is a command of its own, as with --print.

A run is runs/<study>/<name>/ as train.py leaves it, with what it printed in output.txt; runs/<study>/shared/ has the
segments; results.csv, a row per run, comes last. Runs that are finished are not trained again.
"""

import contextlib
import ctypes
import gc
import inspect
import json
import math
import os
import select
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

import planner
import scaling
import schedules
from config import Mistake, Parser, load, main, mistakes, whole
from data import dataset_of, parse_mix, read_meta, within_limit
from parallel import shard_size_of
from planner import check_folder, disk, flags_of, flops_per_step, options_of_result, plan, read_study, trained
from sealed import written
from tables import AVERAGES, averaged, grouped, labels, print_table, read_results, settings, to_csv, val_sets
from tracking import clock, is_locked
from train import Config, make_schedule, train

COLUMNS = "schedule total_steps lr warmup_steps seed".split()  # of results.csv, even if all runs have them in common
POLL_S = 0.3  # between looks at the processes
PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up before a fork
WORKER = "--worker"  # what a study calls itself with, to have a process that trains


# ----------------------------------------------------------------------------------------------------------------------
# What it costs


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


def show_plan(roots):
    """Print the trees, and their cost with and without sharing."""
    segments = [s for r in roots for s in r.below()]
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


def show_time(segments, waiting, jobs):
    """Print what is still to be trained, and how long that takes, if its data are there."""
    if not waiting:
        print("all of it is trained")
        return
    flops = sum(s.flops for s in waiting)
    print(f"to train: {flops:.4g} FLOPs in {len(waiting)} segments; checkpoints of up to {disk(waiting) / 1e9:,.2f} GB")
    sizes = {flops_per_step(s.config): s.config for s in waiting}
    configs = list(dict.fromkeys([sizes[min(sizes)], sizes[max(sizes)]]))  # what lies between costs something between
    on_gpu = torch.cuda.is_available()  # where a trial would have to compile
    try:
        if on_gpu:
            rate = 0.4 * (scaling.peak_flops(torch.cuda.get_device_name()) or math.nan)
            costs = {config: planner.guess(config, rate) for config in configs}
        else:
            costs = jobs.try_out(configs)
    except Mistake as error:
        print(f"time: not known, {error}")
        return
    seconds, updates = planner.time_left(segments, waiting, costs, jobs.n)
    if math.isfinite(seconds):
        about = clock(seconds) if seconds < 1e6 else f"{seconds / 86400:,.0f} days"
        source = "if that is 40% of the GPU's peak" if on_gpu else "by a trial"
        print(f"time: about {about} with --jobs={jobs.n}, {updates:.0%} of it training steps ({source})")


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


class Worker:
    """A process that does one task after another, so that torch is imported once; waited for as a Popen is."""

    def __init__(self, environment):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        self.process = subprocess.Popen([sys.executable, __file__, WORKER], env=environment, **pipes, **OWN_SESSION)
        self.wait = self.process.wait

    def terminate(self):
        """Have it save and end; without another task it ends, too, if its task does just before the signal counts."""
        self.process.terminate()
        self.process.stdin.close()

    def start(self, task, output, flags):
        with contextlib.suppress(BrokenPipeError):  # it was killed: `poll` says so
            self.process.stdin.write(json.dumps([task, str(output), flags]).encode() + b"\n")

    def answer(self):
        """What the task came to, waited for; None if the process ended instead."""
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.process.wait()
        return None

    def poll(self):
        """None while it works at its task, then 0, or the exit status of the process if that ended."""
        if not select.select([self.process.stdout], [], [], 0)[0]:
            return None
        return self.process.wait() if self.answer() is None else 0


def work():
    """Do tasks, one a line on stdin: [name, file for what is printed, options]; answer each with a line on stdout.

    What fails ends the process, as it ends train.py, and takes with it whatever it may have left behind.
    """
    tasks, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in tasks:
        task, output, flags = json.loads(line)
        with open(output, "a") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        answer = {"train": train, "trial": planner.trial}[task](load(Config, flags))
        gc.collect()  # a model and the hooks on its gradients hold each other
        torch.compiler.reset()  # what was compiled for this model counts for the next one, and there is a limit
        sys.stdout.flush()
        answers.write(json.dumps(answer or {}) + "\n")


class Jobs:
    """What trains segments, at most `n` at once, each with `threads` threads, and one GPU if there are any.

    launch   words before train.py, to start processes for every segment; none: workers, which live as long as this
    """

    def __init__(self, n, threads, launch=()):
        self.n, self.launch, self.free = n, launch, list(range(n))
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.workers = {}  # slot: worker
        self.running = {}  # segment: (process or worker, slot)

    def worker(self, slot):
        """The worker of a slot, a new one if it ended."""
        if slot not in self.workers or self.workers[slot].process.poll() is not None:
            environment = dict(self.environment)
            if gpus := torch.cuda.device_count():
                visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
                environment["CUDA_VISIBLE_DEVICES"] = visible[slot % gpus]
            self.workers[slot] = Worker(environment)
        return self.workers[slot]

    def start(self, segment):
        slot, output = self.free.pop(0), segment.folder / "output.txt"
        segment.folder.mkdir(parents=True, exist_ok=True)
        with open(output, "w") as file:
            if self.launch:
                streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
                command = segment.command(self.launch)
                process = subprocess.Popen(command, env=self.environment, **streams, **OWN_SESSION)
            else:
                process = self.worker(slot)
                process.start("train", output, segment.flags())
        self.running[segment] = process, slot

    def wait(self, seconds):
        """Wait so long, or until a worker is done."""
        at_work = [p.process.stdout for p, _ in self.running.values() if not self.launch]
        select.select(at_work, [], [], seconds)

    def ended(self):
        """[(segment, exit status)] of those that ended since the last call."""
        over = [(s, status) for s, (process, _) in self.running.items() if (status := process.poll()) is not None]
        self.free += [self.running.pop(segment)[1] for segment, _ in over]
        return over

    def try_out(self, configs):
        """{config: its Cost}, from a trial by all workers at once, as they slow each other down."""
        out_dir = Path(configs[0].out_dir).absolute()
        there = next(p for p in (out_dir, *out_dir.parents) if p.exists())
        costs = {}
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=there) as folder:
            for i, config in enumerate(configs):
                tried = planner.for_a_trial(config, Path(folder) / str(i))  # a worker's runs of two models are two
                workers = [self.worker(slot) for slot in range(self.n)]
                for worker in workers:
                    worker.start("trial", Path(folder) / "output.txt", flags_of(tried))
                try:
                    answers = [worker.answer() for worker in workers]
                except KeyboardInterrupt:  # they would save into the folder when it is gone
                    self.stop()
                    raise
                if None in answers:
                    raise Mistake(f"a trial failed: {last_line(Path(folder) / 'output.txt')}")
                cost = planner.Cost(*(statistics.mean(column) for column in zip(*answers, strict=True)))
                costs[config] = planner.scaled(cost, tried, config)
        if self.launch:
            self.stop()  # the workers are of no more use
        return costs

    def stop(self):
        """Have all of them save and end."""
        processes = [*self.workers.values(), *(process for process, _ in self.running.values())]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def end_with_us():
    """In a child process: get SIGTERM when the parent is gone, were it killed.

    That is for Linux. Elsewhere a worker ends with its segment, as nobody gives it another one.
    """
    if PRCTL:
        PRCTL(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


OWN_SESSION = {"start_new_session": True, "preexec_fn": end_with_us}  # Ctrl-C is for us to pass on


def last_line(path):
    """The last line of a file that is not empty."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line]
    return lines[-1] if lines else "it said nothing"


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
            ready = [s for s in waiting if jobs.free and (not s.parent or s.parent.is_saved())]
            ready = [s for s in ready if not is_locked(s.folder)]  # by a process that outlived an earlier study
            for segment in sorted(ready, key=lambda s: -s.reach())[: len(jobs.free)]:
                jobs.start(segment)
                waiting.remove(segment)
            jobs.wait(POLL_S)
            for segment, status in jobs.ended():
                if not (segment.is_trained() and segment.is_saved()):
                    failed[segment] = f"{last_line(segment.folder / 'output.txt')} (exit status {status})"
                    if segment.run and segment.is_trained():
                        failed[segment] = f"it is finished, but {segment.checkpoint}, where others go on from, is gone"
                    told = "DIVERGED" if segment.given_up() else "FAILED"
                    bar.write(f"{told}  {segment.folder}: {failed[segment]}")
                    continue
                flops_done += segment.flops
                if segment.run:
                    n_done += 1
                    left = (time.monotonic() - began) * (total / flops_done - 1)
                    loss = segment.result()["val_loss"]
                    told = "DIVERGED" if loss is None else f"val loss {loss:.4f}"
                    bar.write(f"{n_done:>4} of {n_runs}  {clock(left)} left  {told}  {segment.run}")
            steps = {s: s.steps_done() for s in jobs.running}
            bar.n = flops_done + sum(n * flops_per_step(s.config) for s, n in steps.items())
            bar.set_description_str(f"{n_done} of {n_runs} runs", refresh=False)
            bar.set_postfix_str("at step " + ", ".join(f"{s.start + n:,}/{s.end:,}" for s, n in steps.items()))
    return failed


# ----------------------------------------------------------------------------------------------------------------------
# What came out


def write_results(path, segments, also=()):
    """Write results.csv, a row for each finished run; return how many there are.

    First the options, those that runs differ in and those that figures need, and `also` these. A run that was given up
    as it diverged is finished, too. `flops` and `train_s` are of the whole
    run, as if it had been trained alone; with `_paid`, of what was trained for it: shared segments are paid by the
    first run that goes through them, so the columns add up to what the study cost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = [s for s in segments if s.run and (s.is_trained() or s.given_up())]
    runs = [s.config for s in segments if s.run]
    differ = [o for o in options_of_result() if len({getattr(config, o) for config in runs}) > 1]
    options = [o for o in vars(Config()) if o in COLUMNS or o in differ or o in also]
    paid = {s.first: [0, 0.0] for s in segments}
    for segment in segments:
        steps, seconds = trained(segment)
        paid[segment.first][0] += segment.flops
        paid[segment.first][1] += seconds / max(steps, 1) * (segment.end - segment.start)
    rows = []
    for segment in ends:
        row = {o: getattr(segment.config, o) for o in options} | {"name": segment.run}
        row |= cooldown_of(segment.config) if segment.config.schedule == "wsd" else {}
        row |= {k: v for k, v in result_of(segment).items() if k not in ("name", "step", "skipped")}
        flops, seconds = paid.get(segment.run, (0, 0.0))
        rows.append(row | {"flops_paid": flops, "train_s_paid": round(seconds, 3)})
    with written(path) as file:
        file.write(to_csv([{"name": row["name"]} | row for row in rows]).encode())
    return len(rows)


def result_of(segment):
    """What the result.json of a run says, or would say of one that was given up as it diverged."""
    if segment.is_trained():
        return segment.result()
    line, n_params = segment.given_up(), scaling.num_params(planner.shape_of(segment.config))
    counted = {"tokens": line["tokens"], "flops": line["flops"], "n_params": n_params}
    return counted | {"train_loss": None, "val_loss": None, "train_s": round(trained(segment)[1], 3)}


def cooldown_of(config):
    """The cooldown that a wsd run has, with the schedule's defaults filled in."""
    end = config.total_steps
    steps = end - make_schedule(config).keywords["start"]
    shape = config.cooldown_shape or inspect.signature(schedules.wsd).parameters["cooldown_shape"].default
    return {"cooldown_steps": steps, "cooldown_frac": round(steps / end, 6), "cooldown_shape": shape}


def print_results(rows):
    """Print final losses: mean and standard deviation over runs that differ in their seeds only."""
    columns = settings(rows)
    groups, further = grouped(rows, columns), [f"/{name}" for name in val_sets(rows)]
    names = labels([dict(zip(columns, key, strict=True)) for key in groups])
    heads = {f"{loss}{of}": averaged(f"{loss}{of}", rows) for of in ("", *further) for loss in AVERAGES}
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
    depth, launch = {}, launch or ["python"]
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


def check_ranks(configs, launch):
    """Raise Mistake for models in groups of ranks, if nothing starts several ranks for a run."""
    for config in configs:
        if not launch:
            with mistakes("without --launch each run has one rank"):
                shard_size_of(config.parallel, 1)


def check_data(configs):
    """Raise Mistake unless all datasets are there, with as many tokens as are asked for."""
    for config in configs:
        cooldown = parse_mix(config.cooldown_dataset) if config.cooldown_dataset else {}
        for source in parse_mix(config.dataset) | cooldown:
            meta = read_meta(Path(config.data_dir) / dataset_of(source))
            within_limit(source, meta["splits"]["train"]["tokens"])


def threads_of(n_jobs):
    """Threads that each of so many runs side by side has, as text."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // n_jobs)))
    if not threads.isdigit():
        raise Mistake(f"OMP_NUM_THREADS={threads!r}: expected how many threads a run has, such as 1")
    return threads


@contextlib.contextmanager
def stopping(jobs):
    """Whatever ends this block, have all that train save and end; after a signal with exit status 130."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # KeyboardInterrupt
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopping, at the end of a step; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    finally:
        jobs.stop()


def end_if_failed(failed):
    """Tell what `train_all` says of segments that failed, and exit, if there are any."""
    if failed:
        told = "\n".join(f"  {s.folder}: {why}" for s, why in failed.items() if why)
        lost = sum(not why for why in failed.values())
        print(f"error: these failed, and {lost} that need them wait; the same command tries again:", file=sys.stderr)
        print(told, file=sys.stderr)
        sys.exit(1)


def make_parser(description):
    parser = Parser(description=description)
    parser.add_argument("config", help="the study, such as configs/demo.py")
    parser.add_argument("--plan", action="store_true", help="say what would be trained, and what it costs")
    parser.add_argument("--jobs", type=whole(least=1, most=1000), default=1, help="runs side by side")
    parser.add_argument("--launch", default="", help='start each with this, such as "torchrun --nproc_per_node=2"')
    return parser


def parse_args(parser, args):
    """(arguments, flags for train.py)"""
    args, flags = parser.parse_known_args(args)
    if others := [flag for flag in flags if not flag.startswith("--")]:
        raise Mistake(f"{others[0]}: expected one study, and options as --key=value")
    return args, flags


def run(args=None):
    parser = make_parser(__doc__)
    parser.add_argument("--print", action="store_true", help="print the commands")
    args, flags = parse_args(parser, args)
    study, runs = read_study(args.config, flags)
    folder = Path(next(iter(runs.values())).out_dir) / study
    check_folder(folder, runs, args.config)
    roots = plan(study, runs)
    segments, waiting = [s for r in roots for s in r.below()], [s for r in roots for s in r.to_train()]
    launch = shlex.split(args.launch)
    check_ranks(runs.values(), launch)
    if args.print:
        print_commands(waiting, launch)
        return
    jobs = Jobs(args.jobs, threads_of(args.jobs), launch)
    show_plan(roots)
    if not args.plan:
        check_data(runs.values())
        check_room(folder, waiting)
    with stopping(jobs):
        show_time(segments, waiting, jobs)
        if args.plan:
            return
        failed = train_all(segments, waiting, jobs)

    if write_results(folder / "results.csv", segments):
        print_results(read_results([folder]))
        print(f"\n{folder}/results.csv: final losses, options and costs of every run")
    end_if_failed(failed)
    _, alone, paid, flops, flops_paid = totals(segments)["all"]
    print(f"{paid:,} steps trained instead of {alone:,}: {1 - flops_paid / flops:.0%} of the FLOPs saved by sharing")


if __name__ == "__main__":
    main(work if sys.argv[1:] == [WORKER] else run)
