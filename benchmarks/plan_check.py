"""The forecast of `hf-simmim plan` against the training that follows, for three folders.

The folders hold small gray pictures (embedded, Fashion-MNIST), crops of photos, and whole photos, made here. Each is
trained for a short time budget with every setting chosen by the package. Requires scikit-image for its photos.

    python benchmarks/plan_check.py
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import skimage
import torch
from datasets import load_dataset
from measuring import machine, write_result
from PIL import Image, ImageOps

EMBEDDED = Path(__file__).parents[1] / "examples" / "data" / "fashion_mnist_7k" / "train.parquet"
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
NUM_CLOTHES, NUM_CROPS, NUM_PHOTOS = 2_000, 600, 200


def make_clothes(folder: Path) -> None:
    """Gray pictures of 28 px."""
    rows = load_dataset("parquet", data_files=str(EMBEDDED), split=f"train[:{NUM_CLOTHES}]")
    for index, row in enumerate(rows):
        row["image"].save(folder / f"{index:05}.png")


def make_crops(folder: Path, size: int = 96) -> None:
    """Color crops of photos."""
    generator = torch.Generator().manual_seed(0)
    photos = [Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB") for name in PHOTOS]
    for index in range(NUM_CROPS):
        photo = photos[index % len(photos)]
        left, top = (int(torch.randint(0, side - size, (), generator=generator)) for side in photo.size)
        photo.crop((left, top, left + size, top + size)).save(folder / f"{index:05}.png")


def make_photos(folder: Path) -> None:
    """Photos of 1280x960 px as JPEG files."""
    photos = [Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB") for name in PHOTOS]
    for index in range(NUM_PHOTOS):
        ImageOps.fit(photos[index % len(photos)], (1280, 960)).save(folder / f"{index:05}.jpg", quality=85 + index % 10)


FOLDERS = {"clothes": make_clothes, "crops": make_crops, "photos": make_photos}


def check(name: str, hours: float, root: Path) -> dict[str, Any]:
    """Plan and train for a time budget.

    Args:
        name: Name of the folder.
        hours: Time budget in hours.
        root: Folder for images and results.

    Returns:
        The forecast, what was measured, and the settings that were chosen.
    """
    images, output = root / name, root / f"{name}-run"
    images.mkdir()
    FOLDERS[name](images)
    command = [sys.executable, "-m", "hf_simmim", "pretrain", "--train_dir", str(images), "--output_dir", str(output)]
    start = time.perf_counter()
    subprocess.run([*command, "--hours", str(hours), "--disable_tqdm", "true"], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    settings = record.get("settings", record)
    card = (output / "README.md").read_text(encoding="utf-8")
    line = re.search(r"^.*; it took .*$", card, flags=re.MULTILINE)
    if line is None:
        raise SystemExit(f"The card of {output} has no forecast.")
    return {
        "forecast": settings["forecast"],
        "seconds_of_command": round(seconds),
        "line": line[0].strip("| "),
        "chosen": settings["chosen"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=0.03, help="time budget of each (default: %(default)s)")
    parser.add_argument("--folders", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    args = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine("cpu").items()) + f", {platform.system()}")
    with tempfile.TemporaryDirectory() as root:
        for name in args.folders:
            result = check(name, args.hours, Path(root))
            print(f"\n{name}: {result['line']}\n  the command took {result['seconds_of_command']} s", flush=True)
            print(f"  chosen: {result['chosen']}", flush=True)
            write_result("plan_check", {"benchmark": "plan_check", **machine("cpu"), "folder": name, **result})


if __name__ == "__main__":
    main()
