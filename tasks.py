"""Benchmarks on our own models, through lm-eval, EleutherAI's harness (github.com/EleutherAI/lm-evaluation-harness).

    tasks = Tasks(["hellaswag", "arc_easy"], "gpt2")       # finds them and loads their data, before any compute
    tasks.score(model)                                     # {"hellaswag acc": ..., "hellaswag acc_stderr": ..., ...}

Questions, prompts and metrics are lm-eval's; lm.py is the model that it asks.
"""

import contextlib
import difflib
import importlib.metadata
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import torch

from config import HERE, Mistake

PACKAGE = "lm-eval>=0.4.13,<0.5"  # as in tests/requirements.txt
try:
    VERSION = importlib.metadata.version("lm-eval")
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from lm import OurModel
except ImportError as error:
    raise Mistake(f"--tasks needs lm-eval: pip install '{PACKAGE}' ({error})") from error

SHOT_SEED = 1234  # of the examples in a prompt, as lm-eval's command line has it
BOOTSTRAP = 1000  # resamples for the standard error of a metric that is no mean
NOT_HERE = ("UNSAFE_CODE", "MULTIMODAL")  # what lm-eval says of tasks that run code or show pictures


@contextlib.contextmanager
def among_theirs():
    """For calls of lm-eval: stdout is kept for our tables, and `import evaluate` is Hugging Face's, not evaluate.py."""
    ours, path = sys.modules.pop("evaluate", None), sys.path[:]
    sys.path[:] = [folder for folder in path if Path(folder or ".").resolve() != HERE]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:] = path
        sys.modules.pop("evaluate", None)
        if ours:
            sys.modules["evaluate"] = ours


class Tasks:
    """Tasks, groups and tags of lm-eval by their names, with those of YAML files in a folder, and a tokenizer's name.

    Mistake if there is no such task, or if its data are not at hand. `limit`: the first so many questions of each only.
    `shots`: solved examples before each question, in place of the number that a task itself has, if that is not 0.
    """

    def __init__(self, names, tokenizer, folder=None, limit=None, shots=None):
        self.tokenizer, self.limit = tokenizer, limit
        manager = TaskManager(include_path=folder, include_defaults=False)
        if not set(names) <= set(manager.all_subtasks):
            manager = TaskManager(include_path=folder)  # it reads thousands of files: ten seconds
        self.parts = {name: load(manager, name) for name in names}
        self.loaded = {kind: {} for kind in ("tasks", "groups", "group_map")}
        for part, kind in itertools.product(self.parts.values(), self.loaded):
            self.loaded[kind] |= part[kind]
        for name, task in self.loaded["tasks"].items():
            draws = (task.get_config("generation_kwargs") or {}).get("do_sample")
            if draws or any(getattr(task, flag, False) for flag in NOT_HERE):
                raise Mistake(f"--tasks: {name} draws at random, runs code or shows pictures, which is not done here")
            own = task.get_config("num_fewshot")
            if own is None or (shots is not None and own != 0):  # as lm-eval's own command has it
                task.set_config(key="num_fewshot", value=shots or 0)
            if shots:
                check_shots(name, task)
            task.set_fewshot_seed(seed=SHOT_SEED)
        numbers = {name: task.get_config("num_fewshot") for name, task in self.loaded["tasks"].items()}
        several = ",".join(f"{name}:{number}" for name, number in numbers.items())
        self.shots = several if len({*numbers.values()}) > 1 else next(iter(numbers.values()))

    @torch.no_grad()
    def score(self, model):
        """{"task metric": value} of a model, with standard errors, and "error": the mean of 1 - acc over the tasks.

        A group is told by its own means, if it has any, and a tag by all its tasks.
        """
        options = {"limit": self.limit, "bootstrap_iters": BOOTSTRAP, "log_samples": False}
        with among_theirs():
            found = evaluate(lm=OurModel(model, self.tokenizer), task_dict=self.loaded, **options)["results"]
        row, errors = {}, {}
        for name, part in self.parts.items():
            alone = name in found and columns(name, found[name])
            for task in [name] if alone else part["tasks"]:
                row |= columns(task, found[task])
                if f"{task} acc" in row:
                    errors[task] = 1 - row[f"{task} acc"], row.get(f"{task} acc_stderr", math.nan)
        if errors:
            values, stderrs = zip(*errors.values(), strict=True)
            row |= {"error": math.fsum(values) / len(values), "error_stderr": math.hypot(*stderrs) / len(values)}
        return row


def check_shots(name, task):
    """Mistake if a task has too few examples, or shows its own questions with their answers."""
    shots, given = task.get_config("num_fewshot"), task.fewshot_cfg
    elsewhere = given.split or given.samples or task.has_training_docs() or task.has_validation_docs()
    if shots and not elsewhere:
        raise Mistake(
            f"--shots={shots}: {name} has no examples but its own questions: give its YAML file a fewshot_split"
        )
    n = len(task.sampler.df) - (given.split == task.get_config("test_split"))  # a question is no example for itself
    if shots > n:
        raise Mistake(f"--shots={shots}: {name} has {n} examples; ask for no more")


def columns(task, result):
    """{"task metric": number} of what lm-eval calls "metric,filter"; filters are told, unless it is "none"."""
    named = {key.removesuffix(",none").replace(",", " "): value for key, value in result.items() if "," in key}
    return {f"{task} {name}": float(x) for name, x in named.items() if isinstance(x, int | float | np.number)}


def load(manager, name):
    """The tasks under a name, with their data; Mistake if there are none, or their data cannot be had."""
    if name not in manager.all_tasks:
        near = ", ".join(difflib.get_close_matches(name, manager.all_tasks))
        near = f"; near it are {near}" if near else ""
        raise Mistake(f"--tasks={name}: lm-eval has no task of that name{near}; `lm-eval ls tasks` lists all")
    try:
        with among_theirs():
            return manager.load([name])
    except OSError as error:  # what datasets raises without a network, and for files that are not there
        data = (manager.task_index[name].cfg or {}).get("dataset_path", "its data")
        raise Mistake(
            f"--tasks={name}: {data} cannot be loaded: {error}. Run this once where there is a network, copy what is "
            "then in HF_HOME (~/.cache/huggingface) here and set HF_DATASETS_OFFLINE=1; or give --tasks_dir"
        ) from error
