r"""The paper's 210M model, 208,540,416 parameters (Table 1): constant LR for the longest of its runs (Table 2).

length  37,500, 50,000, 62,500 steps of 200 x 512 tokens
LR      1e-3 for cosine; 5e-4 for constant with cooldowns of 20%, linear

    torchrun --nproc_per_node=2 train.py configs/210m.py --save_at=30000,40000
    torchrun --nproc_per_node=2 train.py configs/210m.py --name=210m-37500 --total_steps=37500 \
        --schedule=wsd --cooldown_shape=linear --init_from=runs/210m/ckpt/step_00030000.pt
    torchrun --nproc_per_node=2 train.py configs/210m.py --name=210m-cosine-37500 --total_steps=37500 \
        --schedule=onecycle --lr=1e-3

Meant for two A100 as in the paper; not run yet.
"""

name = "210m"
n_layer = 24
n_head = 12
n_embd = 768
lr = 5e-4
schedule = "constant"
total_steps = 62_500
