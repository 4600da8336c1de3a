"""Speed of training from photos and from the same photos after `hf-simmim pack`, and of packing itself.

Reading is that of a training, `MaskedImageDataset` on one core: a random crop of the file, resized to 192 px, with a
mask. Both data sets have the same crops, and alternate, so that drift of the machine cancels. Files are read once
before, so that they are in memory; a disk or a network in between makes the difference larger. Requires scikit-image
for its pictures.

    python benchmarks/packing.py
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import skimage
import torch
from datasets import disable_progress_bars
from PIL import Image, ImageOps

from hf_simmim.curation.packing import pack_images
from hf_simmim.curation.shard_files import PackSettings, PackSource
from hf_simmim.curation.shrinking import ShrinkSettings
from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.data.sources import load_images, packed_files
from hf_simmim.data.streaming import stream_images

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SIZE = (4000, 3000)


def make_photos(folder: Path, count: int) -> None:
    """Write photos of 12 megapixels, with noise, so that they are as large as those of a camera."""
    generator = np.random.default_rng(0)
    for index in range(count):
        photo = Image.open(Path(skimage.__file__).parent / "data" / PHOTOS[index % len(PHOTOS)]).convert("RGB")
        pixels = np.asarray(ImageOps.fit(photo, SIZE), np.int16)
        noise = generator.integers(-6, 7, (SIZE[1], SIZE[0], 1), dtype=np.int16)
        Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{index:03}.jpg", quality=90)


def images_per_second(dataset: MaskedImageDataset, seconds: float, start: int) -> float:
    """Measure the speed of reading for about the given time, from another epoch each time."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        dataset[start * len(dataset) + count]
        count += 1
    return count / (time.perf_counter() - started)


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())


def main() -> None:
    """Pack, and measure reading before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="photos (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="shorter side of packed photos (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds for each data set in each round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        photos, folder = Path(name) / "photos", Path(name)
        photos.mkdir()
        make_photos(photos, args.images)
        rows = load_images(photos)
        source = PackSource(rows, [Path(path).name for path in rows["name"]])
        speeds = {}
        for workers in sorted({1, cores}):
            out = folder / f"packed-{workers}"
            out.mkdir()
            started = time.perf_counter()
            pack_images(source, out, PackSettings(ShrinkSettings(args.size)), workers)
            speeds[workers] = args.images / (time.perf_counter() - started)
        settings = {"image_size": (192, 192), "num_channels": 3, "patch_size": 4}
        images = {
            "photos, JPEG 4000x3000": rows,
            f"packed at {args.size} px": load_images(out),
            f"packed at {args.size} px, --streaming": stream_images(
                data_files=packed_files(out), cache_folder=folder / "blocks"
            ),
        }
        sets = {name: MaskedImageDataset(found, **settings) for name, found in images.items()}
        # Of whole images: random crops of few pixels are moved by fractions of one.
        before, after = (dataset.whole(0) for dataset in list(sets.values())[:2])
        differences = [
            (before[index]["pixel_values"].float() - after[index]["pixel_values"].float()).abs().mean().item()
            for index in range(len(before))
        ]
        rounds = [
            [images_per_second(dataset, args.seconds, number) for dataset in sets.values()]
            for number in range(args.rounds)
        ]
        disk = [sum(path.stat().st_size for path in photos.iterdir()) / args.images / 1e3]
        disk += [sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / args.images / 1e3] * 2
        print(
            f"{args.images} photos; {processor()}, one core for reading, Pillow {PIL.__version__}, torch"
            f" {torch.__version__}, Python {platform.python_version()}; to 192x192 px, median of {args.rounds} rounds\n"
        )
        print("| images | kB an image | images/s read | ratio (min to max) |")
        print("| --- | ---: | ---: | ---: |")
        for index, name in enumerate(sets):
            ratios = sorted(speed[index] / speed[0] for speed in rounds)
            speed = statistics.median(speed[index] for speed in rounds)
            print(
                f"| {name} | {disk[index]:,.0f} | {speed:,.0f} | {statistics.median(ratios):.1f} ({ratios[0]:.1f} to"
                f" {ratios[-1]:.1f}) |"
            )
        packing = ", ".join(
            f"{speed:.1f} images/s with {workers} process{'es' * (workers > 1)}" for workers, speed in speeds.items()
        )
        difference = statistics.mean(differences)
        print(f"\nPacking: {packing}. Mean difference of the images that a model sees: {difference:.2f} of 255.")


if __name__ == "__main__":
    main()
