"""How long slices of volumes take to read at random: compressed, plain and packed; and headers of DICOM files.

    python benchmarks/volumes.py --volumes 3 --slices 120 --side 512

Prints milliseconds for each slice that is drawn, with the processor and the versions. Needs hf-simmim[medical].
"""

import argparse
import importlib
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np

import hf_simmim
from hf_simmim.data.reading import open_row
from hf_simmim.data.sources import load_images
from hf_simmim.formats import nifti

FACTOR = 1 / 4095


def milliseconds(rows, count: int) -> float:
    """Time to read one of some rows that are drawn at random."""
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    start = time.perf_counter()
    for index in order:
        open_row(rows[int(index)], 1, FACTOR)
    return (time.perf_counter() - start) / len(order) * 1000


def write_volumes(folder: Path, suffix: str, count: int, shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(0)
    place = generator.normal(size=(*shape[:2], 1)) * 50
    folder.mkdir()
    for index in range(count):
        # Noise and a picture that the slices share, as in scans.
        array = (place + generator.normal(size=shape) * 20).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), folder / f"{index}{suffix}")


def write_series(folder: Path, count: int) -> None:
    content = Path(importlib.import_module("pydicom.data").get_testdata_file("CT_small.dcm")).read_bytes()
    folder.mkdir()
    for index in range(count):
        (folder / f"{index}.dcm").write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=3, help="Number of volumes.")
    parser.add_argument("--slices", type=int, default=120, help="Slices of each.")
    parser.add_argument("--side", type=int, default=512, help="Side of a slice, in pixels.")
    parser.add_argument("--drawn", type=int, default=24, help="Slices that are drawn.")
    parser.add_argument("--headers", type=int, default=2000, help="DICOM files whose headers are read.")
    arguments = parser.parse_args()
    shape = (arguments.side, arguments.side, arguments.slices)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_volumes(folder / "compressed", ".nii.gz", arguments.volumes, shape)
        write_volumes(folder / "plain", ".nii", arguments.volumes, shape)
        rows = load_images(folder / "compressed")
        print(f"| {arguments.volumes} volumes of {'x'.join(map(str, shape))} | ms a slice |\n| --- | --- |")
        milliseconds(rows, arguments.drawn)
        print(f"| .nii.gz, all kept in memory | {milliseconds(rows, arguments.drawn):.1f} |")
        nifti.MAX_KEPT = 1
        nifti._kept.clear()
        print(f"| .nii.gz, one kept, as of many volumes | {milliseconds(rows, arguments.drawn):.1f} |")
        print(f"| .nii | {milliseconds(load_images(folder / 'plain'), arguments.drawn):.1f} |")
        start = time.perf_counter()
        hf_simmim.pack(
            image_dir=str(folder / "compressed"), output_dir=str(folder / "packed"), size=arguments.side, workers=1
        )
        packing = time.perf_counter() - start
        packed = milliseconds(load_images(folder / "packed"), arguments.drawn)
        print(f"| packed, which took {packing:.0f} s | {packed:.1f} |")
        write_series(folder / "series", arguments.headers)
        start = time.perf_counter()
        load_images(folder / "series")
        print(f"\nHeaders of {arguments.headers:,} DICOM files: {time.perf_counter() - start:.1f} s.")
    versions = ", ".join(f"{library} {version(library)}" for library in ("nibabel", "pydicom", "numpy"))
    print(f"\nPython {platform.python_version()}, {platform.machine()}, {versions}.")


if __name__ == "__main__":
    main()
