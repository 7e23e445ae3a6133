"""Old things keep working: a dataset, a checkpoint and a study of earlier code are read and continued.

fixtures/ holds them as commit 5d6383a left them: a run of 16 steps stopped at 12, and a study of two lengths of which
the shared segment and the first run are trained. The losses below are what that code came to itself.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ENV, HERE

import checkpoint
import sealed

MODEL = "--dataset=text-bytes --seq_len=32 --global_batch_size=4 --micro_batch_size=2 --n_layer=1 --n_head=1 --n_embd=4"
SETTINGS = "--lr=1e-2 --total_steps=16 --warmup_steps=2 --cooldown_frac=0.25 --ema_half_life=3.0 --device=cpu"
INTERVALS = "--eval_every=5 --eval_tokens=500 --log_every=1 --save_every=4 --dtype=float32"
RUN = f"train.py --name=run {MODEL} {SETTINGS} {INTERVALS}".split()
STUDY = ["study.py", "old_study.py"]
NEW = """    depth_of_thought: int = option(3, "model")  # an option of each kind that later code may bring
    patience: int = option(1, "run")  # -
    boldness: float = option(0.5, "result")  # -
    colour: str = option("grey", "free")  # -
"""


@pytest.fixture
def old(tmp_path):
    shutil.copytree(HERE / "tests" / "fixtures", tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(params=["today's code", "with options added"])
def code(request, tmp_path_factory):
    """The folder of the code: this one, or a copy whose Config has more options."""
    if request.param == "today's code":
        return HERE
    folder = tmp_path_factory.mktemp("code")
    for file in HERE.glob("*.py"):
        shutil.copy(file, folder)
    shutil.copytree(HERE / "configs", folder / "configs")
    text = (folder / "train.py").read_text()
    changed = text.replace("    # optimizer, see optim.py\n", NEW + "    # optimizer, see optim.py\n")
    assert changed != text
    (folder / "train.py").write_text(changed)
    return folder


def start(code, folder, command):
    """Run a command of the code in the folder: (exit status, output)."""
    command = [sys.executable, os.path.join(code, command[0]), *command[1:]]
    done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def ages(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}


def test_a_run_goes_on(code, old):
    status, said = start(code, old, RUN)
    assert status == 0, said
    result = json.loads((old / "runs/run/result.json").read_text())
    assert result["val_loss"] == pytest.approx(4.98257, rel=1e-5)  # processors differ in the last bits
    assert result["val_loss_ema"] == pytest.approx(5.09588, rel=1e-5)
    log = [json.loads(line) for line in (old / "runs/run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "train_loss" in line] == list(range(1, 17))
    assert start(code, old, RUN)[1].startswith("runs/run is finished: val loss 4.98")


def test_a_run_goes_on_with_a_further_validation_set_and_a_cooldown_of_its_own(code, old):
    shutil.copytree(old / "data/text-bytes", old / "data/again-bytes")
    status, said = start(code, old, [*RUN, "--val_dataset=text-bytes,again-bytes", "--cooldown_dataset=again-bytes"])
    assert status == 0 and "changed: val_dataset='text-bytes,again-bytes', until step 12 it was None" in said, said
    result = json.loads((old / "runs/run/result.json").read_text())
    assert result["val_loss/again-bytes"] == result["val_loss"] == pytest.approx(4.98, abs=0.02)  # on the same text
    assert result["val_loss_ema/again-bytes"] == result["val_loss_ema"]
    history = checkpoint.load(old / "runs/run/ckpt/step_00000016.pt")["data"]["history"]
    assert [*map(tuple, history)] == [(0, "text-bytes"), (48, "again-bytes")]


def test_a_branch_starts_from_it(code, old):
    branch = [*RUN, "--name=branch", "--total_steps=14", "--cooldown_frac=0.1"]
    status, said = start(code, old, [*branch, "--init_from=runs/run/ckpt/step_00000012.pt"])
    assert status == 0 and "step 12 of runs/run" in said, said
    assert start(code, old, [*branch, "--init_from=runs/run/ckpt/step_00000012.pt", "--n_layer=2"])[0] == 1


def test_a_study_goes_on(code, old):
    before = ages(old)
    assert "2 of 2" not in start(code, old, [*STUDY, "--plan"])[1]
    status, said = start(code, old, STUDY)
    assert status == 0 and "2 of 2" in said and "1 of 2" not in said, said
    assert {path: age for path, age in ages(old).items() if path in before} == before  # nothing is trained again
    assert [path.name for path in (old / "runs/old_study/shared").iterdir()] == ["f3ff7d85-7"]
    with open(old / "runs/old_study/results.csv") as table:
        losses = [float(re.search(r"4\.9\d+|5\.\d+", line)[0]) for line in table.readlines()[1:]]
    assert len(losses) == 2


def test_an_option_that_mattered_and_is_gone_is_an_error(old):
    path = old / "runs/run/ckpt/step_00000012.pt"
    state = checkpoint.load(path)
    state["config"] |= {"twist": 2}
    sealed.write(path, state)
    status, said = start(HERE, old, RUN)
    assert status == 0 and "twist=2 is no option here" in said, said  # it is not said that it mattered
    state["config"] |= {"not_default": ["twist"]}
    shutil.rmtree(old / "runs/run")
    shutil.copytree(HERE / "tests/fixtures/runs/run", old / "runs/run")
    sealed.write(path, state)
    status, said = start(HERE, old, RUN)
    assert status == 1 and "was made with twist=2, an option that this code does not have" in said, said
