"""Heads, targets and losses by name, with their options: what a config can check without torch."""

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Option(NamedTuple):
    """An option of a component."""

    default: Any
    is_valid: Callable[[Any], bool]
    meaning: str  # what it must be, as the end of a sentence


class TargetSpec(NamedTuple):
    """What a config knows of a target."""

    losses: tuple[str, ...]  # those that fit it, the usual one first
    options: dict[str, Option]
    check: Callable[[dict[str, Any]], str | None] | None = None  # what is wrong with a set of options, if anything


def _is_count(value: Any) -> bool:
    return is_index(value) and value >= 1


def _is_length(value: Any) -> bool:
    return _is_count(value) and value >= 2


def is_index(value: Any) -> bool:
    """Whether a value is a whole number, True and False excepted."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a number, and neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return is_finite(value) and value > 0


def _all(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, (list, tuple)) and len(values) > 0 and all(map(is_valid, values))


def _optional(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_valid(value)


def _are_centers(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) >= 2
        and all(isinstance(center, (list, tuple)) and all(map(is_finite, center)) for center in value)
        and len({len(center) for center in value}) == 1
    )


COUNT = "a whole number of at least 1"
REGRESSION_LOSSES = ("l1", "l2", "smooth_l1")
DEFAULT_WINDOW = 47  # of SwinV2's pre-training
CODEBOOK = "facebook/flava-image-codebook"


def _check_normalized_rgb(options: dict[str, Any]) -> str | None:
    if options["window_size"] is not None and options["patch_size"] is not None:
        return "has both a window_size, for a sliding window, and a patch_size. Leave one out."
    return None


def _check_color_clusters(options: dict[str, Any]) -> str | None:
    if options["centers"] is None:
        return (
            "has no centers: the clusters are not fitted. Fit them to your images with"
            " hf_simmim.clusters.fit_color_clusters, or let examples/run_mim.py do it."
        )
    return None


def _check_features(options: dict[str, Any]) -> str | None:
    if options["model"] is None:
        return "needs a teacher. Name one, such as target_options={'model': 'facebook/dinov2-base'}."
    return None


HEADS: dict[str, dict[str, Option]] = {
    "linear": {},
    "mlp": {"hidden_size": Option(None, _optional(_is_count), f"{COUNT}, or None for the encoder's")},
    "inverse_swin": {
        "size": Option("tiny", lambda value: value in ("tiny", "base"), "'tiny' or 'base'"),
        "embed_dim": Option(None, _optional(_is_count), f"{COUNT}, or None for that of the size"),
        "depths": Option(None, _optional(_all(_is_count)), "a list of blocks for each stage, or None"),
        "num_heads": Option(None, _optional(_all(_is_count)), "a list of attention heads for each stage, or None"),
        "window_size": Option(None, _optional(_is_count), f"{COUNT}, or None for the encoder's or else 7"),
    },
}

TARGETS: dict[str, TargetSpec] = {
    "rgb": TargetSpec(REGRESSION_LOSSES, {}),
    "normalized_rgb": TargetSpec(
        REGRESSION_LOSSES,
        {
            "window_size": Option(
                None,
                _optional(lambda value: _is_length(value) and value % 2 == 1),
                f"an odd number of pixels from 3; None for {DEFAULT_WINDOW} if there is no patch_size",
            ),
            "patch_size": Option(None, _optional(_is_length), "pixels from 2, or None"),
        },
        _check_normalized_rgb,
    ),
    "color_bins": TargetSpec(
        ("cross_entropy",),
        {
            "num_bins": Option(8, lambda value: _is_count(value) and 2 <= value <= 256, "a whole number from 2 to 256"),
            "joint": Option(False, lambda value: isinstance(value, bool), "True or False"),
        },
    ),
    "color_clusters": TargetSpec(
        ("cross_entropy",),
        {"centers": Option(None, _optional(_are_centers), "a list of two or more colours, each a list of numbers")},
        _check_color_clusters,
    ),
    "hog": TargetSpec(
        ("l2", "l1", "smooth_l1"),
        {
            "cell_size": Option(8, _is_length, "pixels from 2"),
            "num_bins": Option(9, _is_length, "a whole number from 2"),
        },
    ),
    "codebook": TargetSpec(
        ("cross_entropy",),
        {
            "model": Option(CODEBOOK, lambda value: isinstance(value, str), "a folder or a name on the Hub"),
            "model_config": Option(None, _optional(lambda value: isinstance(value, dict)), "that of the model"),
        },
    ),
    "features": TargetSpec(
        ("cosine", "smooth_l1", "l1", "l2"),
        {
            "model": Option(None, _optional(lambda value: isinstance(value, str)), "a folder or a name on the Hub"),
            "model_config": Option(None, _optional(lambda value: isinstance(value, dict)), "that of the model"),
            "image_mean": Option(None, _optional(_all(is_finite)), "a finite number for each channel of the teacher"),
            "image_std": Option(None, _optional(_all(is_positive)), "a number above 0 for each channel of the teacher"),
            "layer": Option(None, _optional(is_index), "the index of a hidden state, or None for the feature map"),
            "normalize": Option(True, lambda value: isinstance(value, bool), "True or False"),
        },
        _check_features,
    ),
}

LOSSES: dict[str, dict[str, Option]] = {
    "l1": {},
    "l2": {},
    "smooth_l1": {"beta": Option(1.0, is_positive, "a finite number above 0")},
    "cross_entropy": {},
    "cosine": {},
}

LOSS_REGIONS = ("masked", "all")


def known_options(component: str, name: str) -> dict[str, Option]:
    """The options of a component.

    Args:
        component: `"head"`, `"target"` or `"loss"`.
        name: Its name.

    Returns:
        Name to option.
    """
    return TARGETS[name].options if component == "target" else {"head": HEADS, "loss": LOSSES}[component][name]


def with_defaults(component: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a component: those given, and the defaults of the others.

    Raises:
        ValueError: If an option is unknown or its value is none that it takes.
    """
    known = known_options(component, name)
    for key, value in options.items():
        if key not in known:
            match = difflib.get_close_matches(key, known, n=1)
            remedy = f"Did you mean {match[0]}?" if match else f"Use one of: {', '.join(known)}."
            raise ValueError(
                f"{component}_options has {key!r}, which {component}={name!r} does not take."
                f" {remedy if known else 'It has no options.'}"
            )
        if not known[key].is_valid(value):
            raise ValueError(f"{component}_options: {key}={value!r} must be {known[key].meaning}.")
    return {key: option.default for key, option in known.items()} | options


def check_pair(target: str, loss: str) -> None:
    """Refuse a loss that does not fit a target.

    Raises:
        ValueError: If it does not; the message names those that do.
    """
    fitting = TARGETS[target].losses
    if loss not in fitting:
        kind = "classes" if fitting == ("cross_entropy",) else "numbers"
        raise ValueError(
            f"loss={loss!r} does not fit target={target!r}, which is made of {kind}. Use one of: {', '.join(fitting)}."
        )
