"""Speed of reading training images, from a JPEG file to a cropped and resized uint8 tensor, on one core.

The baseline is torchvision's `RandomResizedCrop`, `ToTensor` and `Normalize` on a Pillow image, as in transformers'
run_mim.py, written with the Pillow and torch calls that they make. Both read the same files with the same crops,
alternating, so that drift of the machine cancels. Requires scikit-image for its pictures.

    python benchmarks/loading_speed.py
"""

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import skimage
import torch
from PIL import Image, ImageOps

from hf_simmim.data.sampling import sample_generator
from hf_simmim.data.transforms import crop_and_resize, random_box, upright_size

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SIZES = ((500, 375), (1280, 960), (4000, 3000))
TARGET = (192, 192)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def make_files(size: tuple[int, int]) -> list[bytes]:
    """Encode photos as JPEG files of (width, height)."""
    files = []
    for name in PHOTOS:
        buffer = io.BytesIO()
        photo = ImageOps.fit(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"), size)
        photo.save(buffer, format="JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def read_ours(file: bytes, seed: int) -> torch.Tensor:
    """Read like `MaskedImageDataset`; normalization follows later, on the device, for the whole batch."""
    image = Image.open(io.BytesIO(file))
    box = random_box(upright_size(image), (0.67, 1.0), sample_generator(seed))
    return torch.from_numpy(np.array(crop_and_resize(image, box, TARGET, 3))).permute(2, 0, 1).contiguous()


def read_peer(file: bytes, seed: int) -> torch.Tensor:
    """Read like torchvision's transforms."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    box = random_box((image.height, image.width), (0.67, 1.0), sample_generator(seed))
    image = image.crop(tuple(round(edge) for edge in box)).resize(TARGET[::-1], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    return pixels.sub(MEAN).div(STD)


def images_per_second(read: Callable[[bytes, int], torch.Tensor], files: list[bytes], seconds: float) -> float:
    """Measure the speed of reading for about the given time."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        read(files[count % len(files)], count)
        count += 1
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure the difference of the pixels, then the speed of both readers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds for each reader in each round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, one thread, Pillow {PIL.__version__}, torch {torch.__version__},"
        f" to {TARGET[0]}x{TARGET[1]} px, median of {args.rounds} rounds\n"
    )
    print("| JPEG | ours, images/s | peer, images/s | ratio (min to max) | mean difference of 255 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for size in SIZES:
        files = make_files(size)
        difference = statistics.mean(
            ((read_peer(file, seed) * STD + MEAN) * 255 - read_ours(file, seed)).abs().mean().item()
            for seed, file in enumerate(files)
        )
        rounds = [
            [images_per_second(read, files, args.seconds) for read in (read_ours, read_peer)]
            for _ in range(args.rounds)
        ]
        ours, peer = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = sorted(first / second for first, second in rounds)
        ratio = statistics.median(ratios)
        print(
            f"| {size[0]}x{size[1]} | {ours:.0f} | {peer:.0f} | {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            f" | {difference:.2f} |"
        )


if __name__ == "__main__":
    main()
