"""Image processor of SimMIM: resize, rescale, normalize and, with `do_mask`, draw masks."""

import base64
import importlib
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available, logging

from .image_readers import Wanted
from .images import (
    channel_error,
    channels_first,
    fill_missing,
    find_channels,
    has_missing,
    is_deep,
    keeps_deep_pictures,
    mark_nodata,
    missing_as_nan,
    open_image,
    picture_or_array,
    pixels_of,
    read_stored,
    real_pixels,
)
from .masking import MASK_STRATEGIES, mask_units, patches_with_pixels, ratio_range
from .remote_code import CarriesCode
from .tiff import GDAL_NODATA, gdal_nodata

logger = logging.get_logger(__name__)

# Rescaled numbers of a range of 0 to 1 are not larger, however they were resized.
BRIGHTEST = 2.0


class SimMIMImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_mask (`bool`, *optional*, defaults to `False`):
        Whether to return `bool_masked_pos` too. Off by default: pipelines and fine-tuning use unmasked images.
    seed (`int`, *optional*):
        Seed of the masks; the same seed gives the same masks. Torch's default generator if unset.
    mask_strategy (`str`, *optional*, defaults to `"random"`):
        Name of the masking strategy.
    mask_patch_size (`int`, *optional*, defaults to 32):
        Side in pixels of the squares that are masked as a whole.
    mask_ratio (`float` or `list[float]`, *optional*, defaults to 0.6):
        Share of the image to mask, in (0, 1), or the two ends of a range, from which a ratio is drawn for every image.
    model_patch_size (`int`, *optional*, defaults to 4):
        Side in pixels of the encoder's patches, which form the grid of `bool_masked_pos`.
    nodata (`float`, *optional*):
        Value of missing pixels: pixels of which all channels have it in the original image are missing, like those
        that are not finite. If unset, the value that TIFF files store. Missing pixels and padding are False in
        `pixel_mask`, which is returned with `bool_masked_pos` if there are any. Patches without other pixels are not
        masked.
    """

    do_mask: bool | None
    seed: int | None
    mask_strategy: str | None
    mask_patch_size: int | None
    mask_ratio: float | int | list[float] | tuple[float, ...] | None
    model_patch_size: int | None
    nodata: float | int | None


class _SimMIMProcessing(CarriesCode, BaseImageProcessor):
    """Base of both backends: defaults, channels and masks."""

    valid_kwargs = SimMIMImageProcessorKwargs  # type: ignore[assignment]
    model_input_names = ["pixel_values", "bool_masked_pos", "pixel_mask"]  # noqa: RUF012
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 192, "width": 192}  # noqa: RUF012
    crop_size = None
    do_resize = True
    do_center_crop = None
    do_rescale = True
    do_normalize = True
    do_mask = False
    mask_strategy = "random"
    mask_patch_size = 32
    mask_ratio = 0.6
    model_patch_size = 4
    nodata = None

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        _check_strategy(self.mask_strategy)
        # Calls with do_mask check whether the sizes fit, because fine-tuning at 200 px masks nothing.
        ratio_range(self.mask_ratio)

    @property
    def num_channels(self) -> int:
        """Channels of the images, read from `image_mean`."""
        return len(self.image_mean)

    def to_dict(self) -> dict[str, Any]:
        """Settings to save; a seed belongs to a call, not to a processor."""
        settings = super().to_dict()
        settings.pop("seed", None)
        return settings

    def fetch_images(
        self,
        image_url_or_urls,
        num_channels: int | None = None,
        rescale_factor: float | None = None,
        nodata: float | None = None,
    ):
        """Open paths and URLs; add the channel axis to gray arrays (H, W).

        transformers' own method drops transparency, clips 16-bit images, opens PostScript and, on torchvision, reads
        fewer formats.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image, num_channels, rescale_factor, nodata) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            num_channels = num_channels or self.num_channels
            source = image_url_or_urls if _is_file(image_url_or_urls) else _download(str(image_url_or_urls))
            nodata = self.nodata if nodata is None else nodata
            image = open_image(source, num_channels, rescale_factor or self.rescale_factor, nodata)
            pixels = pixels_of(image, num_channels)
            if isinstance(image, Image.Image):
                image.close()
            return pixels.view(_PixelsOfFile)
        if getattr(image_url_or_urls, "ndim", None) == 2:
            return image_url_or_urls[None]
        return super().fetch_images(image_url_or_urls)

    def _prepare_image_like_inputs(self, images, *args, **kwargs):
        # Fetched here, because transformers calls `fetch_images` without this call's channels and factor.
        num_channels = len(kwargs.get("image_mean") or self.image_mean)
        images = self.fetch_images(images, num_channels, kwargs.get("rescale_factor"), kwargs.get("nodata"))
        return super()._prepare_image_like_inputs(images, *args, **kwargs)

    def process_image(  # type: ignore[override]
        self, image, do_convert_rgb=None, input_data_format: str | ChannelDimension | None = None, **kwargs
    ):
        """Convert one image of any kind to an array or tensor (C, H, W) with the processor's channels.

        PIL images are always converted, so `do_convert_rgb` has no effect. Arrays and tensors keep their values:
        `rescale_factor` must fit their range. 16-bit PIL images keep their values unless the factor is 1/255.
        """
        num_channels = len(kwargs.get("image_mean") or self.image_mean)
        nodata = kwargs.get("nodata", self.nodata)
        factor = kwargs.get("rescale_factor") or self.rescale_factor
        if isinstance(image, Image.Image):
            found = reopen(image, num_channels, factor, nodata)
            if isinstance(found, Image.Image):
                _refuse_cut_numbers(found)
            image = pixels_of(found, num_channels).view(_PixelsOfFile)
        if isinstance(image, _PixelsOfFile):
            # Missing pixels are marked already, as the file stores them.
            image, input_data_format, nodata = np.asarray(image), ChannelDimension.FIRST, None
        if isinstance(image, torch.Tensor):
            image = self._plain_array(image)
        if isinstance(image, np.ndarray):
            image = channels_first(image, num_channels, input_data_format, nodata)
            input_data_format = ChannelDimension.FIRST
        image = self._plain_array(image)
        if input_data_format is None:
            input_data_format = find_channels(image.shape, num_channels)
        if isinstance(image, torch.Tensor):
            if ChannelDimension(input_data_format) == ChannelDimension.LAST:
                image = image.movedim(-1, 0)
            image = missing_as_nan(image, nodata)
            input_data_format = ChannelDimension.FIRST
        if kwargs.get("do_rescale"):
            _warn_of_range(image, factor, kwargs.get("image_mean") or self.image_mean)
        processed = super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format, **kwargs)
        if processed.shape[0] == 1 and num_channels == 3:
            processed = processed.repeat(3, 1, 1) if isinstance(processed, torch.Tensor) else processed.repeat(3, 0)
        if processed.shape[0] != num_channels:
            raise ValueError(channel_error(processed.shape[0], num_channels))
        return processed

    def _plain_array(self, image):
        """Convert to float32 unless uint8: resizing other types rounds, clips or fails."""
        if isinstance(image, torch.Tensor):
            image = image.detach()
            return image if image.dtype == torch.uint8 else image.float()
        return image if image.dtype == np.uint8 else image.astype(np.float32)

    def _standardize_kwargs(self, **kwargs) -> dict:  # type: ignore[override]
        kwargs = super()._standardize_kwargs(**kwargs)
        mean, std = kwargs["image_mean"], kwargs["image_std"]
        for name, values in (("image_mean", mean), ("image_std", std)):
            if isinstance(values, (int, float)):
                raise ValueError(
                    f"{name}={values} is one number, but the number of channels is read from it. Use"
                    f" {name}={[values] * 3} for RGB, {[values]} for gray."
                )
        if mean is not None and std is not None and len(mean) != len(std):
            raise ValueError(
                f"image_mean has {len(mean)} values and image_std has {len(std)}. Give both one value for each channel."
            )
        if kwargs.get("do_normalize") and mean is not None and not all(map(math.isfinite, mean)):
            raise ValueError(f"image_mean={list(mean)} must hold finite numbers.")
        if kwargs.get("do_normalize") and std is not None and not all(0 < value < math.inf for value in std):
            raise ValueError(
                f"image_std={list(std)} must hold finite numbers above 0, which pixels are divided by. Use 1 for a"
                " channel without variation."
            )
        factor = kwargs.get("rescale_factor")
        if kwargs.get("do_rescale") and factor is not None and not 0 < factor < math.inf:
            raise ValueError(
                f"rescale_factor={factor} must be a finite number above 0, such as 1/255. To keep the values of the"
                " images, use do_rescale=False."
            )
        return kwargs

    def _preprocess(  # type: ignore[override]
        self,
        images,
        do_mask,
        seed,
        mask_strategy,
        mask_patch_size,
        mask_ratio,
        model_patch_size,
        nodata,
        return_tensors,
        **kwargs,
    ) -> BatchFeature:
        if not images:
            raise ValueError("There are no images to process. Pass at least one.")
        is_missing = any(has_missing(image) for image in images)
        pixel_values = super()._preprocess(images, return_tensors=None, **kwargs)["pixel_values"]
        pixel_masks: list[torch.Tensor] = []
        if is_missing or (do_mask and (kwargs["do_pad"] or kwargs["do_center_crop"])):
            pixel_masks = self._pixel_masks(images, **kwargs)
        if is_missing:
            black = None
            if kwargs["do_normalize"]:
                black = [-mean / std for mean, std in zip(kwargs["image_mean"], kwargs["image_std"], strict=True)]
            pixel_values = [fill_missing(*pair, black) for pair in zip(pixel_values, pixel_masks, strict=True)]
        data = {"pixel_values": pixel_values}
        if do_mask:
            if all(mask.all() for mask in pixel_masks):
                pixel_masks = []
            grid = {"model_patch_size": model_patch_size, "mask_patch_size": mask_patch_size}
            data |= self._masks(pixel_values, pixel_masks, mask_strategy, mask_ratio, seed, **grid)
        return BatchFeature(data, tensor_type=return_tensors)

    def _pixel_masks(self, images, **kwargs) -> list[torch.Tensor]:
        """Real pixels of the processed images: maps of ones, NaN where the images are, processed in the same way."""
        # 0 / 0 is NaN. Padding is 0, also where a crop is larger than the image.
        with np.errstate(invalid="ignore"):
            maps = [real / real for real in (self._plain_array(real_pixels(image)[None] * 1.0) for image in images)]
        kwargs |= {"do_rescale": False, "do_normalize": False}
        maps = super()._preprocess(maps, return_tensors=None, **kwargs)["pixel_values"]
        return [torch.as_tensor(map_)[0] > 0.5 for map_ in maps]

    def _masks(
        self, pixel_values, pixel_masks, strategy, ratio, seed, *, model_patch_size: int, mask_patch_size: int
    ) -> dict[str, list]:
        """`bool_masked_pos`, and `pixel_mask` if some pixels are missing or padding."""
        sizes = {tuple(image.shape[-2:]) for image in pixel_values}
        if len(sizes) != 1:
            raise ValueError(
                f"do_mask=True needs images of one size, but got {len(sizes)}: {sorted(sizes)}. Resize or crop them to"
                " a fixed height and width."
            )
        _check_strategy(strategy)
        grid_size, unit_size = mask_units(sizes.pop(), model_patch_size, mask_patch_size)
        # Drawn on the CPU, so that a seed gives the same masks on every device.
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        valid = None
        if pixel_masks:
            valid = patches_with_pixels(torch.stack(pixel_masks).cpu(), model_patch_size)
        masks = MASK_STRATEGIES[strategy](
            grid_size,
            ratio,
            len(pixel_values),
            unit_size=unit_size,
            valid_patches=valid,
            generator=generator,
            device="cpu",
        ).flatten(1)
        data = {"bool_masked_pos": masks} | ({"pixel_mask": pixel_masks} if pixel_masks else {})
        first = pixel_values[0]
        return {
            name: [mask.to(first.device) if isinstance(first, torch.Tensor) else mask.numpy() for mask in values]
            for name, values in data.items()
        }


class _PixelsOfFile(np.ndarray):
    """Pixels (C, H, W) of a file that is read completely: channels converted, missing pixels marked."""


class SimMIMImageProcessorPil(_SimMIMProcessing, PilBackend):  # type: ignore[misc]
    """Image processor on Pillow and NumPy. `SimMIMImageProcessorKwargs` has its arguments."""

    def _plain_array(self, image):
        image = super()._plain_array(image)
        return image.cpu().numpy() if isinstance(image, torch.Tensor) else image

    def resize(self, image: np.ndarray, size: SizeDict, resample=None, **kwargs) -> np.ndarray:  # type: ignore[override]
        """Resize an array (C, H, W), channel by channel where Pillow has no mode for all channels."""
        if image.dtype == np.uint8 and image.shape[0] in (1, 3):
            return super().resize(image, size, resample, **kwargs)
        outline = np.zeros((1, *image.shape[-2:]), np.uint8)
        height, width = super().resize(outline, size, PILImageResampling.NEAREST).shape[-2:]
        return np.stack([np.asarray(Image.fromarray(channel).resize((width, height), resample)) for channel in image])


class SimMIMImageProcessor(_SimMIMProcessing, TorchvisionBackend):  # type: ignore[misc]
    """Image processor on torchvision, batched, on any device. `SimMIMImageProcessorKwargs` has its arguments."""

    def _plain_array(self, image):
        image = super()._plain_array(image)
        # torch warns about read-only memory, such as `np.asarray` makes of a PIL image.
        return image if isinstance(image, torch.Tensor) or image.flags.writeable else image.copy()


if not is_torchvision_available():
    # A checkpoint's code must have a class of this name for either backend.
    SimMIMImageProcessor = SimMIMImageProcessorPil  # type: ignore[assignment, misc]


def _check_strategy(name: str) -> None:
    if name not in MASK_STRATEGIES:
        raise ValueError(f"mask_strategy={name!r} is unknown. Use one of: {', '.join(MASK_STRATEGIES)}.")


def _warn_of_range(image, factor: float, image_mean: Sequence[float]) -> None:
    """Warn once of numbers that are not of the range which a factor and a mean are for."""
    if image.dtype in (np.uint8, torch.uint8):
        return
    known = image[image == image] if has_missing(image) else image
    low, high = float(known.min()), float(known.max())
    # A mean that is not 0 but smaller than the factor was computed from images in [0, 1].
    if low >= 0 and high <= 1 and (factor < max(image_mean) or (factor < 1 and not any(image_mean))):
        logger.warning_once(
            "An image of floats in [0, 1] is rescaled again, which makes it nearly black. Pass do_rescale=False"
            " for images that are already in [0, 1]."
        )
    # A mean of other numbers was computed from them.
    elif not keeps_deep_pictures(factor) and high * factor > BRIGHTEST and 0 <= min(image_mean) <= max(image_mean) <= 1:
        logger.warning_once(
            f"An image of numbers up to {high:g} is rescaled by 1/255, which fits 255, so that they reach"
            f" {high * factor:.3g} and not 1. Pass the rescale_factor that fits, such as 1/65535 for 16 bits."
        )


def _refuse_cut_numbers(image: Image.Image) -> None:
    """Refuse numbers that scaling to 8 bits would cut off."""
    low, high = image.getextrema() if image.mode == "I" else (0, 0)
    if low < 0 or high > 65535:  # type: ignore[operator]
        raise ValueError(
            f"The image holds whole numbers from {low} to {high} (mode I), whose range is unknown. Convert it to 8 or"
            " 16 bits, pass it as an array, or set the rescale_factor that fits it."
        )


def _is_file(path: str | os.PathLike) -> bool:
    """Whether a text is the path of a file, or names an image inside one, such as `scan.nii::axis=2,slice=9`."""
    whole, separator, _ = os.fspath(path).rpartition("::")
    return os.path.isfile(path) or (bool(separator) and os.path.exists(whole))


def _download(address: str) -> bytes:
    """Content behind an address, or of base64 text, as transformers' `load_image` takes them."""
    if address.startswith(("http://", "https://")):
        return importlib.import_module("httpx").get(address, follow_redirects=True).content
    text = address.split(",", 1)[1] if address.startswith("data:image/") and "," in address else address
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(
            f"{address[:200]!r} is no file, no address that begins with http:// or https://, and no base64 text. Check"
            " the path."
        ) from error


def reopen(
    image: Image.Image, num_channels: int, rescale_factor: float, nodata: float | None = None
) -> Image.Image | np.ndarray:
    """Do what `open_image` does for a PIL image, and read its file again where Pillow has other numbers.

    Args:
        image: Opened elsewhere, decoded or not; it is not changed.
        num_channels: Wanted channels C.
        rescale_factor: Factor that the values will be multiplied by.
        nodata: Value of missing pixels; the value that a TIFF file stores if None.

    Returns:
        As `open_image`.

    Raises:
        ValueError: If the file holds more than Pillow has decoded.
    """
    if isinstance(image, ImageFile.ImageFile) and image.format in PARTLY_READ:
        content = _undecoded(image)
        if content is not None:
            return open_image(content, num_channels, rescale_factor, nodata)
        if keeps_deep_pictures(rescale_factor) or nodata is not None:
            _refuse_lost_bits(image, num_channels)
        if nodata is None and image.format == "TIFF":
            nodata = gdal_nodata(image.tag_v2.get(GDAL_NODATA))  # type: ignore[attr-defined]
    found = picture_or_array(image, rescale_factor)
    return found if nodata is None else mark_nodata(found, num_channels, nodata)


# Formats of which Pillow does not keep all numbers.
PARTLY_READ = ("AVIF", "FITS", "JPEG2000", "PNG", "PPM", "SGI", "TIFF")


def _undecoded(image: ImageFile.ImageFile) -> bytes | None:
    """Content of the file of a PIL image, if it is not decoded yet and shows the first page."""
    file = getattr(image, "fp", None)
    if not image.tile or image.tell() or file is None or getattr(file, "closed", False):
        return None
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content


def _refuse_lost_bits(image: ImageFile.ImageFile, num_channels: int) -> None:
    bits = 8
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]
    elif os.path.isfile(str(image.filename)):
        stored = read_stored(str(image.filename), Wanted(num_channels, True))
        bits = stored.largest.bit_length()
        if is_deep(image) and bits == 16:
            return
    if bits > 8 and not (image.format == "TIFF" and is_deep(image)):
        raise ValueError(
            f"The {image.format} picture holds {bits} bits, and Pillow decoded it as {image.mode}. Pass the path of the"
            " file instead of the picture."
        )
