"""Questions of a dataset's own validation text, for evaluate.py --tasks: which line has no typo? No network needed.

    python typos.py data/packages-bytes --out=runs/tasks           # writes typos.yaml and typos.jsonl
    python evaluate.py runs/x/ckpt/step_* --tasks=typos --tasks_dir=runs/tasks

A question is a line as it is and three times with two neighbouring characters swapped, behind the text before it: so
its answers are equally long, one is right by chance in four times, and models of 68,000 parameters know more than that.
"""

import json
import random
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import Mistake, Parser, main, whole
from data import open_bin
from sealed import written
from vocab import KEPT, TOKENIZERS, our_own, register

NAME = "typos"
LENGTHS = range(20, 49)  # characters of a line that can be an answer


def documents(folder):
    """The texts of a dataset's validation split."""
    tokens, meta = open_bin(folder, "val")
    kept = Path(folder) / KEPT
    name = register(kept) if kept.is_dir() else meta["tokenizer"]
    if name not in TOKENIZERS:
        raise Mistake(f"{folder} has the tokenizer {name}, which is none of {', '.join(our_own())}")
    tokenizer = TOKENIZERS[name]
    words = tokenizer.token_bytes()
    ends = np.flatnonzero(tokens == tokenizer.eot_id)
    for part in np.split(tokens, ends):
        yield b"".join(words[token] for token in part.tolist()).decode(errors="replace")


def lines_of(texts):
    """[(text, where it begins, the line without spaces around it)] of lines that can be answers, no line twice."""
    found = {}
    for text in texts:
        at = 0
        for line in text.splitlines(keepends=True):
            bare = line.strip()
            if at and len(bare) in LENGTHS:
                found.setdefault(bare, (text, at + line.index(bare), bare))
            at += len(line)
    return list(found.values())


def misspelt(line, rng):
    """Three different versions of a line, each with two neighbouring characters swapped; None if it has not so many."""
    places = [i for i in range(len(line) - 1) if line[i] != line[i + 1]]
    found = {line[:i] + line[i + 1] + line[i] + line[i + 2 :] for i in rng.sample(places, min(3, len(places)))}
    return sorted(found) if len(found) == 3 else None


def questions(lines, n, context, seed=0):
    """`n` of {"text": up to `context` characters, "choices": four versions of a line, "answer": the right one}."""
    rng, found = random.Random(seed), []
    for text, at, answer in rng.sample(lines, len(lines)):
        if len(found) < n and (wrong := misspelt(answer, rng)):
            choices = rng.sample([answer, *wrong], 4)
            found.append({"text": text[max(0, at - context) : at], "choices": choices, "answer": answer})
    if len(found) < n:
        raise Mistake(f"--n={n}: the text has lines for {len(found)} questions; ask for no more")
    return found


def run(args=None):
    parser = Parser(description=__doc__)
    parser.add_argument("dataset", help="folder of a dataset, as prepare_data.py writes it")
    parser.add_argument("--out", required=True, help="folder for the task")
    parser.add_argument("--n", type=whole(least=1), default=1000, help="questions; default: 1000")
    text = "characters before a question's end; default: 72. With an answer they should fit a model's seq_len"
    parser.add_argument("--context", type=whole(least=1), default=72, help=text)
    args = parser.parse_args(args)
    out = Path(args.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    texts = tqdm(documents(args.dataset), unit=" texts", disable=None)
    asked = questions(lines_of(texts), args.n, args.context)
    with written(out / f"{NAME}.jsonl") as file:
        file.write("".join(json.dumps(question) + "\n" for question in asked).encode())
    files = {"data_files": {"test": str(out / f"{NAME}.jsonl")}, "cache_dir": str(out / "cache")}
    task = {"task": NAME, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    task |= {"output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "choices"}
    task |= {"doc_to_target": "{{answer}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}
    with written(out / f"{NAME}.yaml") as file:
        file.write(json.dumps(task, indent=1).encode())  # JSON is YAML, too
    print(f"{len(asked):,} questions: python evaluate.py CHECKPOINTS --tasks={NAME} --tasks_dir={args.out}")


if __name__ == "__main__":
    main(run)
