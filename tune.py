"""Tuning by coordinate descent, up to a certificate that no change of a single option is better.

    python tune.py configs/tune_small.py --plan       # the first round, and what it costs
    python tune.py configs/tune_small.py --jobs=2     # train; the same command again goes on
    python tune.py configs/tune_small.py --results=results/tune_small      # the certificate again, from a table of runs
    python plot.py certificate runs/tune_small

A config file assigns options of train.py for all runs, as a study's does (study.py), and beside them:

    grid = dict(lr=[4e-3, 8e-3, 1.6e-2], weight_decay=[0.0, 0.1, 0.4])      # numbers rise
    start = dict(lr=8e-3, weight_decay=0.1)
    seeds = [0, 1, 2]          # each is the seed and the data_seed of a run, and losses are means over them
    tolerance = 0.003          # in nats per token; by default 0
    neighbours = "adjacent"    # or "all"
    loss = "val_loss"          # or that of an average, such as val_loss_ema; --loss says so, too

A round trains a centre, and its neighbours: points that differ from it in one option. If one of them is better by more
than the tolerance, the best becomes the centre of the next round. If none is, the centre holds. "adjacent" neighbours
are one step away in the grid, as in Kim et al. (2025), "Pre-training under infinite compute"; what lies beyond the edge
of the grid counts as passed, and is told. "all" are the other values of each option, as in Wen et al. (2025),
"Fantastic pretraining optimizers and where to find them". Words have no order: their neighbours are always all others.

A run that diverged is infinitely bad, and so is a later neighbour whose options do not go together, such as a warmup
longer than the run. runs/<name>/ is a study's folder, with certificate.json in it.
"""

import dataclasses
import json
import math
import shlex
import statistics
from pathlib import Path

import torch

import study
from checkpoint import written
from config import Mistake, from_record, main, run_file
from data import parse_mix
from planner import check_folder, name_part, options_of_result, plan, read_flags, read_value, take_name_and_base
from tables import in_words, print_table, read_results
from tracking import read_json
from train import Config, check, make_averages

SEED_OPTIONS = ("seed", "data_seed")
KINDS = ("adjacent", "all")


# ----------------------------------------------------------------------------------------------------------------------
# Decisions: pure functions of losses. A point is a tuple of values, one for each option of a grid {option: [values]}.


def is_ordered(values):
    """Whether values are numbers, which have neighbours and edges, and not words or switches."""
    return all(type(value) in (int, float) for value in values)


def neighbours(centre, grid, kind):
    """[(option, point)] of the points that differ from `centre` in one option."""
    found = []
    for i, (option, values) in enumerate(grid.items()):
        at = values.index(centre[i])
        one_step = kind == "adjacent" and is_ordered(values)
        others = [v for j, v in enumerate(values) if j != at and (abs(j - at) == 1 or not one_step)]
        found += [(option, (*centre[:i], value, *centre[i + 1 :])) for value in others]
    return found


def edges(centre, grid):
    """{option: "lowest" or "highest"} of the options in which `centre` stands at the edge of the grid."""
    found = {}
    for (option, values), value in zip(grid.items(), centre, strict=True):
        if is_ordered(values) and value in (values[0], values[-1]):
            found[option] = "lowest" if value == values[0] else "highest"
    return found


def compare(losses, centre):
    """(mean difference to the centre, its standard error) of losses, seed by seed; the error is None without a spread.

    A loss that diverged is inf. Infinitely bad is no better than infinitely bad: that difference is inf.
    """
    if not all(map(math.isfinite, losses)):
        return math.inf, None
    if not all(map(math.isfinite, centre)):
        return -math.inf, None
    above = [a - b for a, b in zip(losses, centre, strict=True)]
    return statistics.mean(above), statistics.stdev(above) / math.sqrt(len(above)) if len(above) > 1 else None


def certificate(losses, centre, grid, kind, tolerance=0.0):
    """What {point: [loss of each seed]} says of a centre, as a dict; it holds if all its neighbours hold.

    A neighbour holds unless it is better than the centre by more than the tolerance.
    """
    around = []
    for option, point in neighbours(centre, grid, kind):
        difference, error = compare(losses[point], losses[centre])
        row = {"option": option, "value": dict(zip(grid, point, strict=True))[option], "losses": losses[point]}
        row |= {"loss": statistics.mean(losses[point]), "difference": difference, "standard_error": error}
        around.append(row | {"holds": difference >= -tolerance})
    found = {"centre": dict(zip(grid, centre, strict=True)), "losses": losses[centre]}
    found |= {"loss": statistics.mean(losses[centre]), "at_edge": edges(centre, grid), "neighbours": around}
    return found | {"holds": all(row["holds"] for row in around)}


def descend(losses, start, grid, kind, tolerance=0.0):
    """(certificates of all rounds, points whose losses the next round still needs) from `start` on.

    As no losses but those of a round decide it, they may come in any order, and from runs of any earlier command.
    """
    rounds, centre = [], start
    while True:
        needed = [centre, *(point for _, point in neighbours(centre, grid, kind))]
        if missing := [point for point in needed if point not in losses]:
            return rounds, missing
        rounds.append(certificate(losses, centre, grid, kind, tolerance))
        if rounds[-1]["holds"]:
            return rounds, []
        best = best_of(rounds[-1])
        centre = tuple((rounds[-1]["centre"] | {best["option"]: best["value"]}).values())


def best_of(certificate):
    """The neighbour of the lowest loss."""
    return min(certificate["neighbours"], key=lambda row: row["loss"])


# ----------------------------------------------------------------------------------------------------------------------
# What a config file asks for


@dataclasses.dataclass(frozen=True)
class Task:
    path: str  # of the config file
    name: str  # of the folder in out_dir
    common: dict  # options of all runs
    grid: dict  # {option: its values}
    start: tuple  # a point
    seeds: list
    tolerance: float
    neighbours: str  # one of KINDS
    loss: str  # column of results.csv

    def descend(self, losses):
        return descend(losses, self.start, self.grid, self.neighbours, self.tolerance)

    def run_name(self, point, seed):
        """What the run is called, whatever else is in the grid."""
        values = dict(zip(self.grid, point, strict=True))
        return "_".join([name_part(o, values[o]) for o in vars(Config()) if o in values] + [f"seed{seed}"])

    def run(self, point, seed):
        """The Config of a run."""
        own = dict(zip(self.grid, point, strict=True)) | dict.fromkeys(SEED_OPTIONS, seed)
        return Config(**self.common | own | {"name": f"{self.name}/{self.run_name(point, seed)}"})

    def runs(self, points):
        """{run's name: Config} of points, with all seeds."""
        return {self.run_name(point, seed): self.run(point, seed) for point in points for seed in self.seeds}

    def refusal(self, point):
        """Why train.py would refuse the options of a point; None if it would not."""
        try:
            check(self.run(point, self.seeds[0]), world_size=1)
        except ValueError as error:
            return str(error)


def read_task(path, flags=(), loss=None):
    """The Task of a config file, --key=value flags and --loss, which win over it; Mistake for what it may not say."""
    values, lines = run_file(path)
    name, base = take_name_and_base(path, values)
    own = {"tolerance": 0.0, "neighbours": "adjacent", "loss": "val_loss"}
    for key in ("grid", "start", "seeds", *own):
        if key not in values and key not in own:
            raise Mistake(f"{path} lacks {key}: `python tune.py --help` shows what a config file says")
        own[key] = values.pop(key, own.get(key))
    where = {key: f"{path}:{lines.get(key, '?')}: {key}" for key in (*own, *values)}
    grid = read_grid(own["grid"], where["grid"])
    start = own["start"]
    if not isinstance(start, dict) or start.keys() != grid.keys():
        raise Mistake(f"{where['start']}={start!r}: expected a value for each of {', '.join(grid)}")
    start = {option: read_value(option, start[option], f"{where['start']}: {option}") for option in grid}
    for option, value in start.items():
        if value not in grid[option]:
            raise Mistake(f"{where['start']}: {option}={value!r} is not in its grid, {grid[option]}: add it there")
    seeds = own["seeds"]
    if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
        raise Mistake(f"{where['seeds']}={seeds!r}: expected a list of different whole numbers")
    seeds = [read_value("seed", seed, where["seeds"]) for seed in seeds]
    tolerance = own["tolerance"]
    if type(tolerance) not in (int, float) or not 0 <= tolerance < math.inf:
        raise Mistake(f"{where['tolerance']}={tolerance!r}: expected a number, 0 or more")
    if own["neighbours"] not in KINDS:
        raise Mistake(f"{where['neighbours']}={own['neighbours']!r}: expected one of {', '.join(KINDS)}")
    common = {option: read_value(option, value, where[option]) for option, value in values.items()}
    common |= read_flags(flags)
    for option in common:
        if option in grid:
            raise Mistake(f"{path}: {option} is in the grid: give it no other value")
        if option in SEED_OPTIONS:
            raise Mistake(f"{path}: {option}={common[option]!r}: list it in `seeds` instead")
    point, loss = tuple(start.values()), loss or own["loss"]
    task = Task(str(path), name, base | common, grid, point, seeds, tolerance, own["neighbours"], loss)
    check_values(task)
    return task


def read_grid(grid, where):
    """{option: checked values}, at least two of each, and numbers rising."""
    if not isinstance(grid, dict) or not grid:
        raise Mistake(f"{where}={grid!r}: expected dict(option=[values], ...)")
    found = {}
    for option, values in grid.items():
        if not isinstance(values, list) or len(values) < 2:
            raise Mistake(f"{where}: {option}={values!r}: expected a list of two values or more")
        found[option] = values = [read_value(option, value, f"{where}: {option}") for value in values]
        if option in SEED_OPTIONS:
            raise Mistake(f"{where}: {option} is not tuned: list it in `seeds`")
        if option not in options_of_result():
            raise Mistake(f"{where}: {option} changes no result: leave it out")
        if option in ("eval_tokens", "val_dataset"):
            raise Mistake(f"{where}: {option} changes what is measured, not what is trained: leave it out")
        if is_ordered(values) and values != sorted(set(values)):
            raise Mistake(f"{where}: {option}={values}: expected rising numbers, each once")
        if len(set(values)) < len(values):
            raise Mistake(f"{where}: {option}={values}: a value stands there twice")
    return found


def check_values(task):
    """Raise Mistake unless every value of the grid, with all else as at the start, makes a run with the same losses."""
    points = [task.start, *(point for _, point in neighbours(task.start, task.grid, "all"))]
    val_sets = set()
    for point in points:
        config = task.run(point, task.seeds[0])
        if reason := task.refusal(point):
            raise Mistake(f"{task.path}: run {task.run_name(point, task.seeds[0])}: {reason}")
        columns = ["val_loss", *(f"val_loss_{name}" for name in make_averages(config, [torch.zeros(1)]))]
        if task.loss not in columns:
            more = "; window_horizon and ema_half_life make more" if len(columns) == 1 else ""
            raise Mistake(f"{task.path}: loss={task.loss!r}: expected one of {', '.join(columns)}{more}")
        val_sets.add(config.val_dataset or next(iter(parse_mix(config.dataset))))
    if len(val_sets) > 1:
        raise Mistake(
            f"{task.path}: losses would be on {' and on '.join(sorted(val_sets))}: set one val_dataset for all"
        )


# ----------------------------------------------------------------------------------------------------------------------
# Rounds


def finished_runs(task, folder):
    """{name: Config} of the finished runs in the folder; Mistake if any run in it is not one of the task's.

    Those of other starts and of values that have left the grid may stay: they are part of the study.
    """
    there, finished = {}, {}
    for file in sorted(folder.glob("*/config.json")):
        options = from_record(Config, read_json(file), file, warn=False)
        point, seed = tuple(options[option] for option in task.grid), options["seed"]
        there |= {task.run_name(point, seed): task.run(point, seed)}
        if (file.parent / "result.json").is_file():
            finished[file.parent.name] = there.get(file.parent.name)
    check_folder(folder, there, task.path)
    return finished


def loss_of(row, column):
    """The loss of a row of results: inf if the run diverged."""
    if row.get(column) is not None:
        return row[column]
    if row.get("val_loss") is not None:
        raise Mistake(
            f"run {row['name']} has ended without {column}: make it average over fewer steps, or take another"
        )
    return math.inf


def all_rounds(task, measure):
    """The certificates of all rounds, each told as it is known, and how many points were measured.

    `measure(round, points)` says their losses, {point: [loss of each seed]}, or None to end here.
    """
    losses, told = {}, 0
    while True:
        rounds, missing = task.descend(losses)
        for i, found in enumerate(rounds[told:], told + 1):
            tell(task, i, found)
        told = len(rounds)
        if not missing:
            break
        refused = {point: [math.inf] * len(task.seeds) for point in missing if task.refusal(point)}
        measured = measure(told + 1, [point for point in missing if point not in refused])
        if measured is None:
            return rounds, len(losses)
        losses |= refused | measured
    if not math.isfinite(rounds[-1]["loss"]):
        raise Mistake(f"{task.path}: all runs of round {told} diverged: start elsewhere")
    return rounds, len(losses)


def in_brief(options):
    """Options in words: lr 0.008, 1,320 steps."""
    return ", ".join(in_words(option, value) for option, value in options.items())


def by(row):
    """A difference and its standard error."""
    error = row["standard_error"]
    return f"{abs(row['difference']):.4f}" + (f" ± {error:.4f}" if error is not None else "")


def tell(task, i, found):
    """Print what a round came to, and why the centre moved."""
    print(f"\nround {i}: centre {in_brief(found['centre'])}: {task.loss} {found['loss']:.4f}")
    for row in found["neighbours"]:
        point = tuple((found["centre"] | {row["option"]: row["value"]}).values())
        if reason := task.refusal(point):
            row["refused"] = reason
            print(f"  left out: {in_words(row['option'], row['value'])}: {reason}")
    if found["holds"]:
        print(
            f"  it holds: none of its {len(found['neighbours'])} neighbours is better by more than {task.tolerance:g}"
        )
    else:
        row = best_of(found)
        print(f"  moves to {in_words(row['option'], row['value'])}: {row['loss']:.4f}, better by {by(row)}")


def verdict(row):
    if "refused" in row:
        return "cannot be run"
    if not math.isfinite(row["loss"]):
        return "diverged"
    if not row["holds"]:
        return "better"
    return "better, within the tolerance" if row["difference"] < 0 else "holds"


def show(task, rounds, n_points):
    """Print a certificate."""
    found, n = rounds[-1], len(task.seeds)
    table = [{"option": "(centre)", "value": "", task.loss: f"{found['loss']:.4f}"}]
    for row in found["neighbours"]:
        edge = found["at_edge"].get(row["option"], "")
        table.append({"option": row["option"], "value": row["value"], task.loss: f"{row['loss']:.4f}"})
        table[-1] |= {"difference": f"{row['difference']:+.4f}"}
        if row["standard_error"] is not None:
            table[-1]["std. error"] = f"{row['standard_error']:.4f}"
        table[-1] |= {"seeds": n, "edge": edge, "": verdict(row)}
    print(f"\ncertificate: {in_brief(found['centre'])}, {task.neighbours} neighbours, tolerance {task.tolerance:g}")
    print_table(table)
    for option, edge in found["at_edge"].items():
        value, beyond = found["centre"][option], "below" if edge == "lowest" else "above"
        print(
            f"AT THE EDGE: {option} {value:g} is the {edge} of its grid. Nothing {beyond} it was tried: extend the grid"
        )
    if n == 1:
        print("one seed: how far losses scatter is not known, and another seed may move the centre")
    print(f"{len(rounds)} rounds, {n_points} points, {n_points * n} runs")


def write_certificate(task, rounds, n_points, folder):
    record = {"name": task.name, "loss_column": task.loss, "seeds": task.seeds, "tolerance": task.tolerance}
    record |= {"neighbours_are": task.neighbours, "grid": task.grid, "start": rounds[0]["centre"], "points": n_points}
    record |= rounds[-1] | {"rounds": rounds}
    record = json.loads(json.dumps(record), parse_constant=lambda _: None)  # JSON has no infinity
    with written(folder / "certificate.json") as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())
    print(f"{folder / 'certificate.json'}: the certificate, with the losses of every seed in every round")


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def from_table(task, path):
    """`measure` of `all_rounds`, from a results.csv."""
    rows = {row["name"]: row for row in read_results([path], all_runs=True)}

    def measure(i, points):
        for name in task.runs(points):
            if name not in rows:
                raise Mistake(f"{path}: no run {name}, which round {i} needs: without --results it would be trained")
        return {p: [loss_of(rows[task.run_name(p, seed)], task.loss) for seed in task.seeds] for p in points}

    return measure


def by_training(task, folder, jobs, only_plan):
    """`measure` of `all_rounds`, which trains what is not trained yet."""
    runs = finished_runs(task, folder)

    def measure(i, points):
        runs.update(task.runs(points))
        roots = plan(task.name, runs) if runs else []
        segments = [s for root in roots for s in root.below()]
        waiting = [s for root in roots for s in root.to_train() if not s.given_up()]
        if waiting:
            n = sum(s.run is not None for s in waiting)
            print(f"\nround {i}: {len(points)} new points with {len(task.seeds)} seeds each; {n} runs to train")
            if i == 1:
                study.show_plan(roots)
            if not only_plan:
                study.check_data(runs.values())
                study.check_room(folder, waiting)
            study.show_time(segments, waiting, jobs)
            if only_plan:
                return None
            (folder / "certificate.json").unlink(missing_ok=True)  # it may be of another grid
            failed = study.train_all(segments, waiting, jobs)
            study.write_results(folder / "results.csv", segments, task.grid)
            study.end_if_failed({s: why for s, why in failed.items() if not s.given_up()})
        results = {s.run: study.result_of(s) for s in segments if s.run and s.run in task.runs(points)}
        return {p: [loss_of(results[task.run_name(p, seed)], task.loss) for seed in task.seeds] for p in points}

    return measure


def run(args=None):
    parser = study.make_parser(__doc__)
    parser.add_argument("--loss", help="column of results.csv to tune, such as val_loss_ema")
    parser.add_argument("--results", help="take losses from this results.csv, or the one in this folder; train nothing")
    args, flags = study.parse_args(parser, args)
    task = read_task(args.config, flags, args.loss)
    if args.results:
        folder = Path(args.results) if Path(args.results).is_dir() else Path(args.results).parent
        rounds, n_points = all_rounds(task, from_table(task, args.results))
    else:
        folder = Path(task.run(task.start, task.seeds[0]).out_dir) / task.name
        jobs = study.Jobs(args.jobs, study.threads_of(args.jobs), shlex.split(args.launch))
        with study.stopping(jobs):
            rounds, n_points = all_rounds(task, by_training(task, folder, jobs, args.plan))
    if rounds and rounds[-1]["holds"]:
        show(task, rounds, n_points)
        if not args.plan:
            write_certificate(task, rounds, n_points, folder)


if __name__ == "__main__":
    main(run)
