"""A Llama of transformers as a checkpoint of step 0, to branch from: what `export.py --from_hf` does.

    import_folder(Path("SmolLM2-135M"), Path("imported/step_00000000.pt"), seq_len=1024)

Its config.json becomes our options. What our model does not compute in the same way is refused by its field there.
"""

import dataclasses
import shlex

import torch

import sealed
from config import Mistake, check_values, mistakes, to_record
from model import Llama, Shape, load_weights, mlp_width
from start import FORMAT, Progress
from train import Config
from vocab import read_json, tokenizer_name, tokenizer_words

# ----------------------------------------------------------------------------------------------------------------------
# Names of weights, for both ways

OUTSIDE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}  # of the blocks
INSIDE = {  # of a block: ours are theirs one above the other, with the rows of heads in the same order
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate": ("mlp.gate_proj",),
    "mlp.up": ("mlp.up_proj",),
    "mlp.down": ("mlp.down_proj",),
}


def weight_names(shape):
    """[(our name, their names)] of all weights; of a tied matrix the embedding's."""
    pairs = [(ours, (theirs,)) for ours, theirs in OUTSIDE.items() if ours != "head" or not shape.tied]
    for i in range(shape.n_layer):
        for ours, theirs in INSIDE.items():
            pairs.append((f"blocks.{i}.{ours}", tuple(f"model.layers.{i}.{name}" for name in theirs)))
    return [(f"{ours}.weight", tuple(f"{name}.weight" for name in theirs)) for ours, theirs in pairs]


# ----------------------------------------------------------------------------------------------------------------------
# What a folder says

NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
EXPECTED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
EXPECTED |= dict.fromkeys(("sliding_window", "quantization_config", "auto_map"))
IF_MISSING = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}  # in transformers, and so below


def our_options(config, where):
    """(our options of the kind "model", rows of the embedding) of a config.json; Mistake names what does not fit."""

    def need(field, value, expected):
        if value != expected:
            raise Mistake(
                f"{where}: {field}={value!r}, which this code's model does not compute; it is {expected!r} there"
            )

    if missing := [field for field in NEEDED if field not in config]:
        raise Mistake(f"{where} has no {missing[0]}")
    for field, expected in EXPECTED.items():
        need(field, config.get(field, IF_MISSING.get(field)), expected)
    rope = {}
    for field in ("rope_scaling", "rope_parameters"):  # of transformers 4 and 5
        found = config.get(field) or {}
        is_plain = found.get("rope_type", found.get("type", "default")) == "default"
        need(field, None if is_plain else found, None)
        rope |= found
    need("partial_rotary_factor", (config | rope).get("partial_rotary_factor", 1.0), 1.0)
    n_embd, n_head, rows = (config[field] for field in ("hidden_size", "num_attention_heads", "vocab_size"))
    need("head_dim", config.get("head_dim") or n_embd / n_head, n_embd / n_head)
    options = {
        "n_layer": config["num_hidden_layers"],
        "n_head": n_head,
        "n_kv_head": config.get("num_key_value_heads") or n_head,
        "n_embd": n_embd,
        "n_inner": config["intermediate_size"],
        "tied": config.get("tie_word_embeddings", False),
        "rope_theta": float((config | rope).get("rope_theta", 10_000)),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "seq_len": config.get("max_position_embeddings", 2048),
    }
    for name, rule in (("n_kv_head", n_head), ("n_inner", mlp_width(n_embd))):
        options[name] = None if options[name] == rule else options[name]
    return options, rows


def vocab_multiple(words, rows):
    """The option of that name with which a vocabulary of so many words has so many rows, no more and no less."""
    return next(multiple for multiple in (64, 1, rows) if -(-words // multiple) * multiple == rows)


def read_weights(folder):
    """{their name: tensor} of a folder's safetensors: one file, or those that its index names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index, tensors = folder / "model.safetensors.index.json", {}
    files = sorted({*read_json(index).get("weight_map", {}).values()}) if index.is_file() else ["model.safetensors"]
    for file in files:
        if not (folder / file).is_file():
            raise Mistake(f"{folder} has no {file}: expected weights in safetensors, as save_pretrained writes them")
        try:
            tensors |= load_file(folder / file)
        except SafetensorError as error:
            raise Mistake(f"{folder / file} is damaged: {error}") from error
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


def our_weights(theirs, shape, where):
    """{our name: tensor in fp32} of theirs; Mistake for one that is missing, too many, or quantized."""
    theirs, ours = dict(theirs), {}
    for name, parts in weight_names(shape):
        if missing := [part for part in parts if part not in theirs]:
            raise Mistake(f"{where} has no {missing[0]}, which its config.json asks for")
        tensor = torch.cat([theirs.pop(part) for part in parts])
        if not tensor.is_floating_point():
            raise Mistake(f"{where}: {parts[0]} is {tensor.dtype}; expected float32, bfloat16 or float16")
        ours[name] = tensor.float()
    if shape.tied:  # some write both
        ours["head.weight"] = ours["embedding.weight"]
        if not torch.equal(theirs.pop("lm_head.weight", ours["head.weight"]).float(), ours["head.weight"]):
            raise Mistake(f"{where}: tie_word_embeddings=True, but lm_head.weight is another than the embedding")
    if theirs:
        raise Mistake(f"{where} has {next(iter(theirs))}, which this code's model has not")
    return ours


# ----------------------------------------------------------------------------------------------------------------------
# A checkpoint


def import_folder(folder, out, seq_len=None):
    """Write the Llama of a folder of transformers as a checkpoint of step 0, for train.py --init_from.

    Mistake if it is no Llama, is not whole, or reads fewer than `seq_len` tokens.
    """
    where = folder / "config.json"
    if not where.is_file():
        raise Mistake(f"{where} is not there: expected a folder as save_pretrained of transformers writes it")
    options, rows = our_options(read_json(where), where)
    words = min(rows, tokenizer_words(folder) or rows)  # rows without a word pad the vocabulary
    options["vocab_multiple"] = vocab_multiple(words, rows)
    if seq_len is not None and seq_len > options["seq_len"]:
        raise Mistake(f"--seq_len={seq_len}: {where} has max_position_embeddings={options['seq_len']}; give no more")
    options["seq_len"] = seq_len or options["seq_len"]
    with mistakes(where):
        config = Config(**options)
        check_values(config)
        shape = Shape.of(config, words)
        model = Llama(shape)
        load_weights(model, our_weights(read_weights(folder), shape, folder))
    state = {"format": FORMAT, "model": model.state_dict(), "shape": shape.to_record(), "averages": {}}
    state |= {"optimizer": {"state": {}, "param_groups": []}, "progress": dataclasses.asdict(Progress())}
    state |= {"data": {"history": [], "sha256": {}, "tokenizer": tokenizer_name(folder)}, "config": to_record(config)}
    state |= {"imported": {"path": str(folder)}}
    out.parent.mkdir(parents=True, exist_ok=True)
    sealed.write(out, state)
    given = [f"--{name}={value}" for name, value in options.items() if value != getattr(Config, name)]
    print(f"{out} is whole: python train.py --init_from={shlex.quote(str(out))} {' '.join(given)} --dataset=NAME")
