r"""The paper's 60M model, 59,845,120 parameters (Table 1): constant LR for the longest of its runs (Table 2).

length  7,500, 12,500, 17,500 steps of 200 x 512 tokens
LR      2e-3 for cosine; 1e-3 for constant with cooldowns of 20%, linear

    torchrun --nproc_per_node=2 train.py configs/60m.py --save_at=6000,10000
    torchrun --nproc_per_node=2 train.py configs/60m.py --name=60m-7500 --total_steps=7500 \
        --schedule=wsd --cooldown_shape=linear --init_from=runs/60m/ckpt/step_00006000.pt
    torchrun --nproc_per_node=2 train.py configs/60m.py --name=60m-cosine-7500 --total_steps=7500 \
        --schedule=onecycle --lr=2e-3

Meant for two A100 as in the paper; not run yet.
"""

name = "60m"
n_layer = 10
n_head = 8
n_embd = 512
lr = 1e-3
schedule = "constant"
total_steps = 17_500
