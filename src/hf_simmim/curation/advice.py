"""What follows from the facts of the images for the options of a pre-training, and what to know about them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.survey import split_folders
from ..data.value_range import DEPTHS
from .facts import Facts

# Side that larger images are resized to by default, in pixels.
LARGEST_SIDE = 192
# Share of the images whose corners an extreme value fills before it is taken for missing pixels.
CORNER_SHARE = 0.02
# Least distance of that value to all others, as a multiple of their range.
LEAST_GAP = 0.05


@dataclass
class Advice:
    """Options of a pre-training, and what to know.

    Args:
        settings: Values of options by name.
        notes: Sentences.
    """

    settings: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def advise(facts: Sequence[Facts]) -> Advice:
    """Choose what the images decide by themselves: channels, range of values, missing pixels and size.

    Args:
        facts: Facts of the images that are left to train on.

    Returns:
        The settings, and notes on what is mixed or looks odd.
    """
    advice = Advice()
    readable = [found for found in facts if found.is_readable]
    if not readable:
        return advice
    _channels(readable, advice)
    missing = _missing_pixels(readable, advice)
    _range(readable, missing, advice)
    _size(readable, advice)
    turned = sum(found.orientation != 1 for found in readable)
    if turned:
        advice.notes.append(f"{_many(turned, 'image')} turned upright by EXIF orientation; nothing is to be done.")
    for folder, count in split_folders([found.path for found in readable]).items():
        advice.notes.append(
            f"{folder} ({_many(count, 'image')}) looks like a test set, but is among the images: name it as"
            " --validation_dir, or move it away."
        )
    return advice


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _shares(numbers: Counter) -> str:
    total = sum(numbers.values())
    return ", ".join(f"{value} ({count / total:.0%})" for value, count in numbers.most_common(4))


def _channels(facts: Sequence[Facts], advice: Advice) -> None:
    channels = Counter(found.channels for found in facts)
    if len(channels) == 1:
        number = next(iter(channels))
        if number != 3:
            advice.settings["num_channels"] = str(number)
    elif set(channels) == {1, 3}:
        advice.notes.append(
            f"Gray and color images are mixed: {channels[1]:,} of {len(facts):,} are gray, and become RGB with equal"
            " channels."
        )
    else:
        advice.notes.append(
            f"Numbers of channels differ: {_shares(channels)}. One training reads one number: move the others away, or"
            " convert them."
        )


def _missing_pixels(facts: Sequence[Facts], advice: Advice) -> float | None:
    """The value of missing pixels, which is set if files state it, or if it stands apart from all others."""
    stated = Counter(found.nodata for found in facts if found.nodata is not None)
    if len(stated) == 1:
        value = next(iter(stated))
        advice.settings["nodata"] = f"{value:.9g}"
        advice.notes.append(f"{stated[value]:,} of {len(facts):,} files state that pixels of {value:.9g} are missing.")
        return value
    if stated:
        advice.notes.append(
            f"Files state several values of missing pixels: {_shares(stated)}. Each is read from its file without"
            " --nodata."
        )
        return None
    corners = Counter(found.corner for found in facts if found.corner is not None)
    if not corners or corners.most_common(1)[0][1] < max(2, CORNER_SHARE * len(facts)):
        return None
    value, count = corners.most_common(1)[0]
    value = float(value or 0)
    having = [found for found in facts if found.corner == value]
    is_apart = np.median([found.gap for found in having]) >= LEAST_GAP
    what = f"Corners of {_many(count, 'image')} are filled with {value:.9g}"
    if is_apart and any(found.depth != "8 bits" for found in having):
        advice.settings["nodata"] = f"{value:.9g}"
        advice.notes.append(f"{what}, which is far from all other values: taken for missing pixels.")
        return value
    advice.notes.append(f"{what}. If such pixels are missing, and no background, add --nodata {value:.9g}.")
    return None


def _range(facts: Sequence[Facts], missing: float | None, advice: Advice) -> None:
    depths = Counter(found.depth for found in facts)
    if set(depths) == {"8 bits"}:
        return
    if len(depths) > 1 and "8 bits" in depths:
        advice.notes.append(
            f"Bit depths differ: {_shares(depths)}. Their values have no common scale: train on one depth, or convert"
            " the images."
        )
        return
    used = [found for found in facts if not found.is_blank] or list(facts)
    low, high = min(found.low for found in used), max(found.high for found in used)
    if missing is not None and missing in (low, high):
        # An image may hold such pixels elsewhere than in its corners.
        others = [value for found in used for value in (found.low, found.high) if value != missing]
        low, high = (min(others), max(others)) if others else (low, high)
    largest = max(abs(low), abs(high))
    if all(depth.endswith("bits") for depth in depths) and low >= 0:
        number = next((depth for depth in DEPTHS[1:] if largest <= depth), math.ceil(largest))
        advice.settings["rescale_factor"] = f"1/{number}"
        advice.notes.append(f"Values are {low:.6g} to {high:.6g}, in {_shares(depths)}.")
    elif largest <= 1.5:
        advice.settings["rescale_factor"] = "1"
    else:
        advice.settings["rescale_factor"] = f"1/{math.ceil(largest)}"
        advice.notes.append(
            f"Values are {low:.6g} to {high:.6g}, in {_shares(depths)}. If most are much smaller, choose another"
            " --rescale_factor."
        )


def _size(facts: Sequence[Facts], advice: Advice) -> None:
    sides = np.array([min(found.height, found.width) for found in facts])
    side = int(np.median(sides))
    size = max(32, round(side / 32) * 32)
    if size < LARGEST_SIDE:
        advice.settings["image_size"] = str(size)
    wanted = min(size, LARGEST_SIDE)
    small = int((sides < wanted / 2).sum())
    if small:
        advice.notes.append(f"{_many(small, 'image')} smaller than half of {wanted} px would be enlarged.")
    if side > 4 * LARGEST_SIDE:
        advice.notes.append(
            f"Images have {side:,} px at the shorter side (median): random crops show parts of them. Smaller copies"
            " or tiles load faster."
        )
