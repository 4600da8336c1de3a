"""The base of all targets, and the targets that are computed from pixels: RGB, color classes and HOG."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .masking import patch_grid
from .options import Option, is_count, is_finite, is_length, optional

REGRESSION_LOSSES = ("l1", "l2", "smooth_l1")
STATISTICS_WINDOW = 47  # of SwinV2's pre-training


class Target:
    """Base of all targets.

    Args:
        config: The SimMIM config.
        model_class: `SimMIMModel`, which loads checkpoints of SimMIM for targets that need a trained network.
    """

    num_outputs: int  # channels K of the prediction
    stride: int  # of the prediction, in pixels
    is_pixels = False  # whether the prediction is the image itself
    is_decodable = True  # whether predictions can be decoded to pixels
    decode_uses = ""  # what `decode` reads from the original image
    histogram_bins = 0  # length of a histogram, if predictions are histograms of gradients

    def __init__(self, config: Any, model_class: Any = None):
        self.config = config
        self.model_class = model_class
        self.options = config.options("target")
        self.stride = config.prediction_stride or 1
        self.num_outputs = config.num_channels

    def load(self) -> None:
        """Load the network that computes the target, if there is one, before it is needed."""

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the target of a batch.

        Args:
            pixel_values: Unmasked, normalized images of shape (B, C, H, W).

        Returns:
            float32 tensor (B, K, h, w), or classes as integers (B, G, h, w); h = ceil(H / stride), w likewise.
        """
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self.make(pixel_values.float())

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the target of float32 images, without autocast."""
        raise NotImplementedError

    def decode(self, prediction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Decode a prediction (B, K, h, w) to images (B, C, H, W) in the space of `pixel_values`.

        Args:
            prediction: The head's output.
            pixel_values: The original images, for targets that are relative to them, and for their size.

        Returns:
            The images, or None if colors cannot be recovered from the target.
        """
        return None


def to_colors(pixel_values: torch.Tensor, statistics: tuple[list[float], list[float]]) -> torch.Tensor:
    """Undo the normalization of (B, C, H, W) with the mean and standard deviation of each channel."""
    mean, std = (pixel_values.new_tensor(values).view(-1, 1, 1) for values in statistics)
    return torch.addcmul(mean, pixel_values, std)


def to_pixel_values(colors: torch.Tensor, statistics: tuple[list[float], list[float]]) -> torch.Tensor:
    """Normalize (B, C, H, W) with the mean and standard deviation of each channel."""
    mean, std = (colors.new_tensor(values).view(-1, 1, 1) for values in statistics)
    return (colors - mean) / std


def down_sample(pixel_values: torch.Tensor, stride: int) -> torch.Tensor:
    """Mean of each cell, also of cut ones: (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
    return pixel_values if stride == 1 else F.avg_pool2d(pixel_values, stride, ceil_mode=True)


def up_sample(values: torch.Tensor, stride: int, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Repeat each cell: (B, C, h, w) to (B, C, H, W) of a size, for the cells of `down_sample`."""
    if stride == 1:
        return values
    return values.repeat_interleave(stride, dim=2).repeat_interleave(stride, dim=3)[:, :, : size[0], : size[1]]


VARIANCE_EPS = 1e-6


class RGB(Target):
    """Pixel values, averaged over the cells of a coarser prediction.

    Use it by default: it is the paper's target, and its reconstructions need nothing from the original image.

    Args:
        config: The SimMIM config.
        model_class: As in `Target`.

    Source: section 3.4 of the paper, "raw pixel value regression".

    Examples:
        >>> SimMIMConfig(target="rgb")
    """

    def __init__(self, config: Any, model_class: Any = None):
        super().__init__(config, model_class)
        self.is_pixels = self.stride == 1

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return down_sample(pixel_values, self.stride)

    def decode(self, prediction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        return up_sample(prediction, self.stride, pixel_values.shape[2:])


class NormalizedRGB(Target):
    """Pixels normalized by their local mean and standard deviation, in a sliding window or in each patch.

    Use it if texture should count more than brightness and contrast, as in SwinV2 and MAE.

    Args:
        config: The SimMIM config.
        model_class: As in `Target`.

    Source: `norm_targets` in models/simmim.py of microsoft/Swin-Transformer for the window; equation 1 and table 1d of
    MAE (arXiv 2111.06377), where mean and deviation are those of all channels of a patch.

    Examples:
        >>> SimMIMConfig(target="normalized_rgb", target_options={"patch_size": 16})
    """

    decode_uses = "local mean and contrast"

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(pixel_values)
        return down_sample((pixel_values - mean) / std, self.stride)

    @torch.no_grad()
    def decode(self, prediction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(pixel_values.float())
        return up_sample(prediction.float(), self.stride, pixel_values.shape[2:]) * std + mean

    def _statistics(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation around each pixel, of shape (B, C or 1, H, W)."""
        if self.options["patch_size"] is not None:
            return _patch_statistics(pixel_values, self.options["patch_size"])
        return _window_statistics(pixel_values, self.options["window_size"] or STATISTICS_WINDOW)


def _window_statistics(pixel_values: torch.Tensor, window_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of each channel in the window around each pixel, of the pixels that are inside the image."""

    def local_mean(values: torch.Tensor) -> torch.Tensor:
        # Row by row, then column by column: the same sums with 2 k instead of k^2 terms.
        half = window_size // 2
        values = F.avg_pool2d(values, (window_size, 1), stride=1, padding=(half, 0), count_include_pad=False)
        return F.avg_pool2d(values, (1, window_size), stride=1, padding=(0, half), count_include_pad=False)

    height, width = pixel_values.shape[2:]
    rows, columns = (_window_lengths(length, window_size, pixel_values.device) for length in (height, width))
    count = rows[:, None] * columns
    mean = local_mean(pixel_values)
    variance = (local_mean(pixel_values.square()) - mean.square()) * (count / (count - 1).clamp(min=1))
    return mean, (variance.clamp(min=0) + VARIANCE_EPS).sqrt()


def _window_lengths(length: int, window_size: int, device: torch.device) -> torch.Tensor:
    """Number of pixels in the window around each pixel of a line of `length`."""
    positions = torch.arange(length, device=device)
    half = window_size // 2
    return ((positions + half).clamp(max=length - 1) - (positions - half).clamp(min=0) + 1).float()


def _patch_statistics(pixel_values: torch.Tensor, patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of all channels of each patch, of the pixels that are inside the image."""
    height, width = pixel_values.shape[2:]
    gray = pixel_values.mean(dim=1, keepdim=True)
    rows, columns = patch_grid((height, width), patch_size)
    heights, widths = (
        torch.tensor([min(patch_size, length - start) for start in range(0, length, patch_size)])
        for length in (height, width)
    )
    count = (heights[:, None] * widths).to(pixel_values.device) * pixel_values.shape[1]  # rows, columns
    mean = up_sample(down_sample(gray, patch_size), patch_size, (height, width))
    squares = (pixel_values - mean).square().mean(dim=1, keepdim=True)
    variance = down_sample(squares, patch_size) * (count / (count - 1).clamp(min=1)).view(1, 1, rows, columns)
    return mean, up_sample((variance + VARIANCE_EPS).sqrt(), patch_size, (height, width))


# Limit of joint classes of all channels: more would need a head that is too large.
MAX_JOINT_CLASSES = 8192

# Limit of temporary numbers: 64 MiB of float32.
CHUNK = 2**24


class ColorClasses(Target):
    """Base of targets that are classes of colors in [0, 1]; it undoes the normalization of the pixels."""

    def __init__(self, config: Any, model_class: Any = None):
        super().__init__(config, model_class)
        self.statistics = config.pixel_statistics()

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classify(to_colors(down_sample(pixel_values, self.stride), self.statistics).clamp_(0, 1))

    @torch.no_grad()
    def decode(self, prediction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        colors = expected_colors(prediction, self.class_colors(prediction.device))
        return up_sample(to_pixel_values(colors, self.statistics), self.stride, pixel_values.shape[2:])

    def classify(self, colors: torch.Tensor) -> torch.Tensor:
        """Classes (B, G, h, w) of colors (B, C, h, w) in [0, 1]."""
        raise NotImplementedError

    def class_colors(self, device: torch.device) -> torch.Tensor:
        """Color of each class of a group: (classes, C / G) in [0, 1]."""
        raise NotImplementedError


class ColorBins(ColorClasses):
    """Bin of each channel, or joint class of the bins of all channels, with bins of equal width.

    Use it to predict colors as a distribution over classes, without fitting anything to the images.

    Args:
        config: The SimMIM config.
        model_class: As in `Target`.

    Raises:
        ValueError: If there are too many joint classes.

    Source: sections 3.4 and 4.1.4 of the paper, "channel-wise bin color discretization".

    Examples:
        >>> SimMIMConfig(target="color_bins", target_options={"num_bins": 8})
    """

    def __init__(self, config: Any, model_class: Any = None):
        super().__init__(config, model_class)
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
                    f" classes of {channels} channels, but at most {MAX_JOINT_CLASSES} are supported. Use {remedy}."
                )

    def classify(self, colors: torch.Tensor) -> torch.Tensor:
        # A number on the edge of two bins belongs to the upper one, regardless of rounding.
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
    """Nearest cluster center of each color; the centers are fitted to the training images.

    Use it to predict colors as a distribution over the typical colors of the images, such as for a limited palette.

    Args:
        config: The SimMIM config.
        model_class: As in `Target`.

    Raises:
        ValueError: If the centers have other channels than the model.

    Source: sections 3.4 and 4.1.4 of the paper, "color clustering", after iGPT (Chen et al., Generative
    Pretraining from Pixels).

    Examples:
        >>> centers = fit_color_clusters(images, num_clusters=512)  # hf_simmim.data.image_statistics
        >>> SimMIMConfig(target="color_clusters", target_options={"centers": centers})
    """

    def __init__(self, config: Any, model_class: Any = None):
        super().__init__(config, model_class)
        # On the CPU, also when the model's parameters are created on the meta device.
        self.centers = torch.tensor(self.options["centers"], dtype=torch.float32, device="cpu")
        self.num_outputs, channels = self.centers.shape
        if channels != config.num_channels:
            raise ValueError(
                f"target='color_clusters' has centers of {channels} channels, but the model has {config.num_channels}."
                " Fit them to images with the model's channels with hf_simmim.data.image_statistics.fit_color_clusters."
            )

    def classify(self, colors: torch.Tensor) -> torch.Tensor:
        centers = self.class_colors(colors.device)
        pixels = colors.movedim(1, -1).flatten(0, 2)
        # Matrix products would be faster, but round too much, above all on GPUs.
        nearest = [
            torch.cdist(part, centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
            for part in pixels.split(max(1, CHUNK // self.num_outputs))
        ]
        return torch.cat(nearest).view(colors.shape[0], 1, *colors.shape[2:])

    def class_colors(self, device: torch.device) -> torch.Tensor:
        return self.centers.to(device)


def expected_colors(prediction: torch.Tensor, class_colors: torch.Tensor) -> torch.Tensor:
    """Mean of the colors of all classes, weighted by their probabilities.

    Args:
        prediction: Logits of shape (B, G * classes, h, w), those of the first group first.
        class_colors: Colors of shape (classes, channels).

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


HOG_EPS = 1e-5


class HOG(Target):
    """Histograms of oriented gradients of each channel, which cannot be decoded to pixels.

    Use it if shape and texture should count and color should not. Gradients are computed from colors in [0, 1], or
    from `pixel_values` as they are if a config without `image_mean` and `image_std` does not say how to undo the
    normalization; only cells with hardly any contrast then differ.

    Args:
        config: The SimMIM config.
        model_class: As in `Target`.

    Raises:
        ValueError: If the stride of the prediction or the encoder does not fit the cells.

    Source: section 4 of MaskFeat (arXiv 2112.09133).

    Examples:
        >>> SimMIMConfig(target="hog", target_options={"cell_size": 8})
    """

    is_decodable = False

    def __init__(self, config: Any, model_class: Any = None):
        super().__init__(config, model_class)
        self.stride = self.options["cell_size"]
        if config.prediction_stride not in (None, self.stride):
            raise ValueError(
                f"target='hog' predicts cells of cell_size={self.stride} px, but prediction_stride is"
                f" {config.prediction_stride}. Leave prediction_stride out and set cell_size in target_options."
            )
        if config.encoder_stride % self.stride:
            raise ValueError(
                f"target='hog' with cell_size={self.stride} px does not fit the encoder's stride of"
                f" {config.encoder_stride} px. Set cell_size in target_options to a divisor of it."
            )
        self.histogram_bins = self.options["num_bins"]
        self.num_outputs = config.num_channels * self.histogram_bins
        is_unknown = config.image_mean is None and config.image_std is None and config.num_channels != 3
        self.statistics = None if is_unknown else config.pixel_statistics()

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.statistics is not None:
            # Pixels of 8 and 16 bits are multiples of this step, so equal differences stay equal: otherwise rounding
            # would choose one of the two bins that meet at a diagonal.
            colors = to_colors(pixel_values, self.statistics)
            pixel_values = colors.mul_(16 * 65535).round_().mul_(2**-20)
        return hog(pixel_values, self.stride, self.histogram_bins)


def hog(pixel_values: torch.Tensor, cell_size: int = 8, num_bins: int = 9) -> torch.Tensor:
    """Histogram of gradient directions of each channel and cell, weighted by magnitude and normalized to length 1.

    Directions from 0 to 180 degrees are divided into equal bins, the first of which starts at a gradient along the
    row. The result does not depend on brightness, and on contrast only in cells with hardly any: there a small
    constant, which is meant for colors in [0, 1], keeps empty cells at 0.

    Args:
        pixel_values: float32 images of shape (B, C, H, W).
        cell_size: Side of a cell in pixels. Cells that are cut by the border have no gradients outside the image.
        num_bins: Number of direction bins.

    Returns:
        Tensor of shape (B, C * num_bins, ceil(H / cell_size), ceil(W / cell_size)), those of the first channel first.

    Source: section 4 of MaskFeat (arXiv 2112.09133); equal to `skimage.feature.hog` of each channel with blocks of one
    cell and `block_norm="L2"`, where cells divide the image.
    """
    down, right = _gradients(pixel_values)
    strength = torch.hypot(down, right)
    bins = _directions(down, right, num_bins)
    histograms = torch.stack(
        [
            F.avg_pool2d(strength * (bins == index), cell_size, ceil_mode=True, divisor_override=cell_size**2)
            for index in range(num_bins)
        ],
        dim=2,
    )  # B, C, num_bins, h, w
    length = (histograms.square().sum(dim=2, keepdim=True) + HOG_EPS**2).sqrt()
    return (histograms / length).flatten(1, 2)


def _gradients(pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of the two neighbors of each pixel, down and to the right; 0 where one of them is missing."""
    down, right = torch.zeros_like(pixel_values), torch.zeros_like(pixel_values)
    down[:, :, 1:-1] = pixel_values[:, :, 2:] - pixel_values[:, :, :-2]
    right[:, :, :, 1:-1] = pixel_values[:, :, :, 2:] - pixel_values[:, :, :, :-2]
    return down, right


def _directions(down: torch.Tensor, right: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Bin of the direction of each gradient: the number of edges between bins that are not above its angle.

    A computed angle would be rounded at the edges of bins, where many gradients lie: along rows, columns and
    diagonals. Two products are compared instead, which are equal there.
    """
    is_turned = (down < 0) | ((down == 0) & (right < 0))
    precise = torch.float32 if down.device.type == "mps" else torch.float64  # MPS has no float64
    right = torch.where(is_turned, -right, right).to(precise)
    down = down.abs().to(precise)
    bins = torch.zeros_like(down, dtype=torch.int16)
    for index in range(1, num_bins):
        # Rounded so that sine and cosine of 45 degrees are equal, and the cosine of 90 degrees is 0.
        angle = math.pi * index / num_bins
        cosine, sine = round(math.cos(angle), 14), round(math.sin(angle), 14)
        bins += down * cosine >= right * sine
    return bins


def _are_centers(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) >= 2
        and all(isinstance(center, (list, tuple)) and all(map(is_finite, center)) for center in value)
        and len({len(center) for center in value}) == 1
    )


def _check_normalized_rgb(options: dict[str, Any]) -> str | None:
    if options["window_size"] is not None and options["patch_size"] is not None:
        return "has both a window_size, for a sliding window, and a patch_size. Leave one out."
    return None


def _check_color_clusters(options: dict[str, Any]) -> str | None:
    if options["centers"] is None:
        return (
            "has no centers. Fit them to your images with"
            " hf_simmim.data.image_statistics.fit_color_clusters, or let `hf-simmim pretrain` fit them."
        )
    return None


class TargetSpec(NamedTuple):
    """A target: its class, the losses that fit it, and its options."""

    build: type[Target]
    losses: tuple[str, ...]  # that fit it, the default first
    options: dict[str, Option]
    check: Callable[[dict[str, Any]], str | None] | None = None  # what is wrong with a set of options, if anything


# ADD A TARGET that is computed from pixels here: its class, the losses that fit it, and its options.
PIXEL_TARGETS: dict[str, TargetSpec] = {
    "rgb": TargetSpec(RGB, REGRESSION_LOSSES, {}),
    "normalized_rgb": TargetSpec(
        NormalizedRGB,
        REGRESSION_LOSSES,
        {
            "window_size": Option(
                None,
                optional(lambda value: is_length(value) and value % 2 == 1),
                f"an odd number of at least 3 pixels, or None for {STATISTICS_WINDOW} without a patch_size",
            ),
            "patch_size": Option(None, optional(is_length), "a whole number of at least 2 pixels, or None"),
        },
        _check_normalized_rgb,
    ),
    "color_bins": TargetSpec(
        ColorBins,
        ("cross_entropy",),
        {
            "num_bins": Option(8, lambda value: is_count(value) and 2 <= value <= 256, "a whole number from 2 to 256"),
            "joint": Option(False, lambda value: isinstance(value, bool), "True or False"),
        },
    ),
    "color_clusters": TargetSpec(
        ColorClusters,
        ("cross_entropy",),
        {"centers": Option(None, optional(_are_centers), "a list of two or more colors, each a list of numbers")},
        _check_color_clusters,
    ),
    "hog": TargetSpec(
        HOG,
        ("l2", "l1", "smooth_l1"),
        {
            "cell_size": Option(8, is_length, "a whole number of at least 2 pixels"),
            "num_bins": Option(9, is_length, "a whole number of at least 2"),
        },
    ),
}
