"""Packed arrays: numbers in HDF5, NetCDF and zarr files that stand for others, as their attributes say.

Source: sections 2.5.1 (missing data) and 8.1 (packed data) of the NetCDF Climate and Forecast (CF) conventions 1.11.
"""

from typing import Any

import numpy as np

# Attributes of the CF conventions that change what numbers mean.
ATTRIBUTES = (
    *("scale_factor", "add_offset", "_FillValue", "missing_value", "valid_min", "valid_max", "valid_range"),
    "_Unsigned",
)
# Largest size in bytes of whole numbers that float32 holds exactly.
EXACT_IN_FLOAT32 = 2


def unpacked(array: Any, what: str) -> Any:
    """An array whose numbers are what its attributes say.

    Args:
        array: Array of h5py or zarr, with `attrs`.
        what: What it is called in messages.

    Returns:
        An array of which parts are read by slicing; the array itself if it has no such attribute.

    Raises:
        ValueError: If an attribute is no number.
    """
    attributes = {name: array.attrs[name] for name in ATTRIBUTES if name in array.attrs}
    # xarray keeps the missing value of arrays of zarr's version 2 in their metadata.
    if "_ARRAY_DIMENSIONS" in array.attrs and getattr(getattr(array, "metadata", None), "zarr_format", 0) == 2:
        attributes.setdefault("_FillValue", array.metadata.fill_value)
    attributes = {name: value for name, value in attributes.items() if value is not None}
    return Unpacked(array, attributes, what) if attributes else array


class Unpacked:
    """Reads parts of a packed array; missing numbers are NaN.

    Args:
        array: The array.
        attributes: Its attributes, of `ATTRIBUTES`.
        what: What it is called in messages.

    Raises:
        ValueError: If an attribute is no number.
    """

    def __init__(self, array: Any, attributes: dict[str, Any], what: str):
        self._array = array
        self.shape = tuple(array.shape)
        self._is_unsigned = _text(attributes.pop("_Unsigned", "")).lower() == "true" and array.dtype.kind == "i"
        numbers = {name: _numbers(value, name, what) for name, value in attributes.items()}
        self._scale = numbers.get("scale_factor", [1.0])[0]
        self._offset = numbers.get("add_offset", [0.0])[0]
        self._missing = [*numbers.get("_FillValue", ()), *numbers.get("missing_value", ())]
        low, high = (numbers.get(name, [None])[0] for name in ("valid_min", "valid_max"))
        ends = numbers.get("valid_range", ())
        if len(ends) == 2:
            low, high = ends
        self._low, self._high = low, high
        self._stored = np.dtype(array.dtype).newbyteorder("=")
        if self._is_unsigned:
            self._stored = np.dtype(f"u{self._stored.itemsize}")
        is_small = self._stored.itemsize <= EXACT_IN_FLOAT32 or self._stored == np.float32
        self._float = np.dtype(np.float32 if is_small else np.float64)
        self.dtype = self._float if (self._scale, self._offset) != (1, 0) else self._stored

    def __getitem__(self, key: Any) -> np.ndarray:
        numbers = np.asarray(self._array[key])
        numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
        if self._is_unsigned:
            numbers = numbers.view(self._stored)
        is_missing = np.zeros(numbers.shape, dtype=bool)
        for value in self._missing:
            # As the array stores it: 1e20 of float32 is not that of float64.
            is_missing |= numbers == np.asarray(value).astype(self._stored)
        if self._low is not None:
            is_missing |= numbers < self._low
        if self._high is not None:
            is_missing |= numbers > self._high
        if (self._scale, self._offset) == (1, 0) and not is_missing.any():
            return numbers
        numbers = (numbers * np.float64(self._scale) + self._offset).astype(self._float)
        numbers[is_missing] = np.nan
        return numbers


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _numbers(value: Any, name: str, what: str) -> list[float]:
    """Numbers of an attribute; zarr keeps some as text."""
    try:
        values = [float(_text(each)) if isinstance(each, (bytes, str)) else each for each in np.ravel(value).tolist()]
        if not values or not all(isinstance(each, (int, float)) for each in values):
            raise ValueError
    except ValueError as error:
        raise ValueError(
            f"{what} has the attribute {name}={value!r}, which is no number, so what its numbers mean is unknown."
            " Correct the attribute, or delete it."
        ) from error
    return values
