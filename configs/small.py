"""A model of 68,000 parameters on the bytes of Python's standard library: a run of 20 tokens per parameter in a minute.

The studies on a laptop start from here. One thread trains it at 31,000 to 45,000 tokens/s.

    python prepare_data.py stdlib --tokenizer=bytes
    python train.py configs/small.py
"""

name = "small"
dataset = "stdlib-bytes"
seq_len = 128
global_batch_size = 8  # 1,024 tokens per step
micro_batch_size = 8
n_layer = 2
n_head = 1
n_embd = 32
lr = 1.6e-2  # the best of configs/lr_sensitivity.py, for cosine and for cooldowns
schedule = "wsd"
total_steps = 1320  # 20 tokens per parameter
warmup_steps = 50
eval_every = 100
eval_tokens = 65_536
save_every = 500
dtype = "float32"  # at this width bf16 wins nothing on a CPU
