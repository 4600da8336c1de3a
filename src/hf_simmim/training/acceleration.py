"""How steps of a training use their machine: memory that is kept, kernels, compiled and recomputed blocks."""

import contextlib
import ctypes
import functools
import gc
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch._dynamo
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..model.plain_layers import MULTIPLIES_BFLOAT16

# Arguments of the model in a step of a training, which needs its loss and nothing else.
OF_A_STEP = {"return_reconstruction": False, "skip_visible": True}
# Set in layers and models of transformers that compute activations again.
FLAG = "gradient_checkpointing"
# Options of glibc's mallopt.
TRIM_THRESHOLD = -1
MMAP_MAX = -4
# The largest value that mallopt takes, in bytes.
NEVER = 2**31 - 1
# Operators whose outputs are kept when activations are computed again: products with weights, and attention that never
# writes its weights. What another version of torch does not have cannot be called there.
PRODUCTS = ("mm", "addmm", "linear", "convolution")
FUSED_ATTENTION = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
KEPT = [*PRODUCTS, *(f"_scaled_dot_product_{name}" for name in FUSED_ATTENTION)]
# torch's own; and oneDNN's operator for it, which not every build of torch has.
PLAIN_LINEAR = F.linear
ONEDNN_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# Multiplications from which oneDNN's operator was no slower, whatever the shape.
LEAST_PRODUCT = 2**24
# Tokens of a sequence up to which the weights of attention are kept: 24 MiB of an image and a layer of ViT-B.
LONGEST_IN_PRODUCTS = 1024
# Any value turns `faster_kernels` off.
PLAIN_KERNELS = "HF_SIMMIM_PLAIN_KERNELS"


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


def end_workers(loaders: Iterable[Any]) -> None:
    """End the workers that loaders keep for their next epoch.

    They would end when Python's garbage collector finds their loader, but if it finds their queues at the same time,
    nobody tells them, and it waits for 5 s for each worker, within whatever is being measured by then.

    Args:
        loaders: Loaders of torch or accelerate.
    """
    for loader in list(loaders):
        inner = getattr(loader, "base_dataloader", loader)
        iterator = getattr(inner, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            inner._iterator = None


class CastsOfAStep(TrainerCallback):
    """Lets autocast cast the weights once a step, rather than once for each of its accumulated batches.

    Autocast forgets what it has cast at the end of the outermost context. From the first batch of a step to the change
    of the weights, its contexts are counted as inside another one, in which autocast itself is off.
    """

    def __init__(self) -> None:
        self._is_kept = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to keep casts."""
        self.close()
        # With reentrant checkpointing casts are made without gradients, and must be made again with them.
        parts = kwargs["model"].modules()
        if args.gradient_accumulation_steps > 1 and not any(getattr(part, FLAG, False) for part in parts):
            torch.autocast_increment_nesting()
            self._is_kept = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget casts: the weights change."""
        self.close()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget casts."""
        self.close()

    def close(self) -> None:
        """Forget the casts that are kept, if any are, as autocast does at its end."""
        if self._is_kept and torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        self._is_kept = False


def attend_beside_bfloat16(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' fused attention, by faster kernels where autocast made its inputs bfloat16 on a processor.

    The gradient of the fused kernel is slow in bfloat16 there. Plain products are fastest where the processor has them
    in bfloat16; the weights of attention are kept for the gradients then, so sequences may not be too long. Otherwise
    the fused kernel computes in float32 (`benchmarks/precision.py`).

    Args:
        module: The layer.
        query: Tensor of shape (B, heads, N, d).
        key: Tensor of the same shape.
        value: Tensor of the same shape.
        attention_mask: Added to the logits, or True where they count.
        **options: Other arguments of transformers' function.

    Returns:
        Tensor of shape (B, N, heads, d) and the dtype of `query`, and None in place of weights.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not query.requires_grad:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    others = [value for name, value in options.items() if name not in ("dropout", "scaling", "is_causal")]
    is_plain = attention_mask is None and not is_causal and all(value is None or value is False for value in others)
    if (
        is_plain
        and MULTIPLIES_BFLOAT16
        and query.shape[:2] == key.shape[:2]
        and max(query.shape[2], key.shape[2]) <= LONGEST_IN_PRODUCTS
    ):
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        with torch.autocast("cpu", enabled=False):
            weights = ((query * scale) @ key.transpose(2, 3)).softmax(dim=-1)
            weights = F.dropout(weights, options.get("dropout") or 0.0)
            return (weights @ value).transpose(1, 2).contiguous(), None
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    if options.get("position_bias") is not None:
        options["position_bias"] = options["position_bias"].float()
    with torch.autocast("cpu", enabled=False):
        wide = query.float(), key.float(), value.float()
        return sdpa_attention_forward(module, *wide, attention_mask, **options)[0].to(query.dtype), None


@functools.cache
def onednn_multiplies_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL, with which torch does on x86.

    It does on an AMD EPYC with AVX-512 (`ours plain-products` of `benchmarks/step.py` is without). On other processors
    it was not measured.
    """
    if ONEDNN_LINEAR is None or not torch.backends.mkl.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        maker = platform.processor()
    return "AuthenticAMD" in maker


class OneDNNLinear(torch.autograd.Function):
    """A linear layer whose output and whose gradient of the input are products by oneDNN."""

    @staticmethod
    def forward(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return ONEDNN_LINEAR(tokens, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx, inputs, output):
        tokens, weight, _ = inputs
        ctx.save_for_backward(tokens if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        tokens, weight = ctx.saved_tensors
        grad_tokens = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_tokens = ONEDNN_LINEAR(grad_output, weight.t(), None, "none", [], "")
        rows = grad_output.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            # Neither order of these two is faster by oneDNN for all shapes.
            grad_weight = rows.t() @ tokens.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_tokens, grad_weight, grad_bias


def linear_by_onednn(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, by oneDNN where its operator can replace it and is no slower.

    Args:
        tokens: Tensor of shape (..., C).
        weight: Tensor of shape (D, C).
        bias: Tensor of shape (D,).

    Returns:
        Tensor of shape (..., D), within rounding of that of torch.
    """
    # Compiled code, wrappers such as sharded weights, and all that is no plain product in float32 stay with torch.
    if (
        torch.compiler.is_compiling()
        or type(tokens) is not torch.Tensor
        or any(type(value) not in (torch.Tensor, nn.Parameter) for value in (weight, bias) if value is not None)
        or not (tokens.dtype == weight.dtype == torch.float32 and tokens.device.type == weight.device.type == "cpu")
        or tokens.dim() < 2
        or weight.dim() != 2
        or tokens.shape[-1] != weight.shape[1]
        or tokens.numel() * weight.shape[0] < LEAST_PRODUCT
        or torch.is_autocast_enabled("cpu")
        or torch.get_float32_matmul_precision() != "highest"
    ):
        return PLAIN_LINEAR(tokens, weight, bias)
    return OneDNNLinear.apply(tokens, weight, bias)


@contextlib.contextmanager
def faster_kernels() -> Iterator[None]:
    """Let models use the faster ones of torch's kernels on processors, as long as this lasts.

    Encoders of transformers that use its fused attention use `attend_beside_bfloat16`, and linear layers
    `linear_by_onednn` where that is faster. The environment variable HF_SIMMIM_PLAIN_KERNELS=1 leaves both as they are.
    """
    changes_attention = ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    changes_products = F.linear is PLAIN_LINEAR and onednn_multiplies_faster()
    if os.environ.get(PLAIN_KERNELS):
        changes_attention = changes_products = False
    if changes_attention:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attend_beside_bfloat16
    if changes_products:
        F.linear = linear_by_onednn  # type: ignore[assignment]
    try:
        yield
    finally:
        if changes_attention:
            del ALL_ATTENTION_FUNCTIONS["sdpa"]
        if changes_products:
            F.linear = PLAIN_LINEAR


def repeated_blocks(model: nn.Module) -> list[Any]:
    """The blocks of an encoder: those that activation checkpointing knows; none of some encoders.

    Args:
        model: The model.

    Returns:
        The blocks, in order.
    """
    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


def change_blocks(model: nn.Module, arguments: Any) -> None:
    """Compile the blocks of a model, or let them compute activations again, as training arguments say.

    Args:
        model: The model.
        arguments: Training arguments; those of transformers alone say neither.

    Raises:
        ValueError: If the model has no such blocks.
    """
    if getattr(arguments, "recompute_activations", False):
        recompute_activations(model)
    if getattr(arguments, "compile_blocks", False):
        compile_blocks(model)


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
    blocks = repeated_blocks(model)
    if not blocks:
        raise ValueError("This encoder has no blocks that repeat. Compile it as a whole, by --torch_compile.")
    # All blocks share one function, which torch would stop to compile after its eighth variant: rates of stochastic
    # depth, stages and shifts make more.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * len(blocks))
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


class RefuseChanges(TorchDispatchMode):
    """Refuses operators that change a kept output in place: they would change it again when the rest is computed again.

    Selective checkpointing itself overlooks such changes where the output has been given another shape in between.

    Args:
        kept: The operators whose outputs are kept.
    """

    def __init__(self, kept: list[Any]):
        super().__init__()
        self.kept = kept
        self.storages: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.is_mutable:
            changed = (value for value in args if isinstance(value, torch.Tensor))
            if any(value.untyped_storage()._cdata in self.storages for value in changed):
                raise ValueError(
                    f"The encoder changes the output of a product in place ({function}), so it cannot be kept. Leave"
                    " --recompute_activations out, or use --gradient_checkpointing."
                )
        result = function(*args, **(kwargs or {}))
        if function in self.kept:
            first = result[0] if isinstance(result, (tuple, list)) else result
            self.storages.add(first.untyped_storage()._cdata)
        return result


def _keeping(kept: list[Any]) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """Contexts of a block's forward, and of computing it again."""
    forward, again = create_selective_checkpoint_contexts(kept)

    @contextlib.contextmanager
    def checked() -> Iterator[None]:
        with forward, RefuseChanges(kept):
            yield

    return checked(), again


def recompute_activations(model: nn.Module) -> int:
    """Let the blocks of an encoder compute again for the gradients whatever takes no product with weights.

    Norms, activation functions, window attention, and copies are most of what a step keeps and little of its time. What
    is kept is the input of each block and the outputs of its products. With gradient checkpointing, everything but the
    inputs is computed again.

    Args:
        model: The model, whose blocks are those that activation checkpointing knows.

    Returns:
        Number of blocks.

    Raises:
        ValueError: If the model has no such blocks; in a step, if the output of a product is changed in place.

    Source: "Current and New Activation Checkpointing Techniques in PyTorch", PyTorch blog, 2025.
    """
    blocks = repeated_blocks(model)
    if not blocks:
        raise ValueError("This encoder has no blocks that repeat. Leave --recompute_activations out.")
    kept = [getattr(torch.ops.aten, name).default for name in KEPT if hasattr(torch.ops.aten, name)]
    kept += [] if ONEDNN_LINEAR is None else [ONEDNN_LINEAR.default]
    run: Any = functools.partial(checkpoint, use_reentrant=False, context_fn=functools.partial(_keeping, kept))
    for block in blocks:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, run
    return len(blocks)
