"""Models out to folders of transformers, and in from such folders: to generate with, to compare, to train on.

    python export.py runs/tiny/ckpt/step_00000400.pt --out=exported/tiny            # AutoModelForCausalLM reads it
    python export.py runs/trunk/ckpt/step_00000400.pt --out=exported/ema --average=ema --dtype=bfloat16
    python export.py --from_hf=SmolLM2-135M --out=imported/step_00000000.pt         # a checkpoint to branch from

The folder needs no code of ours and no network. It holds the weights that the checkpoint stands for, or an average, in
fp32 or rounded to bf16, with the rows that pad the vocabulary: they are in every softmax, so losses are the run's, and
training goes on at the same loss. No tokens have their numbers; generation_config.json keeps them out of texts. What
their model lacks is folded into weights, the same to rounding: muP's factors go into the embedding and the last norm.
Models with --qk_norm become Qwen3, whose norms of queries and keys have weights, here 1; all others are Llama. Weights
that are off (--density) are zeros.

In comes what is a Llama in transformers, as SmolLM and TinyLlama are, and what our model computes in the same way. All
else is refused by its field in config.json. Training begins at step 0, with an optimizer that knows nothing yet.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import torch

from config import Mistake, Parser, main, names, whole
from evaluate import AVERAGED, NEEDED, averages_of, build_model, named, read
from from_hf import import_folder, weight_names
from sample import file_hash
from sealed import sync_folder, written
from train import Config
from vocab import EOT, EXPORTED, TOKENIZER_FILES, TOKENIZERS, find_tokenizer, read_json, tokenizer_json

SHARD_BYTES = 5_000_000_000  # of tensors in a file of weights; more are several files with an index
FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|[a-z_.]+\.json|README\.md|\..*\.tmp")  # that we write


@torch.no_grad()
def their_weights(model, dtype):
    """{their name: tensor} that give this model's logits, to rounding.

    Ours are factor_out norm(x) head, x from factor_in embedding. The last norm's weight takes factor_out. The embedding
    takes factor_in, and where it is the head, too, the norm's weight is over it.
    """
    shape, ours = model.shape, model.state_dict()
    ours["embedding.weight"] = ours["embedding.weight"] * model.factor_in
    ours["norm.weight"] = ours["norm.weight"] * (model.factor_out / (model.factor_in if shape.tied else 1.0))
    theirs = {}
    for name, parts in weight_names(shape):
        rows = model.blocks[0].attention.qkv.parts if len(parts) > 1 else len(ours[name])
        theirs |= zip(parts, ours[name].split(rows), strict=True)
    if shape.qk_norm:
        norms = [f"model.layers.{i}.self_attn.{x}_norm.weight" for i in range(shape.n_layer) for x in "qk"]
        theirs |= {name: torch.ones(shape.head_size) for name in norms}
    return {name: tensor.to(dtype, copy=True).contiguous() for name, tensor in theirs.items()}  # shared memory: refused


def their_config(shape, eot_id, dtype):
    """What config.json says of a model, as transformers 4 and 5 spell it."""
    kind = "qwen3" if shape.qk_norm else "llama"
    config = {"architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind}
    config |= {"vocab_size": shape.padded_vocab}
    config |= {"hidden_size": shape.n_embd, "intermediate_size": shape.mlp_width, "num_hidden_layers": shape.n_layer}
    config |= {"num_attention_heads": shape.n_head, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_size}
    config |= {"max_position_embeddings": shape.seq_len, "hidden_act": "silu", "rms_norm_eps": shape.norm_eps}
    config |= {"rope_theta": shape.rope_theta}
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta}}
    config |= {"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}
    config |= {"tie_word_embeddings": shape.tied, "initializer_range": 0.02, "use_cache": True}
    return config | {"bos_token_id": eot_id, "eos_token_id": eot_id, "torch_dtype": dtype, "dtype": dtype}


def tokenizer_files(name, seq_len):
    """{file: what is in it} of a tokenizer; of one that is not our own as it is."""
    if folder := TOKENIZERS[name].folder:
        files = {file: read_json(folder / file) for file in TOKENIZER_FILES if file != "config.json"}
        return {file: value for file, value in files.items() if value}
    if name not in EXPORTED:
        raise Mistake(f"the tokenizer {name} cannot be written: expected {', '.join(EXPORTED)}, or one of a folder")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOT, "eos_token": EOT}
    about |= {"model_max_length": seq_len, "clean_up_tokenization_spaces": False}
    about |= {"model_input_names": ["input_ids", "attention_mask"]}
    return {"tokenizer.json": tokenizer_json(name), "tokenizer_config.json": about}


def card(state, path, shape, words, average, dtype):
    """README.md: what the model is, what it was trained on and how, and what it is worth."""
    config, at = state["config"], state["progress"]
    given = {name: config[name] for name in names(Config, "schedule") if config[name] is not None}
    losses = {"train_loss": at["train_loss"], **(at["losses"] or {})}
    sizes = ("n_layer", "n_head", "kv_heads", "n_embd", "mlp_width", "seq_len")
    rows = {"model": ", ".join(f"{name} {getattr(shape, name)}" for name in sizes) + f", {words:,} words"}
    if words < shape.padded_vocab:
        rows["model"] += f" in {shape.padded_vocab:,} rows: the last {shape.padded_vocab - words:,} are padding"
    rows |= {"weights": f"{average or 'raw'}, {dtype}", "step": f"{at['step']:,}"}
    rows |= {"tokens": f"{at.get('position', 0) * shape.seq_len:,}"}
    rows |= {"data": "; ".join(f"{mix} from sequence {start:,}" for start, mix in state["data"]["history"])}
    rows |= {"sha256 of data": ", ".join(f"{name} {sha}" for name, sha in state["data"]["sha256"].items())}
    rows |= {"tokenizer": state["data"].get("tokenizer")}
    if "imported" not in state:  # that has not been trained here
        rows |= {"schedule": ", ".join(f"{name} {value}" for name, value in given.items())}
        options = ("optimizer", "lr", "weight_decay", "global_batch_size", "seed", "data_seed", "init_from")
        rows |= {"other options": ", ".join(f"{name} {config[name]}" for name in options)}
    rows |= {"losses at this step": ", ".join(f"{k} {v:.4f}" for k, v in losses.items() if type(v) is float)}
    rows |= {"merged from": ", ".join(state.get("merged", {}).get("paths", ()))}
    rows |= {"imported from": state.get("imported", {}).get("path")}
    rows |= {"checkpoint": path.name, "its sha256": file_hash(path)}
    table = "\n".join(f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items() if value)
    head = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
    load = "AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)"
    return (
        f"{head}# {config['name']}, step {at['step']:,}\n\nA decoder for text in the style of Llama. `{load}` load "
        "it. Losses are in nats per token, of the run as it logged them: val_loss of the raw weights (val_loss_window, "
        f"val_loss_ema of averages), before any rounding.\n\n| | |\n|---|---|\n{table}\n"
    )


def remove_left(aside):
    """Remove the folder that a killed export left; Mistake if it is something else."""
    if not aside.exists() and not aside.is_symlink():
        return
    is_folder = aside.is_dir() and not aside.is_symlink()
    if not is_folder or not all(map(FILES.fullmatch, os.listdir(aside))):
        raise Mistake(f"{aside} is not what a killed export left: move it away, or choose another --out")
    shutil.rmtree(aside)


@contextlib.contextmanager
def made_aside(out):
    """A folder to fill, which has the name `out` once it is whole; after a kill it is `.<name>.tmp`, until next time.

    Who writes a file syncs it, too.
    """
    aside = out.with_name(f".{out.name}.tmp")
    remove_left(aside)
    aside.mkdir(parents=True)
    try:
        yield aside
        sync_folder(aside)
        check_free(out)
        os.rename(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(out.parent)


def write_weights(folder, tensors):
    """Write tensors to one file, or to several of SHARD_BYTES with an index; every tensor is within one."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards, size = [*shards, {}], 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    n, places = len(shards), {}
    for i, shard in enumerate(shards):
        path = folder / ("model.safetensors" if n == 1 else f"model-{i + 1:05d}-of-{n:05d}.safetensors")
        try:
            save_file(shard, path, metadata={"format": "pt"})
        except SafetensorError as error:  # so it says that the disk is full
            raise OSError(f"{path} could not be written: {error}") from error
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        places |= dict.fromkeys(shard, path.name)
    if n > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def write_json(path, value):
    with written(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def export_folder(path, out, average=None, dtype="float32", tokenizer=None):
    """Write the model of a checkpoint as a folder that transformers loads; the checkpoint stays as it is."""
    state = read(path, AVERAGED if average else NEEDED)
    spec = TOKENIZERS[name := find_tokenizer(state, path, tokenizer)]
    model = build_model(state, path, "cpu", average)
    del state["model"]  # before there is a third copy
    words = model.shape.vocab_size if "shape" in state else spec.vocab_size  # old ones know the padded one
    average = averages_of(state, path, average)[0] if average else None
    config = their_config(model.shape, spec.eot_id, dtype)
    if spec.folder:  # texts may begin with another token than they end with
        given = read_json(spec.folder / "config.json")
        config |= {key: given[key] for key in ("bos_token_id", "eos_token_id") if given.get(key) is not None}
    files = {"config.json": config} | tokenizer_files(name, model.shape.seq_len)
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    padding = list(range(words, model.shape.padded_vocab))  # which sample.py never draws either
    files["generation_config.json"] = ends | ({"suppress_tokens": padding} if padding else {})
    with made_aside(out) as folder:
        write_weights(folder, their_weights(model, getattr(torch, dtype)))
        for file, value in files.items():
            write_json(folder / file, value)
        with written(folder / "README.md") as file:
            file.write(card(state, Path(path), model.shape, words, average, dtype).encode())
    print(f"{out} is whole: AutoModelForCausalLM.from_pretrained({str(out)!r})")


def check_free(out):
    """Mistake if there is anything under the name to write to."""
    if out.exists() or out.is_symlink():
        raise Mistake(f"--out={out} is there already, and stays: choose another name")


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def check_args(args):
    """Raise Mistake for flags that do not go together."""
    if bool(args.checkpoint) == bool(args.from_hf):
        raise Mistake("give either a checkpoint, to write as a folder, or --from_hf=FOLDER, to make a checkpoint of")
    for name in ("average", "dtype", "tokenizer") if args.from_hf else ("seq_len",):
        if getattr(args, name) is not None:
            raise Mistake(f"--{name} goes {'without' if args.from_hf else 'with'} --from_hf")


def run(args=None):
    parser = Parser(description=__doc__)
    flag = parser.add_argument
    flag("checkpoint", nargs="?", help="to write as a folder")
    flag("--out", required=True, help="new folder, such as exported/tiny; with --from_hf a new checkpoint")
    flag("--average", choices=("window", "ema"), help="write this average of the weights")
    flag("--dtype", choices=("float32", "bfloat16"), help="of the weights written; default float32")
    flag("--tokenizer", metavar="FOLDER", help="of its tokenizer.json, if neither data nor checkpoint tell")
    flag("--from_hf", metavar="FOLDER", type=Path, help="make a checkpoint of a Llama of transformers")
    flag("--seq_len", type=whole(least=1), help="of the checkpoint; default the model's longest, which takes memory")
    args = parser.parse_args(args)
    check_args(args)
    check_free(Path(args.out))
    if args.from_hf:
        import_folder(args.from_hf, Path(args.out), args.seq_len)
    else:
        path, dtype = named(args.checkpoint), args.dtype or "float32"
        export_folder(path, Path(args.out), args.average, dtype, args.tokenizer)


if __name__ == "__main__":
    main(run)
