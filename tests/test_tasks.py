"""evaluate.py --tasks: lm-eval finds for our model object what it finds for the folder that export.py writes.

No network: the tasks are made here, of the text that the models are trained on. Skipped without lm-eval, and its class
for transformers wants accelerate besides.
"""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import BASE, DEVICE, ENV, HERE, fixed_text, write_bins

import checkpoint
import evaluate
import export
import laws.__main__
import vocab
from config import Mistake
from train import Config, train

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed, which lm-eval's HFLM takes")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

import lm  # noqa: E402
import tasks  # noqa: E402

SEQ_LEN = BASE["seq_len"]
LONGER = {"total_steps": 200, "n_embd": 64, "lr": 3e-3, "eval_every": 100, "window_horizon": 50}  # it knows a few words
CONFIGS = {
    "choices": {"output_type": "multiple_choice", "doc_to_choice": "choices", "target_delimiter": ""},
    "pages": {"output_type": "loglikelihood_rolling"},
    "words": {"output_type": "generate_until", "target_delimiter": ""},
}
METRICS = {"choices": ["acc", "acc_norm"], "pages": ["bits_per_byte", "word_perplexity"], "words": ["exact_match"]}
STOPS = ["\n", " sol"]  # of stops that overlap HFLM takes the one that its list has first


def questions():
    """{task: its documents}: which end a line has, whole pages, and how a line goes on. Many exceed seq_len."""
    lines = [line for line in fixed_text(40_000).decode().splitlines() if len(line) > 12]
    parts = [(line[:-6], line[-6:]) for line in lines]
    choices = []
    for i, (text, end) in enumerate(parts[:60]):
        ends = sorted([end, *(other for _, other in parts[i + 60 : i + 63])])
        choices.append({"text": text, "choices": ends, "answer": end})
    choices.append({"text": "", "choices": ["ba", "zz"], "answer": "ba"})  # behind end-of-text
    pages = ["\n".join(lines[i : i + 9]) for i in range(0, 45, 9)] + ["ba", "x" * 32, "x" * 33]
    words = [{"text": text, "answer": end} for text, end in parts[:30]]
    return {"choices": choices, "pages": [{"text": page, "answer": page} for page in pages], "words": words}


def write_task(folder, name, documents, **config):
    """A task in a folder: NAME.yaml (JSON is YAML, too) and its documents, NAME.jsonl."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    given = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    given |= {"doc_to_text": "{{text}}", "doc_to_target": "{{answer}}"} | config
    (folder / f"{name}.yaml").write_text(json.dumps(given))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, documents in questions().items():
        config = {"metric_list": [{"metric": metric} for metric in METRICS[name]]} | CONFIGS[name]
        if name == "pages":
            config["doc_to_text"] = ""
        if name == "words":
            config["generation_kwargs"] = {"until": STOPS, "max_gen_toks": 12}
        write_task(folder, name, documents, **config)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """{tokenizer: the folder of checkpoints of a run}; that with gpt2's has learned next to nothing."""
    out = tmp_path_factory.mktemp("runs")
    write_bins(
        out / "gpt2", np.array(vocab.encoder("gpt2")(fixed_text(60_000).decode())), tokenizer="gpt2", vocab_size=50257
    )
    options = BASE | {"out_dir": str(out / "runs"), "name": "bytes", "data_dir": str(data_dir)}
    train(Config(**options | LONGER | {"save_at": (50, 100, 150, 200)}))
    few = {"name": "gpt2", "data_dir": str(out), "dataset": "gpt2", "n_embd": 16, "total_steps": 4, "warmup_steps": 1}
    train(Config(**options | few | {"cooldown_steps": 2, "eval_tokens": 100}))
    return {name: out / "runs" / name / "ckpt" for name in ("bytes", "gpt2")}


@pytest.fixture(scope="module", params=["bytes", "gpt2"])
def both(request, trained, tmp_path_factory):
    """(lm-eval's view of our model, its own class on the exported folder)."""
    ckpt = trained[request.param]
    path, out = checkpoint.path_of(ckpt, checkpoint.list_steps(ckpt)[-1]), tmp_path_factory.mktemp("out") / "hf"
    export.run([str(path), f"--out={out}"])
    model = evaluate.build_model(evaluate.read(path), path, DEVICE)
    theirs = HFLM(pretrained=str(out), dtype="float32", device=DEVICE, batch_size=4, max_length=SEQ_LEN)
    with torch.no_grad():
        yield lm.OurModel(model, request.param), theirs


def asked_in(folder, name):
    """The requests that lm-eval makes of a task."""
    task = TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests()
    return task.instances


# ----------------------------------------------------------------------------------------------------------------------
# Held against lm-eval's own class


def test_log_likelihoods_are_those_of_the_exported_folder(both, folder):
    ours, theirs = both
    asked = asked_in(folder, "choices")
    texts = ["".join(request.args) for request in asked]
    assert max(len(ours.tok_encode(text)) for text in texts) > SEQ_LEN  # some contexts are cut
    assert "" in [request.args[0] for request in asked]
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    values, likely = zip(*found, strict=True)
    assert values == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert likely == tuple(greedy for _, greedy in expected) and len(set(values)) > 100
    ours.at_once, before = 3, ours.at_once  # nor do they depend on what is in a batch
    assert [value for value, _ in ours.loglikelihood(asked)] == pytest.approx(values, abs=1e-4)
    ours.at_once, ours.seq_len = before, SEQ_LEN - 1  # the control: cut one token more
    others = [value for value, _ in ours.loglikelihood(asked)]
    ours.seq_len = SEQ_LEN
    cut = [len(ours.tok_encode(text)) > SEQ_LEN for text in texts]
    apart = [abs(a - b) > 1e-4 for a, b in zip(values, others, strict=True)]
    assert any(apart) and not any(a and not c for a, c in zip(apart, cut, strict=True))


def test_likeliest_continuations_are_told(both):
    ours, theirs = both
    text = "rati ra se t"
    (likeliest,) = ours.generate_until([Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 3}), 0)])
    ends = [likeliest, likeliest + "!", "!" + likeliest]
    if len(ours.tok_encode(text + likeliest)) != len(ours.tok_encode(text)) + 3:
        pytest.skip("these tokens are not those of their text")
    asked = [Instance("loglikelihood", {}, (text, end), 0) for end in ends]
    assert [greedy for _, greedy in ours.loglikelihood(asked)] == [True, False, False]
    assert [greedy for _, greedy in theirs.loglikelihood(asked)] == [True, False, False]


def test_perplexities_of_whole_pages_are_those_of_the_exported_folder(both, folder):
    ours, theirs = both
    asked = asked_in(folder, "pages")
    found, expected = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-4)  # sums over hundreds of tokens
    assert max(len(ours.tok_encode(request.args[0])) for request in asked) > 2 * SEQ_LEN
    one = ours.loglikelihood([Instance("loglikelihood", {}, ("", "x" * 32), 0)])[0][0]
    if found[6] != pytest.approx(found[7]):  # bytes: 32 of them are one window
        assert one == pytest.approx(found[6], abs=1e-4)


def test_greedy_text_is_that_of_the_exported_folder(both, folder):
    ours, theirs = both
    asked = asked_in(folder, "words")
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked)
    assert max(len(ours.tok_encode(request.args[0])) for request in asked) > SEQ_LEN - 12  # some contexts are cut
    free = [Instance("generate_until", {}, (r.args[0], r.args[1] | {"until": ["\0"]}), 0) for r in asked]
    endless = ours.generate_until(free)  # the control: without stops
    assert all(text.startswith(short) for text, short in zip(endless, found, strict=True))
    if ours.end == 256:
        assert sum(a != b for a, b in zip(found, endless, strict=True)) > 10 and len({*found}) > 3
        assert {len(text) for text in endless} == {12}


def test_a_long_text_moves_the_window_on(both, monkeypatch):
    """It keeps half of the context, and reads the later half again when seq_len is full, as sample.py does."""
    ours, _ = both
    text = " ".join("rati ra se ta mode laviga".split() * 6)
    read, write = [], ours.write
    monkeypatch.setattr(ours, "write", lambda contexts, *how: read.extend(contexts) or write(contexts, *how))
    (found,) = ours.generate_until([Instance("generate_until", {}, (text, {"until": ["\0"], "max_gen_toks": 30}), 0)])
    assert read == [ours.tok_encode(text)[-SEQ_LEN // 2 :]]
    tokens, new = ours.tok_encode(text)[-SEQ_LEN // 2 :], []
    for _ in range(30):
        if len(tokens) > SEQ_LEN:
            tokens = tokens[-SEQ_LEN // 2 :]
        logits = ours.model(torch.tensor([tokens], device=DEVICE))[0, -1, : ours.model.shape.vocab_size]
        new.append(int(logits.argmax()))
        tokens.append(new[-1])
    assert found == b"".join(ours.words[token] for token in new).decode("utf-8", "replace")
    assert len(ours.tok_encode(text)) > SEQ_LEN


def test_end_of_text_ends_a_text(both, monkeypatch):
    ours, _ = both
    request = [Instance("generate_until", {}, ("rati ra", {"until": ["\0"], "max_gen_toks": 9}), 0)]
    before = ours.generate_until(request)[0]
    monkeypatch.setattr(ours, "end", greedy(ours, "rati ra", 3)[-1])
    after = ours.generate_until(request)[0]
    assert before.startswith(after) and len(after) < len(before)


def greedy(ours, text, n):
    tokens, words = ours.tok_encode(text), ours.model.shape.vocab_size
    for _ in range(n):
        tokens.append(int(ours.model(torch.tensor([tokens], device=DEVICE))[0, -1, :words].argmax()))
    return tokens[-n:]


# ----------------------------------------------------------------------------------------------------------------------
# The command


def table(capsys, *args):
    capsys.readouterr()
    evaluate.run([*map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)


def test_tasks_stand_beside_the_loss(trained, folder, capsys):
    paths = [checkpoint.path_of(trained["bytes"], step) for step in (50, 200)]
    flags = [f"--tasks_dir={folder}", "--tasks=choices,pages,words"]
    found = table(capsys, *paths, *flags)
    assert found["tasks"] == "choices,pages,words" and found["lm_eval"]
    losses = [row["val_loss"] for row in table(capsys, *paths)["rows"]]
    assert [row["val_loss"] for row in found["rows"]] == losses
    for path, row in zip(paths, found["rows"], strict=True):
        model = lm.OurModel(evaluate.build_model(evaluate.read(path), path, DEVICE), "bytes")
        values = iter(value for value, _ in no_grad(model.loglikelihood, asked_in(folder, "choices")))
        right = [
            max(scores, key=scores.get) == one["answer"]
            for one in questions()["choices"]
            for scores in [{choice: next(values) for choice in one["choices"]}]
        ]
        assert row["choices acc"] == pytest.approx(np.mean(right))
        assert row["choices acc_stderr"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(len(right)))
        assert row["error"] == pytest.approx(1 - np.mean(right)) and row["error_stderr"] == row["choices acc_stderr"]
        pages = no_grad(model.loglikelihood_rolling, asked_in(folder, "pages"))
        n_bytes = sum(len(page["text"]) for page in questions()["pages"])
        assert row["pages bits_per_byte"] == pytest.approx(-sum(pages) / n_bytes / math.log(2))
        assert 0 <= row["words exact_match"] <= 1
    assert found["rows"][0]["error"] > found["rows"][1]["error"] + 0.1  # it has learned something meanwhile
    assert sys.modules["evaluate"] is evaluate and str(HERE) in map(os.path.abspath, sys.path)
    evaluate.run([*map(str, paths), *flags])
    header, first, _ = capsys.readouterr().out.splitlines()[1:]
    assert "choices acc" in header and "stderr" not in header and f"{found['rows'][0]['choices acc']:.4f}" in first


def no_grad(function, *args):
    with torch.no_grad():
        return function(*args)


def test_averages_merges_and_a_quick_look(trained, folder, capsys):
    paths = [checkpoint.path_of(trained["bytes"], step) for step in (150, 200)]
    flags = [f"--tasks_dir={folder}", "--tasks=choices"]
    raw = table(capsys, paths[1], *flags)["rows"][0]
    rows = table(capsys, paths[1], "--average=window", *flags)["rows"]
    assert [row["average"] for row in rows] == ["raw weights", "window x 1", "window x 2"]
    assert rows[0]["choices acc"] == raw["choices acc"]
    assert {(row["step"], row["schedule"], row["cooldown_shape"]) for row in rows} == {(200, "wsd", "1-sqrt")}
    assert len({row["choices acc"] for row in rows}) > 1  # the control: other weights
    assert "choices acc" in table(capsys, "--merge", *paths, *flags)["rows"][0]
    few = table(capsys, paths[1], *flags, "--task_limit=7")
    assert few["task_limit"] == 7 and (7 * few["rows"][0]["choices acc"]).is_integer()


def test_solved_examples_before_each_question(trained, capsys, tmp_path, monkeypatch):
    documents = questions()["choices"][:12]
    metrics = {"metric_list": [{"metric": "acc"}]} | CONFIGS["choices"]
    for name, config in {"free": {}, "never": {"num_fewshot": 0}, "once": {"num_fewshot": 1}}.items():
        write_task(tmp_path, name, documents, fewshot_split="test", **metrics | config)
    read, score = [], lm.OurModel._loglikelihood_tokens
    monkeypatch.setattr(
        lm.OurModel, "_loglikelihood_tokens", lambda self, asked, **how: read.extend(asked) or score(self, asked, **how)
    )
    path, here = checkpoint.path_of(trained["bytes"], 200), f"--tasks_dir={tmp_path}"
    answers = [document["text"] + document["answer"] for document in documents]
    for task, flags, shown in (("free", [], 0), ("free", ["--shots=2"], 2), ("never", ["--shots=2"], 0)):
        read.clear()
        assert table(capsys, path, here, f"--tasks={task}", *flags)["shots"] == shown
        contexts = [context for (context, _), _, _ in read]
        assert len(contexts) == 4 * 12 and {sum(text in c for text in answers) for c in contexts} == {shown}
        own = [context.split("\n\n")[-1] for context in contexts]
        assert own == [document["text"] for document in documents for _ in range(4)]
    assert table(capsys, path, here, "--tasks=once,never")["shots"] == "once:1,never:0"
    assert table(capsys, path, here, "--tasks=once", "--shots=0")["shots"] == 0
    evaluate.run([str(path), here, "--tasks=free", "--shots=2"])
    assert "  shots 2  " in capsys.readouterr().out.splitlines()[0]
    assert "--shots=12: free has 11 examples; ask for no more" in refused(path, here, "--tasks=free", "--shots=12")
    write_task(tmp_path, "bare", documents, **metrics)
    line = refused(path, here, "--tasks=bare", "--shots=2")
    assert "--shots=2: bare has no examples but its own questions: give its YAML file a fewshot_split" in line


def test_groups_and_tags(trained, capsys, tmp_path, monkeypatch):
    """A group is told by its mean, and a tag by its tasks."""
    monkeypatch.setattr(tasks, "TaskManager", lambda **how: TaskManager(**how | {"include_defaults": False}))  # faster
    for i in (1, 2):
        metrics = [{"metric": "acc"}]
        write_task(
            tmp_path, f"part{i}", questions()["choices"][i::2], metric_list=metrics, tag="parts", **CONFIGS["choices"]
        )
    group = {"group": "whole", "task": ["part1", "part2"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "whole.yaml").write_text(json.dumps(group))
    names = ["--tasks=whole,parts", f"--tasks_dir={tmp_path}"]
    (row,) = table(capsys, checkpoint.path_of(trained["bytes"], 200), *names)["rows"]
    accs = {name: row[f"{name} acc"] for name in ("whole", "part1", "part2")}
    assert accs["whole"] == pytest.approx((accs["part1"] + accs["part2"]) / 2) and accs["part1"] != accs["part2"]
    assert row["error"] == pytest.approx(1 - np.mean([*accs.values()]))


def test_laws_read_the_table(trained, folder, capsys, tmp_path):
    paths = [checkpoint.path_of(trained["bytes"], step) for step in (50, 100, 150, 200)]
    found = table(capsys, *paths, "--tasks=choices", f"--tasks_dir={folder}")
    (tmp_path / "tasks.json").write_text(json.dumps(found))
    laws.__main__.run(["downstream", str(tmp_path / "tasks.json"), "--draws=0", "--json"])
    fit = json.loads(capsys.readouterr().out)
    assert fit["law"] == "downstream" and fit["n_points"] == 4 and fit["params"]["k"] > 0
    told = [(row["schedule"], row.get("cooldown_shape")) for row in found["rows"]]
    assert told == [("constant", None)] * 3 + [("wsd", "1-sqrt")]  # before its cooldown a run is constant


def test_their_library_evaluate_is_found_past_our_file():
    """Some of lm-eval's metrics and tasks import it by that name."""
    with tasks.among_theirs():
        import evaluate as theirs

        assert "site-packages" in theirs.__file__ and hasattr(theirs, "load")
        with tasks.among_theirs():
            pass
        assert sys.modules["evaluate"] is theirs
    assert sys.modules["evaluate"] is evaluate and str(HERE) in map(os.path.abspath, sys.path)


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


def refused(*args):
    with pytest.raises(Mistake) as error:
        evaluate.run([*map(str, args)])
    return str(error.value)


def test_mistakes(trained, folder, tmp_path):
    path = checkpoint.path_of(trained["bytes"], 200)
    here = f"--tasks_dir={folder}"
    assert "--tasks_dir=nowhere: there is no such folder" in refused(path, "--tasks=choices", "--tasks_dir=nowhere")
    assert "--tasks_dir goes with --tasks" in refused(path, here)
    assert "--task_limit goes with --tasks" in refused(path, "--task_limit=3")
    assert "--shots goes with --tasks" in refused(path, "--shots=3")
    assert "--shots='-1'" in refused(path, "--tasks=choices", here, "--shots=-1")
    assert "--task_limit='0'" in refused(path, "--tasks=choices", "--task_limit=0")
    others = [checkpoint.path_of(trained["bytes"], step) for step in (50, 100)]
    assert "--tasks goes without --ensemble" in refused("--ensemble", *others, "--tasks=choices")
    assert "expected names of tasks" in refused(path, "--tasks=,")
    write_task(tmp_path, "dice", questions()["words"], generation_kwargs={"do_sample": True}, **CONFIGS["words"])
    assert "dice draws at random" in refused(path, "--tasks=dice", f"--tasks_dir={tmp_path}")
    documents = [{"text": "a", "choices": ["b", "c" * 33], "answer": "b"}]
    write_task(tmp_path, "long", documents, **CONFIGS["choices"])
    assert "has 33 tokens; expected 1 to seq_len=32" in refused(path, "--tasks=long", f"--tasks_dir={tmp_path}")
    assert sys.modules["evaluate"] is evaluate  # after a failure, too


def test_no_such_task(trained):
    line = refused(checkpoint.path_of(trained["bytes"], 200), "--tasks=arc_easyy")
    assert "--tasks=arc_easyy: lm-eval has no task of that name" in line
    assert "arc_easy" in line.split("near it are")[1] and "`lm-eval ls tasks` lists all" in line


def test_without_a_network_one_line_says_what_to_get(trained, tmp_path):
    write_task(tmp_path, "away", [], **CONFIGS["choices"] | {"dataset_path": "nobody/nothing", "dataset_kwargs": {}})
    flags = ["--tasks=away", f"--tasks_dir={tmp_path}"]
    env = ENV | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    call = [sys.executable, str(HERE / "evaluate.py"), str(checkpoint.path_of(trained["bytes"], 200)), *flags]
    done = subprocess.run(call, env=env, text=True, capture_output=True)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: --tasks=away: nobody/nothing cannot be loaded: Couldn't reach")
    assert "HF_HOME" in line and "HF_DATASETS_OFFLINE=1" in line and "--tasks_dir" in line
