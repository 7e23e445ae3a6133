r"""The paper's 151M model, 151,905,024 parameters (Table 1): constant LR for the longest of its runs (Table 2).

length  25,000, 37,500, 50,000 steps of 200 x 512 tokens
LR      1e-3 for cosine; 5e-4 for constant with cooldowns of 20%, linear

    torchrun --nproc_per_node=2 train.py configs/151m.py --save_at=20000,30000
    torchrun --nproc_per_node=2 train.py configs/151m.py --name=151m-25000 --total_steps=25000 \
        --schedule=wsd --cooldown_shape=linear --init_from=runs/151m/ckpt/step_00020000.pt
    torchrun --nproc_per_node=2 train.py configs/151m.py --name=151m-cosine-25000 --total_steps=25000 \
        --schedule=onecycle --lr=1e-3

Meant for two A100 as in the paper; not run yet.
"""

name = "151m"
n_layer = 16
n_head = 12
n_embd = 768
lr = 5e-4
schedule = "constant"
total_steps = 50_000
