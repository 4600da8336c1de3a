"""What the machine offers."""

import types

import psutil
import pytest
import torch

from hf_simmim.planning import machine as machine_module
from hf_simmim.planning.machine import GIB, Machine, find_machine, has_fast_bf16


def test_this_machine():
    found = find_machine(types.SimpleNamespace(device=torch.device("cpu"), world_size=1, n_gpu=0))
    assert found.is_cpu
    assert 1 <= found.num_cores <= psutil.cpu_count()
    assert 0 < found.memory <= psutil.virtual_memory().total
    assert f"{found.num_cores} cores, " in str(found)


def test_processes_share_processors():
    alone, shared = (
        find_machine(types.SimpleNamespace(device=torch.device("cpu"), world_size=size, n_gpu=0)) for size in (1, 4)
    )
    assert shared.num_devices == 4
    assert shared.memory == pytest.approx(alone.memory / 4, rel=0.2)
    assert str(Machine("cuda", 2, 80 * GIB, 8, True)) == "2 x CUDA, 80 GB"


@pytest.mark.parametrize(("avx", "amx", "expected"), [(True, False, True), (False, True, True), (False, False, False)])
def test_bfloat16_only_where_processors_have_it(monkeypatch, avx, amx, expected):
    monkeypatch.setattr(machine_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_fast_bf16(torch.device("cpu")) is expected
    assert not has_fast_bf16(torch.device("meta"))


@pytest.mark.parametrize(("major", "expected"), [(7, False), (8, True), (9, True)])
def test_bfloat16_of_gpus(monkeypatch, major, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert has_fast_bf16(torch.device("cuda")) is expected
