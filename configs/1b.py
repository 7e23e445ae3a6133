"""The paper's 1B run of 100B tokens: FineWeb, 55,000 steps, a 1-sqrt cooldown over the last 20%. Not run here.

    python prepare_data.py HuggingFaceFW/fineweb:sample-100BT
    torchrun --nproc_per_node=4 train.py configs/1b.py
    python scaling.py memory configs/1b.py --gpus=4 --gpu=H100     # what it takes; `traffic`: what GPUs send

The paper's (Table 3 and section 3.3): layers, heads, channels, 2,048 tokens, 1.8M tokens per step, lr, warmup, lengths;
on 4 H100. Its tokenizer has 49,152 words (lvwerra/the-tokenizer-v1): 1,024,022,272 parameters. Ours: GPT-2's tokenizer,
so 1,026,086,656 parameters; tied matrices; micro-batches, and all that is for memory. The sample has about 100B tokens.
"""

name = "1b"
dataset = "fineweb-sample-100BT-gpt2"
seq_len = 2048
global_batch_size = 880  # 880 * 2048 = 1,802,240 tokens
micro_batch_size = 10
n_layer = 24
n_head = 14
n_embd = 1792
lr = 8e-4
schedule = "wsd"
total_steps = 55_000
warmup_steps = 2000
cooldown_steps = 11_000
cooldown_shape = "1-sqrt"
save_at = 44_000  # to branch from
eval_tokens = 2_000_000
loss_rows = 512
