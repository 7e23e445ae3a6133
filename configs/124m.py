r"""The paper's 124M model, 123,587,328 parameters (Table 1): constant LR for the longest of its runs (Table 2).

length  15,000, 25,000, 30,000 steps of 200 x 512 tokens (as run; the last is 35,000 in the table)
LR      1e-3 for cosine; 5e-4 for constant with cooldowns of 20%, linear

    torchrun --nproc_per_node=2 train.py configs/124m.py --save_at=12000,20000
    torchrun --nproc_per_node=2 train.py configs/124m.py --name=124m-15000 --total_steps=15000 \
        --schedule=wsd --cooldown_shape=linear --init_from=runs/124m/ckpt/step_00012000.pt
    torchrun --nproc_per_node=2 train.py configs/124m.py --name=124m-cosine-15000 --total_steps=15000 \
        --schedule=onecycle --lr=1e-3

Meant for two A100 as in the paper. Run for 60 steps, on other text: 412,000 tokens/s on one H100.
"""

name = "124m"
n_layer = 12
n_head = 12
n_embd = 768
lr = 5e-4
schedule = "constant"
total_steps = 30_000
