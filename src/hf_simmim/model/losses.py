"""Distances between prediction and target, and their mean over the masked pixels, in float32."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .masking import patch_grid, to_pixels
from .options import Option, is_positive

LOSS_REGIONS = ("masked", "all")


def l1(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute difference, element by element.

    Use it by default for targets of continuous values, such as pixels: it is the paper's loss.

    Args:
        prediction: float32 tensor of shape (B, K, h, w).
        target: Tensor of the same shape.

    Returns:
        Tensor of the same shape.

    Source: equation 1 of the paper.

    Examples:
        >>> SimMIMConfig(target="rgb", loss="l1")
    """
    return (prediction - target).abs()


def l2(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared difference, element by element.

    Use it if large errors should count more; it is the default of `hog`, as in MaskFeat.

    Args:
        prediction: float32 tensor of shape (B, K, h, w).
        target: Tensor of the same shape.

    Returns:
        Tensor of the same shape.

    Examples:
        >>> SimMIMConfig(target="rgb", loss="l2")
    """
    return (prediction - target).square()


def smooth_l1(prediction: torch.Tensor, target: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """Squared difference over 2 beta below beta, absolute difference minus beta / 2 above it.

    Use it for a loss that is as robust to outliers as `l1` and smooth at 0, such as with teacher features.

    Args:
        prediction: float32 tensor of shape (B, K, h, w).
        target: Tensor of the same shape.
        beta: Absolute difference at which the loss becomes linear.

    Returns:
        Tensor of the same shape.

    Examples:
        >>> SimMIMConfig(loss="smooth_l1", loss_options={"beta": 0.5})
    """
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)


def cross_entropy(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the target classes.

    Use it with targets that are classes: `color_bins`, `color_clusters` and `codebook`, whose default it is.

    Args:
        prediction: Logits of shape (B, G * classes, h, w), those of the first group first.
        target: Classes of shape (B, G, h, w), such as one group for each channel.

    Returns:
        Tensor of shape (B, G, h, w).

    Examples:
        >>> SimMIMConfig(target="color_bins", loss="cross_entropy")
    """
    batch_size, groups, height, width = target.shape
    logits = prediction.reshape(batch_size * groups, -1, height, width)
    return F.cross_entropy(logits, target.reshape(-1, height, width), reduction="none").view(target.shape)


def cosine(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """One minus the cosine similarity of the vectors at each position.

    Use it with the target `features`, whose default it is, if the direction of a feature matters and not its length.

    Args:
        prediction: float32 tensor of shape (B, K, h, w).
        target: Tensor of the same shape.

    Returns:
        Tensor of shape (B, 1, h, w).

    Examples:
        >>> SimMIMConfig(target="features", target_options={"model": "facebook/dinov2-base"}, loss="cosine")
    """
    return 1 - F.cosine_similarity(prediction, target, dim=1)[:, None]


def pixel_weights(
    mask: torch.Tensor | None,
    patch_size: int,
    shape: torch.Size | tuple[int, ...],
    stride: int = 1,
    pixel_mask: torch.Tensor | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Weights of the positions of a prediction: the number of masked pixels of each.

    Positions that contain a missing pixel have weight 0, because their target depends on it.

    Args:
        mask: Bool tensor of shape (B, rows, columns) on the patch grid, True = masked; None to count all pixels.
        patch_size: Side of a patch in pixels.
        shape: (B, C, H, W) of the images.
        stride: Stride of the prediction in pixels.
        pixel_mask: Bool tensor of shape (B, H, W), False at missing pixels and padding.
        device: Device of the weights if there is no mask.

    Returns:
        float32 tensor of shape (B, ceil(H / stride), ceil(W / stride)), or on a coarser grid that divides this one:
        each weight then holds for all positions of its cell.
    """
    batch_size, _, height, width = shape
    if pixel_mask is None:
        if mask is None and not height % stride and not width % stride:
            return torch.full((batch_size, 1, 1), float(stride**2), device=device)
        if mask is not None and not height % patch_size and not width % patch_size and not patch_size % stride:
            return mask.float() * stride**2
    if mask is None:
        counted = torch.ones(batch_size, height, width, dtype=torch.bool, device=device)
    else:
        counted = to_pixels(mask, patch_size, (height, width))
    if pixel_mask is not None:
        counted = counted & pixel_mask
    if stride == 1:
        return counted.float()
    weights = _sum_cells(counted, stride)
    if pixel_mask is not None:
        weights = weights.masked_fill(_sum_cells(~pixel_mask, stride) > 0, 0)
    return weights


def _sum_cells(pixels: torch.Tensor, stride: int) -> torch.Tensor:
    """Number of True pixels in each cell: (B, H, W) to (B, ceil(H / stride), ceil(W / stride))."""
    rows, columns = patch_grid((pixels.shape[1], pixels.shape[2]), stride)
    pixels = F.pad(pixels.float(), (0, columns * stride - pixels.shape[2], 0, rows * stride - pixels.shape[1]))
    return pixels.view(-1, rows, stride, columns, stride).sum(dim=(2, 4))


def masked_mean(
    values: torch.Tensor, weights: torch.Tensor, num_items: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Mean over the masked pixels of a batch.

    Args:
        values: Tensor of shape (B, K, h, w).
        weights: Weights from `pixel_weights`.
        num_items: Number of masked pixels that the sum is divided by, if this batch is a part of a larger one; that of
            `weights` if None.

    Returns:
        Scalar float32 tensor; 0 if nothing is masked.
    """
    total, count = _weighted_sums(values, weights)
    divisor = count.sum() if num_items is None else torch.as_tensor(num_items, device=total.device)
    return total.sum() / divisor.clamp(min=1)


def masked_mean_per_image(values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over the masked pixels of each image.

    Args:
        values: Tensor of shape (B, K, h, w).
        weights: Weights from `pixel_weights`.

    Returns:
        The means, float32 of shape (B,), and the number of pixels that each mean is taken over; where that is 0 the
        mean is invalid.
    """
    total, count = _weighted_sums(values, weights)
    return total / count.clamp(min=1), count


def num_masked_pixels(weights: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Number of pixels that the weights of a prediction of `size` (h, w) add up to, as a float32 scalar."""
    steps_of_each = (size[0] // weights.shape[1]) * (size[1] // weights.shape[2])
    return weights.sum() * steps_of_each


def _weighted_sums(values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of each image, averaged over channels, and the sum of its weights, both (B,)."""
    batch_size, channels, height, width = values.shape
    _, rows, columns = weights.shape
    if height % rows or width % columns:
        raise ValueError(f"Weights on a grid of {rows}x{columns} do not divide a prediction of {height}x{width}.")
    steps_of_each = (height // rows) * (width // columns)
    cells = values.float().reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    total = (cells * weights.view(batch_size, 1, rows, 1, columns, 1)).flatten(1).sum(1) / channels
    return total, weights.flatten(1).sum(1) * steps_of_each


PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str | None = None,
    class_weights: Sequence[float] | None = None,
    num_items_in_batch: torch.Tensor | float | None = None,
    label_std: Sequence[float] | float | None = None,
) -> torch.Tensor:
    """Mean classification or regression loss over the images of a batch.

    Use it to fine-tune a classifier without `SimMIMForImageClassification`, which computes it from `labels`.

    Args:
        logits: Tensor of shape (B, K).
        labels: Classes, integers of shape (B,), -100 for an image without a label; class probabilities, as from mixup
            and label smoothing, floats of shape (B, K); for multi-label problems 0 or 1, of shape (B, K); for
            regression numbers of shape (B, K), or (B,) if K is 1.
        problem_type: One of `PROBLEM_TYPES`. If None, regression if K is 1, else single-label classification.
        class_weights: Factor of the loss of each class. The mean is over images, not over weights, so that parts of a
            batch add up: weights that are 1 on average keep the scale.
        num_items_in_batch: Number of labels of the whole batch that are not -100, if this is a part of it. Elements
            are counted, as by Trainer, so that an image with soft labels has K of them.
        label_std: Divides the errors of a regression: a number, or one for each output (1 if None).

    Returns:
        float32 scalar. The losses of the parts of a batch add up to that of the batch if `num_items_in_batch` is given.

    Raises:
        ValueError: If labels and problem type do not fit each other, or multi-label ones are outside of [0, 1].

    Examples:
        >>> classification_loss(torch.zeros(2, 3), torch.tensor([0, 2]))
    """
    if problem_type is None:
        problem_type = "regression" if logits.shape[1] == 1 else "single_label_classification"
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type={problem_type!r} is unknown. Use one of: {', '.join(PROBLEM_TYPES)}.")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        weights = (
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
        )
        if problem_type == "single_label_classification" and not labels.is_floating_point():
            return _integer_loss(logits, labels, weights, num_items_in_batch)
        if problem_type == "regression" and labels.ndim == 1 and logits.shape[1] == 1:
            labels = labels[:, None]
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit logits of shape"
                f" {tuple(logits.shape)}: {_expected(problem_type)}."
            )
        labels = labels.float()
        if problem_type == "multi_label_classification":
            _check_shares(labels)
        if problem_type == "single_label_classification":
            losses: Any = -labels * F.log_softmax(logits, dim=1)
        elif problem_type == "multi_label_classification":
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        else:
            errors = logits - labels
            losses = (errors if label_std is None else errors / torch.tensor(label_std, device=errors.device)).square()
        if weights is not None:
            losses = losses * weights
        count = losses.numel() if num_items_in_batch is None else num_items_in_batch
        # One loss for each image with soft labels, one for each element otherwise.
        return losses.sum() / count * (logits.shape[1] if problem_type == "single_label_classification" else 1)


def _check_shares(labels: torch.Tensor) -> None:
    """Refuse labels (B, K) outside of [0, 1], such as -1 for not known: their loss may be negative without an end."""
    # A value cannot be looked at while a program is traced.
    if torch.compiler.is_compiling() or labels.is_meta:
        return
    # Mixed labels may be rounded.
    others = labels[~((labels > -1e-3) & (labels < 1 + 1e-3))]
    if len(others):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} have the value {others[0].item():g}, and each must be from 0 to 1."
            " -100 for a missing label is for classes of shape (B,); leave out images whose labels are not all known."
        )


def _integer_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | float | None,
) -> torch.Tensor:
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit logits of shape"
            f" {tuple(logits.shape)}: {_expected('single_label_classification')}."
        )
    total = F.cross_entropy(logits, labels.long(), weight=weights, reduction="sum")
    count: Any = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    # A batch without any label has a loss of 0, not NaN.
    return total / max(count, 1) if not isinstance(count, torch.Tensor) else total / count.clamp(min=1)


def _expected(problem_type: str) -> str:
    return {
        "single_label_classification": "single-label classification needs integers (B,), or probabilities (B, K)",
        "multi_label_classification": "multi-label classification needs 0 or 1 for each class (B, K)",
        "regression": "regression needs a number for each output (B, K)",
    }[problem_type]


class LossSpec(NamedTuple):
    """A loss: its function of prediction and target, without reduction, and its options."""

    distance: Callable[..., torch.Tensor]
    options: dict[str, Option]


# ADD A LOSS here: its function of prediction and target, and its options. Then name it in the targets that it fits.
LOSSES: dict[str, LossSpec] = {
    "l1": LossSpec(l1, {}),
    "l2": LossSpec(l2, {}),
    "smooth_l1": LossSpec(smooth_l1, {"beta": Option(1.0, is_positive, "a finite number above 0")}),
    "cross_entropy": LossSpec(cross_entropy, {}),
    "cosine": LossSpec(cosine, {}),
}
