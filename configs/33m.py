r"""The paper's 33M model, 33,479,040 parameters (Table 1): constant LR for the longest of its runs (Table 2).

length  3,000, 7,000, 10,000 steps of 200 x 512 tokens
LR      2e-3 for cosine; 1e-3 for constant with cooldowns of 20%, linear

    torchrun --nproc_per_node=2 train.py configs/33m.py --save_at=2400,5600
    torchrun --nproc_per_node=2 train.py configs/33m.py --name=33m-3000 --total_steps=3000 \
        --schedule=wsd --cooldown_shape=linear --init_from=runs/33m/ckpt/step_00002400.pt
    torchrun --nproc_per_node=2 train.py configs/33m.py --name=33m-cosine-3000 --total_steps=3000 \
        --schedule=onecycle --lr=2e-3

Meant for two A100 as in the paper; not run yet.
"""

name = "33m"
n_layer = 8
n_head = 6
n_embd = 384
lr = 1e-3
schedule = "constant"
total_steps = 10_000
