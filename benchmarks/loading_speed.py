"""Speed of reading training images, from a JPEG file to a cropped, resized and flipped uint8 tensor, on one core.

The baseline is transformers' run_mim.py: torchvision's `RandomResizedCrop`, `RandomHorizontalFlip`, `ToTensor` and
`Normalize` on a Pillow image, written with the Pillow and torch calls that they make. All read the same files with the
same crops, alternating, so that drift of the machine cancels. A second table shows where the time goes. Decoders that
are not installed are left out. Requires scikit-image for its pictures.

    python benchmarks/loading_speed.py
"""

import argparse
import importlib.metadata
import io
import itertools
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image, ImageOps, features

from hf_simmim.data.sampling import sample_generator
from hf_simmim.data.transforms import Box, as_tensor, crop_and_resize, random_box, upright_size
from hf_simmim.formats.jpeg import DECODERS, is_installed

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SIZES = ((500, 375), (1280, 960), (4000, 3000))
TARGET = (192, 192)
SCALE = (0.67, 1.0)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
# What is decoded to find out how long it takes: the whole image at one eighth, a few pixels of which are resized.
TINY: Box = (0, 0, 64, 64)


def make_files(size: tuple[int, int]) -> list[bytes]:
    """Encode photos as JPEG files of (width, height)."""
    files = []
    for name in PHOTOS:
        buffer = io.BytesIO()
        photo = ImageOps.fit(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"), size)
        photo.save(buffer, format="JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def draw(size: tuple[int, int], seed: int) -> tuple[Box, bool]:
    """Draw a crop, and whether it is flipped."""
    generator = sample_generator(seed)
    return random_box(size, SCALE, generator), bool(torch.rand((), generator=generator) < 0.5)


def read_ours(decoder: str, file: bytes, seed: int) -> torch.Tensor:
    """Read like `MaskedImageDataset`; normalization follows later, on the device, for the whole batch."""
    image = Image.open(io.BytesIO(file))
    box, is_flipped = draw(upright_size(image), seed)
    array = crop_and_resize(image, box, TARGET, 3, decoder=decoder)
    return as_tensor(array[:, ::-1] if is_flipped else array)


def like_torchvision(image: Image.Image, box: Box, size: tuple[int, int], is_flipped: bool) -> torch.Tensor:
    """What torchvision's transforms make of a crop (left, top, right, bottom): a normalized tensor (3, H, W)."""
    image = image.crop(tuple(round(edge) for edge in box)).resize(size[::-1], Image.Resampling.BILINEAR)
    if is_flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    return pixels.sub(MEAN).div(STD)


def read_peer(file: bytes, seed: int) -> torch.Tensor:
    """Read like torchvision's transforms."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    box, is_flipped = draw((image.height, image.width), seed)
    return like_torchvision(image, box, TARGET, is_flipped)


def images_per_second(read: Callable[[bytes, int], object], files: list[bytes], seconds: float) -> float:
    """Measure the speed of reading for about the given time of the CPU, which other processes do not take part in."""
    count, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        read(files[count % len(files)], count)
        count += 1
    return count / (time.process_time() - started)


def print_speed(decoders: list[str], files: list[bytes], size: tuple[int, int], rounds: int, seconds: float) -> None:
    """Print the speed of each decoder, as a ratio to the baseline, and how much its pixels differ from it."""
    readers = [partial(read_ours, decoder) for decoder in decoders]
    speeds = [[images_per_second(read, files, seconds) for read in (read_peer, *readers)] for _ in range(rounds)]
    peer = statistics.median(row[0] for row in speeds)
    for number, (decoder, read) in enumerate(zip(decoders, readers, strict=True), start=1):
        difference = statistics.mean(
            ((read_peer(file, seed) * STD + MEAN) * 255 - read(file, seed)).abs().mean().item()
            for seed, file in enumerate(files)
        )
        ratios = sorted(row[number] / row[0] for row in speeds)
        print(
            f"| {size[0]}x{size[1]} | {decoder} | {statistics.median(row[number] for row in speeds):.0f} | {peer:.0f}"
            f" | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {difference:.2f} |"
        )


def print_parts(decoder: str, files: list[bytes], size: tuple[int, int], rounds: int, seconds: float) -> None:
    """Print the milliseconds of each part of reading, from readers that stop earlier."""

    def header(file: bytes, seed: int) -> object:
        return draw(upright_size(Image.open(io.BytesIO(file))), seed)

    def eighth(file: bytes, seed: int) -> object:
        # Little more than the entropy decoding, which is that of the whole file at any scale.
        image = Image.open(io.BytesIO(file))
        draw(upright_size(image), seed)
        return crop_and_resize(image, TINY, (8, 8), 3, decoder=decoder)

    def decoded(file: bytes, seed: int) -> object:
        image = Image.open(io.BytesIO(file))
        box, _ = draw(upright_size(image), seed)
        kept = [max(TARGET[0] / (box[3] - box[1]), TARGET[1] / (box[2] - box[0])) * 64] * 2
        # As many pixels as the whole crop needs are decoded, and few of them are resized.
        return crop_and_resize(image, TINY, (round(kept[0]), round(kept[1])), 3, decoder=decoder)

    def resized(file: bytes, seed: int) -> object:
        image = Image.open(io.BytesIO(file))
        return crop_and_resize(image, draw(upright_size(image), seed)[0], TARGET, 3, decoder=decoder)

    stages = (header, eighth, decoded, resized, partial(read_ours, decoder))
    rows = [[1000 / images_per_second(stage, files, seconds) for stage in stages] for _ in range(rounds)]
    # The smallest, as other work on the machine only adds to it.
    times = [min(column) for column in zip(*rows, strict=True)]
    # Differences of times that are nearly the same may be negative.
    parts = [times[0], *(max(0.0, later - earlier) for earlier, later in itertools.pairwise(times))]
    print(f"| {size[0]}x{size[1]} | {decoder} | {' | '.join(f'{part:.2f}' for part in parts)} | {times[-1]:.2f} |")


def main() -> None:
    """Measure the speed of all decoders against the baseline, then the parts of their time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds for each reader in each round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    decoders = [name for name in reversed(DECODERS) if is_installed(name)]
    packages = list(dict.fromkeys(decoder.package for decoder in DECODERS.values()))
    versions = [
        f"{package} {importlib.metadata.version(package)}"
        for package in packages
        if any(is_installed(name) for name in decoders if DECODERS[name].package == package)
    ]
    print(
        f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, one thread, {', '.join(versions)}"
        f" (libjpeg-turbo {features.version('libjpeg_turbo')}), torch {torch.__version__}, to {TARGET[0]}x{TARGET[1]}"
        f" px, median of {args.rounds} rounds\n"
    )
    made = {size: make_files(size) for size in SIZES}
    print("| JPEG | decoder | images/s | run_mim, images/s | ratio (min to max) | mean difference of 255 |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for size, files in made.items():
        print_speed(decoders, files, size, args.rounds, args.seconds)
    print("\nMilliseconds of each part, the smallest of the rounds:\n")
    print("| JPEG | decoder | header, box | decode at 1/8 | more at the scale | crop, resize | flip, tensor | all |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size, files in made.items():
        for decoder in decoders:
            print_parts(decoder, files, size, args.rounds, args.seconds)


if __name__ == "__main__":
    main()
