"""Plants duplicates, blanks, broken files and leaks among images, audits them, and counts what is found and missed.

    python benchmarks/audit.py                      20,000 images, some minutes
    python benchmarks/audit.py --images 3000

Half of the images are crops of scikit-image's photos, at many scales, places and angles; the others are drawn. Copies
are planted of a part of them: as they are, at half the size, as JPEG of quality 60, mirrored, cropped by 5 %, and all
of these at once; and, in a folder that the images are compared with, the same of others. The audit runs in a process of
its own. A false alarm is a pair of images in one group of which neither was made from the other, nor both from a third.

Memory is the largest resident set of that process, without its workers.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from skimage import data

PHOTOS = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field"),
    *("immunohistochemistry", "moon", "page", "retina", "rocket", "text"),
)
# Copies of each kind, as shares of the images.
SHARES = {
    "exact copy": 0.01,
    "half the size": 0.01,
    "JPEG of quality 60": 0.01,
    "mirrored": 0.01,
    "cropped by 5 %": 0.01,
    "all of these at once": 0.01,
}
BLANKS, BROKEN, LEAKS = 0.005, 0.005, 0.01
REPORT = """
import json, resource, sys, time
from hf_simmim import audit
start = time.perf_counter()
audit(folder=sys.argv[1], against=[sys.argv[2]], output_dir=sys.argv[3])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak * 1024}))
"""


def photos() -> list[Image.Image]:
    """The photos of scikit-image that are installed with it."""
    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOS]


class Crops:
    """Parts of photos that are turned by any angle, none of which is nearly another.

    Args:
        sources: The photos.
    """

    def __init__(self, sources: list[Image.Image]):
        self.sources = sources
        self.taken: list[list[tuple[float, float, float, float]]] = [[] for _ in sources]

    def draw(self, generator: np.random.Generator) -> Image.Image:
        """A part of a photo, of 96 to 256 px."""
        while True:
            # Large photos have room for more parts.
            areas = np.array([photo.width * photo.height for photo in self.sources]) ** 0.5
            number = int(generator.choice(len(areas), p=areas / areas.sum()))
            photo = self.sources[number]
            side = int(generator.integers(72, min(photo.size) // 2))
            angle = float(generator.uniform(0, 360))
            reach = int(np.ceil(side * 2**0.5))
            left, top = (int(generator.integers(0, length - reach)) for length in photo.size)
            if not self._is_taken(number, left + reach / 2, top + reach / 2, side, angle):
                break
        turned = photo.crop((left, top, left + reach, top + reach)).rotate(angle, Image.Resampling.BICUBIC)
        edge = (reach - side) // 2
        part = turned.crop((edge, edge, edge + side, edge + side))
        height, width = (int(value) for value in generator.integers(96, 257, 2))
        return part.resize((width, height), Image.Resampling.BICUBIC)

    def _is_taken(self, number: int, x: float, y: float, side: float, angle: float) -> bool:
        """Whether a part is one that was drawn before, but for small differences."""
        taken = np.array(self.taken[number]).reshape(-1, 4)
        is_near = np.hypot(taken[:, 0] - x, taken[:, 1] - y) < 0.25 * side
        is_near &= np.abs(np.log(taken[:, 2] / side)) < 0.25
        is_near &= np.abs((taken[:, 3] - angle + 180) % 360 - 180) < 15
        if is_near.any():
            return True
        self.taken[number].append((x, y, side, angle))
        return False


def drawing(generator: np.random.Generator) -> Image.Image:
    """Clouds of colors with shapes on them."""
    height, width = (int(value) for value in generator.integers(96, 257, 2))
    cells = int(generator.integers(2, 24))
    colors = generator.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
    picture = Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(int(generator.integers(0, 14))):
        x, y = generator.integers(0, width), generator.integers(0, height)
        reach = generator.integers(4, 70, 2)
        color = tuple(int(value) for value in generator.integers(0, 256, 3))
        box = (int(x), int(y), int(x + reach[0]), int(y + reach[1]))
        (draw.ellipse, draw.rectangle, draw.line)[int(generator.integers(3))](box, fill=color)
    return picture.filter(ImageFilter.GaussianBlur(float(generator.uniform(0, 2))))


def changed(picture: Image.Image, kind: str, generator: np.random.Generator) -> bytes:
    """A copy of a picture, as a file."""
    every, quality = kind == "all of these at once", 92
    if every or kind.startswith("cropped"):
        width, height = picture.size
        left, top = generator.uniform(0, 0.05, 2)
        box = (left * width, top * height, (0.95 + left) * width, (0.95 + top) * height)
        picture = picture.crop(tuple(round(value) for value in box))  # type: ignore[arg-type]
    if every or kind == "half the size":
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)
    if every or kind == "mirrored":
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if every or kind.startswith("JPEG"):
        quality = 60
    return encoded(picture, quality)


def encoded(picture: Image.Image, quality: int = 92) -> bytes:
    """A JPEG file."""
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality)
    return file.getvalue()


def make(folder: Path, other: Path, count: int, seed: int = 0) -> dict[str, tuple[str, str]]:
    """Write the images.

    Args:
        folder: Folder of the images.
        other: Folder that they are compared with.
        count: Number of images, planted ones among them.
        seed: Random seed.

    Returns:
        What each planted file is, and the file it was made from, by its path.
    """
    generator = np.random.default_rng(seed)
    crops = Crops(photos())
    planted: dict[str, tuple[str, str]] = {}
    originals: list[tuple[str, Image.Image]] = []
    folder.mkdir(parents=True)
    other.mkdir(parents=True)
    number = {kind: max(1, round(share * count)) for kind, share in SHARES.items()}
    others = {"blank": max(1, round(BLANKS * count)), "broken": max(1, round(BROKEN * count))}
    leaks = max(1, round(LEAKS * count))
    plain = count - sum(number.values()) - sum(others.values())
    wanted = set(generator.permutation(plain)[: sum(number.values()) + leaks].tolist())
    for index in range(plain):
        picture = crops.draw(generator) if index % 2 else drawing(generator)
        path = folder / f"{index % 100:02d}" / f"{index:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(picture))
        if index in wanted:
            originals.append((str(path), picture))
    order = generator.permutation(len(originals)).tolist()
    for kind, many in number.items():
        for _ in range(many):
            source, picture = originals[order.pop()]
            path = folder / f"{len(planted) % 100:02d}" / f"copy_{len(planted):06d}.jpg"
            path.write_bytes(Path(source).read_bytes() if kind == "exact copy" else changed(picture, kind, generator))
            planted[str(path)] = (kind, source)
    for index in range(leaks):
        source, picture = originals[order.pop()]
        kind = list(SHARES)[index % len(SHARES)]
        path = other / f"{index:06d}.jpg"
        path.write_bytes(Path(source).read_bytes() if kind == "exact copy" else changed(picture, kind, generator))
        planted[str(path)] = ("in the other folder", source)
    for index in range(2 * leaks):
        (other / f"own_{index:06d}.jpg").write_bytes(encoded(drawing(generator)))
    for kind, many in others.items():
        for index in range(many):
            path = folder / f"{kind}_{index:06d}.jpg"
            color = tuple(int(value) for value in generator.integers(0, 256, 3))
            content = encoded(Image.new("RGB", (128, 128), color))
            if kind == "broken":
                content = encoded(drawing(generator))
                content = content[: len(content) // 2] if index % 2 else bytes(64) + content[64:]
            path.write_bytes(content)
            planted[str(path)] = (kind, "")
    return planted


def count(results: Path, planted: dict[str, tuple[str, str]]) -> list[tuple[str, int, int, int]]:
    """Planted, found and false alarms of each kind.

    Args:
        results: Folder of the audit.
        planted: As `make` returns it.

    Returns:
        Rows of kind, planted, found, false alarms.
    """
    found = json.loads((results / "audit.json").read_text(encoding="utf-8"))
    groups = json.loads((results / "groups.json").read_text(encoding="utf-8"))
    leaked = {entry["path"] for entry in found["against"]}
    blank = set(found["blank"])
    broken = {entry["path"] for entry in found["unreadable"]}
    rows: Counter[tuple[str, bool]] = Counter()
    for path, (kind, source) in planted.items():
        if kind == "blank":
            is_found = path in blank
        elif kind == "broken":
            is_found = path in broken
        elif kind == "in the other folder":
            is_found = source in leaked
        else:
            is_found = path in groups and groups[path] == groups.get(source)
        rows[kind, is_found] += 1
    of = {path: source or path for path, (_, source) in planted.items()}
    members: dict[int, list[str]] = {}
    for path, group in groups.items():
        members.setdefault(group, []).append(of.get(path, path))
    # A group of n families has n - 1 links too many.
    alarms = sum(len(set(paths)) - 1 for paths in members.values() if len(paths) > 1)
    true = {source for kind, source in planted.values() if kind == "in the other folder"}
    planted_of = {kind: {path for path, (name, _) in planted.items() if name == kind} for kind in ("blank", "broken")}
    false = {
        "in the other folder": len(leaked - true),
        "blank": len(blank - planted_of["blank"]),
        "broken": len(broken - planted_of["broken"]),
        "all of these at once": alarms,
    }
    kinds = list(dict.fromkeys(kind for kind, _ in planted.values()))
    return [(kind, rows[kind, True] + rows[kind, False], rows[kind, True], false.get(kind, -1)) for kind in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="Number of images.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed.")
    parser.add_argument("--keep", help="Folder to write to, which is kept; a temporary one if unset.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(arguments.keep or temporary).resolve()
        start = time.perf_counter()
        planted = make(root / "images", root / "other", arguments.images, arguments.seed)
        print(f"{arguments.images:,} images made in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        command = [sys.executable, "-c", REPORT, str(root / "images"), str(root / "other"), str(root / "audit")]
        completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(completed.stdout.splitlines()[-1])
        rows = count(root / "audit", planted)
    print("| kind | planted | found | missed | false alarms |\n| --- | ---: | ---: | ---: | ---: |")
    for kind, number, found, false in rows:
        print(f"| {kind} | {number} | {found} | {number - found} | {'' if false < 0 else false} |")
    print(
        f"\n{arguments.images:,} images in {measured['seconds']:.0f} s, {measured['peak'] / 2**20:.0f} MiB of memory;"
        f" {os.cpu_count()} cores of {processor()}, Python {platform.python_version()}, NumPy {np.__version__},"
        f" Pillow {version('pillow')}, hf-simmim {version('hf-simmim')}. False alarms among copies are those of all"
        " kinds together, in the last row of copies."
    )


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
