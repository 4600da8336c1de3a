"""Maps of class ids: each number is the id that was saved, or the file is refused."""

import os
from typing import Any

import numpy as np
from PIL import Image

from ...formats.address import parse_address
from ...formats.dicom import is_dicom, is_lossy
from ...model.image_readers import Source, content_of, opened
from ...model.images import open_image, upright
from ...model.tiff import TIFF_MAGICS, first_value, is_part, tiff_directories
from ..reading import describe

# JPEG, and the compressions of slides and cameras that are not exact.
LOSSY_TIFF = {6, 7, 33003, 33005, 34892}
# Pages of a TIFF file that are looked at for the first that is no thumbnail.
MAX_PAGES = 64
CHANGES_IDS = "changes class ids at every edge: save it as PNG from the original"


def read_ids(row: dict[str, Any], ignore_index: int) -> np.ndarray:
    """Read the values of an annotation, as they are stored.

    Args:
        row: Row of `SegmentationPairs.annotations`.
        ignore_index: Value for missing pixels, such as those of GDAL's nodata.

    Returns:
        int32 array (H, W).

    Raises:
        ValueError: If the annotation cannot be read, is not a map of integers, or its file is of a kind that may hold
            other numbers than were saved.
    """
    source = row["image"]
    try:
        if isinstance(source, dict):
            content = source["bytes"] if source["bytes"] is not None else source["path"]
            _refuse_other_numbers(content)
            source = open_image(content, 1, 1.0, indices=True)
        if isinstance(source, Image.Image):
            source = upright(source)
            if source.mode not in ("1", "L", "P"):
                raise ValueError(f"it is an image of mode {source.mode}: convert its colors to class ids")
        array = np.asarray(source)
        array = array.reshape(array.shape[1:]) if array.ndim == 3 and array.shape[0] == 1 else array
        if array.ndim != 2:
            raise ValueError(f"it has shape {array.shape} and must be a map (height, width) of class ids")
        if array.dtype.kind == "f":
            array = np.where(np.isfinite(array), array, ignore_index)
            if (array != np.floor(array)).any():
                raise ValueError("it has fractions, and class ids are integers")
        beyond = array[(array > np.iinfo(np.int32).max) | (array < np.iinfo(np.int32).min)]
        if beyond.size:
            raise ValueError(f"it has the value {beyond[0]}, which is no class id: replace it by one of up to 65535")
    except Exception as error:  # readers raise anything on a broken file
        raise ValueError(f"The annotation {row['name']} cannot be used: {describe(error)}.") from error
    return array.astype(np.int32)


def _refuse_other_numbers(source: Source) -> None:
    """Refuse files whose numbers are not those that were saved, or that programs read differently."""
    if not isinstance(source, bytes):
        source = parse_address(os.fspath(source)).path
        if not os.path.isfile(source):
            return
    with opened(source) as file:
        head = file.read(132)
        file.seek(0)
        pages = tiff_directories(file, MAX_PAGES) if head.startswith(TIFF_MAGICS) else []
    page = next((page for page in pages if not is_part(page)), {})
    if head.startswith(b"\xff\xd8\xff") or first_value(page, 259, 1) in LOSSY_TIFF:
        raise ValueError(f"it is compressed by JPEG, which {CHANGES_IDS}")
    is_jpeg2000 = head.startswith(b"\xff\x4f\xff\x51") or head[4:8] == b"jP  "
    if (is_jpeg2000 and _is_lossy_jpeg2000(content_of(source))) or (is_dicom(head) and is_lossy(source)):
        raise ValueError(f"its compression is not lossless, which {CHANGES_IDS}")
    if first_value(page, 262, 1) == 0:
        raise ValueError(
            "white is zero in it, by which some programs exchange class ids and others do not: save it as PNG, or with"
            " photometric='minisblack'"
        )


def _is_lossy_jpeg2000(content: bytes) -> bool:
    """Whether the code stream names the wavelet of floats; marker segments follow its first four bytes."""
    position = content.find(b"\xff\x4f\xff\x51") + 2
    while content[position : position + 1] == b"\xff" and position + 14 <= len(content):
        if content[position + 1] == 0x52:
            return content[position + 13] == 0
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return False
