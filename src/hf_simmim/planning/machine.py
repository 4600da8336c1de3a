"""What the machine offers to a training: device, memory, processors, and fast bfloat16."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ..model.plain_layers import multiplies_bfloat16

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What the machine offers.

    Args:
        device: Type of the device: "cpu", "cuda", "mps", ...
        num_devices: Number of devices, or of processes on a CPU, that train together.
        memory: Bytes that one of them can use: of a GPU its own memory, of a CPU the share of the free memory.
        num_cores: Processor cores of this machine for each of them.
        has_bf16: Whether it computes in bfloat16 faster than in float32.
    """

    device: str
    num_devices: int
    memory: int
    num_cores: int
    has_bf16: bool

    @property
    def is_cpu(self) -> bool:
        """Whether processors do the training."""
        return self.device == "cpu"

    def __str__(self) -> str:
        what = f"{self.num_cores} cores" if self.is_cpu else self.device.upper()
        several = f"{self.num_devices} x " if self.num_devices > 1 else ""
        return f"{several}{what}, {self.memory / GIB:.0f} GB"


def find_machine(arguments: Any) -> Machine:
    """Look at the machine that a training runs on.

    Args:
        arguments: Training arguments, with `device` and `world_size`.

    Returns:
        What it offers.
    """
    device, num_devices = arguments.device, max(1, arguments.world_size, arguments.n_gpu)
    local = max(1, torch.cuda.device_count()) if device.type == "cuda" else num_devices
    memory = psutil.virtual_memory().available // local
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    num_cores = max(1, (psutil.cpu_count(logical=False) or psutil.cpu_count() or 1) // local)
    if hasattr(psutil.Process(), "cpu_affinity"):
        num_cores = max(1, min(num_cores, len(psutil.Process().cpu_affinity()) // local))
    return Machine(device.type, num_devices, int(memory), num_cores, has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions; one without emulates them, at a third of the speed of float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    if platform.machine() in ("x86_64", "AMD64"):
        return multiplies_bfloat16()
    flags = Path("/proc/cpuinfo")
    return flags.exists() and " bf16" in flags.read_text(encoding="utf-8", errors="replace")
