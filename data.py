"""Token bins -> batches, as a pure function of (data_seed, position).

    stream = TrainStream("data", [(0, "stdlib-gpt2")], seq_len=512, data_seed=0)
    tokens = stream.batch(position=0, count=8)     # (8, 513) int64: inputs [:, :-1], targets [:, 1:]
    val = ValSet("data/stdlib-gpt2", seq_len=512)  # a fixed set of tokens, in order
    x, y = val.chunk(0)

A dataset is a folder with `train.bin` and `val.bin` (raw little-endian uint16 or uint32, as nanoGPT writes them) and
`meta.json`, which is written last and says what the bins hold: without it they are not whole, and are not read.

The training stream is one endless row of sequences. Position p is the p-th sequence trained on, whatever the
micro-batch, the ranks, and however often the run stopped: with G sequences per step, step s takes s*G .. s*G + G-1.
Each epoch brings every sequence of a bin once, in a new order, and moves the cuts between sequences by a new offset.

`a@10M` is a source that has the first 10 million tokens of a's train.bin and no others, as if the bin ended there.
Training for longer goes through them again. (In the code of Kim et al. 2025, arXiv 2509.14786, it is the first batches
of the shuffled text, and every epoch repeats their very sequences. Here the moving cuts change them a little.)
"""

import argparse
import dataclasses
import json
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path
from shlex import quote

import numpy as np
import torch

from config import Mistake, mistakes, token_count
from model import shape_of

FORMAT = 1  # of meta.json
DTYPES = ("<u2", "<u4", "uint16", "uint32")  # of bins
RESTORE = "restore it from a copy, or prepare its text again with another --name"  # nothing to delete: it may be all
SCAN_BYTES = 1 << 30  # bins up to this size are searched for stray tokens when opened; every batch is, always


def token_dtype(vocab_size):
    """Smallest little-endian dtype for token ids below `vocab_size`: uint16, or uint32 beyond 65536."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def read_meta(folder):
    """Read the `meta.json` of a dataset folder and hold the sizes of its bins against it."""
    folder = Path(folder)
    if not folder.is_dir():
        have = ", ".join(sorted(p.parent.name for p in folder.parent.glob("*/meta.json"))) or "nothing"
        raise Mistake(
            f"dataset {folder.name!r} is not in {folder.parent} (there: {have}): make it with prepare_data.py"
        )
    if not (folder / "meta.json").is_file():
        raise Mistake(
            f"{folder} has no meta.json, so its bins may be incomplete: run prepare_data.py for it again, "
            f"or, for bins made elsewhere, python prepare_data.py --adopt {quote(str(folder))}"
        )
    meta = load_meta(folder)
    for split, info in meta["splits"].items():
        path, expected = folder / f"{split}.bin", info["tokens"] * np.dtype(meta["dtype"]).itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise Mistake(f"{path} has {size:,} bytes, its meta.json says {expected:,}: {RESTORE}")
    return meta


def load_meta(folder):
    """Read a meta.json, without a look at the bins."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text())
        form, dtype = meta["format"], meta["dtype"]
        whole = meta["tokenizer"] and meta["vocab_size"]
        whole = whole and all(type(info["tokens"]) is int for info in meta["splits"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise Mistake(f"{path} is damaged: {RESTORE}; if the bins are good, move it away and --adopt them again")
    if form != FORMAT or dtype not in DTYPES:  # of objects, numpy would take the file's numbers for addresses
        raise Mistake(f"{path} has format {form} and dtype {dtype!r}, which this code does not read: {RESTORE}")
    return meta


def open_bin(folder, split):
    """(token ids of a split as a read-only memmap, meta); ValueError says what is wrong and what to do."""
    meta = read_meta(folder)
    if split not in meta["splits"]:
        raise Mistake(f"{folder} has no {split!r} split (it has {', '.join(meta['splits'])})")
    path = Path(folder) / f"{split}.bin"
    if meta["splits"][split]["tokens"] < 2:
        raise Mistake(f"{path} has {meta['splits'][split]['tokens']} tokens: nothing to predict; prepare more text")
    tokens = np.memmap(path, dtype=meta["dtype"], mode="r")
    if tokens.nbytes <= SCAN_BYTES:
        check_tokens(tokens, meta["vocab_size"], path)
    return tokens, meta


def kind_of(metas):
    """(tokenizer, size of its vocabulary) that datasets, {name: meta}, have in common."""
    kinds = {name: (meta["tokenizer"], meta["vocab_size"]) for name, meta in metas.items()}
    if len({*kinds.values()}) > 1:
        several = " and ".join(f"{tokenizer} ({name})" for name, (tokenizer, _) in kinds.items())
        raise Mistake(f"all datasets of a run need one tokenizer, not {several}; prepare them alike")
    return next(iter(kinds.values()))


def check_tokens(tokens, vocab_size, where):
    """Raise ValueError if a token id is not below `vocab_size`."""
    if (largest := int(tokens.max())) >= vocab_size:
        raise Mistake(
            f"{where}: token {largest} at index {int(tokens.argmax())} is beyond the vocabulary of {vocab_size}; "
            f"the bin is damaged or was made with another tokenizer: {RESTORE}"
        )


# ----------------------------------------------------------------------------------------------------------------------
# Order. Everything here is fixed for ever: it defines which text a step saw.


def mix64(x):
    """Finalizer of splitmix64 (Steele et al. 2014): a well-mixed bijection of uint64 arrays."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash64(*values):
    """Hash non-negative integers, order included, to a uint64 array of shape (1,)."""
    state = np.zeros(1, dtype=np.uint64)
    for value in values:
        state = mix64(state + np.uint64(0x9E3779B97F4A7C15) + np.uint64(value))
    return state


def permute(index, n, key):
    """Images of `index` (uint64 array, all below n) under the pseudo-random permutation of range(n) that `key` chooses.

    A Feistel network over an even number of bits, walked until it lands below n (Black and Rogaway 2002): random access
    in constant memory. numpy's own permutation has neither, and may change between versions.
    """
    half = np.uint64(max(1, (n - 1).bit_length() + 1 >> 1))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [mix64(key + np.uint64(i)) for i in range(8)]  # 8 rounds: with 4, small n are visibly uneven
    image = np.array(index, dtype=np.uint64)
    outside = np.ones(image.shape, dtype=bool)
    while outside.any():  # 4 passes on average at worst, as the network covers up to 4 n
        left, right = image[outside] >> half, image[outside] & mask
        for k in keys:
            left, right = right, left ^ (mix64(right ^ k) & mask)
        image[outside] = (left << half) | right
        outside = image >= np.uint64(n)
    return image


# ----------------------------------------------------------------------------------------------------------------------
# Mixtures


def parse_mix(spec):
    """`"a@10M:0.7,b:0.3"`, or just `"a"` -> {source: weight}, weights as the smallest integers of the same proportion.

    A source is a dataset, "b", or its first tokens, "a@10000000".
    """
    weights, datasets = {}, set()
    for part in spec.split(","):
        source, _, weight = part.strip().partition(":")
        dataset, limited, limit = source.partition("@")
        try:
            weight = Fraction(weight or "1")
            source = f"{dataset}@{token_count(limit)}" if limited else dataset
        except (ValueError, ZeroDivisionError, argparse.ArgumentTypeError):
            weight = 0
        if not dataset or dataset in datasets or weight <= 0:
            expected = "NAME, NAME@TOKENS or NAME:WEIGHT,NAME@TOKENS:WEIGHT"
            raise Mistake(f"dataset={spec!r}: expected {expected}, as in a@10M:0.7,b:0.3; each name once, weights > 0")
        datasets.add(dataset)
        weights[source] = weight
    scale = lcm(*(w.denominator for w in weights.values()))
    divisor = gcd(*(int(w * scale) for w in weights.values()))
    weights = {name: int(w * scale) // divisor for name, w in weights.items()}
    if sum(weights.values()) > 10**6:
        raise Mistake(f"dataset={spec!r}: the weights need more than six digits; round them")
    return weights


def dataset_of(source):
    """The dataset of which a source has all tokens, or the first."""
    return source.partition("@")[0]


def within_limit(source, n_tokens):
    """How many of a dataset's `n_tokens` a source has; Mistake if its limit is beyond them."""
    dataset, limited, limit = source.partition("@")
    if limited and int(limit) > n_tokens:
        raise Mistake(f"dataset={source}: {dataset}'s train.bin has {n_tokens:,} tokens only; ask for fewer")
    return int(limit) if limited else n_tokens


def first_dataset(spec):
    """The first dataset of a mix: it is evaluated on the validation split of that, unless another is named."""
    return dataset_of(next(iter(parse_mix(spec))))


def val_datasets(val_dataset, dataset):
    """Names of the datasets on whose validation splits a run with these options is evaluated, in their order."""
    if val_dataset is None:
        return [first_dataset(dataset)]
    names = [name.strip() for name in val_dataset.split(",")]
    if not all(names) or len({*names}) < len(names):
        raise Mistake(f"val_dataset={val_dataset!r}: expected NAME or NAME,NAME, as in a,b; each name once")
    return names


def deal(positions, weights):
    """Deal positions (int64 array) to sources, evenly by integer weights: (source, position within the source), arrays.

    Each source in turn takes its share w/W of what the ones before it left: of that, position q is its own if
    floor((q + 1) w/W) > floor(q w/W), and floor(q w/W) came before. No state, and never more off its share than by
    the number of sources; exact whenever the weights have gone round.
    """
    source, within = np.zeros_like(positions), np.zeros_like(positions)
    index, q = np.arange(positions.size), positions  # those not dealt yet, and their positions among themselves
    for i, weight in enumerate(weights):
        before, after = q * weight // sum(weights[i:]), (q + 1) * weight // sum(weights[i:])
        mine = after > before
        source[index[mine]], within[index[mine]] = i, before[mine]
        index, q = index[~mine], (q - before)[~mine]
    return source, within


def shares(n, weights):
    """{source: how many of the first n positions `deal` gives it}."""
    given, left = {}, n
    for i, (source, weight) in enumerate(weights.items()):
        given[source] = left * weight // sum(list(weights.values())[i:])
        left -= given[source]
    return given


class TrainStream:
    """The endless training stream.

    data_dir   folder of the dataset folders
    history    [(first position, mix)], increasing. As a rule one, [(0, "a")]; a cooldown on another mix adds one,
               [(0, "a"), (50_000, "a:0.5,b:0.5")], and each source then goes on behind what it has given before;
               of "a", "a@10M" and "a@20M" each is a source of its own, and begins at its own first epoch
    seq_len    tokens in a sequence, T
    data_seed  chooses orders and offsets
    position   the first that will be read: datasets that only came before it need not be there
    """

    def __init__(self, data_dir, history, seq_len, data_seed, position=0):
        self.history, self.seq_len, self.data_seed, self.first = history, seq_len, data_seed, position
        self.segments = []  # (first position, {source: weight}, {source: sequences given before})
        for start, mix in history:
            self.segments.append((start, parse_mix(mix), self.given(start) if self.segments else {}))
        self.bins, self.meta = {}, {}  # of sources, of datasets
        begun = [segment for segment in self.segments if segment[0] <= position]
        ahead = [weights for _, weights, _ in self.segments[len(begun) - 1 :]]
        for source in dict.fromkeys(source for weights in ahead for source in weights):
            dataset = dataset_of(source)
            tokens, self.meta[dataset] = open_bin(Path(data_dir) / dataset, "train")
            self.bins[source] = tokens[: within_limit(source, tokens.size)]
            size = self.bins[source].size
            if size < 2 * seq_len:
                raise Mistake(
                    f"dataset={source} has {size:,} tokens to train on; seq_len={seq_len} needs {2 * seq_len:,}"
                )
        self.tokenizer, self.vocab_size = kind_of(self.meta)
        # of the training tokens; None if its meta.json has none
        self.sha256 = {name: meta["splits"]["train"].get("sha256") for name, meta in self.meta.items()}

    def given(self, position):
        """{source: sequences that it has given before `position`}."""
        start, weights, given = [segment for segment in self.segments if segment[0] <= position][-1]
        new = shares(position - start, weights)
        return {source: given.get(source, 0) + new.get(source, 0) for source in (given | new)}

    def sequences(self, source):
        """Sequences in an epoch: the last stretch makes room for the offset and the last target."""
        return self.bins[source].size // self.seq_len - 1

    def epochs(self, position):
        """What a log says of how often the data were gone through before `position`: "epochs", in a mix of each.

        The data are those of the last sequence before it, whatever came earlier and is still to come.
        """
        last = max(self.first, position - 1)
        sources = [weights for start, weights, _ in self.segments if start <= last][-1]
        given = self.given(position)
        of = {source: given.get(source, 0) / self.sequences(source) for source in sources}
        return {"epochs" if len(of) == 1 else f"epochs/{source}": round(n, 4) for source, n in of.items()}

    def locate(self, position, count):
        """[(source, epoch, index of the first token)] for `count` sequences from `position` on."""
        for boundary, *_ in self.segments:
            if position < boundary < position + count:
                left = boundary - position
                return self.locate(position, left) + self.locate(boundary, count - left)
        start, weights, given = [s for s in self.segments if s[0] <= position][-1]
        source, within = deal(np.arange(position - start, position - start + count), list(weights.values()))
        epoch, first = np.zeros(count, dtype=int), np.zeros(count, dtype=int)
        for i, name in enumerate(weights):
            n = self.sequences(name)
            epochs, slots = divmod(within + given.get(name, 0), n)
            for e in np.unique(epochs[source == i]):
                mine = (source == i) & (epochs == e)
                offset = int(hash64(self.data_seed, e, 1)[0] % np.uint64(self.seq_len))
                order = permute(slots[mine], n, hash64(self.data_seed, e, 0)).astype(int)
                epoch[mine], first[mine] = e, offset + order * self.seq_len
        names = list(weights)
        return [(names[i], int(e), int(f)) for i, e, f in zip(source, epoch, first, strict=True)]

    def batch(self, position, count):
        """Sequences `position` .. `position + count - 1`: a (count, T + 1) int64 tensor."""
        rows = [self.bins[name][i : i + self.seq_len + 1] for name, _, i in self.locate(position, count)]
        tokens = np.stack(rows).astype(np.int64)  # (B, T + 1)
        check_tokens(tokens, self.vocab_size, f"{'+'.join(self.bins)}, sequences {position} to {position + count - 1}")
        return torch.from_numpy(tokens)


class ValSet:
    """The first `tokens` tokens of a validation split (0: all), in chunks whose shape only these and `seq_len` decide.

    Ranks share out whole chunks, so the loss is the same to the bit whatever their number and the micro-batch.
    """

    CHUNK_TOKENS = 8192  # one forward pass without gradients: small for a GPU, large enough for a CPU

    def __init__(self, folder, seq_len, tokens=0):
        self.tokens, self.meta = open_bin(folder, "val")
        if tokens >= self.tokens.size:
            raise Mistake(f"eval_tokens={tokens:,}: {folder} can give {self.tokens.size - 1:,}; 0 takes all")
        self.n_targets = tokens or self.tokens.size - 1
        rows = -(-self.n_targets // seq_len)
        self.shape = (max(1, min(self.CHUNK_TOKENS // seq_len, rows)), seq_len)  # (B, T)
        self.n_chunks = -(-self.n_targets // (self.shape[0] * seq_len))

    def chunk(self, i):
        """(inputs, targets) of chunk i, (B, T) int64 each; targets behind the end are -1, which losses ignore."""
        B, T = self.shape
        first, last = i * B * T, min((i + 1) * B * T, self.n_targets)
        x, y = np.zeros(B * T, dtype=np.int64), np.full(B * T, -1, dtype=np.int64)
        x[: last - first], y[: last - first] = self.tokens[first:last], self.tokens[first + 1 : last + 1]
        check_tokens(x, self.meta["vocab_size"], f"validation chunk {i}")
        return torch.from_numpy(x.reshape(B, T)), torch.from_numpy(y.reshape(B, T))


def check_tokenizer(state, path, dataset, meta):
    """Mistake unless the model of a checkpoint was trained on tokens of the kind that a dataset has.

    What an older checkpoint does not tell is not compared: its tokenizer's name, or how far its vocabulary was padded.
    Of one tokenizer one side may count all rows of the model as words, and the other only those in use.
    """
    name, size = meta["tokenizer"], meta["vocab_size"]
    known = state["data"].get("tokenizer")
    with mistakes(path):
        shape = shape_of(state)
    other = dataclasses.replace(shape, vocab_size=size)
    rows_counted = known == name and shape.padded_vocab in (size, shape.vocab_size)
    by_rows = "shape" not in state or rows_counted
    fits = shape.padded_vocab == other.padded_vocab if by_rows else shape == other
    if known not in (None, name) or not fits:
        raise Mistake(
            f"dataset {dataset!r} has another tokenizer ({name}, {size:,} words) than {path} "
            f"({f'{known}, ' if known else ''}{shape.vocab_size:,} words): prepare it alike"
        )


def cooldown_start(config, schedule):
    """The first step of a run's cooldown: updates from it on take `cooldown_dataset`; None without a cooldown."""
    start = schedule.keywords.get("start")
    return start if start != config.total_steps else None


def check_sources(config, schedule):
    """Raise Mistake for names of datasets that make no sense, wherever their bins are."""
    val_datasets(config.val_dataset, config.dataset)
    if config.cooldown_dataset and cooldown_start(config, schedule) is None:
        raise Mistake(
            f"cooldown_dataset={config.cooldown_dataset!r}: this schedule, {config.schedule!r}, does not end in a "
            "cooldown; choose one that does, such as wsd, or leave it out"
        )


def history_of(config, schedule, before, position):
    """[(first position, mix)] of a run: what it was trained on `before` a position, and what it will be from there on.

    So a branch may change the mix from its first step on, and a cooldown may have its own.
    """
    history, ahead = list(before), [(position, config.dataset)]
    if config.cooldown_dataset:
        turn = cooldown_start(config, schedule) * config.global_batch_size
        ahead = ahead[: turn > position] + [(max(turn, position), config.cooldown_dataset)]
    for first, mix in ahead:
        if not history or history[-1][1] != mix:
            history.append((first, mix))
    return history


def open_data(config, start, schedule):
    """(TrainStream, {"": ValSet, "/b": another}) of a run, held against each other and against what its checkpoint saw.

    The keys are what the names of losses end in: of the first validation set in nothing, of a further one in its name.

    config    options of train.py
    start     start.Start
    schedule  that of the run, which says where its cooldown begins
    """
    before, position = start.state["data"], start.state["progress"].get("position", 0)
    history = history_of(config, schedule, before["history"], position)
    stream = TrainStream(config.data_dir, history, config.seq_len, config.data_seed, position)
    if start.path:
        check_tokenizer(start.state, start.path, *next(iter(stream.meta.items())))
    for name, sha256 in before["sha256"].items():
        if stream.sha256.setdefault(name, sha256) != sha256:
            raise Mistake(f"dataset {name!r} is not what {start.path} was trained on: restore it, or start another run")
    val_sets, metas = {}, dict(stream.meta)
    for name in val_datasets(config.val_dataset, config.dataset):
        val = ValSet(Path(config.data_dir) / name, config.seq_len, config.eval_tokens)
        val_sets[f"/{name}" if val_sets else ""], metas[name] = val, val.meta
    kind_of(metas)
    return stream, val_sets
