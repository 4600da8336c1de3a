"""DICOM: numbers as the modality means them, colors, frames, and series in the order of their slices."""

import importlib.util
import io
import itertools
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..model.image_readers import Source, Stored, Wanted, check_size
from .library import library
from .slicing import Cut, Slicing

# Lossy JPEG of 12 bits.
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
# Baseline JPEG, that of 12 bits, and JPEG-LS with an error; others may be lossless.
LOSSY_SYNTAXES = {"1.2.840.10008.1.2.4.50", JPEG_EXTENDED, "1.2.840.10008.1.2.4.81"}
# Elements by which a series is put in order.
PLACE_TAGS = (
    *("SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber", "Rows", "Columns"),
    *("NumberOfFrames", "AcquisitionNumber", "EchoTime", "TemporalPositionIdentifier"),
)


def is_dicom(head: bytes) -> bool:
    """Whether a file begins as DICOM files do."""
    return head[128:132] == b"DICM"


def _opened(source: Source) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _header(source: Source, tags: Sequence[str] | None = None, defers: bool = False) -> Any:
    """Elements of a file; `defers` leaves the pixels where they are until they are asked for."""
    pydicom = library("pydicom", "medical", "DICOM")
    try:
        with warnings.catch_warnings():
            # Of values that do not follow the standard to the letter, which decide nothing here.
            warnings.simplefilter("ignore")
            return pydicom.dcmread(
                _opened(source),
                defer_size=1 << 16 if defers else None,
                stop_before_pixels=tags is not None,
                specific_tags=None if tags is None else [*tags],
            )
    except pydicom.errors.InvalidDicomError as error:
        raise ValueError(
            "The file has a name of DICOM, but not the header that says how its numbers are written. Write it again,"
            " for example with dcmconv of DCMTK."
        ) from error


def read_dicom(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read an image, or a frame.

    Args:
        source: Path, or content of the file.
        part: `frame` of a file of several, and `window`, the center and width of the range that becomes 0 to 255, or
            `file` for the first window or table that the file names.
        wanted: What it is read for.

    Returns:
        Colors, or gray of as many bits as are stored, as a picture, white is bright; with a rescale slope, a signed
        number or a padding value, the numbers.

    Raises:
        ValueError: If it holds no image, or one that cannot be read.
    """
    pixels = library("pydicom.pixels", "medical", "DICOM")
    # Of a file of many frames only one is read.
    in_part = "frame" in part and not isinstance(source, bytes)
    dataset = _header(source, defers=in_part)
    keyword = next((name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in dataset), None)
    if keyword is None or dataset.get("Rows") is None:
        kind = dataset.get("SOPClassUID") or getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID")
        kind = getattr(kind, "name", "") or "of no named kind"
        raise ValueError(f"The DICOM file holds no pixels; it is {kind}. Remove it.")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        raise ValueError("The DICOM file does not name its transfer syntax. Write it again, for example with dcmconv.")
    frames = _num_frames(dataset)
    frame = _frame(part, frames)
    samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsStored") or dataset.BitsAllocated)
    check_size(int(dataset.Rows), int(dataset.Columns), samples)
    if keyword == "PixelData" and dataset.get("HighBit") not in (None, bits - 1):
        raise ValueError(
            f"The DICOM file stores {bits} bits below bit {dataset.HighBit}, where {bits - 1} is expected. Convert it,"
            " for example with dcmconv."
        )
    meaning = str(dataset.get("PhotometricInterpretation") or "")
    is_color = samples == 3 and meaning.startswith(("RGB", "YBR"))
    if not is_color and (samples != 1 or meaning not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")):
        raise ValueError(
            f"The DICOM file holds {samples} samples of {meaning or 'no photometric interpretation'}, which are not"
            " read. Convert it to gray or RGB."
        )
    if wanted.indices and meaning == "MONOCHROME1":
        raise ValueError("The DICOM file is a map of ids in which white is zero. Convert it to MONOCHROME2.")
    try:
        with warnings.catch_warnings():
            # Of padding after the last pixel, and of headers that disagree with a code stream, which pydicom resolves.
            warnings.simplefilter("ignore")
            array = pixels.pixel_array(source if in_part else dataset, index=frame)
    except Exception as error:  # decoders raise anything on a broken file
        reason = " ".join(str(error).split())
        if syntax.is_encapsulated and ("missing dependencies" in reason or isinstance(error, NotImplementedError)):
            raise ValueError(
                f"The DICOM file is compressed by {syntax.name}, whose decoder is missing: pip install"
                f' "hf-simmim[medical]". ({reason})'
            ) from error
        if syntax == JPEG_EXTENDED and importlib.util.find_spec("libjpeg") is None:
            raise ValueError(
                f"The DICOM file is compressed by {syntax.name} of {bits} bits, which another decoder reads: pip"
                " install pylibjpeg pylibjpeg-libjpeg. Mind its license, the GPL."
            ) from error
        raise ValueError(f"The DICOM file cannot be decoded ({syntax.name}: {reason}). Replace it.") from error
    if meaning == "PALETTE COLOR":
        return _palette(dataset, array, wanted)
    if is_color:
        return _colors(array, bits)
    return _gray(dataset, array, frame, bits, meaning == "MONOCHROME1", part.get("window"))


def _num_frames(dataset: Any) -> int:
    try:
        return int(dataset.get("NumberOfFrames") or 1)
    except (ValueError, TypeError) as error:
        raise ValueError(f"The DICOM file does not say how many frames it holds ({error}). Replace it.") from error


def _frame(part: Mapping[str, str], frames: int) -> int:
    if "frame" not in part:
        if frames > 1:
            raise ValueError(
                f"The DICOM file holds {frames} frames. Name its folder, whose frames are images, or one frame as"
                " FILE::frame=0."
            )
        return 0
    frame = int(part["frame"])
    if not 0 <= frame < frames:
        raise ValueError(f"frame={frame} is not in the DICOM file, which has {frames} frames. List the folder again.")
    return frame


def _palette(dataset: Any, array: np.ndarray, wanted: Wanted) -> Stored:
    if wanted.indices:
        return Stored(array)
    colors = library("pydicom.pixels", "medical", "DICOM").apply_color_lut(array, dataset)
    if colors.dtype == np.uint8:
        return Stored(Image.fromarray(colors[..., :3]), compared=array)
    # Some programs write colors of 8 bits.
    colors = colors * np.uint16(257) if colors.max() < 256 else colors
    return Stored(colors[..., :3], None, 65535, "RGB", compared=array)


def _colors(array: np.ndarray, bits: int) -> Stored:
    if array.dtype == np.uint8:
        return Stored(Image.fromarray(np.ascontiguousarray(array)))
    if bits <= 16 and array.dtype.kind == "u":
        return Stored(array.astype(np.uint16), None, 2**bits - 1, "RGB")
    return Stored(array)


def _rescale(dataset: Any, frame: int) -> tuple[float, float]:
    """Slope and intercept of a frame: those of the file, or of the groups that describe single frames."""
    places = [dataset]
    for name, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        groups = dataset.get(name) or []
        if index < len(groups):
            places += list(groups[index].get("PixelValueTransformationSequence") or [])
    slope, intercept = 1.0, 0.0
    for place in places:
        slope = slope if place.get("RescaleSlope") is None else float(place.RescaleSlope)
        intercept = intercept if place.get("RescaleIntercept") is None else float(place.RescaleIntercept)
    # The dose of a radiotherapy plan has a factor of its own.
    return slope * float(dataset.get("DoseGridScaling") or 1), intercept


def _gray(dataset: Any, array: np.ndarray, frame: int, bits: int, is_inverted: bool, window: str | None) -> Stored:
    """Numbers after the modality's rescaling, with missing pixels, white is bright."""
    is_signed, slope, intercept = array.dtype.kind == "i", *_rescale(dataset, frame)
    padding, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    is_plain = (slope, intercept) == (1, 0) and array.dtype.kind == "u" and "ModalityLUTSequence" not in dataset
    is_plain = is_plain and window is None and bits <= 16
    missing, nodata = None, None
    if padding is not None and array.dtype.kind in "iu":
        low, high = sorted((int(padding), int(padding if limit is None else limit)))
        missing = (array >= low) & (array <= high)
        missing = missing if missing.any() else None
    if is_plain and missing is not None:
        array, nodata = np.where(missing, array.dtype.type(padding), array), float(padding)
    # The range of what is stored: white is zero is turned around in it.
    least = -(2 ** (bits - 1)) if is_signed else 0
    ends = 2 * least + 2**bits - 1
    if is_plain:
        scale, offset = (-1, ends) if is_inverted else (1, 0)
        array = ends - array if is_inverted else array
        if bits == 8:
            return Stored(Image.fromarray(array.astype(np.uint8)), nodata, scale=scale, offset=offset)
        if bits == 1:
            return Stored(Image.fromarray(array.astype(np.uint8) * 255), nodata, scale=scale * 255, offset=offset * 255)
        return Stored(array.astype(np.uint16), nodata, 2**bits - 1, "L", scale, offset)
    if is_inverted and array.dtype.kind == "f":
        raise ValueError("The DICOM file holds floats in which white is zero, whose range is unknown. Convert it.")
    if "ModalityLUTSequence" in dataset:
        numbers = library("pydicom.pixels", "medical", "DICOM").apply_modality_lut(array, dataset).astype(np.float64)
        if is_inverted and window is None:
            raise ValueError(
                "The DICOM file holds a table of its gray values in which white is zero. Convert it, for example with"
                " dcmj2pnm, or choose a range with --gray_window."
            )
    else:
        is_turned = is_inverted and window is None
        numbers = (ends - array.astype(np.float64) if is_turned else array.astype(np.float64)) * slope + intercept
    if window is not None:
        numbers = (
            _windowed(numbers, dataset, frame) if window == "file" else _linear(numbers, *map(float, window.split(":")))
        )
        numbers = 255 - numbers if is_inverted else numbers
        if missing is None:
            return Stored(Image.fromarray(numbers))
    if missing is not None:
        return Stored(np.where(missing, np.float32(np.nan), numbers.astype(np.float32)))
    is_whole = array.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer()
    return Stored(numbers.astype(np.int32 if is_whole and bits <= 16 and abs(numbers).max() < 2**31 else np.float32))


def _linear(numbers: np.ndarray, center: float, width: float) -> np.ndarray:
    """Gray of 8 bits by the linear function of the standard (PS3.3, C.11.2.1.2.1)."""
    return _to_8_bits((numbers - (center - 0.5)) / max(width - 1, 1e-6) + 0.5)


def _to_8_bits(shares: np.ndarray) -> np.ndarray:
    return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)


def _windowed(numbers: np.ndarray, dataset: Any, frame: int) -> np.ndarray:
    """Gray of 8 bits by the first table or window of the file (PS3.3, C.11.2), a table first, as by pydicom."""
    places = [dataset]
    for name, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        groups = dataset.get(name) or []
        if index < len(groups):
            places += list(groups[index].get("FrameVOILUTSequence") or [])
    tables = dataset.get("VOILUTSequence")
    if tables and None not in (tables[0].get("LUTDescriptor"), tables[0].get("LUTData")):
        return _by_table(numbers, tables[0], dataset)
    for place in reversed(places):
        center, width = _first(place.get("WindowCenter")), _first(place.get("WindowWidth"))
        if center is None or width is None:
            continue
        function = str(place.get("VOILUTFunction") or "LINEAR").upper()
        if function == "LINEAR" and width >= 1:
            return _linear(numbers, center, width)
        if function == "LINEAR_EXACT" and width > 0:
            return _to_8_bits((numbers - center) / width + 0.5)
        if function == "SIGMOID" and width > 0:
            return _to_8_bits(1 / (1 + np.exp((-4 * (numbers - center) / width).clip(-700, 700))))
        raise ValueError(
            f"The DICOM file names a window of the function {function} and the width {width:g}, which is none of the"
            " standard. Set --gray_window to a center and a width."
        )
    raise ValueError(
        "The DICOM file names no window and no table, which --gray_window file applies. Set a center and a width, such"
        " as --gray_window 40 400."
    )


def _first(values: Any) -> float | None:
    """The first of several values."""
    if values is None or values == "":
        return None
    return float(values if isinstance(values, (int, float)) else values[0])


def _by_table(numbers: np.ndarray, table: Any, dataset: Any) -> np.ndarray:
    """Gray of 8 bits by a table of the file (PS3.3, C.11.2.1.1)."""
    count, first, bits = (int(value) for value in table.LUTDescriptor)
    count = count or 2**16
    entries = table.LUTData
    if isinstance(entries, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        # Some programs pack entries of 8 bits, and pad them to an even number.
        is_packed = bits == 8 and len(entries) == count + count % 2
        entries = np.frombuffer(entries, np.dtype("u1" if is_packed else f"{order}u2"))
    entries = np.atleast_1d(np.asarray(entries)).astype(np.int64)[:count]
    is_whole = numbers.dtype.kind in "iu" or bool((numbers == np.rint(numbers)).all())
    if len(entries) < count or entries.max() >= 2**bits or not is_whole:
        raise ValueError(
            f"The DICOM file names a table of {count} entries of {bits} bits, which holds {len(entries)} up to"
            f" {entries.max(initial=0)}, for {'whole numbers' if is_whole else 'fractions'}. Set --gray_window to a"
            " center and a width."
        )
    return _to_8_bits(entries[(np.rint(numbers).astype(np.int64) - first).clip(0, count - 1)] / (2**bits - 1))


def cut_dicom(path: str, slicing: Slicing) -> Cut:
    """Frames of a file.

    Args:
        path: Path of the file.
        slicing: How it is cut.

    Returns:
        Its frames; one part for a file of one image.

    Raises:
        ValueError, OSError: If it cannot be read.
    """
    frames = _num_frames(_header(path, ["NumberOfFrames"]))
    given = slicing.gray_window
    window = {"window": given if isinstance(given, str) else "{:g}:{:g}".format(*given)} if given is not None else {}
    if frames == 1:
        return Cut([window])
    return Cut([{"frame": str(frame), **window} for frame in range(frames)], "frame", frames)


def is_lossy(source: Source) -> bool:
    """Whether the numbers of a file are compressed in a way that changes them, now or in its past."""
    header = _header(source, ["LossyImageCompression"])
    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", "")
    return header.get("LossyImageCompression") == "01" or syntax in LOSSY_SYNTAXES


def series_uid(path: str) -> str:
    """The series that a file is of; empty if it does not say so."""
    return str(_header(path, ["SeriesInstanceUID"]).get("SeriesInstanceUID") or "")


def series_of(paths: Sequence[str]) -> dict[str, list[str]]:
    """Put slices that are files of their own in order.

    Slices of a series, of one size and direction, are sorted by their position along the normal of the slices, and by
    InstanceNumber where the position is missing. A series with several images at one position, such as at other times,
    is parted by acquisition, echo and time.

    Args:
        paths: Files of one frame.

    Returns:
        All files of the series in order, by path; a file of no series is alone.

    Raises:
        ValueError: If slices lie at the same place, or their order is unknown.
    """
    groups: dict[tuple, list[tuple[float, str]]] = defaultdict(list)
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(lambda path: _header(path, PLACE_TAGS), paths))
    for path, header in zip(paths, headers, strict=True):
        position, direction = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
        place, is_placed = header.get("InstanceNumber"), bool(position and direction)
        if is_placed:
            rows, columns = np.array(direction, float).reshape(2, 3)
            place = float(np.dot(np.cross(rows, columns), np.array(position, float)))
        others = [str(header.get(name) or "") for name in PLACE_TAGS[-3:]]
        turned = tuple(np.round(np.array(direction, float), 3)) if is_placed else ()
        series = str(header.get("SeriesInstanceUID") or "")
        if place is None or not series:
            groups["", path].append((0.0, path))
            continue
        key = (str(Path(path).parent), series, header.get("Rows"), header.get("Columns"), is_placed, turned, *others)
        groups[key].append((float(place), path))
    ordered: dict[str, list[str]] = {}
    for slices in groups.values():
        slices.sort()
        for (place, path), (after, other) in itertools.pairwise(slices):
            if abs(after - place) < 1e-4:
                raise ValueError(
                    f"{path} and {other} are slices of one series at the same place ({place:g}), so that their"
                    " neighbors are unknown. Move one of them to another folder, or set slice_neighbors=0."
                )
        names = [path for _, path in slices]
        ordered |= dict.fromkeys(names, names)
    return ordered
