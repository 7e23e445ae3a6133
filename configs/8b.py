"""The paper's 8B run: Llama 3's model, 12B tokens of FineWeb-Edu, a 1-sqrt cooldown over the last 20%. Not run here.

    python prepare_data.py HuggingFaceFW/fineweb-edu:sample-100BT --tokens=12B
    torchrun --nnodes=6 --nproc_per_node=8 ... train.py configs/8b.py
    python scaling.py memory configs/8b.py --gpus=48 --gpu=H100    # what it takes; `traffic`: what GPUs send

The paper's (Table 3 and section 3.3): the sizes, 4,096 tokens, 0.6M tokens per step, lr, warmup, lengths; on 48 GH200,
each model over 4 of them. Its tokenizer has 128,256 words (Llama 3's): 8,030,261,248 parameters. Ours: GPT-2's
tokenizer, so 7,391,678,464 parameters; shards, not tensor parallelism; micro-batches, and all that is for memory.
"""

name = "8b"
dataset = "fineweb-edu-sample-100BT-gpt2"
seq_len = 4096
global_batch_size = 144  # 144 * 4096 = 589,824 tokens
micro_batch_size = 3
n_layer = 32
n_head = 32
n_kv_head = 8
n_embd = 4096
n_inner = 14_336
rope_theta = 500_000.0
tied = False
lr = 3e-4
schedule = "wsd"
total_steps = 20_000
warmup_steps = 1000
cooldown_steps = 4000
cooldown_shape = "1-sqrt"
save_at = 16_000  # to branch from
eval_tokens = 2_000_000
parallel = "shard"
checkpoint_activations = True
loss_rows = 512
