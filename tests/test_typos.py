"""Tests of typos.py: the questions are what it says, and evaluate.py takes them."""

import json

import numpy as np
import pytest
from conftest import write_bins

import typos
import vocab
from config import Mistake
from data import open_bin

EOT = vocab.TOKENIZERS["bytes"].eot_id
TEXTS = [
    "".join(f"{' ' * (j % 3)}line {j} of text {i} has {'x' * (j % 5)} {i * j}\n" for j in range(40)) for i in range(5)
]


@pytest.fixture
def dataset(tmp_path):
    """Five texts, all of them the validation split."""
    tokens = [token for text in TEXTS for token in (*text.encode(), EOT)]
    write_bins(tmp_path / "lines", np.array([*range(1000), *tokens]) % 257, n_val=len(tokens))
    assert open_bin(tmp_path / "lines", "val")[0][-1] == EOT
    return tmp_path / "lines"


def made(dataset, out, *flags):
    typos.run([str(dataset), f"--out={out}", *flags])
    return [json.loads(line) for line in (out / "typos.jsonl").read_text().splitlines()]


def test_answers_follow_and_the_others_have_two_characters_swapped(dataset, tmp_path):
    asked = made(dataset, tmp_path / "a", "--n=60", "--context=50")
    assert len(asked) == 60 == len({question["answer"] for question in asked})
    places = set()
    for question in asked:
        text, choices, answer = question["text"], question["choices"], question["answer"]
        assert any(f"{text}{answer}\n" in whole for whole in TEXTS) and len(text) <= 50
        assert answer in choices and len({*choices}) == 4
        for wrong in {*choices} - {answer}:
            apart = [i for i, (a, b) in enumerate(zip(answer, wrong, strict=True)) if a != b]
            assert len(apart) == 2 and apart[1] == apart[0] + 1 and sorted(wrong) == sorted(answer)
        places.add(choices.index(answer))
    assert places == {0, 1, 2, 3}
    assert any(question["text"].endswith("  ") for question in asked)  # what indents it is part of the question
    assert asked == made(dataset, tmp_path / "b", "--n=60", "--context=50")
    assert asked[:5] != made(dataset, tmp_path / "c", "--n=5", "--context=20")


def test_mistakes(dataset, tmp_path):
    with pytest.raises(Mistake, match="lines for 1?[0-9]{2} questions; ask for no more"):
        made(dataset, tmp_path / "a", "--n=500")
    meta = json.loads((dataset / "meta.json").read_text())
    (dataset / "meta.json").write_text(json.dumps(meta | {"tokenizer": "unheard-of"}))
    with pytest.raises(Mistake, match="unheard-of"):
        made(dataset, tmp_path / "a")
    with pytest.raises(Mistake, match="nowhere"):
        made(tmp_path / "nowhere", tmp_path / "a")


def test_evaluate_takes_them(dataset, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from model import Llama, Shape
    from tasks import Tasks

    made(dataset, tmp_path / "a", "--n=40")
    model = Llama(Shape(vocab_size=257, seq_len=128, n_layer=1, n_head=1, n_embd=16))
    row = Tasks(["typos"], "bytes", tmp_path / "a").score(model)
    assert row["error"] == 1 - row["typos acc"] and 0.3 < row["error"] < 1  # it knows nothing
