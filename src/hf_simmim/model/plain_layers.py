"""Products of layers that nobody has changed: several layers at once, and a patch embedding as a matrix product."""

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import _has_any_global_hook

# What holds the weights of a layer as they are: tensors, also as wrappers of training and export hand them over. Other
# classes, such as those of quantization and of tensor parallelism, compute with their layer only.
PLAIN_TENSORS = (nn.Parameter, torch.Tensor, FakeTensor)


def multiplies_bfloat16() -> bool:
    """Whether an x86 processor has instructions for products in bfloat16.

    Others emulate them, at a third of the speed of float32.
    """
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


# Asked once, so that compiled code does not ask.
MULTIPLIES_BFLOAT16 = multiplies_bfloat16()


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether nothing but the product with its parameters happens when a layer is called.

    Adapters and quantization replace a layer or the class of its weights, offloading its `forward`, and pruning,
    adapters and observers add hooks.

    Args:
        layer: The layer.
        kind: The class whose `forward` is known, such as `nn.Linear`.

    Returns:
        Whether the layer may be replaced by that product.
    """
    if type(layer) is not kind or "forward" in vars(layer):
        return False
    if layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks:
        return False
    # Read from the table of parameters, which takes a fraction of the time of `layer.weight`.
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if type(weight) not in PLAIN_TENSORS or weight.is_meta:
        return False
    return bias is None or (type(bias) in PLAIN_TENSORS and not bias.is_meta)


def project_jointly(tokens: torch.Tensor, projections: tuple[nn.Module, ...]) -> torch.Tensor:
    """Outputs of several linear layers from D to D channels, by one matrix product.

    Args:
        tokens: Tensor of shape (..., D).
        projections: The layers.

    Returns:
        Their outputs, concatenated: (..., D * number of layers).
    """
    if _has_any_global_hook() or not all(is_plain(projection, nn.Linear) for projection in projections):
        return torch.cat([projection(tokens) for projection in projections], dim=-1)
    # The parameters stay separate to keep their names.
    weight = torch.cat([projection.weight for projection in projections])  # type: ignore[misc]
    biases = [projection.bias for projection in projections]
    shift = None
    if any(bias is not None for bias in biases):
        shift = torch.cat([weight.new_zeros(tokens.shape[-1]) if bias is None else bias for bias in biases])  # type: ignore[misc]
    return F.linear(tokens, weight, shift)


def project_patches(pixel_values: torch.Tensor, projection: nn.Conv2d) -> torch.Tensor:
    """Patch embedding: a convolution over patches that do not overlap.

    On processors it is a matrix product of patches: the float32 convolution of torch takes three times as long there.

    Args:
        pixel_values: Images of shape (B, C, H, W), H and W whole numbers of patches.
        projection: The convolution, whose stride is the size of its kernel.

    Returns:
        Tokens of shape (B, h, w, D).
    """
    if pixel_values.device.type != "cpu" or _has_any_global_hook() or not is_plain(projection, nn.Conv2d):
        return projection(pixel_values).permute(0, 2, 3, 1)
    batch_size, channels, height, width = pixel_values.shape
    rows, columns = projection.kernel_size
    patches = pixel_values.reshape(batch_size, channels, height // rows, rows, width // columns, columns)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # B, h, w, C * rows * columns
    return F.linear(patches, projection.weight.flatten(1), projection.bias)
