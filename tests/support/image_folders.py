"""A folder of pictures whose pixels tell where they are, and epochs of masked samples of it."""

import io

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from hf_simmim.data.masked_images import MaskedImageDataset, collate
from hf_simmim.data.sampling import EpochSampler
from hf_simmim.data.sources import load_images


def gradient_image(height: int, width: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def make_dataset(folder, **kwargs) -> MaskedImageDataset:
    settings = {"image_size": (32, 48), "num_channels": 3, "patch_size": 4, "mask_patch_size": 16} | kwargs
    return MaskedImageDataset(load_images(folder), **settings)


def read_epoch(dataset, epoch: int, num_workers: int = 0, batch_size: int = 4, seed: int = 0) -> list[dict]:
    sampler = EpochSampler(len(dataset), seed)
    sampler.set_epoch(epoch)
    return list(DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate, num_workers=num_workers))
