"""Packing of images into shards at the size that a training needs, by several processes, and restartable.

The content of a shard is a function of the sorted list of images and the settings. What is said of a shard (its
unreadable images, sums of its pixels) is written to `.shards` before the shard takes its place, so a shard that is
there is whole, and a repeated command makes the others. `pack.json` comes last, from what is said of all shards.
"""

import contextlib
import importlib.metadata
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
from datasets import ClassLabel
from datasets.utils import tqdm

from ..data.reading import NoReadableImageError, UnreadableImages
from ..data.sources import NOTES_FOLDER, PACK_FILE
from .parallel import shrunk_images
from .parts import parse_part
from .shard_files import Moments, PackSettings, PackSource, ShardFolder, write_json

SETTINGS_FILE, UNREADABLE_FILE = "settings.json", "unreadable_images.txt"


@dataclass(frozen=True)
class Packed:
    """Result of a packing.

    Args:
        output_dir: Folder of the shards.
        files: Shards that are there.
        num_shards: Shards of all parts.
        num_images: Images in the shards that are there.
        unreadable: Names of the images that were left out, with reasons.
        facts: Content of `pack.json`; None until all parts are done.
    """

    output_dir: Path
    files: list[Path]
    num_shards: int
    num_images: int
    unreadable: dict[str, str]
    facts: dict[str, Any] | None


def pack_images(
    source: PackSource,
    output_dir: Path,
    settings: PackSettings,
    workers: int = 1,
    part: str | None = None,
    max_unreadable: float = 0.05,
) -> Packed:
    """Pack images into shards; a repeated call makes the shards that are missing.

    Args:
        source: The images.
        output_dir: Folder of the shards, empty or of an earlier call with the same images and settings.
        settings: How they are packed.
        workers: Processes.
        part: Part of the shards to make, such as `3/16`; all if None.
        max_unreadable: Largest share of unreadable images.

    Returns:
        What is packed.

    Raises:
        NoReadableImageError: If too many images are unreadable.
        ValueError: If the folder holds something else, or an option is out of range.
        OSError: If the shards cannot be written.
    """
    number, count = parse_part(part)
    if workers < 1:
        raise ValueError(f"workers={workers} must be 1 or more.")
    if not 0 <= max_unreadable < 1:
        raise ValueError(f"max_unreadable={max_unreadable} must be a share in [0, 1), such as 0.05.")
    if settings.shards == "webdataset" and source.annotations is not None:
        raise ValueError("annotation_dir has no place in webdataset shards. Use --shards parquet.")
    notes = output_dir / NOTES_FOLDER
    _claim(output_dir, source, settings)
    shards = ShardFolder(output_dir, settings, len(source.names))
    unreadable = UnreadableImages(output_dir / UNREADABLE_FILE, len(source.names), 1.0)
    unreadable.record([entry for note in shards.notes() for entry in note["unreadable"]])
    missing = [shard for shard in range(number - 1, len(shards), count) if shards.note(shard) is None]
    indices = [index for shard in missing for index in shards.indices(shard)]
    results = shrunk_images(source, settings.shrinking, indices, workers)
    with contextlib.closing(results), tqdm(total=len(indices), desc="packing", unit="image") as bar:
        for shard in missing:
            note = shards.write(shard, source, results, bar)
            unreadable.record(note["unreadable"])
            _refuse_too_many(unreadable, max_unreadable)
    facts = None
    found = list(shards.notes())
    if len(found) == len(shards):
        unreadable.reasons = {name: reason for note in found for name, reason in note["unreadable"]}
        _refuse_too_many(unreadable, max_unreadable)
        unreadable.share()
        if not unreadable.reasons:
            unreadable.path.unlink(missing_ok=True)
        facts = _facts(found, source, settings)
        write_json(output_dir / PACK_FILE, facts, notes)
        for left in notes.glob("*.part"):
            left.unlink(missing_ok=True)
    files = [path for shard, path in enumerate(shards.paths) if shards.note(shard) is not None]
    return Packed(
        *(output_dir, files, len(shards), sum(note["images"] for note in found)), dict(unreadable.reasons), facts
    )


def _refuse_too_many(unreadable: UnreadableImages, max_unreadable: float) -> None:
    if len(unreadable.reasons) <= max_unreadable * unreadable.num_images:
        return
    unreadable.share()
    name, reason = next(iter(unreadable.reasons.items()))
    raise NoReadableImageError(
        f"{len(unreadable.reasons)} of {unreadable.num_images} images cannot be read, more than the allowed share of"
        f" {max_unreadable}; the first is {name} ({reason}). They are listed in {unreadable.path}. Fix or remove them"
        " and pack into a new folder, or repeat the command with a larger --max_unreadable."
    )


def _claim(output_dir: Path, source: PackSource, settings: PackSettings) -> None:
    """Write what will be packed into a new folder, or compare it with what an earlier call wrote."""
    path = output_dir / NOTES_FOLDER / SETTINGS_FILE
    wanted = settings.as_dict() | {
        "num_images": len(source.names),
        "labels": source.labels is not None,
        "annotations": source.annotations is not None,
        "images": source.fingerprint(),
    }
    if not path.exists():
        others = [entry.name for entry in output_dir.iterdir() if entry.name != NOTES_FOLDER]
        if others:
            raise ValueError(f"output_dir={output_dir} holds other files, such as {sorted(others)[0]}. Name a new one.")
        path.parent.mkdir(exist_ok=True)
        write_json(path, wanted)
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in wanted if before.get(name) != wanted[name]]
    if changed:
        name = changed[0]
        what = f"{name}={before.get(name)!r}, and now {name}={wanted[name]!r}"
        if name in ("num_images", "images"):
            what = f"other images ({before.get('num_images')}, and now {wanted['num_images']})"
        raise ValueError(
            f"{output_dir} holds shards of {what}. Name another output_dir, remove this one, or repeat the earlier"
            " command to continue it."
        )


def _facts(notes: Sequence[dict[str, Any]], source: PackSource, settings: PackSettings) -> dict[str, Any]:
    """Content of `pack.json`."""
    files: dict[str, int] = {}
    moments: dict[str, Moments] = {}
    for note in notes:
        for suffix, count in note["files"].items():
            files[suffix] = files.get(suffix, 0) + count
        for kind, values in note["pixels"].items():
            moments[kind] = Moments(**values).joined(moments.get(kind))
    statistics = []
    for kind, values in sorted(moments.items()):
        channels, dtype, white = kind.split()
        # A constant channel gets 1, as in `channel_statistics`; it may have a deviation from rounding.
        pairs = zip(values.squares, values.mean, strict=True)
        found = [(math.sqrt(square / max(values.count, 1)), mean) for square, mean in pairs]
        deviations = [std if std > 1e-7 * abs(mean) else 0.0 for std, mean in found]
        statistics.append(
            {
                "channels": int(channels),
                "dtype": dtype,
                "rescale_factor": f"1/{white}" if white != "1" else "1",
                "images": values.images,
                "image_mean": [value / int(white) for value in values.mean],
                "image_std": [value / int(white) if value else 1.0 for value in deviations],
            }
        )
    feature = source.label_feature
    return {
        "num_images": sum(note["images"] for note in notes),
        "num_unreadable": sum(len(note["unreadable"]) for note in notes),
        "num_shrunk": sum(note["shrunk"] for note in notes),
        "bytes": sum(note["bytes"] for note in notes),
        "files": dict(sorted(files.items())),
        "smallest": min((note["smallest"] for note in notes if note["smallest"]), key=math.prod, default=None),
        "largest": max((note["largest"] for note in notes if note["largest"]), key=math.prod, default=None),
        "statistics": statistics,
        "class_names": feature.names if isinstance(feature, ClassLabel) else None,
        "num_shards": len(notes),
        "settings": settings.as_dict(),
        "versions": {"hf-simmim": importlib.metadata.version("hf-simmim"), "Pillow": PIL.__version__},
    }
