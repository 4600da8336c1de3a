"""Memory and speed of reading windows of an image of two gigapixels, by each reader that is installed.

The image is made here: 45,000 x 45,000 pixels of 8 bits, of which one tile in 16 is noise and the others are constant,
so that the files are small. Each reader reads windows at random places in a process of its own. Memory is the peak of
that process, less what it holds before it opens the file.

    python benchmarks/windows.py
    python benchmarks/windows.py --side 20000 --windows 100
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import tifffile

from hf_simmim.formats.large import open_large
from hf_simmim.formats.large_images import LargeImage
from hf_simmim.formats.large_others import RasterImage, SlideImage

TILE = 512
READERS = {
    "TIFF, deflate tiles": ("deflate.tif", open_large),
    "TIFF, deflate strips": ("strips.tif", open_large),
    "TIFF, not compressed": ("plain.tif", open_large),
    "TIFF, deflate tiles, by rasterio": ("deflate.tif", RasterImage),
    "TIFF, deflate tiles, by OpenSlide": ("deflate.tif", SlideImage),
    "zarr": ("array.zarr", open_large),
    "NumPy": ("array.npy", open_large),
}
NEEDED = {RasterImage: "rasterio", SlideImage: "openslide"}


def tiles(count: int, height: int, width: int, last: int | None = None) -> Iterator[bytes]:
    """Encoded tiles or strips: one of 16 is noise; the last strip may have fewer rows."""
    generator = np.random.default_rng(0)
    noise = zlib.compress(generator.integers(0, 4, (height, width), dtype=np.uint8).tobytes(), 1)
    constant = [zlib.compress(np.full((height, width), value, np.uint8).tobytes(), 1) for value in range(16)]
    for index in range(count - 1):
        yield noise if index % 16 == 0 else constant[index % 16]
    yield zlib.compress(bytes((last or height) * width), 1)


def make(folder: Path, side: int) -> None:
    """Write the image in each format."""
    across = -(-side // TILE)
    tifffile.imwrite(
        folder / "deflate.tif",
        tiles(across * across, TILE, TILE),
        shape=(side, side),
        dtype=np.uint8,
        tile=(TILE, TILE),
        compression="zlib",
        metadata=None,
    )
    tifffile.imwrite(
        folder / "strips.tif",
        tiles(-(-side // 16), 16, side, side % 16 or 16),
        shape=(side, side),
        dtype=np.uint8,
        rowsperstrip=16,
        compression="zlib",
        metadata=None,
    )
    # Holes take no place on the disk.
    tifffile.imwrite(folder / "plain.tif", shape=(side, side), dtype=np.uint8, metadata=None)
    array = np.lib.format.open_memmap(folder / "array.npy", "w+", np.uint8, (side, side))
    array[::TILE] = 1
    del array
    if importlib.util.find_spec("zarr"):
        zarr = importlib.import_module("zarr")
        store = zarr.create_array(
            store=str(folder / "array.zarr"), shape=(side, side), chunks=(TILE, TILE), dtype="uint8"
        )
        noise = np.random.default_rng(0).integers(0, 4, (TILE, TILE), dtype=np.uint8)
        for row in range(0, side - TILE, 4 * TILE):
            for column in range(0, side - TILE, 4 * TILE):
                store[row : row + TILE, column : column + TILE] = noise


def peak() -> float:
    """Peak of the memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, folder: Path, size: int, windows: int) -> dict[str, float]:
    """Read windows; run in a process of its own."""
    file, opens = READERS[name]
    before = peak()
    start = time.perf_counter()
    image: LargeImage = opens(str(folder / file))
    image.read(0, 0, 0, 1, 1)
    opened = time.perf_counter() - start
    height, width = image.levels[0]
    generator = np.random.default_rng(1)
    start = time.perf_counter()
    for _ in range(windows):
        image.read(0, int(generator.integers(height - size)), int(generator.integers(width - size)), size, size)
    rate = windows / (time.perf_counter() - start)
    return {"opened": opened, "rate": rate, "memory": peak() - before}


def shown_version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=45_000, help="Side of the image in pixels.")
    parser.add_argument("--size", type=int, default=512, help="Side of the windows in pixels.")
    parser.add_argument("--windows", type=int, default=200, help="Number of windows.")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, folder = arguments.measure
        print(json.dumps(measure(name, Path(folder), arguments.size, arguments.windows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), arguments.side)
        gigabytes = arguments.side**2 / 1e9
        print(f"| {arguments.side:,} x {arguments.side:,} px, {gigabytes:.1f} GB | peak MB | opened in s | windows/s |")
        print("| --- | --- | --- | --- |")
        for name, (file, opens) in READERS.items():
            library = NEEDED.get(opens, "zarr" if file.endswith("zarr") else "numpy")
            if importlib.util.find_spec(library) is None:
                continue
            own = [str(Path(__file__).resolve()), "--size", str(arguments.size), "--windows", str(arguments.windows)]
            done = subprocess.run(
                [sys.executable, *own, "--measure", name, folder], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"| {name} | {done.stderr.strip().splitlines()[-1]} | | |")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"| {name} | {found['memory']:.0f} | {found['opened']:.2f} | {found['rate']:.0f} |")
    packages = ", ".join(
        shown_version(name) for name in ("tifffile", "numpy", "imagecodecs", "rasterio", "openslide-python", "zarr")
    )
    print(f"\nWindows of {arguments.size} x {arguments.size} px, one process of {os.cpu_count()} cores,", end=" ")
    print(f"{platform.machine()}, Python {platform.python_version()}, {packages}.")


if __name__ == "__main__":
    main()
