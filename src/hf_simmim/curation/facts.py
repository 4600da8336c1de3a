"""What each image file is: format, size, channels, depth, values and a thumbnail, kept in a file while it is found."""

import base64
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from transformers.utils import logging

from ..data.reading import describe
from ..data.survey import glance
from ..data.transforms import upright_size
from ..formats.address import parse_address
from ..formats.readers import format_inside
from ..model.image_readers import Wanted, upright
from ..model.images import convert_channels, is_deep, read_stored

logger = logging.get_logger(__name__)

# Side of the gray thumbnails that images are compared by, in pixels.
SIDE = 32
# Side of the maps of their colors.
COLOR_SIDE = 4
# JPEG files are decoded to at least this side where they allow it, in pixels.
DRAFT = 128
# Range of values of an 8-bit image up to which it is blank: the noise of JPEG.
BLANK_RANGE = 8
# Files that are looked at before what was found is written.
BATCH = 16


@dataclass(frozen=True, slots=True)
class Facts:
    """What an image file is.

    Args:
        path: Absolute path.
        size: Size of the file in bytes.
        mtime: Time of its last change, in nanoseconds.
        digest: Hash of its content; empty if it cannot be read.
        error: Why it cannot be read; empty if it can.
        format: Format, such as JPEG.
        height: Height in pixels, upright.
        width: Width in pixels, upright.
        channels: Number of channels without transparency, 1 for gray pictures that are stored as RGB.
        depth: Bit depth, such as "8 bits" or "float32".
        low: Smallest value, without missing pixels. Values of JPEG files are those of a smaller copy.
        high: Largest value.
        mean: Mean of the values.
        std: Standard deviation of the values.
        orientation: EXIF orientation, 1 if upright.
        is_blank: Whether all pixels are (nearly) equal.
        nodata: Value of missing pixels that the file states.
        corner: Smallest or largest value of the image, if it alone fills a corner.
        gap: How far that value is from all others, as a multiple of their range.
    """

    path: str
    size: int
    mtime: int
    digest: str = ""
    error: str = ""
    format: str = ""
    height: int = 0
    width: int = 0
    channels: int = 0
    depth: str = ""
    low: float = 0
    high: float = 0
    mean: float = 0
    std: float = 0
    orientation: int = 1
    is_blank: bool = False
    nodata: float | None = None
    corner: float | None = None
    gap: float = 0

    @property
    def is_readable(self) -> bool:
        """Whether the file can be read."""
        return not self.error

    @property
    def num_pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width


class Thumbnail(NamedTuple):
    """What an image is compared by.

    Attributes:
        gray: uint8 of shape (SIDE, SIDE), stretched to the whole range.
        colors: Cb and Cr, uint8 of shape (2, COLOR_SIDE, COLOR_SIDE); 128 for gray and for images of other channels.
    """

    gray: np.ndarray
    colors: np.ndarray

    def encode(self) -> str:
        """The numbers as text."""
        return base64.b64encode(self.gray.tobytes() + self.colors.tobytes()).decode()


class Thumbnails(NamedTuple):
    """Thumbnails of N images.

    Attributes:
        gray: uint8 of shape (N, SIDE, SIDE).
        colors: uint8 of shape (N, 2, COLOR_SIDE, COLOR_SIDE).
    """

    gray: np.ndarray
    colors: np.ndarray

    @classmethod
    def empty(cls, count: int) -> "Thumbnails":
        """Thumbnails that are black, and without colors."""
        shape = (count, 2, COLOR_SIDE, COLOR_SIDE)
        return cls(np.zeros((count, SIDE, SIDE), np.uint8), np.full(shape, 128, np.uint8))

    def decode(self, index: int, text: str) -> None:
        """Read a thumbnail from text."""
        numbers = np.frombuffer(base64.b64decode(text), np.uint8)
        self.gray[index] = numbers[: SIDE * SIDE].reshape(SIDE, SIDE)
        self.colors[index] = numbers[SIDE * SIDE :].reshape(2, COLOR_SIDE, COLOR_SIDE)


def look(path: str) -> tuple[Facts, Thumbnail | None]:
    """Look at a file, or at an image inside a file.

    Args:
        path: Its path or address.

    Returns:
        What it is, and its thumbnail; None if it cannot be read.
    """
    path = os.path.abspath(path)
    key: dict[str, Any] = {"path": path, "size": 0, "mtime": 0}
    address, wanted = parse_address(path), Wanted(num_channels=3, keeps_depth=True)
    try:
        status = os.stat(address.path)
        key |= {"size": status.st_size, "mtime": status.st_mtime_ns}
        own = format_inside(address.path)
        is_plain = not address.part and (own is None or own.only_parts)
        if is_plain and not os.path.isdir(path):
            content = Path(path).read_bytes()
            key["digest"] = hashlib.blake2b(content, digest_size=16).hexdigest()
            try:
                stored = read_stored(content, wanted)
            except Exception:
                # The name of a file tells which library would read it.
                stored = read_stored(path, wanted)
        else:
            file = _file_digest(address.path, status.st_size, status.st_mtime_ns)
            part = str(sorted(address.part.items())) if address.part else ""
            key["digest"] = hashlib.blake2b(file + part.encode(), digest_size=16).hexdigest()
            stored = read_stored(path, wanted)
        found, thumbnail = _look_inside(stored.image, stored.kind, stored.nodata)
        if not found["format"]:
            is_own = own is not None and not own.only_parts
            found["format"] = own.name if is_own else Path(address.path).suffix[1:].upper()
    except Exception as error:  # readers raise anything on a broken file
        return Facts(**key, error=describe(error)), None
    return Facts(**key, **found), thumbnail


@functools.lru_cache(maxsize=1024)
def _file_digest(path: str, size: int, modified: int) -> bytes:
    """Hash of a file of many images, which is read once; of a folder, its path and time."""
    if os.path.isdir(path):
        return f"{path} {modified}".encode()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _look_inside(image: Any, kind: str, nodata: float | None) -> tuple[dict[str, Any], Thumbnail]:
    found: dict[str, Any] = {"format": "", "nodata": nodata}
    if isinstance(image, Image.Image):
        found["format"] = image.format or ""
        found["height"], found["width"] = upright_size(image)
        found["orientation"] = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        if not is_deep(image):
            image.draft("RGB", (DRAFT, DRAFT))
            picture = convert_channels(upright(image), 3)
            values = np.asarray(picture)
            _, found["channels"], found["depth"] = glance(picture.copy())
            if image.getbands() == ("C", "M", "Y", "K"):
                found["channels"] = 3
            is_exact = found["format"] != "JPEG"
            found |= _values(values, nodata, is_bytes=True, has_corners=is_exact)
            small = picture.resize((COLOR_SIDE, COLOR_SIDE), Image.Resampling.BOX).convert("YCbCr")
            colors = np.moveaxis(np.asarray(small)[..., 1:], -1, 0)
            return found, Thumbnail(_thumbnail(np.asarray(picture.convert("L"))), colors)
        image = np.asarray(upright(image))
    array = np.asarray(image)
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "buif":
        raise ValueError(
            f"The file holds {array.dtype} of shape {array.shape}, but numbers of two or three axes are needed. Save"
            " each image by itself."
        )
    if array.ndim == 3 and array.shape[0] < array.shape[-1] and not kind:
        array = np.moveaxis(array, 0, -1)
    if kind[-1:] in ("A", "a"):
        array = array[..., :-1]
    array = np.atleast_3d(array)
    found["height"], found["width"], found["channels"] = array.shape
    is_number = array.dtype.kind in "bui"
    found["depth"] = f"{array.dtype.itemsize * 8} bits" if is_number else str(array.dtype)
    found |= _values(array, nodata, is_bytes=array.dtype == np.uint8, has_corners=True)
    # float64 may hold what float32 cannot; compared by their places in the range.
    numbers = array.astype(np.float64).mean(axis=-1)
    missing = ~np.isfinite(numbers)
    for value in (nodata, found["corner"] if found["gap"] > 0 else None):
        if value is not None:
            missing |= (array == value).all(axis=-1)
    real = numbers[~missing]
    if real.size:
        low, high = float(real.min()), float(real.max())
        numbers = (np.where(missing, real.mean(), numbers) - low) / ((high - low) or 1)
    else:
        numbers = np.zeros_like(numbers)
    colors = np.full((2, COLOR_SIDE, COLOR_SIDE), 128, np.uint8)
    return found, Thumbnail(_thumbnail(numbers.astype(np.float32)), colors)


def _values(array: np.ndarray, nodata: float | None, is_bytes: bool, has_corners: bool) -> dict[str, Any]:
    """Range and spread of values (H, W, C), and whether they are all alike or an extreme fills a corner."""
    missing = np.zeros(array.shape[:2], bool)
    if array.dtype.kind == "f":
        missing |= ~np.isfinite(array).all(axis=-1)
    if nodata is not None:
        missing |= (array == array.dtype.type(nodata)).all(axis=-1) if _fits(array, nodata) else False
    real = array[~missing] if missing.any() else array.reshape(-1, array.shape[-1])
    if not real.size:
        return {"is_blank": True, "corner": None, "gap": 0.0}
    low, high = float(real.min()), float(real.max())
    # By channel: gray is not the only constant color.
    spread = float(np.subtract(real.max(axis=0), real.min(axis=0), dtype=np.float64).max())
    corner, gap = _filled_corner(array, low, high, real) if has_corners and low < high else (None, 0.0)
    if corner is not None and gap > 0:
        real = real[(real != corner).any(axis=-1)]
        low, high = float(real.min()), float(real.max())
    return {
        **{"low": low, "high": high, "corner": corner, "gap": gap},
        **{"mean": float(real.mean(dtype=np.float64)), "std": float(real.std(dtype=np.float64))},
        "is_blank": spread <= (BLANK_RANGE if is_bytes else 0),
    }


def _fits(array: np.ndarray, value: float) -> bool:
    """Whether a value can be among the numbers of an array."""
    if array.dtype.kind == "f":
        return True
    bounds = np.iinfo(array.dtype) if array.dtype.kind in "ui" else None
    return bounds is not None and float(value).is_integer() and bounds.min <= value <= bounds.max


def _filled_corner(array: np.ndarray, low: float, high: float, real: np.ndarray) -> tuple[float | None, float]:
    """The extreme that alone fills a corner of a 32nd of the sides, and its distance to all other values."""
    height, width = (max(2, side // 32) for side in array.shape[:2])
    for corner in (array[:height, :width], array[:height, -width:], array[-height:, :width], array[-height:, -width:]):
        value = float(corner.flat[0])
        if value in (low, high) and (corner == corner.flat[0]).all():
            others = real[(real != corner.flat[0]).any(axis=-1)]
            if not others.size:
                return value, 0.0
            inner, outer = float(others.min()), float(others.max())
            distance = inner - value if value == low else value - outer
            return value, max(distance, 0.0) / ((outer - inner) or 1)
    return None, 0.0


def _thumbnail(gray: np.ndarray) -> np.ndarray:
    """Shrink gray values (H, W), uint8 or float32, to uint8 of shape (SIDE, SIDE) that uses the whole range."""
    small = Image.fromarray(np.ascontiguousarray(gray, np.float32))
    values = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    low, high = values.min(), values.max()
    return np.rint((values - low) * (255 / ((high - low) or 1))).astype(np.uint8)


class _Files(torch.utils.data.Dataset):
    """Files as lines of the file of facts."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        facts, thumbnail = look(self.paths[index])
        entry = asdict(facts)
        if thumbnail is not None:
            entry["thumbnail"] = thumbnail.encode()
        return json.dumps(entry)


def gather(
    paths: Iterable[str],
    file: Path,
    workers: int = 1,
    progress: Callable[[int], Any] | None = None,
    others: Sequence[Path] = (),
) -> tuple[list[Facts], Thumbnails]:
    """Look at files in several processes, and append what is found to a file, with which a later call continues.

    Args:
        paths: Paths of the images.
        file: JSON lines of facts. Files whose size and time are those in there are not looked at again.
        workers: Number of processes; 1 for this one.
        progress: Called with the number of files that were looked at, or known already.
        others: Further files of facts, which are only read.

    Returns:
        The facts in the order of the paths, and their thumbnails, empty for unreadable files.

    Raises:
        ValueError: If a process ended, such as for lack of memory.
    """
    paths = [os.path.abspath(path) for path in paths]
    known = {path: key for one in (file, *others) for path, key in _known_keys(one).items()}
    waiting = [path for path in paths if known.get(path) != _key(path)]
    if progress is not None:
        progress(len(paths) - len(waiting))
    with open(file, "a", encoding="utf-8") as lines:
        num_workers = workers if workers > 1 and len(waiting) > BATCH else 0
        loader = torch.utils.data.DataLoader(_Files(waiting), BATCH, num_workers=num_workers, collate_fn=list)
        try:
            for batch in loader:
                lines.write("".join(f"{line}\n" for line in batch))
                lines.flush()
                if progress is not None:
                    progress(len(batch))
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise ValueError(
                f"A process ended while it looked at images ({' '.join(str(error).split())[:120]}). Repeat the command"
                " with fewer --workers: it continues."
            ) from error
    return _read([*others, file], paths)


def _key(path: str) -> tuple[int, int]:
    try:
        status = os.stat(parse_address(path).path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _lines(file: Path) -> Iterable[dict[str, Any]]:
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # cut off by a kill
                continue
            if isinstance(entry, dict) and entry.get("path"):
                yield entry


def _known_keys(file: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the files that were looked at; a line that was cut off is closed."""
    if not file.exists():
        return {}
    with open(file, "rb+") as content:
        if content.seek(0, os.SEEK_END):
            content.seek(-1, os.SEEK_END)
            if content.read(1) != b"\n":
                content.write(b"\n")
    return {entry["path"]: (entry["size"], entry["mtime"]) for entry in _lines(file)}


def _read(files: Sequence[Path], paths: Sequence[str]) -> tuple[list[Facts], Thumbnails]:
    places = {path: index for index, path in enumerate(paths)}
    facts: list[Facts | None] = [None] * len(paths)
    thumbnails = Thumbnails.empty(len(paths))
    for entry in (entry for file in files for entry in _lines(file)):
        place = places.get(entry["path"])
        if place is None:
            continue
        text = entry.pop("thumbnail", None)
        facts[place] = Facts(**entry)
        if text is not None:
            thumbnails.decode(place, text)
    return [found for found in facts if found is not None], thumbnails
