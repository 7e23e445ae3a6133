r"""The paper's 53M model, 53,027,328 parameters (Table 1): constant LR for the longest of its runs (Table 2).

length  3,650, 7,500, 11,250 steps of 200 x 512 tokens (as run; the first is 3,750 in the table)
LR      2e-3 for cosine; 1e-3 for constant with cooldowns of 20%, linear

    torchrun --nproc_per_node=2 train.py configs/53m.py --save_at=2920,6000
    torchrun --nproc_per_node=2 train.py configs/53m.py --name=53m-3650 --total_steps=3650 \
        --schedule=wsd --cooldown_shape=linear --init_from=runs/53m/ckpt/step_00002920.pt
    torchrun --nproc_per_node=2 train.py configs/53m.py --name=53m-cosine-3650 --total_steps=3650 \
        --schedule=onecycle --lr=2e-3

Meant for two A100 as in the paper; not run yet.
"""

name = "53m"
n_layer = 8
n_head = 8
n_embd = 512
lr = 1e-3
schedule = "constant"
total_steps = 11_250
