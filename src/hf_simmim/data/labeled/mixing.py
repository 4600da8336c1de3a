"""Mixup and CutMix: batches of mixed images with soft labels."""

import hashlib
import math
from typing import Any

import torch

from ..sampling import sample_generator

Region = tuple[int, int, int, int]


def mixup(
    pixel_values: torch.Tensor, targets: torch.Tensor, lam: float, permutation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend every image of a batch, and its target, with another one.

    Args:
        pixel_values: Images of shape (B, C, H, W), normalized.
        targets: Soft targets of shape (B, K).
        lam: Weight of the image itself, in [0, 1].
        permutation: Index of the image that is blended into each, of shape (B,).

    Returns:
        Images and targets, of the same shapes.

    Source: Zhang et al., mixup (arXiv 1710.09412).
    """
    mixed = pixel_values * lam + pixel_values[permutation] * (1 - lam)
    return mixed, targets * lam + targets[permutation] * (1 - lam)


def cutmix(
    pixel_values: torch.Tensor, targets: torch.Tensor, region: Region, permutation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a rectangle of another image into every image of a batch, and blend the targets by its area.

    Args:
        pixel_values: Images of shape (B, C, H, W), normalized.
        targets: Soft targets of shape (B, K).
        region: (top, left, bottom, right) in pixels.
        permutation: Index of the image that is pasted into each, of shape (B,).

    Returns:
        Images and targets, of the same shapes.

    Source: Yun et al., CutMix (arXiv 1905.04899).
    """
    top, left, bottom, right = region
    mixed = pixel_values.clone()
    mixed[..., top:bottom, left:right] = pixel_values[permutation][..., top:bottom, left:right]
    lam = 1 - (bottom - top) * (right - left) / math.prod(pixel_values.shape[-2:])
    return mixed, targets * lam + targets[permutation] * (1 - lam)


def random_region(size: tuple[int, int], lam: float, generator: torch.Generator) -> Region:
    """Draw a rectangle with the image's aspect ratio, centered at a random pixel and clipped at the border.

    Args:
        size: (height, width) of the image.
        lam: Fraction of the image outside the rectangle, before clipping.
        generator: Random generator.

    Returns:
        (top, left, bottom, right) in pixels.
    """
    bounds = []
    for side in size:
        length = int(side * math.sqrt(1 - lam))
        start = int(torch.randint(side, (), generator=generator)) - length // 2
        bounds.append((max(start, 0), min(start + length, side)))
    (top, bottom), (left, right) = bounds
    return top, left, bottom, right


def random_beta(alpha: float, generator: torch.Generator) -> float:
    """Draw a number from the distribution Beta(alpha, alpha).

    Args:
        alpha: Concentration above 0: 1 is uniform, and smaller values favor numbers near 0 and 1.
        generator: Random generator.

    Returns:
        A number in [0, 1].
    """
    concentration = torch.tensor([alpha, alpha], dtype=torch.float64)
    one, other = torch._standard_gamma(concentration, generator=generator).tolist()
    # If alpha is tiny, both underflow to the smallest number, and the distribution is that of a coin flip.
    return one / (one + other) if one != other else float(torch.randint(2, (), generator=generator))


def soft_targets(labels: torch.Tensor, num_classes: int, label_smoothing: float = 0.0) -> torch.Tensor:
    """Convert class indices to one-hot targets with label smoothing.

    Args:
        labels: Class indices of shape (B,).
        num_classes: Number of classes K.
        label_smoothing: Probability that is spread evenly over all classes.

    Returns:
        float32 targets of shape (B, K).
    """
    targets = torch.full((len(labels), num_classes), label_smoothing / num_classes, device=labels.device)
    return targets.scatter_add_(1, labels[:, None], torch.full_like(targets[:, :1], 1 - label_smoothing))


class MixingCollator:
    """Collates samples of `LabeledImageDataset` for Trainer; training batches are mixed, with soft labels.

    For each batch, mixup or CutMix and one ratio are drawn, and the batch is mixed with itself in reverse order. The
    draw depends only on the seed and on the epoch and indices of the batch's images, so workers and resuming change
    nothing. Evaluation samples are only stacked. Labels of several classes are mixed but not smoothed.

    Args:
        num_classes: Number of classes K.
        mixup_alpha: Parameter of mixup's distribution Beta(alpha, alpha) of ratios; 0 disables mixup.
        cutmix_alpha: The same of CutMix; 0 disables CutMix.
        probability: Probability that a batch is mixed.
        switch_probability: Probability of CutMix if both are enabled.
        label_smoothing: Probability that is spread evenly over all classes. With 0, and without mixup and CutMix,
            labels stay class indices.
        seed: Seed of the draws.

    Raises:
        ValueError: If a setting is out of range.

    Source: `Mixup` in timm/data/mixup.py (mode `batch`), as `build_loader_finetune` of microsoft/SimMIM calls it.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        probability: float = 1.0,
        switch_probability: float = 0.5,
        label_smoothing: float = 0.1,
        seed: int = 0,
    ):
        for name, value in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative; 0 disables it.")
        shares = {"probability": probability, "switch_probability": switch_probability}
        for name, value in (shares | {"label_smoothing": label_smoothing}).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be in [0, 1].")
        self.num_classes = num_classes
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.probability = probability
        self.switch_probability = switch_probability
        self.label_smoothing = label_smoothing
        self.seed = seed

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate a batch.

        Args:
            samples: Samples of `LabeledImageDataset`, at least one.

        Returns:
            `pixel_values` (B, C, H, W) and `labels`: float32 (B, K) if training labels are mixed or smoothed, else
            unchanged: int64 (B,), or float32 (B, K) or (B,).

        Raises:
            ValueError: If the samples have no `key`, or float labels are to be mixed.
        """
        if "key" not in samples[0]:
            raise ValueError(
                "The samples have no `key`, which seeds their mixing. Set remove_unused_columns=False in"
                " TrainingArguments, and use LabeledImageDataset."
            )
        pixel_values = torch.stack([sample["pixel_values"] for sample in samples])
        labels = torch.as_tensor([sample["labels"] for sample in samples])
        labels = labels.float() if labels.is_floating_point() else labels
        is_mixed = bool(self.mixup_alpha or self.cutmix_alpha) and self.probability > 0
        if not samples[0]["key"] or not (is_mixed or self.label_smoothing):
            return {"pixel_values": pixel_values, "labels": labels}
        if labels.ndim == 1:
            if labels.is_floating_point():
                raise ValueError(
                    "Float labels cannot be mixed or smoothed. Set mixup_alpha, cutmix_alpha and label_smoothing to 0."
                )
            labels = soft_targets(labels, self.num_classes, self.label_smoothing)
        if is_mixed:
            keys = ",".join(sample["key"] for sample in samples)
            digest = hashlib.blake2b(keys.encode(), digest_size=8).digest()
            generator = sample_generator(self.seed, int.from_bytes(digest, "little", signed=True))
            pixel_values, labels = self._mix(pixel_values, labels, generator)
        return {"pixel_values": pixel_values, "labels": labels}

    def _mix(
        self, pixel_values: torch.Tensor, targets: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mixed, switched = torch.rand(2, generator=generator).tolist()
        if mixed >= self.probability:
            return pixel_values, targets
        permutation = torch.arange(len(targets)).flip(0)
        has_both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        if switched < self.switch_probability if has_both else self.cutmix_alpha > 0:
            lam = random_beta(self.cutmix_alpha, generator)
            height, width = pixel_values.shape[-2:]
            region = random_region((height, width), lam, generator)
            return cutmix(pixel_values, targets, region, permutation)
        return mixup(pixel_values, targets, random_beta(self.mixup_alpha, generator), permutation)
