"""Tests of data.py: the order is a pure function of the position, fixed for ever; bins that are not whole are refused.

python -m pytest tests/test_data.py
"""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data
from data import TrainStream, ValSet, deal, hash64, open_bin, parse_mix, permute, token_dtype

SEEDED = settings(derandomize=True, deadline=None, max_examples=50)
SEED, T = 1337, 16


def write_bins(folder, train=5000, val=1000, vocab_size=50257, tokenizer="gpt2"):
    """Make a dataset whose token i is i, unless the tokens are given: what is read says where it was read."""
    folder.mkdir(exist_ok=True)
    dtype, splits = "<u2" if vocab_size <= 65536 else "<u4", {}
    for split, tokens in (("train", train), ("val", val)):
        tokens = np.arange(tokens) if isinstance(tokens, int) else tokens
        tokens.astype(dtype).tofile(folder / f"{split}.bin")
        splits[split] = {"tokens": len(tokens)}
    meta = {"format": 1, "dtype": dtype, "vocab_size": vocab_size, "tokenizer": tokenizer, "splits": splits}
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Sequences per epoch: 311 of a, 22 of b, 1 of c."""
    folder = tmp_path_factory.mktemp("data")
    for name, size in (("a", 5000), ("b", 16 * 23), ("c", 32)):
        write_bins(folder / name, size)
    return folder


def stream(data_dir, *history, seed=SEED):
    return TrainStream(data_dir, history or [(0, "a")], T, seed)


# Golden values. Where one of these fails, runs no longer see the text that they saw: change the code, never the value.


def test_golden_hashes():
    assert int(hash64(0)[0]) == 0xE220A8397B1DCDAF  # the first number of splitmix64 from seed 0, as published
    assert int(hash64(1, 2, 3)[0]) == 0x6AE515C1C0AC7E37
    assert int(hash64(SEED, 0, 0)[0]) == 0x5AC0D68B3D7993A3
    assert hash64(1, 2) != hash64(2, 1) and hash64(5) != hash64(5, 0)


@pytest.mark.parametrize(
    "n, index, image",
    [
        (1, [0], [0]),
        (8, range(8), [2, 7, 3, 4, 1, 0, 6, 5]),
        (1000, range(8), [942, 249, 684, 715, 140, 462, 44, 242]),
        (612_000_000, [0, 1, 10**6, 611_999_999], [227349091, 541158370, 447971070, 520740038]),
    ],
)
def test_golden_permutations(n, index, image):
    assert permute(np.array(index), n, hash64(SEED, 0, 0)).tolist() == image


GOLDEN = {0: [(0, 3052), (0, 3996)], 1: [(0, 3996), (0, 3948)], 10**6: [(3215, 2064), (3215, 1600)]}
GOLDEN |= {10**12: [(3215434083, 39), (3215434083, 3607)]}


@pytest.mark.parametrize("position", GOLDEN)
def test_golden_order(position, data_dir):
    assert stream(data_dir).locate(position, 2) == [("a", epoch, first) for epoch, first in GOLDEN[position]]
    batch = stream(data_dir).batch(position, 2)
    assert batch.tolist() == [list(range(first, first + T + 1)) for _, first in GOLDEN[position]]
    assert batch.dtype == torch.int64


def test_golden_mixture(data_dir):
    mixed = stream(data_dir, (0, "a"), (400, "a:0.7,b:0.3"))
    assert mixed.locate(399, 1) == [("a", 1, 4582)]
    assert mixed.locate(400, 4) == [("b", 0, 108), ("a", 1, 1702), ("a", 1, 3254), ("b", 0, 76)]


GOLDEN_FEW = [[("a@1000", 0, 108), ("a@1000", 0, 76)], [("a@1000", 16393, 394), ("a@1000", 16393, 42)]]
GOLDEN_FEW += [[("a@1000", 0, 812), ("a@1000", 0, 44), ("a", 0, 3052), ("a@1000", 0, 412), ("a@1000", 1, 454)]]


def test_golden_order_of_the_first_tokens(data_dir):
    few = stream(data_dir, (0, "a@1k"))  # 61 sequences
    assert few.locate(0, 2) == GOLDEN_FEW[0] and few.locate(10**6, 2) == GOLDEN_FEW[1]
    mixed = stream(data_dir, (0, "a@1k:3,b:2"), (100, "a"), (120, "a@1k"))
    assert mixed.locate(98, 3) + mixed.locate(120, 2) == GOLDEN_FEW[2]


# Order


def test_the_first_tokens_are_all_that_is_read_and_each_is(data_dir):
    few, bin_of_its_own = stream(data_dir, (0, "a@992")), data_dir.parent / "few"
    write_bins(bin_of_its_own, 62 * T)
    epochs = [few.batch(61 * e, 61) for e in range(60)]
    for tokens in epochs:  # of each epoch all but what the moving cuts leave out at both ends
        read = sorted(tokens[:, :-1].flatten().tolist())
        assert len(read) == len(set(read)) == 61 * T
    assert min(tokens.min() for tokens in epochs) == 0 and max(tokens.max() for tokens in epochs) == 991
    again = TrainStream(data_dir.parent, [(0, "few")], T, SEED)
    assert all(torch.equal(tokens, again.batch(61 * e, 61)) for e, tokens in enumerate(epochs))
    assert few.epochs(61 * 3) == {"epochs": 3.0} and few.epochs(100) == {"epochs": round(100 / 61, 4)}
    mixed = stream(data_dir, (0, "a"), (311, "a@1000:0.5,b:0.5"))
    assert mixed.epochs(311) == {
        "epochs": 1.0
    }  # of what the last sequence was from: a stream opened later tells the same
    for opened in (0, 311):
        mixed = TrainStream(data_dir, [(0, "a"), (311, "a@1000:0.5,b:0.5")], T, SEED, opened)
        assert mixed.epochs(311 + 122) == {"epochs/a@1000": 1.0, "epochs/b": round(61 / 22, 4)}
    assert mixed.epochs(311) == {"epochs/a@1000": 0.0, "epochs/b": 0.0}  # where it has just been opened


@SEEDED
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@example(1, 0)
@example(2, 1)
@example(3, 2)
@example(7, 3)
@example(64, 4)
@example(1000, 5)
@example(65537, 6)
def test_permutation_is_a_bijection(n, key):
    key, index = np.array([key], dtype=np.uint64), np.arange(n, dtype=np.uint64)
    image = permute(index, n, key)
    assert np.array_equal(np.sort(image), index)
    assert np.array_equal(permute(index[::3], n, key), image[::3])  # random access
    drawn = data.mix64(index + key) % np.uint64(n)  # the control: a hash alone is none
    assert n < 64 or len(np.unique(drawn)) < n


def serial_correlation(order):
    return abs(np.corrcoef(order[:-1], order[1:])[0, 1])


def chi2(orders):
    """How unevenly 64 places go to 64 places: 63 x 63 degrees of freedom, so a standard deviation of 89."""
    seen, expected = np.zeros((64, 64)), len(orders) / 64
    for order in orders:
        seen[np.arange(64), order.astype(int)] += 1
    return ((seen - expected) ** 2).sum() / expected


def test_permutation_is_well_shuffled():
    n = 65537  # standard deviation of a correlation: 0.004
    orders = [permute(np.arange(n), n, hash64(SEED, epoch, 0)) for epoch in range(3)]
    assert max(map(serial_correlation, orders)) < 0.01
    assert abs(np.corrcoef(orders) - np.eye(3)).max() < 0.02  # nor are two epochs alike
    assert serial_correlation(np.arange(n) * 3 % n) > 0.1
    assert abs(chi2([permute(np.arange(64), 64, hash64(SEED, e, 0)) for e in range(1000)]) - 63**2) < 5 * 89
    assert abs(chi2([(np.arange(64) * (2 * a + 1) + 5 * a) % 64 for a in range(1000)]) - 63**2) > 10 * 89


@pytest.mark.parametrize("name, size", [("a", 5000), ("b", 16 * 23), ("c", 32)])
def test_every_epoch_brings_every_sequence_once(name, size, data_dir):
    n, offsets, orders = size // T - 1, set(), set()
    for epoch in range(60):
        datasets, epochs, firsts = zip(*stream(data_dir, (0, name)).locate(epoch * n, n), strict=True)
        offset = min(firsts)
        assert set(datasets) == {name} and set(epochs) == {epoch} and 0 <= offset < T
        assert sorted(firsts) == list(range(offset, offset + n * T, T))
        offsets.add(offset)
        orders.add(tuple((f - offset) // T for f in firsts))
    assert len(offsets) > 10 and len(orders) == (60 if n > 1 else 1)
    rows = stream(data_dir, (0, name)).batch(0, 60 * n)
    assert (rows.diff(dim=1) == 1).all()
    assert size % T or rows.max() == size - 1  # the largest offset reaches the last token, and nothing lies beyond


def test_order_does_not_depend_on_how_it_is_asked_for(data_dir):
    history = [(0, "b"), (200, "a:2,b:1"), (400, "c,b:3")]
    one_by_one = stream(data_dir, *history)
    whole = torch.cat([one_by_one.batch(position, 1) for position in range(600)])
    rng = np.random.default_rng(0)
    for _ in range(5):
        cuts = np.unique([0, *rng.integers(0, 600, size=20), 600]).tolist()
        again, parts = stream(data_dir, *history), {}
        for i in rng.permutation(len(cuts) - 1):
            parts[i] = again.batch(cuts[i], cuts[i + 1] - cuts[i])
        assert torch.equal(torch.cat([parts[i] for i in sorted(parts)]), whole)


def test_seeds_and_epochs_give_different_orders(data_dir):
    pairs = list(itertools.product((0, 1, 2), repeat=2))
    firsts = [[f for *_, f in stream(data_dir, seed=seed).locate(311 * epoch, 311)] for seed, epoch in pairs]
    assert len({tuple(np.argsort(order)) for order in firsts}) == 9  # (0, 1) is not (1, 0); offsets left out


# Mixtures


def test_deal_by_weights():
    source, within = deal(np.arange(10), [7, 3])
    assert source.tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    assert within.tolist() == [0, 0, 1, 1, 2, 3, 2, 4, 5, 6]


@SEEDED
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_deal_gives_exact_shares_one_after_the_other(weights):
    total = sum(weights)
    source, within = deal(np.arange(3 * total), weights)
    for i, weight in enumerate(weights):
        given = np.cumsum(source == i)
        assert within[source == i].tolist() == list(range(3 * weight))
        assert given[total - 1 :: total].tolist() == [weight, 2 * weight, 3 * weight]
        off = given - np.arange(1, 3 * total + 1) * weight / total
        assert abs(off).max() <= len(weights) - 1  # on the way there, never far from its share


def test_sources_go_on_behind_what_they_gave_before(data_dir):
    history = [(0, "a"), (403, "a:0.7,b:0.3"), (1000, "b:5,c:1,a:1"), (1234, "b"), (1301, "a,c")]
    mixed, starts = stream(data_dir, *history), [start for start, _ in history]
    parts = [mixed.locate(start, stop - start) for start, stop in itertools.pairwise([*starts, 2000])]
    for name in "abc":
        mine = [place for place in itertools.chain(*parts) if place[0] == name]
        assert mine == stream(data_dir, (0, name)).locate(0, len(mine))  # as if the others were not there


@pytest.mark.parametrize(
    "spec, weights",
    [
        ("a", {"a": 1}),
        ("a:0.7,b:0.3", {"a": 7, "b": 3}),
        ("a:2, b:4", {"a": 1, "b": 2}),
        ("b,a,c", {"b": 1, "a": 1, "c": 1}),
        ("a:1e-3,b:0.999", {"a": 1, "b": 999}),
        ("b:1/3,a:2/3", {"b": 1, "a": 2}),
        ("a@10M:0.7,b:0.3", {"a@10000000": 7, "b": 3}),
        ("a@2.5k, b@1e3:2", {"a@2500": 1, "b@1000": 2}),
    ],
)
def test_parse_mix(spec, weights):
    assert list(parse_mix(spec).items()) == list(weights.items())


def test_validation_sets_are_those_named_or_the_first_dataset():
    assert data.val_datasets(None, "b@10M:0.5,a:0.5") == ["b"] and data.val_datasets("c", "a") == ["c"]
    assert data.val_datasets("c, a,sub/b", "a") == ["c", "a", "sub/b"]
    for twice in ("a,a", "a,", ",", ""):
        with pytest.raises(ValueError, match=f"val_dataset='{twice}': expected NAME or NAME,NAME, as in a,b"):
            data.val_datasets(twice, "a")


MISTAKES = ["", ",", "a,", ":1", "a:0", "a:-1", "a:x", "a:nan", "a:inf", "a:1/0", "a,a:2", "a:1:2"]
MISTAKES += ["a@", "@5", "a@0", "a@-5", "a@x", "a@1.5", "a@1e-3", "a@inf", "a@5@6", "a@5,a", "a@5,a@6", "a:1@5"]


@pytest.mark.parametrize("spec, remedy", [(m, "NAME:WEIGHT") for m in MISTAKES] + [("a:1,b:1e-6", "six digits")])
def test_parse_mix_refuses(spec, remedy):
    with pytest.raises(ValueError) as caught:
        parse_mix(spec)
    assert str(caught.value).startswith(f"dataset={spec!r}: ") and remedy in str(caught.value)


# Validation and reading


@pytest.mark.parametrize("tokens, asked", [(20_000, 0), (20_000, 10_000), (20_000, 8192), (20_000, 1), (2, 0)])
def test_validation_covers_the_asked_tokens_once(tokens, asked, tmp_path):
    write_bins(tmp_path / "d", val=tokens)
    val, again = ValSet(tmp_path / "d", T, asked), ValSet(tmp_path / "d", T, asked)
    chunks = [val.chunk(i) for i in range(val.n_chunks)]
    n, x, y = asked or tokens - 1, *(torch.cat(side).flatten() for side in zip(*chunks, strict=True))
    shape = (min(512, -(-n // T)), T)
    assert val.n_targets == n and val.n_chunks == -(-n // (shape[0] * T))
    assert x[:n].tolist() == list(range(n)) and y[:n].tolist() == list(range(1, n + 1))
    assert (y[n:] == -1).all() and {part.shape for chunk in chunks for part in chunk} == {shape}
    for i in reversed(range(val.n_chunks)):
        assert all(map(torch.equal, again.chunk(i), chunks[i]))
    assert ValSet(tmp_path / "d", 10_000).chunk(0)[0].shape == (1, 10_000)


def test_wide_tokens(tmp_path):
    assert [token_dtype(v).str for v in (257, 65_536, 65_537)] == ["<u2", "<u2", "<u4"]
    write_bins(tmp_path / "d", *[np.arange(69_000, 70_000)] * 2, vocab_size=70_000)
    row = TrainStream(tmp_path, [(0, "d")], T, SEED).batch(0, 1)[0]
    assert row.tolist() == list(range(row[0], row[0] + T + 1)) and 69_000 <= row[0] < 70_000
    assert ValSet(tmp_path / "d", T).chunk(0)[0][0, 0] == 69_000


def cut(name, size):
    return lambda folder: (folder / name).write_bytes(((folder / name).read_bytes() + b"\0\0")[:size])


def edit(**changes):
    def write(folder):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | changes))

    return write


def remake(name="d", **options):
    return lambda folder: write_bins(folder.with_name(name), **options)


def train(mix="d", seq_len=T):
    return lambda folder: TrainStream(folder.parent, [(0, mix)], seq_len, SEED)


def val(tokens=0):
    return lambda folder: ValSet(folder, T, tokens)


STRAY = np.where(np.arange(5000) == 123, 50_257, 0)  # GPT-2's tokens end at 50,256


@pytest.mark.parametrize(
    "damage, read, parts",
    [
        (lambda folder: folder.rename(folder.with_name("z")), train(), ["'d'", "(there: z)", "prepare_data.py"]),
        (lambda folder: (folder / "meta.json").unlink(), train(), ["no meta.json", "--adopt"]),
        (lambda folder: (folder / "val.bin").unlink(), train(), ["val.bin", "0 bytes", "again"]),
        (cut("meta.json", 40), train(), ["meta.json", "again"]),
        (cut("meta.json", 0), train(), ["meta.json", "again"]),
        (cut("train.bin", 9999), train(), ["train.bin", "9,999", "10,000", "again"]),
        (cut("train.bin", 0), train(), ["train.bin", "0 bytes", "10,000"]),
        (cut("train.bin", 10_002), train(), ["train.bin", "10,002", "10,000"]),
        (cut("val.bin", 1998), train(), ["val.bin", "1,998", "2,000"]),
        (edit(format=2), train(), ["meta.json", "format 2", "again"]),
        (edit(dtype="<u4"), train(), ["train.bin", "10,000", "20,000"]),
        (
            edit(dtype="O", splits={"train": {"tokens": 1250}, "val": {"tokens": 250}}),
            train(),
            ["meta.json", "dtype 'O'"],
        ),
        (edit(vocab_size=999), val(), ["val.bin", "token 999", "index 999", "vocabulary of 999"]),
        (remake(train=STRAY), train(), ["train.bin", "token 50257", "index 123", "vocabulary of 50257", "again"]),
        (remake(train=2 * T - 1), train(), ["dataset=d", "31 tokens", "seq_len=16", "32"]),
        (remake(train=100), train("d@31"), ["dataset=d@31 has 31 tokens", "seq_len=16", "32"]),
        (remake(train=100), train("d@101"), ["dataset=d@101", "has 100 tokens only", "fewer"]),
        (remake(train=0), train(), ["train.bin", "0 tokens"]),
        (remake(val=1), val(), ["val.bin", "1 tokens"]),
        (remake(), val(1000), ["eval_tokens=1,000", "999", "0 takes all"]),
        (remake(), lambda folder: open_bin(folder, "test"), ["'test'", "train, val"]),
        (remake("e", tokenizer="bytes"), train("d,e"), ["one tokenizer", "gpt2 (d) and bytes (e)"]),
    ],
)
def test_refusals(damage, read, parts, tmp_path):
    write_bins(tmp_path / "d")
    train()(tmp_path / "d"), val(999)(tmp_path / "d")
    damage(tmp_path / "d")
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "d")
    assert [part for part in parts if part not in str(caught.value)] == [] and "\n" not in str(caught.value)


def test_batches_of_a_bin_too_large_to_search_are_checked(tmp_path, monkeypatch):
    write_bins(tmp_path / "d", STRAY)
    monkeypatch.setattr(data, "SCAN_BYTES", 9999)
    opened = train()(tmp_path / "d")
    located = enumerate(opened.locate(0, 311))
    p = next(position for position, (*_, first) in located if first <= 123 < first + T)
    with pytest.raises(ValueError, match=f"sequences {p} to {p}: token 50257"):
        opened.batch(p, 1)
