"""A model of 1.1M parameters on the bytes of Python's standard library, for a laptop's CPU.

    python prepare_data.py stdlib --tokenizer=bytes
    python train.py configs/tiny.py

On two cores it took three minutes.
"""

name = "tiny"
dataset = "stdlib-bytes"
seq_len = 256
global_batch_size = 16  # 4,096 tokens per step
micro_batch_size = 8
n_layer = 4
n_head = 4
n_embd = 128
lr = 2e-3
schedule = "wsd"
total_steps = 400
warmup_steps = 40
eval_every = 50
eval_tokens = 32_768
save_every = 100
window_horizon = 40  # averages of the weights, to compare with the cooldown
ema_half_life = (20.0,)
dtype = "float32"  # at this width bf16 wins nothing on a CPU
