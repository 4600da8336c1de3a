"""Writes a folder of photographs as people have them: many sizes, modes, formats and odd names.

    python tests/support/photos.py FOLDER COUNT [--seed SEED] [--unreadable N] [--others]

The pictures are crops of those that scikit-image ships in its wheel, so nothing is downloaded.
"""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage
from PIL import ExifTags, Image, ImageDraw, ImageFilter

SOURCES = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg")
FOLDERS = ("", "holiday 2019", "holiday 2019/Île de Ré", "scans/from paper", "写真")
STEMS = ("IMG_{:04d}", "DSC {:04d}", "Frühstück {:04d}", "photo-{:04d}.edited")

# EXIF orientation: what the camera did to the pixels, and a viewer undoes.
ROTATIONS = dict(zip(range(2, 9), [Image.Transpose(turn) for turn in (0, 3, 1, 5, 2, 6, 4)], strict=True))


def random_photo(rng: np.random.Generator, size: tuple[int, int] | None = None) -> Image.Image:
    """An RGB crop of one of the sources, of the given (width, height) or a random one."""
    source = _source(SOURCES[rng.integers(len(SOURCES))])
    if size is None:
        area, ratio = np.exp(rng.uniform(np.log((130**2, 0.5)), np.log((500**2, 2))))
        size = (round((area * ratio) ** 0.5), round((area / ratio) ** 0.5))
    width, height = size
    scale = min(source.width / width, source.height / height) * rng.uniform(0.4, 1)
    left, top = rng.uniform(0, source.width - width * scale), rng.uniform(0, source.height - height * scale)
    return source.resize((width, height), box=(left, top, left + width * scale, top + height * scale))


@cache
def _source(name: str) -> Image.Image:
    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")


def alpha_of(image: Image.Image) -> Image.Image:
    """A soft ellipse: opaque in the middle of the image, transparent in its corners."""
    alpha = Image.new("L", image.size)
    ImageDraw.Draw(alpha).ellipse((0, 0, image.width - 1, image.height - 1), fill=255)
    return alpha.filter(ImageFilter.GaussianBlur(5))


def _with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(alpha_of(image))
    return image


def _with_transparent_color(image: Image.Image) -> Image.Image:
    indices = image.quantize(255)
    # The transparent color is magenta, so that it shows where transparency is lost.
    indices.putpalette([*indices.getpalette()[: 3 * 255], 255, 0, 255])
    indices.paste(255, mask=alpha_of(image).point(lambda alpha: 255 * (alpha < 128)))
    return indices


def _with_exif(orientation: int) -> tuple[str, Callable[[Image.Image], Image.Image], dict[str, Any]]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return ".jpg", lambda image: image.transpose(ROTATIONS[orientation]), {"exif": exif}


# Name: suffix, what turns a new RGB image into what is stored, and options of `Image.save`.
KINDS: dict[str, tuple[str, Callable[[Image.Image], Image.Image], dict[str, Any]]] = {
    "jpeg": (".jpg", lambda image: image, {}),
    "upper-case suffix": (".JPG", lambda image: image, {}),
    "progressive": (".jpeg", lambda image: image, {"progressive": True}),
    "webp": (".webp", lambda image: image, {}),
    "gray jpeg": (".jpg", lambda image: image.convert("L"), {}),
    "cmyk jpeg": (".jpg", lambda image: image.convert("CMYK"), {}),
    "rgba png": (".png", _with_alpha, {}),
    "la png": (".png", lambda image: _with_alpha(image.convert("L")), {}),
    "palette png": (".png", _with_transparent_color, {"transparency": 255}),
    "gif": (".gif", _with_transparent_color, {"transparency": 255}),
    "1-bit png": (".png", lambda image: image.convert("1"), {}),
    "16-bit png": (".png", lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), {}),
    **{f"exif {orientation}": _with_exif(orientation) for orientation in ROTATIONS},
}


def write_photos(folder: Path, count: int, seed: int = 0, *, unreadable: int = 0, others: bool = False) -> list[Path]:
    """Write photographs into a folder, made if need be, and its sub-folders; return the paths of the readable ones.

    Every second one is a plain JPEG, the others take turns through `KINDS`. `unreadable` adds so many broken files that
    look like images by their names, `others` adds files that do not.
    """
    rng = np.random.default_rng(seed)
    special = list(KINDS)[1:]
    paths = []
    for index in range(count):
        suffix, convert, options = KINDS["jpeg" if index % 2 == 0 else special[index // 2 % len(special)]]
        path = folder / FOLDERS[rng.integers(len(FOLDERS))] / (STEMS[rng.integers(len(STEMS))].format(index) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        convert(random_photo(rng)).save(path, quality=int(rng.integers(40, 96)), **options)
        paths.append(path)
    for index in range(unreadable):
        path = folder / f"unreadable {index:04d}.jpg"
        random_photo(rng).save(path)
        content = path.read_bytes()
        path.write_bytes((content[: len(content) // 2], b"", b"This is no image.\n")[index % 3])
    for name in ("notes.txt", ".DS_Store", "Thumbs.db") if others else ():
        (folder / name).write_bytes(b"\0\0\0\1Bud1")
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unreadable", type=int, default=0, metavar="N", help="broken files to add")
    parser.add_argument("--others", action="store_true", help="add files that are no images by their names")
    print(*write_photos(**vars(parser.parse_args())), sep="\n")
