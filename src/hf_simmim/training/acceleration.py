"""How the steps of a training use their machine: freed memory that is kept, compiled blocks, recomputed activations."""

import ctypes
import gc
import os
import sys

import torch._dynamo
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..model.swin import SwinBlock

# Options of glibc's mallopt.
TRIM_THRESHOLD = -1
MMAP_MAX = -4
# The largest value that mallopt takes, in bytes.
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory, rather than to return it to the system at once.

    Each step of a training allocates the same tensors. By default glibc gives large ones back when they are freed, and
    the system fills every page with zeros when it is used again, which took 6 to 14 % of a step of Swin
    (`benchmarks/step.py`). The peak of memory stays the same; what is freed after it stays with the process.

    Does nothing where the user has chosen (`MALLOC_...` in the environment, or another allocator by `LD_PRELOAD`), and
    on systems without glibc.

    Returns:
        Whether the setting was made.

    Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_MAX.
    """
    chosen = os.environ.get("LD_PRELOAD") or any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, NEVER))


def prepare_to_fork(device: str) -> None:
    """Keep what processes that are forked now will share with this one: its memory, until one of them writes there.

    Memory that `keep_freed_memory` kept would be written in the next step of a training on processors, so that the
    other process kept a copy of nothing; it is given back to the system. Objects of Python are written by its garbage
    collector, which leaves those of now alone, until `gc.unfreeze`.

    Args:
        device: Type of the device of the training.

    Source: malloc_trim(3), and the documentation of `gc.freeze`.
    """
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None and device == "cpu":
        trim(0)


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Compile each block of an encoder in place, rather than the whole; blocks of one shape share what was compiled.

    Names of parameters stay as they are. What lies between the blocks, such as windows that shift, runs as before.

    Args:
        model: The model, whose blocks are those that activation checkpointing knows.
        backend: Backend of `torch.compile`.

    Returns:
        Number of blocks.

    Raises:
        ValueError: If the model has no such blocks.

    Source: "Reducing torch.compile cold start compilation time with regional compilation", a recipe of PyTorch.
    """
    blocks: list[nn.Module] = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError("This encoder has no blocks that repeat. Compile it as a whole, by --torch_compile.")
    # All blocks share one function, which torch would stop to compile after its eighth variant: rates of stochastic
    # depth, stages and shifts make more.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * len(blocks))
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


def recompute_activations(model: nn.Module) -> int:
    """Let the blocks of Swin and SwinV2 compute the activations of their MLPs again for the gradients.

    These are the largest tensors that a step keeps, and the cheapest to compute again: that takes no product. With
    gradient checkpointing, everything is computed again.

    Args:
        model: The model.

    Returns:
        Number of blocks.

    Raises:
        ValueError: If the model has no such blocks.
    """
    blocks = [module for module in model.modules() if isinstance(module, SwinBlock)]
    if not blocks:
        raise ValueError("recompute_activations is for Swin and SwinV2. Use --gradient_checkpointing.")
    for block in blocks:
        block.recompute_activations = True
    return len(blocks)
