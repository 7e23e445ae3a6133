"""Averages of the weights while a run goes on, and merges of its checkpoints. Torch only: copy this file anywhere.

    window = WindowAverage(model)                    # means over blocks of 500 steps, sampled every 5; 5 blocks kept
    ema = EMA(model, half_life=200, every=5)
    for step in range(total_steps):
        ...
        optimizer.step()
        window.update(step + 1)                      # the number of finished updates; most calls do nothing
        ema.update(step + 1)
    with swapped(model, window.average()):           # the average's weights; afterwards the model's own, to the bit
        evaluate(model)

    model.load_state_dict(merge(paths, merge_weights("1-sqrt", len(paths))))

At a constant learning rate such averages show, at no cost in training, most of what a cooldown would bring: Haegele et
al., NeurIPS 2024 (arXiv 2405.18392), section 4.1. Merging checkpoints instead: WSM (arXiv 2507.17634).

Averages are fp32, whatever the model's dtype, over its floating-point parameters, each once, however many names it has.
Names are those of the bare model, also where it is compiled or in DDP. An average holds the model's parameters, reads
them at every sample, and never writes to them or shares their memory.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

Source = nn.Module | Iterable[Tensor]  # a model, or a list of its parameters, which are then called "0", "1", ...
Device = torch.device | str | None
PIECE = 1 << 24  # numbers cast or moved at once: 64 MiB of fp32


def bare_names(tensors: dict) -> dict:
    """The same tensors, under names without what torch.compile adds in them and DDP in front of them."""
    names = [name.replace("_orig_mod.", "") for name in tensors]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def named_tensors(source: Source) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones under each of their names."""
    if not isinstance(source, nn.Module):
        return {str(i): tensor for i, tensor in enumerate(source)}
    buffers = dict(source.named_buffers(remove_duplicate=False))
    return bare_names(dict(source.named_parameters(remove_duplicate=False)) | buffers)


def averaged_tensors(source: Source) -> dict[str, Tensor]:
    """The parameters that averages are over, tied ones under the first of their names."""
    of_model, first = isinstance(source, nn.Module), {}  # by identity
    for name, tensor in named_tensors(source).items():
        if tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or not of_model):
            first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def check_match(tensors: dict, expected: dict, what: str) -> None:
    """ValueError unless names and shapes are the expected ones."""
    for name in [*expected, *tensors]:
        found, wanted = (tuple(d[name].shape) if name in d else "missing" for d in (tensors, expected))
        if found != wanted:
            raise ValueError(f"{what} is of another model: {name} is {found} in it, and should be {wanted}")


def in_fp32(averages: Sequence[Tensor], parameters: Sequence[Tensor]):
    """Yield pairs of lists for torch._foreach: averages, and their parameters in fp32 on the same device.

    All at once if they are that already, else cast and moved a piece at a time: never one more copy of the model.
    """
    pairs = list(zip(averages, parameters, strict=True))
    if all(a.dtype == p.dtype and a.device == p.device for a, p in pairs):
        yield averages, parameters
        return
    for average, parameter in pairs:
        for a, p in zip(average.view(-1).split(PIECE), parameter.reshape(-1).split(PIECE), strict=True):
            yield [a], [p.to(a.device, a.dtype)]


class Span(NamedTuple):
    """The steps an average is over. A sample stands for the `every` steps that end with it."""

    first: int
    last: int  # step of the newest sample
    samples: int  # steps / every, unless some were missed

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


@dataclass
class Block:
    first: int  # these three as in Span
    last: int
    samples: int
    tensors: list[Tensor]  # fp32, contiguous, one for each parameter: the sum of the samples, or their EMA


class Average:
    """What WindowAverage and EMA have in common: blocks of samples, the last of which may still be filling.

    They differ in how a sample is added to a block, and in how that becomes an average. An EMA is one block without an
    end: it is always filling, and `blocks` is left at None.
    """

    horizon, keep = math.inf, 1

    def __init__(self, model_or_params, device, **settings):
        for name in ("every", "horizon", "keep"):
            if name in settings and (type(settings[name]) is not int or settings[name] < 1):
                raise ValueError(f"{name}={settings[name]!r}: expected a whole number, at least 1")
        self.settings = {"kind": type(self).__name__, **settings}  # what a saved state has to agree with
        self.every, self.device = settings["every"], device
        self.model = model_or_params if isinstance(model_or_params, nn.Module) else None
        self.parameters = averaged_tensors(model_or_params)
        if not self.parameters:
            raise ValueError("there is nothing to average: give a model, or a list of floating-point parameters")
        self.blocks: list[Block] = []  # oldest first

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after every update, with the number of finished updates; multiples of `every` are sampled."""
        if step < 1 or step % self.every:
            return
        block = self.blocks[-1] if self.blocks else None
        if block and step <= block.last:
            raise ValueError(f"step={step}: {block.last} is averaged already; to go back, load the state of then")
        if block and (step - 1) // self.horizon == (block.last - 1) // self.horizon:
            block.last, block.samples = step, block.samples + 1
            for tensors, parameters in in_fp32(block.tensors, list(self.parameters.values())):
                self.add(tensors, parameters, block.samples)
        else:
            self.blocks.append(Block(step - self.every + 1, step, 1, self.copies(self.parameters)))
        self.blocks = self.blocks[-self.keep - (self.completed < len(self.blocks)) :]

    @property
    def completed(self) -> int:
        """How many completed blocks are held, at most `keep`; beside them there may be one whose end is to come."""
        return len(self.blocks) - any(block.last % self.horizon for block in self.blocks[-1:])

    def choose(self, blocks):
        if blocks is not None and not 0 <= blocks <= self.completed:
            raise ValueError(
                f"blocks={blocks}: {self.completed} completed blocks are held; ask for no more than these, for 0: the "
                "block that is filling, or for None: the newest average there is"
            )
        first, end = self.completed - (1 if blocks is None else blocks), self.completed if blocks else None
        return self.blocks[max(0, first) : end]

    def span(self, blocks: int | None = None) -> Span | None:
        """What `average(blocks)` is over; None if that has no sample yet."""
        chosen = self.choose(blocks)
        return Span(chosen[0].first, chosen[-1].last, sum(b.samples for b in chosen)) if chosen else None

    @torch.no_grad()
    def average(self, blocks: int | None = None) -> dict[str, Tensor]:
        """Mean over the samples of the last `blocks` completed blocks: new fp32 tensors by name.

        0 is the block being filled alone, as far as it goes. None, for training logs, is the last completed block and
        the one being filled together. That mean always reaches up to the newest sample: it is over `horizon` steps at
        the end of a block, and over nearly twice as many just before the end of the next. It is over fewer only until
        the first block is complete.
        Floating-point buffers are in it as they are in the model now, in their own dtype; other buffers are not.
        """
        chosen = self.choose(blocks)
        if not chosen:
            raise ValueError(f"blocks={blocks}: no sample yet; ask span() first, it is None until there is one")
        tensors = [t.clone() for t in chosen[0].tensors]
        for block in chosen[1:]:
            torch._foreach_add_(tensors, block.tensors)
        self.finish(tensors, sum(block.samples for block in chosen))
        state = bare_names(self.model.state_dict(keep_vars=True)) if self.model is not None else {}
        buffers = {n: b for n, b in state.items() if isinstance(b, Tensor) and not isinstance(b, nn.Parameter)}
        buffers = {name: b.clone() for name, b in buffers.items() if b.is_floating_point()}
        return dict(zip(self.parameters, tensors, strict=True)) | buffers

    def state_dict(self) -> dict:
        """All there is, as torch.load(weights_only=True) takes it. Save it before the next update: it is no copy."""
        names = list(self.parameters)
        blocks = [{**vars(b), "tensors": dict(zip(names, b.tensors, strict=True))} for b in self.blocks]
        return {**self.settings, "blocks": blocks}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Go on exactly from a state, which is copied. ValueError if it is of other settings, or of another model."""
        for name, ours in self.settings.items():
            if (saved := state.get(name)) != ours:
                raise ValueError(f"{name}={ours!r}, but it was saved with {saved!r}: use that, or start a new average")
        for block in state["blocks"]:
            check_match(block["tensors"], self.parameters, "the state")
        self.blocks = [Block(**{**b, "tensors": self.copies(b["tensors"])}) for b in state["blocks"]]

    def copies(self, tensors):
        """Tensors by name -> a list in our order, in fp32, where it is to be kept, and in memory of its own."""
        own = [
            torch.empty(p.shape, dtype=torch.float32, device=self.device or p.device) for p in self.parameters.values()
        ]
        torch._foreach_copy_(own, [tensors[name] for name in self.parameters])
        return own


class WindowAverage(Average):
    """Uniform means of the weights over blocks of `horizon` steps, sampled every `every` steps.

    Block b is the steps b * horizon + 1 to (b + 1) * horizon, wherever averaging was switched on; sampled are the
    multiples of `every`. So a block's last sample is its last step, and its mean is there at that step. (The paper's
    code samples updates 1, 6, 11, ..., 496 of a window, without its newest weights, and shows a window until the next
    one is complete, when it is 499 steps old.) A block whose beginning was missed has fewer samples, and its span says
    so. The last `keep` completed blocks are held: the means over 1, 2, ... of them are the horizons to choose from.

    Memory: an fp32 copy of the model for each completed block, and one for the block being filled; on `device` ("cpu"
    spares GPU memory, at the price of a transfer per sample), or else where the parameters are.
    Accuracy: samples are added up in fp32 and divided once. For bf16 weights, of 8 significant bits, the sum is exact.
    With fp32 weights the error (rms) is 1.5e-7 for 100 samples and 3e-7 for 500. A running mean would be rounded at
    every sample: it is no better for fp32, and as bad for bf16.
    """

    def __init__(
        self, model_or_params: Source, horizon: int = 500, every: int = 5, keep: int = 5, device: Device = None
    ):
        super().__init__(model_or_params, device, horizon=horizon, every=every, keep=keep)
        if horizon % every:
            raise ValueError(f"horizon={horizon}: expected a multiple of every={every}")
        self.horizon, self.keep = horizon, keep

    def add(self, sums, parameters, samples):
        torch._foreach_add_(sums, parameters)

    def finish(self, sums, samples):
        torch._foreach_div_(sums, samples)


class EMA(Average):
    """Exponential moving average: a sample counts `decay` times as much as the one after it.

    Sampled are the multiples of `every`. Give `decay`, from sample to sample, or `half_life`, in steps, for a decay of
    0.5^(every / half_life). The average of the samples x_1 .. x_n is

        (1 - d) / (1 - d^n) * sum_i d^(n - i) x_i

    so it begins as a uniform mean, and x_1 gets its share and no more: a long memory means something from the start.
    Without `bias_corrected` it is d^(n - 1) x_1 + (1 - d) sum_(i > 1) d^(n - i) x_i, as in torch.optim.swa_utils.
    Its span is all steps since the first sample, though the oldest hardly count.

    Memory: one fp32 copy of the model. What one sample changes is lost in fp32 if it is below 6e-8 of the weight: a
    long memory is better made by a larger `every` than by a decay above 0.9999.
    """

    def __init__(
        self,
        model_or_params: Source,
        decay: float | None = None,
        half_life: float | None = None,
        every: int = 1,
        device: Device = None,
        bias_corrected: bool = True,
    ):
        settings = {"decay": decay, "half_life": half_life, "bias_corrected": bias_corrected}
        super().__init__(model_or_params, device, every=every, **settings)
        if (decay is None) == (half_life is None):
            raise ValueError(f"decay={decay}, half_life={half_life}: give one of the two")
        if half_life is not None and not half_life > 0:
            raise ValueError(f"half_life={half_life}: expected a number of steps above 0")
        self.decay = decay if half_life is None else 0.5 ** (every / half_life)
        if not 0 < self.decay < 1:
            raise ValueError(f"decay={self.decay}: expected a number between 0 and 1, such as 0.99")
        self.bias_corrected = bias_corrected

    def add(self, averages, parameters, samples):
        share = (1 - self.decay) / (1 - self.decay**samples if self.bias_corrected else 1)
        torch._foreach_lerp_(averages, parameters, share)

    def finish(self, averages, samples):
        """They are averages already."""


def build(
    model: nn.Module,
    window_horizon: int = 0,
    window_every: int = 5,
    window_keep: int = 5,
    ema_decay: Sequence[float] = (),
    ema_half_life: Sequence[float] = (),
    ema_every: int = 5,
    averages_on: str = "device",
) -> dict[str, Average]:
    """Averages from a script's options, those asked for: {"window": ..., "ema": ..., "ema_2": ...}."""
    device = None if averages_on == "device" else averages_on
    averages = {}
    if window_horizon:
        averages["window"] = WindowAverage(model, window_horizon, window_every, window_keep, device)
    settings = [*({"decay": d} for d in ema_decay), *({"half_life": h} for h in ema_half_life)]
    for i, setting in enumerate(settings, 1):
        averages["ema" if i == 1 else f"ema_{i}"] = EMA(model, every=ema_every, device=device, **setting)
    return averages


def restore(model_or_params: Source, state: dict, device: Device = None) -> Average:
    """The average that a state_dict is of, with all that it held."""
    kind = {"WindowAverage": WindowAverage, "EMA": EMA}.get(state.get("kind"))
    if kind is None:
        raise ValueError(f"kind={state.get('kind')!r}: expected the state_dict of a WindowAverage or an EMA")
    settings = {name: value for name, value in state.items() if name not in ("kind", "blocks")}
    average = kind(model_or_params, **settings, device=device)
    average.load_state_dict(state)
    return average


@contextmanager
def swapped(model_or_params: nn.Module | Sequence[Tensor], average: dict[str, Tensor]):
    """Put an average into the model, cast to its dtypes; give back every bit of parameters and buffers at the end.

    It does so also when the body raises, or changes them itself, as batch norm does. Tensors stay the same objects at
    the same addresses: compiled models, DDP and optimizers notice nothing. Meanwhile it takes the memory of one more
    model. Do not use it between a forward pass and its backward pass.
    """
    tensors, averaged = named_tensors(model_or_params), averaged_tensors(model_or_params)
    others = tensors.keys() - averaged.keys()  # buffers and second names, in it or not
    check_match({name: t for name, t in average.items() if name not in others}, averaged, "the average")
    unique = list({id(t): t.detach() for t in tensors.values()}.values())
    before = [t.clone() for t in unique]
    try:
        for name, tensor in average.items():
            tensors[name].detach().copy_(tensor.detach())
        yield
    finally:
        torch._foreach_copy_(unique, before)


load_to_cpu = partial(torch.load, map_location="cpu", weights_only=True)


@torch.no_grad()
def merge(
    paths: Sequence, weights: Sequence[float] | None = None, key: str | None = "model", load: Callable = load_to_cpu
) -> dict[str, Tensor]:
    """Weighted mean (default: uniform) of the state_dicts under `key` (None: at the top) of several checkpoints.

    In memory are one checkpoint at a time, and sums in fp64. The result is a state_dict of the bare model, with the
    dtypes of the last checkpoint; what is tied there still is; what is not floating-point is the last one's.
    """
    weights = [1 / len(paths) for _ in paths] if weights is None else list(weights)
    if not weights or len(weights) != len(paths) or not abs(sum(weights) - 1) < 1e-6:
        raise ValueError(f"{len(paths)} checkpoints, weights={weights}: expected one for each, that add up to 1")
    sums, state, floats = {}, None, None
    for path, weight in zip(paths, weights, strict=True):
        del state, floats  # before the next is there
        state = load(path)
        if key is not None and key not in state:
            raise ValueError(f"{path} has no {key!r}: it has {', '.join(map(str, state))}")
        state = bare_names(state if key is None else state[key])
        floats = {name: t for name, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()}
        sums = sums or {name: torch.zeros_like(t, dtype=torch.float64) for name, t in floats.items()}
        check_match(floats, sums, path)
        torch._foreach_add_(list(sums.values()), [floats[name] for name in sums], alpha=weight)
    places = {}  # in memory, of the first of tied tensors
    for name, t in floats.items():
        state[name] = sums.pop(name).to(t.dtype)
        twin = state[places.setdefault((t.data_ptr(), t.shape, t.stride()), name)]
        state[name] = twin if torch.equal(twin, state[name]) else state[name]
    return state


MERGE_SHAPES = {  # x in [0, 1], the share of the cooldown that is over -> 1 .. 0
    "uniform": lambda x: 1 - x,  # a uniform mean is a linear cooldown
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
    "1-square": lambda x: 1 - x * x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def merge_weights(shape: str | Callable[[float], float] | Sequence[float], n: int) -> list[float]:
    """Weights, oldest first, under which n checkpoints at a constant LR merge into what a cooldown would have reached.

    `shape`: a name of MERGE_SHAPES; a function of x in [0, 1] that falls from 1 to 0; or the LR factors themselves,
    w_1 .. w_(n-1), w_i for the part of the run between checkpoints i - 1 and i (counted from 0).

    SGD goes theta_i = theta_0 - lr (g_1 + .. + g_i). Were the gradients the same at the decayed LR, it would end in
    theta_0 - lr (w_1 g_1 + .. + w_(n-1) g_(n-1)); with lr g_i = theta_(i-1) - theta_i that is sum_j c_j theta_j for

        c_0 = 1 - w_1,    c_j = w_j - w_(j+1),    c_(n-1) = w_(n-1)

    which add up to 1, and are not negative if the factors fall. A shape is taken at x = i / n for w_i: a cooldown of n
    parts, of which the first, at x = 0 and so at the full LR, is the one that led to the oldest checkpoint. "linear"
    then makes every weight 1 / n. For optimizers other than SGD this is an imitation.
    """
    if isinstance(shape, str) and shape not in MERGE_SHAPES:
        raise ValueError(f"shape={shape!r}: choose one of {', '.join(MERGE_SHAPES)}")
    shape = MERGE_SHAPES[shape] if isinstance(shape, str) else shape
    factors = [float(shape(i / n)) for i in range(1, n)] if callable(shape) else [float(w) for w in shape]
    if n < 1 or len(factors) != n - 1 or not all(map(math.isfinite, factors)):
        raise ValueError(f"n={n}, factors={factors}: expected a factor for each part between n checkpoints, n - 1")
    factors = [1.0, *factors, 0.0]
    return [factors[j] - factors[j + 1] for j in range(n)]
