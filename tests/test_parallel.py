"""Tests of parallel.py: who takes which sequences, and sums in an order that ranks can share."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ENV, HERE

import parallel
from model import Llama, Shape
from parallel import Gradients, Ranks, add_by_halves, check_batch, chunk_losses, read_launcher

torch.set_num_threads(1)


def tokens(B, T=24):
    both = torch.randint(120, (B, T + 1), generator=torch.Generator().manual_seed(0))
    return both[:, :-1], both[:, 1:]


def test_chunk_losses():
    model, (x, y) = Llama(Shape(vocab_size=120, n_layer=1, n_head=2, n_embd=16, seq_len=24)), tokens(B=7)
    y = torch.cat((y[:-1], torch.full((1, 24), -1)))
    val = SimpleNamespace(n_chunks=7, chunk=lambda i: (x[i : i + 1], y[i : i + 1]))
    alone = chunk_losses(model, val, "cpu")
    assert alone.dtype == torch.float64 and not alone.requires_grad and (alone[:6] > 0).all() and alone[6] == 0
    assert alone.sum().item() == pytest.approx(model(x, y).item(), rel=1e-6)
    for world_size in (2, 3, 9):
        parts = torch.stack(
            [
                chunk_losses(model, val, "cpu", SimpleNamespace(rank=r, world_size=world_size, shard_size=1))
                for r in range(world_size)
            ]
        )
        assert torch.equal(parts.sum(0), alone)
        assert ((parts != 0).sum(0) <= 1).all()  # nothing is computed twice
    asked = []
    stopped = chunk_losses(model, val, "cpu", stop=lambda: asked.append(0) or len(asked) > 2)
    assert torch.equal(stopped[:2], alone[:2]) and (stopped[2:] == 0).all() and len(asked) == 3


def ranks_of(monkeypatch, world_size):
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "1")
        yield Ranks("cpu")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_ranks_together_take_what_one_would(monkeypatch, world_size):
    stream = SimpleNamespace(batch=lambda position, count: torch.arange(position, position + count))
    taken = []  # by rank, then by micro-batch
    for ranks in ranks_of(monkeypatch, world_size):
        batches = ranks.micro_batches(stream, 100, n_steps=3, rank_batch=12 // world_size, micro_batch_size=2)
        taken.append([batch.tolist() for batch in batches])
    per_step = 6 // world_size
    steps = [[b for rank in taken for b in rank[i : i + per_step]] for i in range(0, 3 * per_step, per_step)]
    assert [position for step in steps for batch in step for position in batch] == list(range(100, 136))


def test_one_rank_is_all_there_is(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks("cpu")
    with ranks.connected():
        assert ranks.sum(torch.tensor([1.5, 2.0], dtype=torch.float64), 3, 0.1) == [1.5, 2.0, 3.0, 0.1]
        assert ranks.gather("x") == ["x"] and ranks.is_main


MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "said, message",
    [
        ({"RANK": "1"}, "RANK=1: a launcher sets RANK, WORLD_SIZE and LOCAL_RANK"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: a launcher sets"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=: a launcher sets"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0: a launcher sets"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"} | MASTER, "to whole numbers; start with torchrun"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"} | MASTER, "to whole numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"} | MASTER, "LOCAL_RANK <= RANK < WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"} | MASTER, "LOCAL_RANK <= RANK < WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"} | MASTER, "LOCAL_RANK <= RANK < WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "but no MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_a_launcher_that_makes_no_sense_is_refused(said, message):
    with pytest.raises(ValueError, match=message):
        read_launcher(said)


def test_what_launchers_say():
    assert read_launcher({}) == read_launcher(MASTER) == (0, 1, 0)  # clusters set the latter for all that they start
    assert read_launcher({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"} | MASTER) == (3, 4, 1)


def test_a_wait_for_others_is_told(monkeypatch, capsys):
    monkeypatch.setattr(parallel, "WAIT_S", 0.01)
    for name, value in MASTER.items():
        monkeypatch.setenv(name, value)
    with parallel.waiting("rank 0 waits for the others of 2 ranks"):
        time.sleep(0.2)
    assert capsys.readouterr().out == "rank 0 waits for the others of 2 ranks at 127.0.0.1:29500; Ctrl-C ends it\n"
    with parallel.waiting("x"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().out == ""


CONNECTED = """
from pathlib import Path
from parallel import Ranks
with Ranks("cpu").connected():
    import torch._dynamo
threads = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
assert not [name for name in threads if "gloo" in name], threads
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="names of threads are read from Linux's /proc")
def test_no_thread_outlives_the_connection():
    """One that does may abort the process when Python ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env = {**ENV, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    call = [sys.executable, "-c", CONNECTED]
    both = [
        subprocess.Popen(
            call, env=env | {"RANK": rank, "LOCAL_RANK": rank}, cwd=HERE, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    assert [rank.communicate()[1] for rank in both] == ["", ""] and [rank.returncode for rank in both] == [0, 0]


def test_every_rank_gets_whole_micro_batches():
    for good in ((12, 2, 3), (12, 12, 1), (200, 50, 2)):
        assert check_batch(*good) is None
    for bad, remedy in (((12, 5, 1), "micro_batch_size can be 1, 2, 3, 4, 6, 12"), ((12, 2, 5), "number of ranks")):
        with pytest.raises(ValueError, match=remedy):
            check_batch(*bad)


def in_halves(gradients):
    """Their sum, in the order that add_by_halves promises."""
    middle, odd = divmod(len(gradients), 2)
    return sum(gradients) if odd else in_halves(gradients[:middle]) + in_halves(gradients[middle:])


class Sum:
    """A sum over ranks that is done when it is waited for: of this rank and one with the same gradient."""

    begun, watched = [], None

    def __init__(self, flat, group, async_op=False):
        self.flat = flat
        self.begun.append((flat.numel(), self.watched.grad is not None))

    def wait(self):
        self.flat.mul_(2)


@pytest.mark.parametrize("total", [1, 2, 6])
def test_blocks_are_sent_while_the_backward_pass_goes_on(monkeypatch, total):
    model = Llama(Shape(vocab_size=50, seq_len=8, n_layer=3, n_head=2, n_embd=16))
    ranks = Ranks("cpu")
    alone = Llama(Shape(vocab_size=50, seq_len=8, n_layer=3, n_head=2, n_embd=16))
    in_block = sum(p.numel() for p in model.blocks[0].parameters())
    rest = sum(p.numel() for p in model.parameters()) - 3 * in_block
    monkeypatch.setattr(Sum, "begun", [])
    monkeypatch.setattr(torch.distributed, "all_reduce", Sum)
    gradients, own = Gradients(ranks, model, model, total), Gradients(Ranks("cpu"), alone, alone, total)
    ranks.across = ["all"]
    monkeypatch.setattr(Sum, "watched", model.blocks[0].attention_norm.weight)  # the last one of the blocks
    for _ in range(2):  # steps
        model.zero_grad()
        alone.zero_grad()
        for i in range(total):
            tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(i))
            for one in (model, alone):
                one(tokens[:, :-1], tokens[:, 1:]).backward()
            assert [n for n, _ in Sum.begun] == ([] if i < total - 1 else [in_block, in_block, in_block, rest])
        if total < 3:  # else it has the gradient of the pass before
            assert [is_there for _, is_there in Sum.begun] == [False, False, True, True]
        gradients.finish()
        own.finish()
        assert all(torch.equal(p.grad, 2 * q.grad) for p, q in zip(model.parameters(), alone.parameters(), strict=True))
        Sum.begun.clear()


class Clock:
    """Time that only moves when it is told to: what blocks and sums take is said, not measured."""

    def __init__(self, sum_s):
        self.now, self.free, self.sum_s = 0.0, 0.0, sum_s  # `free`: when the channel is, as it has one sum at a time

    def compute(self, seconds):
        self.now += seconds

    def all_reduce(self, flat, group, async_op=False):
        """A sum over ranks, on its way from now on; who waits for it sleeps until it is there."""
        self.free = max(self.now, self.free) + self.sum_s
        there = self.free

        def wait():
            self.now = max(self.now, there)

        return SimpleNamespace(wait=wait) if async_op else wait()


class AtTheEnd(Gradients):
    """The control: the sums of the last backward pass are sent when it is over."""

    held = ()

    def arrived(self, part, *parameters):
        if part.done == self.total - 1:
            self.held = (*self.held, (part, *parameters))
        else:
            super().arrived(part, *parameters)

    def finish(self):
        for arguments in self.held:
            super().arrived(*arguments)
        super().finish()


@pytest.mark.parametrize(
    "block_s, sum_s, total, groups, expected",
    [
        (3, 2, 1, ["all"], 13),  # blocks at 3, 6, 9, sums until 5, 8, 11; that of embedding and norm is waited for
        (2, 3, 1, ["all"], 14),  # blocks at 2, 4, 6, sums until 5, 8, 11, 14: but for the first 2 all is sending
        (3, 2, 4, ["all"], 40),  # the same behind three passes of 9
        (3, 2, 1, ["pairs", "pairs of pairs"], 21),  # 4 ranks: the second sums, 4 times 2, are waited for
    ],
)
def test_a_step_takes_less_than_computing_and_sums(monkeypatch, block_s, sum_s, total, groups, expected):
    """With sums that take their time, by a clock of the test's own."""

    def step_s(kind):
        model, clock = Llama(Shape(vocab_size=50, seq_len=8, n_layer=3, n_head=2, n_embd=16)), Clock(sum_s)
        for block in model.blocks:
            block.register_full_backward_pre_hook(lambda *_: clock.compute(block_s))  # before its gradients are there
        ranks = Ranks("cpu")
        ranks.across = groups
        monkeypatch.setattr(torch.distributed, "all_reduce", clock.all_reduce)
        x, y = tokens(B=2, T=8)
        for _ in kind(ranks, model, model, total).micro_steps():
            model(x % 50, y % 50).backward()
        return clock.now

    computing, sums = total * 3 * block_s, len(groups) * 4 * sum_s
    assert step_s(Gradients) == expected < computing + sums
    assert step_s(AtTheEnd) == computing + sums


@pytest.mark.parametrize("total", [1, 2, 3, 4, 6, 7, 8, 12, 16])
def test_gradients_are_added_by_halves(total):
    gradients = torch.randn(total, 2, 1000, generator=torch.Generator().manual_seed(total))
    parameters, halves, most = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(2)], [], 0
    for done, gradient in enumerate(gradients, start=1):
        for parameter, part in zip(parameters, gradient, strict=True):  # what backward does
            parameter.grad = part.clone() if parameter.grad is None else parameter.grad + part
        add_by_halves(parameters, halves, done, total)
        most = max(most, len(halves))
    added = torch.stack([p.grad for p in parameters])
    assert torch.equal(added, in_halves(list(gradients)))
    assert halves == [] and 2**most <= total and total % 2**most == 0  # a copy for every factor of 2
    assert total < 4 or total % 2 or not torch.equal(added, sum(gradients))  # the control: one by one
