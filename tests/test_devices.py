"""Tests of devices.py: which device is chosen, what is made of it, and in which precision it computes."""

import os
import platform
import subprocess
import sys

import pytest
import torch

import devices
from devices import choose_device, to_device, use_bf16, use_compile


@pytest.fixture
def no_gpu(monkeypatch):
    """As on a machine without one; afterwards torch computes as before."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.set_float32_matmul_precision(before[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled


def test_cuda_is_made_to_repeat_itself(no_gpu, monkeypatch):
    """The switches are set; TEST_DEVICE=cuda, on a GPU, runs the tests that show what they do."""
    chosen = []
    assert choose_device("auto") == torch.device("cpu") and not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(os, "environ", {})
    assert choose_device("cpu") == torch.device("cpu") and not torch.are_deterministic_algorithms_enabled()
    assert choose_device("auto", 1) == torch.device("cuda", 1) and chosen == [1]
    assert torch.are_deterministic_algorithms_enabled() and os.environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def test_bf16_where_it_is_native(monkeypatch):
    cpu = torch.device("cpu")
    for found, native in (({}, False), ({"avx512_bf16": True}, True), ({"avx512_bf16": False, "amx_bf16": True}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found | {"avx2": True})
        assert use_bf16("auto", cpu) is native
        assert use_bf16("float32", cpu) is False and use_bf16("bfloat16", cpu) is True


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such switch")
def test_freed_memory_is_kept_for_the_next_tensor():
    code = """if True:
        import resource, sys, torch
        from devices import choose_device
        if sys.argv[1:]:
            choose_device("cpu")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(64 << 20, dtype=torch.uint8)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() >> 26)"""

    def fresh_tensors(*chosen):  # how many of 20 had to be fetched from the kernel
        done = subprocess.run([sys.executable, "-c", code, *chosen], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert fresh_tensors("chosen") <= 10 and fresh_tensors() >= 19


def test_to_device_on_cpu():
    tensor = torch.arange(6).view(2, 3)
    assert torch.equal(to_device(tensor, torch.device("cpu")), tensor)


def test_a_device_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='mps': torch sees no Apple GPU here; use --device=cpu"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")


def test_no_compiler_is_told_before_anything_else(monkeypatch):
    cpu = torch.device("cpu")
    assert use_compile(True, cpu) is True and use_compile(None, torch.device("cuda")) is True
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    assert use_compile(None, cpu) is False and use_compile(False, cpu) is False
    with pytest.raises(ValueError, match="compile=True needs a C.. compiler.*--compile=False"):
        use_compile(True, cpu)
