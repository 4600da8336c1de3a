"""Options of commands that say how volumes, series, stacks and arrays become images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...formats.slicing import Slicing


@dataclass
class SliceArguments:
    """Images inside files of many; other files are images themselves."""

    slice_axis: int | None = field(
        default=None,
        metadata={
            "help": "Axis of NIfTI volumes that slices are counted along, 0, 1 or 2 (that of the largest voxel spacing"
            " if unset, the last one if they are equal)."
        },
    )
    orientation: str | None = field(
        default=None,
        metadata={
            "help": "Where the axes of NIfTI volumes lead, such as RAS (to the right, to the front and up): they are"
            " turned so, without loss, before slices are taken, and --slice_axis is one of these axes (as stored if"
            " unset)."
        },
    )
    slice_neighbors: int = field(
        default=0,
        metadata={
            "help": "Slices before and after each one that are channels, too, in volumes, series and stacks: 1 makes"
            " three channels. At the ends the last slice is repeated."
        },
    )
    volume_series: str = field(
        default="images",
        metadata={
            "help": "What the fourth axis of NIfTI volumes holds: images, such as times, or channels, such as kinds of"
            " MR images.",
            "choices": ["images", "channels"],
        },
    )
    stacks: str = field(
        default="channels",
        metadata={
            "help": "What pages of TIFF files are: channels; slices, each of which is an image, by the axes that the"
            " file names; or the axes of files that name none, slowest first, of T (times), Z (slices) and C"
            " (channels), such as ZC."
        },
    )
    array_name: str | None = field(
        default=None, metadata={"help": "Array in HDF5 and zarr files (the only one of an image's shape if unset)."}
    )
    array_axes: str | None = field(
        default=None,
        metadata={"help": "Axes of that array, of N (images), H, W and C, such as NHWC (by its shape if unset)."},
    )
    gray_window: list[str] | None = field(
        default=None,
        metadata={
            "help": "Center and width of the range of DICOM images that becomes 0 to 255, such as 40 400; or file, for"
            " the first window or table that each file names (their numbers if unset, such as Hounsfield units)."
        },
    )
    bands: list[int] | None = field(
        default=None,
        metadata={
            "help": "Bands of TIFF, FITS and other images that are channels, numbered from 1 on, such as 3 2 1 (all if"
            " unset)."
        },
    )

    @property
    def slicing(self) -> Slicing:
        """The options.

        Raises:
            ValueError: If one is out of its range.
        """
        return Slicing(
            *(self.slice_axis, self.slice_neighbors, self.volume_series, self.stacks, self.array_name, self.array_axes),
            _gray_window(self.gray_window),
            None if self.bands is None else tuple(self.bands),
            self.orientation,
        )


def _gray_window(words: Sequence[str | float] | None) -> tuple[float, float] | str | None:
    """A center and a width, or "file"."""
    if words is None or words == "file" or list(words) == ["file"]:
        return None if words is None else "file"
    try:
        center, width = (float(word) for word in words)
    except ValueError as error:
        raise ValueError(
            f"gray_window={words} must be two numbers, a center and a width, such as 40 400, or file, for what each"
            " file names."
        ) from error
    return center, width
