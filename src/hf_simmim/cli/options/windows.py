"""Options of commands that cut windows out of large images."""

from dataclasses import dataclass, field

from ...data.window_places import WindowSettings


@dataclass
class GridArguments:
    """Windows of a regular grid over large images."""

    image_window: list[int] | None = field(
        default=None,
        metadata={
            "help": "Cut windows of this size out of large images (whole slides, scenes, mosaics) instead of reading"
            " them whole: one side, or height and width, in pixels."
        },
    )
    window_level: int | None = field(
        default=None,
        metadata={"help": "Level of resolution of the windows, 0 for the finest (0 if unset)."},
    )
    micrometers_per_pixel: float | None = field(
        default=None,
        metadata={
            "help": "Resolution of the windows, instead of --window_level: the level that is as fine is read, and"
            " scaled to it. The files must say how large their pixels are."
        },
    )
    min_valid: float = field(
        default=0.5,
        metadata={
            "help": "Least share of valid pixels in a window (0 to 1): not nodata, not NaN, not transparent, and wanted"
            " by --window_masks."
        },
    )
    min_tissue: float = field(
        default=0.0,
        metadata={
            "help": "Least share of tissue in a window (0 to 1; 0 to use background, too). Tissue has more saturation"
            " than a threshold, which Otsu's method finds in a view of each image in low resolution; in gray images it"
            " is darker."
        },
    )
    window_masks: str | None = field(
        default=None,
        metadata={"help": "Folder of masks with the names of the images: where they are not zero, pixels are wanted."},
    )

    def window_settings(self, nodata: float | None = None) -> WindowSettings | None:
        """Settings of the windows.

        Args:
            nodata: Value of missing pixels.

        Returns:
            The settings; None if no windows are wanted.

        Raises:
            ValueError: If a value is out of range, or has no effect.
        """
        if self.image_window is None:
            for name, default in {"window_level": None, "micrometers_per_pixel": None, "window_masks": None}.items():
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} has no effect without --image_window. Set that too."
                    )
            if self.min_tissue:
                raise ValueError(f"min_tissue={self.min_tissue} has no effect without --image_window. Set that too.")
            return None
        if len(self.image_window) > 2:
            raise ValueError(f"image_window={self.image_window} must be a side, or height and width, in pixels.")
        return WindowSettings(
            (self.image_window[0], self.image_window[-1]),
            self.window_level,
            self.micrometers_per_pixel,
            self.min_valid,
            self.min_tissue,
            self.window_masks,
            nodata,
        )


@dataclass
class WindowArguments(GridArguments):
    """Windows of large images that are drawn for training."""

    windows_per_image: int | None = field(
        default=None,
        metadata={
            "help": "Windows of each large image in an epoch, at other places each time (64 if unset); --image_window"
            " cuts them."
        },
    )

    def window_settings(self, nodata: float | None = None) -> WindowSettings | None:
        """Settings of the windows, as in `GridArguments`.

        Args:
            nodata: Value of missing pixels.

        Returns:
            The settings; None if no windows are wanted.

        Raises:
            ValueError: If a value is out of range, or has no effect.
        """
        if self.image_window is None and self.windows_per_image is not None:
            raise ValueError(
                f"windows_per_image={self.windows_per_image} has no effect without --image_window, the size of the"
                " windows in pixels. Set that too. (--window_size is the window of Swin's attention.)"
            )
        return super().window_settings(nodata)
