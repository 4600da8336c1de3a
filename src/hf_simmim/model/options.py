"""Options of heads, targets and losses: default, check and meaning of each."""

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Option(NamedTuple):
    """An option of a component."""

    default: Any
    is_valid: Callable[[Any], bool]
    meaning: str  # end of the sentence "The option must be ..."


def is_index(value: Any) -> bool:
    """Whether a value is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Whether a value is an integer of at least 1."""
    return is_index(value) and value >= 1


def is_length(value: Any) -> bool:
    """Whether a value is an integer of at least 2."""
    return is_count(value) and value >= 2


def is_finite(value: Any) -> bool:
    """Whether a value is a number, and neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return is_finite(value) and value > 0


def each(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A check that accepts non-empty lists and tuples of valid values."""
    return lambda values: isinstance(values, (list, tuple)) and len(values) > 0 and all(map(is_valid, values))


def optional(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A check that also accepts None."""
    return lambda value: value is None or is_valid(value)


COUNT = "a whole number of at least 1"


def with_defaults(
    component: str, name: str, known: dict[str, Option], options: dict[str, Any], setting: str | None = None
) -> dict[str, Any]:
    """All options of a component: the given values, and defaults for the rest.

    Args:
        component: `"head"`, `"target"`, `"loss"` or `"decoder"`, for messages.
        name: Name of the component, for messages.
        known: Options of the component.
        options: Given values.
        setting: The setting that `name` is the value of, for messages; `component` if None.

    Returns:
        Name to value.

    Raises:
        ValueError: If an option is unknown or its value is invalid; the message says what it must be.
    """
    for key, value in options.items():
        if key not in known:
            match = difflib.get_close_matches(key, known, n=1)
            remedy = f"Did you mean {match[0]}?" if match else f"Use one of: {', '.join(known)}."
            raise ValueError(
                f"{component}_options has {key!r}, which {setting or component}={name!r} does not take."
                f" {remedy if known else 'It has no options.'}"
            )
        if not known[key].is_valid(value):
            raise ValueError(f"{component}_options: {key}={value!r} must be {known[key].meaning}.")
    return {key: option.default for key, option in known.items()} | options
