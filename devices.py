"""The device that a run computes on, its precision, and what bits depend on there.

device = choose_device("auto")                   # CUDA if there is a GPU, made to repeat itself to the bit
bf16 = use_bf16("auto", device)                  # where the device does so itself
with autocast(device, bf16):
    loss = model(to_device(tokens, device))
"""

import ctypes
import os
import shutil
import sys

import torch

from config import Mistake


def check_device(name):
    """Raise Mistake for a kind of device that torch does not find here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise Mistake("device='cuda': torch sees no CUDA device here; use --device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise Mistake("device='mps': torch sees no Apple GPU here; use --device=cpu")


def use_compile(compile, device):
    """Whether to compile: as `compile` says, and for None on CUDA. Mistake if there is no C++ compiler for it."""
    compiled = device.type == "cuda" if compile is None else compile
    if compiled and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl")))):
        raise Mistake(
            "compile=True needs a C++ compiler, and there is no g++ or clang++: install one, or --compile=False"
        )
    return compiled


def choose_device(name, index=0, in_shards=False):
    """The device for "auto", "cpu", "cuda" or "mps", made ready.

    CUDA, the GPU of `index`, is set up to repeat itself to the bit; with the CPU, this process keeps freed memory, but
    for a model `in_shards` gives it back.
    Mistake if there are not that many GPUs. Apple's "mps" has not been tested.
    """
    check_device(name)
    if name == "mps":
        return torch.device("mps")
    if name == "cpu" or not torch.cuda.is_available():
        set_up_malloc(keep=not in_shards)
        return torch.device("cpu")
    if index >= (gpus := torch.cuda.device_count()):
        raise Mistake(f"rank {index} of this machine finds {gpus} GPU(s): --nproc_per_node={gpus}, or --device=cpu")
    torch.cuda.set_device(index)
    torch.set_float32_matmul_precision("high")  # what stays in fp32 is multiplied in TF32
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # flash attention backward; else no two runs are alike, and 5% faster
    torch.utils.deterministic.fill_uninitialized_memory = False
    return torch.device("cuda", index)


def set_up_malloc(keep):
    """Keep the memory of freed tensors for the next ones, or give all of it back; where the C library is glibc.

    Given back, it goes to the kernel, which hands it out again page by page: half of the time of an evaluation. Kept,
    it is of many sizes where tensors of a model in shards come and go, and three times as much as is in use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and keep:
        mallopt(-4, 0)  # M_MMAP_MAX: large tensors come from the heap, too
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: and the heap does not shrink
    elif mallopt:
        mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: tensors do not come from the heap, and go when they are freed


def use_bf16(dtype, device):
    """Whether to compute in bfloat16: as `dtype` says, and for "auto" where the device does so itself."""
    if dtype != "auto":
        return dtype == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))  # absent on other architectures


def computed_with(device, compiled):
    """What bits depend on, besides the kind of machine: versions for a checkpoint."""
    versions = {"torch": str(torch.__version__), "threads": torch.get_num_threads()}
    if compiled:  # once it was one graph for the whole model
        versions["graphs"] = "one per block, attention by rows" if device.type == "cpu" else "one per block"
    return versions


def autocast(device, bf16):
    """A context in which matrices are multiplied in bfloat16, if `bf16`; weights and sums stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def to_device(tensor, device):
    """Copy a CPU tensor to `device`: to CUDA through pinned memory, so that the copy waits for nothing."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
