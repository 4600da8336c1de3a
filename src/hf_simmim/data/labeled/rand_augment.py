"""RandAugment as timm's `rand-...` policies define it, with Pillow, seeded by an explicit generator.

It is the fallback if timm, or torchvision, which timm needs, is not installed. torchvision's own RandAugment has other
operations and strengths. The tests require that every operation equals timm's exactly, and the draws its distributions.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from PIL import Image, ImageEnhance, ImageOps

NO_CHANGE_AT = 128  # brightness from which solarize_add leaves pixels unchanged


@dataclasses.dataclass(frozen=True)
class Policy:
    """Parsed form of a policy such as `rand-m9-mstd0.5-inc1`.

    Args:
        magnitude: Strength of the operations, out of 10.
        num_operations: Number of operations drawn for an image, with replacement.
        probability: Probability that a drawn operation is applied.
        magnitude_std: Standard deviation of the strength; infinite for a uniform draw from 0 to `magnitude`.
        max_magnitude: Largest strength.
        is_increasing: Whether every operation changes an image more at a higher strength.
    """

    magnitude: float = 10
    num_operations: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    max_magnitude: float = 10
    is_increasing: bool = False


def parse_policy(text: str) -> Policy:
    """Parse timm's notation.

    Args:
        text: `rand` and settings after hyphens: m (strength), n (operations per image), p (probability of each), mstd
            (standard deviation of the strength), mmax (largest strength), inc1 (a higher strength always changes more).

    Returns:
        The policy.

    Raises:
        ValueError: If the text is not such a policy.

    Source: `rand_augment_transform` in timm/data/auto_augment.py.
    """
    names = {"m": "magnitude", "n": "num_operations", "p": "probability", "mstd": "magnitude_std"}
    names |= {"mmax": "max_magnitude", "inc": "is_increasing"}
    first, *sections = text.split("-")
    settings: dict[str, float] = {}
    for section in sections:
        key = section.rstrip("0123456789.")
        try:
            settings[names[key]] = float(section[len(key) :])
        except (KeyError, ValueError):
            first = ""
    policy = Policy(**settings) if first == "rand" else None  # type: ignore[arg-type]
    if policy is None or not 0 <= policy.probability <= 1 or policy.num_operations != int(policy.num_operations):
        raise ValueError(
            f"rand_augment={text!r} is not a RandAugment policy. Write rand and any of m, n, p, mstd, mmax and inc1"
            " with their numbers, such as rand-m9-mstd0.5-inc1."
        )
    if settings.get("is_increasing", 1) != 1:
        raise ValueError(f"rand_augment={text!r}: timm treats any number after inc as 1. Leave inc out to disable it.")
    std = math.inf if policy.magnitude_std > 100 else policy.magnitude_std
    return dataclasses.replace(
        policy,
        num_operations=int(policy.num_operations),
        magnitude_std=std,
        is_increasing=bool(policy.is_increasing),
    )


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Settings of geometric operations: the color of areas that they uncover, and Pillow's resampling filter."""

    fill: tuple[int, ...]
    resample: Image.Resampling


def _affine(image: Image.Image, matrix: tuple[float, ...], canvas: Canvas) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, canvas.resample, fillcolor=canvas.fill)


def _rotate(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return image.rotate(level * 30, canvas.resample, fillcolor=canvas.fill)


def _shear_x(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, level * 0.3, 0, 0, 1, 0), canvas)


def _shear_y(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, 0, level * 0.3, 1, 0), canvas)


def _translate_x(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, level * 0.45 * image.width, 0, 1, 0), canvas)


def _translate_y(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, level * 0.45 * image.height), canvas)


def posterize(image: Image.Image, num_bits: int, **kwargs) -> Image.Image:
    """Keep the upper bits of each pixel.

    Args:
        image: The image.
        num_bits: Number of bits to keep; 0 gives black, where newer versions of Pillow raise an error.
        **kwargs: Ignored; timm passes the same arguments to all operations.

    Returns:
        An image of the same size and mode.
    """
    return _mapped(image, [value & (0xFF00 >> min(max(num_bits, 0), 8)) for value in range(256)])


def _posterize(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return posterize(image, int(level * 4))


def _posterize_more(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return posterize(image, 4 - int(level * 4))


def _solarize(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return ImageOps.solarize(image, min(256, int(level * 256)))


def _solarize_more(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return ImageOps.solarize(image, 256 - min(256, int(level * 256)))


def _solarize_add(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    added = min(128, int(level * 110))
    table = [min(255, value + added) if value < NO_CHANGE_AT else value for value in range(256)]
    return _mapped(image, table)


def _mapped(image: Image.Image, table: list[int]) -> Image.Image:
    return image.point(table * len(image.getbands()))


def _enhance(kind: type) -> Callable[[Image.Image, float, Canvas], Image.Image]:
    return lambda image, level, canvas: kind(image).enhance(level * 1.8 + 0.1)


def _enhance_more(kind: type) -> Callable[[Image.Image, float, Canvas], Image.Image]:
    return lambda image, level, canvas: kind(image).enhance(max(0.1, 1 + level * 0.9))


# Name in timm to whether the strength, from 0 to 1, gets a random sign, and the operation.
OPERATIONS: dict[str, tuple[bool, Callable[[Image.Image, float, Canvas], Image.Image]]] = {
    "AutoContrast": (False, lambda image, level, canvas: ImageOps.autocontrast(image)),
    "Equalize": (False, lambda image, level, canvas: ImageOps.equalize(image)),
    "Invert": (False, lambda image, level, canvas: ImageOps.invert(image)),
    "Rotate": (True, _rotate),
    "Posterize": (False, _posterize),
    "PosterizeIncreasing": (False, _posterize_more),
    "Solarize": (False, _solarize),
    "SolarizeIncreasing": (False, _solarize_more),
    "SolarizeAdd": (False, _solarize_add),
    "Color": (False, _enhance(ImageEnhance.Color)),
    "ColorIncreasing": (True, _enhance_more(ImageEnhance.Color)),
    "Contrast": (False, _enhance(ImageEnhance.Contrast)),
    "ContrastIncreasing": (True, _enhance_more(ImageEnhance.Contrast)),
    "Brightness": (False, _enhance(ImageEnhance.Brightness)),
    "BrightnessIncreasing": (True, _enhance_more(ImageEnhance.Brightness)),
    "Sharpness": (False, _enhance(ImageEnhance.Sharpness)),
    "SharpnessIncreasing": (True, _enhance_more(ImageEnhance.Sharpness)),
    "ShearX": (True, _shear_x),
    "ShearY": (True, _shear_y),
    "TranslateXRel": (True, _translate_x),
    "TranslateYRel": (True, _translate_y),
}


class RandAugment:
    """Applies randomly drawn operations to an 8-bit grayscale or RGB image.

    Args:
        policy: Number and strength of operations, in timm's notation.
        fill: Color of uncovered areas, an integer from 0 to 255 for each channel.
        resample: Pillow's resampling filter.

    Source: Cubuk et al., RandAugment (arXiv 1909.13719); `RandAugment` in timm/data/auto_augment.py.
    """

    def __init__(self, policy: str, fill: tuple[int, ...], resample: int = Image.Resampling.BICUBIC):
        self.policy = parse_policy(policy)
        self.canvas = Canvas(fill, Image.Resampling(resample))
        increasing = [name for name in OPERATIONS if name.endswith("Increasing")]
        left_out = [name.removesuffix("Increasing") for name in increasing] if self.policy.is_increasing else increasing
        self.names = [name for name in OPERATIONS if name not in left_out]

    def draw(self, generator: torch.Generator) -> list[tuple[str, float]]:
        """Draw the names and signed strengths, out of 1, of the operations for one image."""
        policy = self.policy
        count = policy.num_operations
        chosen = torch.randint(len(self.names), (count,), generator=generator).tolist()
        draws = torch.rand(count, 3, generator=generator).tolist()
        noise = torch.randn(count, generator=generator).tolist()
        operations = []
        for index, (applied, sign, even), normal in zip(chosen, draws, noise, strict=True):
            if applied >= policy.probability:
                continue
            if math.isinf(policy.magnitude_std):
                magnitude = policy.magnitude * even
            else:
                magnitude = policy.magnitude + policy.magnitude_std * normal
            name = self.names[index]
            negative = OPERATIONS[name][0] and sign < 0.5
            level = min(max(magnitude, 0.0), policy.max_magnitude) / 10
            operations.append((name, -level if negative else level))
        return operations

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """Augment an image.

        Args:
            image: Image of mode L or RGB.
            generator: Random generator.

        Returns:
            An image of the same size and mode.
        """
        for name, level in self.draw(generator):
            image = OPERATIONS[name][1](image, level, self.canvas)
        return image
