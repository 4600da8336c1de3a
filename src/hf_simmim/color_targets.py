"""Targets that are classes of colours: bins of each channel, or clusters of all."""

from typing import Any

import torch

from .target import Target, down_sample, to_colors, to_pixel_values, up_sample

# Of all channels together. More are a head of too many outputs for any use.
MAX_JOINT_CLASSES = 8192

# Of numbers that are held at once beside the prediction: 64 MiB of float32.
CHUNK = 2**24


class ColorClasses(Target):
    """Base of targets that are classes of colours in [0, 1], which takes the normalisation of the pixels back."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.statistics = config.pixel_statistics()

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classify(to_colors(down_sample(pixel_values, self.stride), self.statistics).clamp_(0, 1))

    @torch.no_grad()
    def decode(self, prediction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        colors = expected_colors(prediction, self.class_colors(prediction.device))
        return up_sample(to_pixel_values(colors, self.statistics), self.stride, pixel_values.shape[2:])

    def classify(self, colors: torch.Tensor) -> torch.Tensor:
        """Classes (B, G, h, w) of colours (B, C, h, w) in [0, 1]."""
        raise NotImplementedError

    def class_colors(self, device: torch.device) -> torch.Tensor:
        """What each class of a group stands for: (classes, C / G) in [0, 1]."""
        raise NotImplementedError


class ColorBins(ColorClasses):
    """Each channel in equal bins, or all channels together in one class.

    Raises:
        ValueError: If there are too many classes of all channels together.

    Source: sections 3.4 and 4.1.4 of the paper, "channel-wise bin color discretization".
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.num_bins = self.options["num_bins"]
        channels = config.num_channels
        self.num_outputs = channels * self.num_bins
        if self.options["joint"]:
            self.num_outputs = self.num_bins**channels
            if self.num_outputs > MAX_JOINT_CLASSES:
                most = max(bins for bins in range(1, self.num_bins) if bins**channels <= MAX_JOINT_CLASSES)
                remedy = f"num_bins={most} or less, or joint=False" if most > 1 else "joint=False"
                raise ValueError(
                    f"target='color_bins' with joint=True makes {self.num_bins}**{channels} = {self.num_outputs}"
                    f" classes of {channels} channels, and {MAX_JOINT_CLASSES} are the most. Use {remedy}."
                )

    def classify(self, colors: torch.Tensor) -> torch.Tensor:
        # A number that is the edge of two bins belongs to the upper one, however it was rounded on its way.
        classes = colors.mul_(self.num_bins).add_(1e-4).long().clamp_(max=self.num_bins - 1)
        if not self.options["joint"]:
            return classes
        joint = classes[:, :1]
        for channel in range(1, classes.shape[1]):
            joint = joint * self.num_bins + classes[:, channel : channel + 1]
        return joint

    def class_colors(self, device: torch.device) -> torch.Tensor:
        centers = (torch.arange(self.num_bins, device=device) + 0.5) / self.num_bins
        if not self.options["joint"]:
            return centers[:, None]
        channels = self.config.num_channels
        return torch.cartesian_prod(*[centers] * channels).view(-1, channels)


class ColorClusters(ColorClasses):
    """The nearest of the colours that were found in the images.

    Raises:
        ValueError: If these have other channels than the model.

    Source: sections 3.4 and 4.1.4 of the paper, "color clustering", after iGPT (Chen et al., Generative
    Pretraining from Pixels).
    """

    def __init__(self, config: Any):
        super().__init__(config)
        # Where the model's parameters are made without memory, this still is a constant.
        self.centers = torch.tensor(self.options["centers"], dtype=torch.float32, device="cpu")
        self.num_outputs, channels = self.centers.shape
        if channels != config.num_channels:
            raise ValueError(
                f"target='color_clusters' has centers of {channels} channels and the model takes {config.num_channels}."
                " Fit them to images of these channels with hf_simmim.clusters.fit_color_clusters."
            )

    def classify(self, colors: torch.Tensor) -> torch.Tensor:
        centers = self.class_colors(colors.device)
        pixels = colors.movedim(1, -1).flatten(0, 2)
        # Products of matrices would be faster and round too much, above all on GPUs.
        nearest = [
            torch.cdist(part, centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
            for part in pixels.split(max(1, CHUNK // self.num_outputs))
        ]
        return torch.cat(nearest).view(colors.shape[0], 1, *colors.shape[2:])

    def class_colors(self, device: torch.device) -> torch.Tensor:
        return self.centers.to(device)


def expected_colors(prediction: torch.Tensor, class_colors: torch.Tensor) -> torch.Tensor:
    """Mean of the colours of all classes, weighted by their probabilities.

    Args:
        prediction: Logits of shape (B, G * classes, h, w), those of the first group first.
        class_colors: Colours of shape (classes, channels).

    Returns:
        float32 tensor of shape (B, G * channels, h, w).
    """
    height, width = prediction.shape[2:]
    parts = []
    with torch.autocast(prediction.device.type, enabled=False):
        for part in prediction.split(max(1, CHUNK // prediction[0].numel())):
            logits = part.reshape(-1, len(class_colors), height * width).float()
            parts.append((class_colors.T @ logits.softmax(dim=1)).view(len(part), -1, height, width))
    return torch.cat(parts)
