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
    neighbours = "adjacent"    # the default, or "all"
    loss = "val_loss"          # the default, or that of an average, as in --loss=val_loss_ema

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
from config import Mistake, from_record, main, parse, run_file
from config import option as field
from data import val_datasets
from planner import check_folder, name_part, options_of_result, plan, read_flags, read_value, take_name_and_base
from sealed import written
from tables import in_words, print_table, read_results, span
from tracking import read_json
from train import Config, check, make_averages

KINDS = ("adjacent", "all")  # of neighbours
RULES = ("seeds", "tolerance", "neighbours", "loss")  # what a config file, or a flag, says of the descent
NOT_TUNED = ("seed", "data_seed", "val_dataset", "eval_tokens")  # the last two change what is measured


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
    """(mean difference to the centre, its standard error) of losses, seed by seed; without a spread the error is None.

    What diverged is inf, and no better than what else diverged: that difference is inf.
    """
    if math.inf in losses:
        return math.inf, None
    difference = statistics.mean(losses) - statistics.mean(centre)
    if len(losses) == 1 or math.isinf(difference):
        return difference, None
    pairs = [a - b for a, b in zip(losses, centre, strict=True)]
    return difference, statistics.stdev(pairs) / math.sqrt(len(pairs))


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


def best_of(certificate):
    """The neighbour of the lowest loss."""
    return min(certificate["neighbours"], key=lambda row: row["loss"])


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


# ----------------------------------------------------------------------------------------------------------------------
# What a config file asks for


@dataclasses.dataclass(frozen=True)
class Task:
    path: str  # of the config file
    name: str  # of the folder in out_dir
    common: dict  # options of all runs
    grid: dict  # {option: its values}
    start: tuple  # a point
    seeds: tuple[int, ...] = field((), "run", least=0, most=2**63 - 1)
    tolerance: float = field(0.0, "run", least=0)
    neighbours: str = field("adjacent", "run", choices=KINDS)
    loss: str = field("val_loss", "run")  # column of results.csv

    def run_name(self, point, seed):
        """What the run is called, whatever else is in the grid."""
        values = dict(zip(self.grid, point, strict=True))
        return "_".join([name_part(o, values[o]) for o in vars(Config()) if o in values] + [f"seed{seed}"])

    def run(self, point, seed):
        """The Config of a run."""
        own = dict(zip(self.grid, point, strict=True)) | {"seed": seed, "data_seed": seed}
        return Config(**self.common | own | {"name": f"{self.name}/{self.run_name(point, seed)}"})

    def refusal(self, point):
        """Why train.py would refuse the options of a point; None if it would not."""
        try:
            check(self.run(point, self.seeds[0]))
        except ValueError as error:
            return str(error)


def read_task(path, flags=()):
    """The Task of a config file and --key=value flags, which win over it; Mistake for what they may not say."""
    values, lines = run_file(path)
    if lacking := [key for key in ("grid", "start", "seeds") if key not in values]:
        raise Mistake(f"{path} lacks {lacking[0]}: `python tune.py --help` shows what such a file says")
    where = {key: f"{path}:{lines.get(key, '?')}: {key}" for key in values}
    name, base = take_name_and_base(path, values)
    grid, start = values.pop("grid"), values.pop("start")

    if not isinstance(grid, dict) or not grid:
        raise Mistake(f"{where['grid']}={grid!r}: expected dict(option=[values], ...)")
    grid = {option: read_values(option, values, f"{where['grid']}: {option}") for option, values in grid.items()}
    if not isinstance(start, dict) or start.keys() != grid.keys():
        raise Mistake(f"{where['start']}={start!r}: expected a value for each of {', '.join(grid)}, and for no other")
    start = {option: read_value(option, start[option], f"{where['start']}: {option}") for option in grid}
    for option, value in start.items():
        if value not in grid[option]:
            raise Mistake(f"{where['start']}: {option}={value!r} is not in its grid, {grid[option]}: add it there")

    rules = {key: parse(Task, key, values.pop(key), where[key]) for key in RULES if key in values}
    of_rules = [flag for flag in flags if flag[2:].partition("=")[0] in RULES]
    for key, _, text in (flag[2:].partition("=") for flag in of_rules):
        rules[key] = parse(Task, key, text, f"--{key}", text=True)
    if not rules["seeds"] or len(set(rules["seeds"])) < len(rules["seeds"]):
        raise Mistake(f"{where['seeds']}={rules['seeds']}: expected one seed or more, all different")
    common = {option: read_value(option, value, where[option]) for option, value in values.items()}
    common |= read_flags([flag for flag in flags if flag not in of_rules])
    if taken := [option for option in common if option in grid or option in ("seed", "data_seed")]:
        raise Mistake(f"{path}: {taken[0]}={common[taken[0]]!r}: grid or seeds say it; leave it out here")
    task = Task(str(path), name, base | common, grid, tuple(start.values()), **rules)
    check_grid(task)
    return task


def read_values(option, values, where):
    """The checked values of an option in the grid."""
    if not isinstance(values, list) or len(values) < 2:
        raise Mistake(f"{where}={values!r}: expected a list of two values or more")
    values = [read_value(option, value, where) for value in values]
    if option not in options_of_result() or option in NOT_TUNED:
        raise Mistake(f"{where} is not for tuning: it changes no result, or what is measured, or `seeds` says it")
    if any(values.count(value) > 1 for value in values) or (is_ordered(values) and values != sorted(values)):
        raise Mistake(f"{where}={values!r}: expected different values, and numbers rising")
    return values


def check_grid(task):
    """Raise Mistake unless every value of the grid, with all else as at the start, makes a run with the same loss."""
    val_sets = set()
    for point in (task.start, *(point for _, point in neighbours(task.start, task.grid, "all"))):
        config = task.run(point, task.seeds[0])
        if reason := task.refusal(point):
            raise Mistake(f"{task.path}: run {config.name}: {reason}")
        losses = ["val_loss", *(f"val_loss_{name}" for name in make_averages(config, [torch.zeros(1)]))]
        if task.loss not in losses:
            raise Mistake(f"loss={task.loss!r}: run {config.name} has {', '.join(losses)} only")
        val_sets.add(val_datasets(config.val_dataset, config.dataset)[0])  # what is compared is on the first
    if len(val_sets) > 1:
        raise Mistake(f"{task.path}: losses would be on {' and on '.join(sorted(val_sets))}: set val_dataset for all")


# ----------------------------------------------------------------------------------------------------------------------
# Rounds


def all_rounds(task, measure):
    """(certificates of all rounds, each told as soon as it is known; how many points they took).

    `measure(round, points)` says their losses, {point: [loss of each seed]}, or None to end here.
    """
    losses, told = {}, 0
    while True:
        rounds, missing = descend(losses, task.start, task.grid, task.neighbours, task.tolerance)
        for i, found in enumerate(rounds[told:], told + 1):
            tell(task, i, found)
        told = len(rounds)
        if not missing:
            break
        for point in missing:
            if reason := task.refusal(point):
                print(f"left out: {in_brief(dict(zip(task.grid, point, strict=True)))}: {reason}")
                losses[point] = [math.inf] * len(task.seeds)
        measured = measure(told + 1, [point for point in missing if point not in losses])
        if measured is None:
            return rounds, len(losses)
        losses |= measured
    if not math.isfinite(rounds[-1]["loss"]):
        raise Mistake(f"{task.path}: all runs of round {told} diverged: start elsewhere")
    return rounds, len(losses)


def by_training(task, folder, jobs, only_plan):
    """`measure` of `all_rounds` that trains what is not trained yet."""
    runs, told = finished_runs(task, folder), False

    def measure(i, points):
        nonlocal told
        runs.update({task.run_name(point, seed): task.run(point, seed) for point in points for seed in task.seeds})
        roots = plan(task.name, runs)
        segments = [s for root in roots for s in root.below()]
        waiting, failed = [s for root in roots for s in root.to_train() if not s.given_up()], {}
        if waiting:
            n = sum(s.run is not None for s in waiting)
            print(f"\nround {i}: {span([n], 'run')} to train, of {span([len(points)], 'new point')}")
            if not told:
                study.show_plan(roots)
                study.show_time(segments, waiting, jobs)
                told = True
            if only_plan:
                return None
            study.check_ranks(runs.values(), jobs.launch)
            study.check_data(runs.values())
            study.check_room(folder, waiting)
            (folder / "certificate.json").unlink(missing_ok=True)  # it may be of another grid
            failed = study.train_all(segments, waiting, jobs)
        if not only_plan:
            study.write_results(folder / "results.csv", segments, task.grid)
        study.end_if_failed({s: why for s, why in failed.items() if not s.given_up()})
        return losses_of(task, points, {s.run: study.result_of(s) for s in segments if s.run})

    return measure


def finished_runs(task, folder):
    """{name: Config} of the finished runs in the folder; Mistake if there is a run in it that the task would not make.

    Those of other starts, seeds and values may stay: a study that grows has them all.
    """
    there = {}
    for file in sorted(folder.glob("*/config.json")):
        options = from_record(Config, read_json(file), file, warn=False)
        point = tuple(options[option] for option in task.grid)
        there[task.run_name(point, options["seed"])] = task.run(point, options["seed"])
    check_folder(folder, there, task.path)
    return {name: config for name, config in there.items() if (folder / name / "result.json").is_file()}


def from_table(task, path):
    """`measure` of `all_rounds` that reads a results.csv."""
    rows = {row["name"]: row for row in read_results([path], all_runs=True)}
    return lambda i, points: losses_of(task, points, rows)


def losses_of(task, points, results):
    """{point: [loss of each seed]} from {run's name: its result}."""

    def loss(name):
        if name not in results:
            raise Mistake(f"no run {name} in this table, which the descent needs; without --results it is trained")
        found = results[name].get(task.loss)
        if found is None and results[name].get("val_loss") is not None:
            raise Mistake(f"run {name} has ended before its first {task.loss}: tune another loss")
        return math.inf if found is None else found  # it diverged

    return {point: [loss(task.run_name(point, seed)) for seed in task.seeds] for point in points}


# ----------------------------------------------------------------------------------------------------------------------
# What came out


def in_brief(options):
    """Options in words: lr 0.008, 1,320 steps."""
    return ", ".join(in_words(option, value) for option, value in options.items())


def tell(task, i, found):
    """Print what round `i` came to, and why the centre moves."""
    print(f"\nround {i}: centre {in_brief(found['centre'])}: {task.loss} {found['loss']:.4f}")
    if found["holds"]:
        print(f"it holds: none of its {len(found['neighbours'])} neighbours is better by more than {task.tolerance:g}")
    else:
        best = best_of(found)
        to, error = in_words(best["option"], best["value"]), best["standard_error"]
        by = f"{-best['difference']:.4f}" + ("" if error is None else f" ± {error:.4f}")
        print(f"it moves to {to}: {best['loss']:.4f}, better by {by}")


def verdict(row):
    if not math.isfinite(row["loss"]):
        return "no loss"  # it diverged, or was left out
    if row["difference"] < 0:
        return "better, within the tolerance"
    return "holds" if row["difference"] > 2 * (row["standard_error"] or 0) else "holds, within twice its error"


def show(task, found):
    """Print a certificate."""
    table = [{"option": "(centre)", "value": "", task.loss: f"{found['loss']:.4f}"}]
    for row in found["neighbours"]:
        error = "" if row["standard_error"] is None else f"{row['standard_error']:.4f}"
        cells = {"option": row["option"], "value": row["value"], task.loss: f"{row['loss']:.4f}"}
        cells |= {"difference": f"{row['difference']:+.4f}", "±": error, "seeds": len(task.seeds)}
        table.append(cells | {"edge": found["at_edge"].get(row["option"], ""), "": verdict(row)})
    print(f"\ncertificate: {in_brief(found['centre'])}; {task.neighbours} neighbours, tolerance {task.tolerance:g}")
    print_table(table)
    limits = {option.name: option.metadata for option in dataclasses.fields(Config)}
    for option, edge in found["at_edge"].items():
        value = found["centre"][option]
        if value not in (limits[option]["least"], limits[option]["most"]):  # 0 is as low as a weight decay gets
            beyond = "below" if edge == "lowest" else "above"
            print(
                f"AT THE EDGE: {in_words(option, value)} is the {edge} of its grid, and nothing {beyond} it was tried"
            )
    if len(task.seeds) == 1:
        print("one seed: another one may well have another centre")


def write_certificate(task, rounds, path):
    record = {"name": task.name, "loss_column": task.loss, "seeds": task.seeds, "tolerance": task.tolerance}
    record |= {"neighbours_are": task.neighbours, "grid": task.grid} | rounds[-1] | {"rounds": rounds}
    record = json.loads(json.dumps(record), parse_constant=lambda _: None)  # JSON has no infinity
    with written(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())
    print(f"{path}: the certificate, with the losses of every seed in every round")


def run(args=None):
    parser = study.make_parser(__doc__)
    parser.add_argument("--results", help="read losses from this results.csv, or a folder's; train nothing")
    args, flags = study.parse_args(parser, args)
    task = read_task(args.config, flags)
    if args.results:
        folder = Path(args.results) if Path(args.results).is_dir() else Path(args.results).parent
        rounds, n_points = all_rounds(task, from_table(task, args.results))
    else:
        folder = Path(task.run(task.start, task.seeds[0]).out_dir) / task.name
        jobs = study.Jobs(args.jobs, study.threads_of(args.jobs), shlex.split(args.launch))
        with study.stopping(jobs):
            rounds, n_points = all_rounds(task, by_training(task, folder, jobs, args.plan))
    if rounds and rounds[-1]["holds"]:
        show(task, rounds[-1])
        print(", ".join([span([len(rounds)], "round"), span([n_points], "point"), span([len(task.seeds)], "seed")]))
        if not args.plan:
            write_certificate(task, rounds, folder / "certificate.json")


if __name__ == "__main__":
    main(run)
