r"""The paper's 93M model, 93,159,040 parameters (Table 1): constant LR for the longest of its runs (Table 2).

length  10,000, 17,500, 25,000 steps of 200 x 512 tokens
LR      2e-3 for cosine; 1e-3 for constant with cooldowns of 20%, linear

    torchrun --nproc_per_node=2 train.py configs/93m.py --save_at=8000,14000
    torchrun --nproc_per_node=2 train.py configs/93m.py --name=93m-10000 --total_steps=10000 \
        --schedule=wsd --cooldown_shape=linear --init_from=runs/93m/ckpt/step_00008000.pt
    torchrun --nproc_per_node=2 train.py configs/93m.py --name=93m-cosine-10000 --total_steps=10000 \
        --schedule=onecycle --lr=2e-3

Meant for two A100 as in the paper; not run yet.
"""

name = "93m"
n_layer = 12
n_head = 10
n_embd = 640
lr = 1e-3
schedule = "constant"
total_steps = 25_000
