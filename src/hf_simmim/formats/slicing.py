"""Which images a file of many images holds, and how they are cut: one set of options for volumes, series and stacks."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

# Axes of stacks whose files do not name them.
STACK_AXES = "TZC"

# Ends of the axes of the body: right and left, anterior and posterior, superior and inferior.
ORIENTATIONS = ("RL", "AP", "SI")


@dataclass(frozen=True)
class Slicing:
    """How files of many images become images.

    Args:
        slice_axis: Axis of a volume that slices are counted along, 0, 1 or 2; found by the voxel spacing if None.
        slice_neighbors: Slices before and after each one that are channels, too: 1 makes three channels.
        volume_series: What the fourth axis of a volume holds: `images`, such as times, or `channels`.
        stacks: What the pages of a TIFF file are: `channels`, `slices` whose axes the file names, or the axes of its
            pages, slowest first, of T (times), Z (slices) and C (channels), such as TZC.
        array_name: Name of the array in a file of many; the only one of an image's shape if None.
        array_axes: Axes of that array, of N (images), H, W and C, such as NHW; first N if None.
        gray_window: Center and width of the range of a DICOM image that becomes 0 to 255, or `file` for the first
            window or table that the file names; its numbers if None.
        bands: Numbers of the bands of other images that are channels, from 1 on, in order; all if None.
        orientation: Where the axes of volumes lead, such as RAS: to the right, to the front (anterior) and up
            (superior). They are turned so before slices are taken; as stored if None.
    """

    slice_axis: int | None = None
    slice_neighbors: int = 0
    volume_series: str = "images"
    stacks: str = "channels"
    array_name: str | None = None
    array_axes: str | None = None
    gray_window: tuple[float, float] | str | None = None
    bands: tuple[int, ...] | None = None
    orientation: str | None = None

    def options(self) -> dict[str, list[str]]:
        """Settings that differ from the defaults, as words of a command line by the names of the options."""
        words: dict[str, list[str]] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if value != one.default:
                words[one.name] = [f"{item:g}" if isinstance(item, float) else str(item) for item in _as_tuple(value)]
        return words

    def __post_init__(self):
        if self.slice_axis not in (None, 0, 1, 2):
            raise ValueError(f"slice_axis={self.slice_axis} must be 0, 1 or 2; unset, the voxel spacing decides.")
        if self.slice_neighbors < 0:
            raise ValueError(f"slice_neighbors={self.slice_neighbors} must be 0 or more, such as 1 for three channels.")
        if self.volume_series not in ("images", "channels"):
            raise ValueError(f"volume_series={self.volume_series!r} is unknown. Use images or channels.")
        is_axes = 0 < len(self.stacks) == len(set(self.stacks)) and set(self.stacks) <= set(STACK_AXES)
        if self.stacks not in ("channels", "slices") and not is_axes:
            raise ValueError(
                f"stacks={self.stacks!r} is unknown. Use channels, slices, or the axes of the pages, slowest first, of"
                " T, Z and C, such as TZC."
            )
        axes = self.array_axes
        if axes is not None and not (set("HW") <= set(axes) <= set("NHWC") and len(set(axes)) == len(axes)):
            raise ValueError(f"array_axes={axes!r} must name H and W, and N and C where there are, such as NHWC.")
        codes = self.orientation
        if codes is not None and not (
            len(codes) == 3 and all(len(set(pair) & set(codes)) == 1 for pair in ORIENTATIONS)
        ):
            raise ValueError(
                f"orientation={codes!r} must name where the three axes lead, with one letter each of R or L, A"
                " or P, and S or I, such as RAS."
            )
        if self.bands is not None and not (self.bands and min(self.bands) > 0):
            raise ValueError(f"bands={self.bands} are numbered from 1 on, such as 3 2 1.")
        window = self.gray_window
        if window is not None and (window != "file" if isinstance(window, str) else not window[1] >= 1):
            raise ValueError(
                f"gray_window={window!r} is a center and a width of 1 or more, such as 40 400, or file, for what each"
                " file names."
            )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


class Cut(NamedTuple):
    """Images inside a file.

    Attributes:
        parts: Part of each image, in order, as in `Address`; one empty part for a file that is an image.
        counted: Name of the value of a part that counts neighbors; empty if there are none.
        number: How many there are.
        orientation: Where the axes of a volume lead as it is stored, such as LPS.
    """

    parts: list[dict[str, str]]
    counted: str = ""
    number: int = 1
    orientation: str = ""


ONE_IMAGE = Cut([{}])
