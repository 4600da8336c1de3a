"""Findings about a folder of images: broken and blank files, copies, and images of other folders among them."""

import json
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.sources import image_addresses
from ..formats.parts import mixed_orientations, orientations
from ..formats.slicing import Slicing
from .advice import Advice, advise
from .facts import Facts, Thumbnails, gather
from .likeness import components, similar_pairs, stars
from .parts import part_name, share_of

FACTS_FILE, AUDIT_FILE, EXCLUDE_FILE, GROUPS_FILE = "facts.jsonl", "audit.json", "exclude.json", "groups.json"
# Largest group, as a share of the images and at least, before it is taken for a chain and cut.
LARGEST_GROUP, LEAST_LARGEST = 0.05, 100


@dataclass(frozen=True)
class Leak:
    """An image that is (nearly) in another folder, too.

    Args:
        path: Path of the image.
        found: Path of the image in the other folder.
        is_exact: Whether both files are equal.
        likeness: Correlation of both, at most 1.
    """

    path: str
    found: str
    is_exact: bool
    likeness: float


@dataclass
class Audit:
    """What is in a folder of images.

    Args:
        folder: The folder.
        against: Folders that it was compared with.
        facts: Facts of all images.
        exact: Groups of equal files, the one to keep first.
        near: Groups of images that are alike, the one to keep first, which the others are like. Of equal files only
            one is in there.
        likeness: Correlation of each near duplicate with the one that is kept, by its path.
        leaks: Images that are (nearly) in the other folders.
        groups: Number of the group of each readable image, by path.
        num_cut: Number of groups that were cut, because chains of likeness joined too many images.
        num_unchecked: Number of pairs that were not compared closely, because most images are alike.
        advice: What to set.
        slicing: How volumes, series, stacks and arrays became images.
        orientations: Number of volumes in each orientation as stored, if they are not turned.
    """

    folder: str
    against: list[str]
    facts: list[Facts]
    exact: list[list[str]] = field(default_factory=list)
    near: list[list[str]] = field(default_factory=list)
    likeness: dict[str, float] = field(default_factory=dict)
    leaks: list[Leak] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)
    num_cut: int = 0
    num_unchecked: int = 0
    advice: Advice = field(default_factory=Advice)
    slicing: Slicing = field(default_factory=Slicing)
    orientations: dict[str, int] = field(default_factory=dict)

    @property
    def unreadable(self) -> list[Facts]:
        """Files that cannot be read."""
        return [found for found in self.facts if not found.is_readable]

    @property
    def blank(self) -> list[Facts]:
        """Images of which all pixels are (nearly) equal."""
        return [found for found in self.facts if found.is_readable and found.is_blank]

    def excluded(self) -> dict[str, str]:
        """Images to leave out, with reasons, by path; near duplicates only where likeness is rare."""
        reasons: dict[str, str] = {}
        near = [] if self.num_unchecked else self.near
        for groups, reason in ((near, "near duplicate of"), (self.exact, "copy of")):
            for kept, *others in groups:
                reasons |= dict.fromkeys(others, f"{reason} {kept}")
        reasons |= {leak.path: f"also {leak.found}" for leak in self.leaks if leak.is_exact or not self.num_unchecked}
        # Copies of an image that is left out as nearly another.
        for kept, *others in self.exact:
            if kept in reasons:
                reasons |= dict.fromkeys(others, reasons[kept])
        reasons |= {found.path: "blank" for found in self.blank}
        reasons |= {found.path: f"unreadable: {found.error}" for found in self.unreadable}
        return dict(sorted(reasons.items()))

    def command(self, exclude: str | Path) -> str:
        """The command of a pre-training that follows.

        Args:
            exclude: Path of the list of images to leave out.

        Returns:
            The command, to paste into a shell.
        """
        words = ["hf-simmim", "pretrain", "--train_dir", self.folder]
        if self.excluded():
            words += ["--leave_out", str(exclude)]
        for name, values in self.slicing.options().items():
            words += [f"--{name}", *values]
        for name, value in self.advice.settings.items():
            words += [f"--{name}", value]
        return shlex.join(words)

    def summary(self) -> list[str]:
        """What is in the folder, in sentences."""
        readable = [found for found in self.facts if found.is_readable]
        kinds = f": {describe_facts(readable)}" if readable else ""
        lines = [f"{_many(len(self.facts), 'image')} in {self.folder}{kinds}."]
        if self.unreadable:
            first, files = self.unreadable[0], _many(len(self.unreadable), "file")
            lines.append(f"{files} cannot be read, such as {Path(first.path).name} ({first.error}).")
        if self.blank:
            lines.append(
                f"{_many(len(self.blank), 'image')} of one color only, such as {Path(self.blank[0].path).name}."
            )
        for kind, groups in (("exact duplicate", self.exact), ("near duplicate", self.near)):
            if groups:
                copies = _many(sum(len(group) - 1 for group in groups), kind)
                kept, other = (Path(path).name for path in groups[0][:2])
                inside = _many(len(groups), "group")
                lines.append(f"{copies} of other images, in {inside}, such as {other} of {kept}.")
        if self.leaks:
            leak = self.leaks[0]
            lines.append(
                f"{_many(len({leak.path for leak in self.leaks}), 'image')} (nearly) in {', '.join(self.against)} too,"
                f" such as {Path(leak.path).name}, which is {Path(leak.found).name} there."
            )
        elif self.against:
            lines.append(f"No image is in {', '.join(self.against)} too.")
        if not (self.unreadable or self.blank or self.exact or self.near or self.leaks):
            lines.append("No broken or blank images and no copies were found.")
        if mixed_orientations(self.orientations):
            lines.append(mixed_orientations(self.orientations))
        if self.num_unchecked:
            lines.append(
                "Most images look alike, as pictures of one kind of thing do: near duplicates are listed, but not left"
                f" out. The {self.num_unchecked:,} least likely pairs were not compared."
            )
        if self.num_cut:
            lines.append(
                f"{_many(self.num_cut, 'group')} in {GROUPS_FILE} would have held more than {LARGEST_GROUP:.0%} of the"
                " images, joined by chains of likeness, and were cut: look at them before you split by groups."
            )
        return lines + self.advice.notes


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def describe_facts(facts: Sequence[Facts]) -> str:
    """Formats, sizes, channels and depths in a line.

    Args:
        facts: Facts of readable images, at least one.

    Returns:
        The line.
    """
    parts = [
        _counts(Counter(found.format for found in facts)),
        _counts(Counter(f"{found.channels} channel{'s' * (found.channels > 1)}" for found in facts)),
        _counts(Counter(found.depth for found in facts)),
    ]
    ordered = sorted(facts, key=lambda found: found.num_pixels)
    low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    if (low.height, low.width) == (high.height, high.width):
        parts.append(f"{low.width} x {low.height} px")
    else:
        parts.append(
            f"{low.width} x {low.height} to {high.width} x {high.height} px, median {middle.width} x {middle.height}"
        )
    return "; ".join(parts)


def _counts(numbers: Counter[str]) -> str:
    total = sum(numbers.values())
    if len(numbers) == 1:
        return next(iter(numbers))
    return ", ".join(f"{value} ({count / total:.0%})" for value, count in numbers.most_common(4))


def audit_folder(
    folder: str | Path,
    against: Sequence[str | Path] = (),
    output_dir: str | Path = "runs/audit",
    workers: int = 1,
    max_images: int | None = None,
    progress: bool = True,
    slicing: Slicing | None = None,
    part: str | None = None,
) -> Audit:
    """Look at the images of a folder.

    Args:
        folder: Folder of images, nested or not.
        against: Folders that it is compared with, such as test images.
        output_dir: Existing folder that facts are kept in while they are found, with which a later call continues.
        workers: Number of processes.
        max_images: Largest number of images of each folder, spread evenly; all if None.
        progress: Whether to show a progress bar.
        slicing: How volumes, series, stacks and arrays become images, see `load_images`.
        part: Part of the images to look at, such as `3/16`. Nothing is compared then; a call without it continues with
            the facts of all parts.

    Returns:
        What was found; the facts alone of a part.

    Raises:
        ValueError: If a folder is compared with itself, or holds no images, or the part is none.
        FileNotFoundError: If a folder does not exist.
    """
    own = Path(folder)
    others = [Path(other) for other in against]
    for other in others:
        if other.resolve() == own.resolve():
            raise ValueError(f"against={str(other)!r} is the folder itself. Name a folder of other images.")
    paths = [_spread(image_addresses(own, others, slicing), max_images)]
    paths += [_spread(image_addresses(other, [own], slicing), max_images) for other in others]
    unique = list(dict.fromkeys(os.path.abspath(path) for group in paths for path in group))
    stem, suffix = os.path.splitext(FACTS_FILE)
    file, found = Path(output_dir) / FACTS_FILE, sorted(Path(output_dir).glob(f"{stem}-*-of-*{suffix}"))
    if part is not None:
        file, found = file.with_name(part_name(stem, suffix, part)), []
    chosen = share_of(unique, part)
    with tqdm(total=len(chosen), desc="looking at images", unit="image", disable=not progress) as bar:
        facts, thumbnails = gather(chosen, file, workers, bar.update, found)
    if part is not None:
        return Audit(str(folder), [str(other) for other in against], facts)
    names = [str(other) for other in against]
    audit = Audit(str(folder), names, facts[: len(paths[0])], slicing=slicing or Slicing())
    audit.orientations = dict(Counter(orientations(unique).values()))
    compare(audit, facts[len(paths[0]) :], thumbnails)
    left_out = audit.excluded()
    audit.advice = advise([found for found in audit.facts if found.path not in left_out] or audit.facts)
    return audit


def _spread(paths: Sequence[str], count: int | None) -> Sequence[str]:
    if count is None or count >= len(paths):
        return paths
    return [paths[index] for index in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def compare(audit: Audit, others: Sequence[Facts], thumbnails: Thumbnails) -> None:
    """Find copies among the images of a folder and in other folders.

    Args:
        audit: Facts of the folder; what is found is added.
        others: Facts of the images of the other folders.
        thumbnails: Those of both, one after the other.
    """
    facts = [*audit.facts, *others]
    num_own = len(audit.facts)
    equal: dict[str, list[int]] = defaultdict(list)
    for index, found in enumerate(facts):
        if found.is_readable:
            equal[found.digest].append(index)
    # Of equal files the first one stands for all, those of the folder before those of the others.
    firsts = [indices[0] for indices in equal.values() if not facts[indices[0]].is_blank]
    firsts.sort()
    num_first = sum(index < num_own for index in firsts)
    pairs, audit.num_unchecked = similar_pairs(thumbnails.gray[firsts], thumbnails.colors[firsts], num_first)
    inner = [(one, other) for one, other, _ in pairs if other < num_first]
    groups = stars(num_first, inner, [facts[index].num_pixels for index in firsts[:num_first]])
    audit.near = [[facts[firsts[item]].path for item in group] for group in groups]
    values = {(one, other): value for one, other, value in pairs}
    for kept, *left_out in groups:
        for item in left_out:
            value = values[min(kept, item), max(kept, item)]
            audit.likeness[facts[firsts[item]].path] = min(round(value, 4), 1.0)
    audit.exact = [
        [facts[index].path for index in indices if index < num_own]
        for indices in equal.values()
        if sum(index < num_own for index in indices) > 1
    ]
    leaks: dict[int, Leak] = {}
    for one, other, likeness in sorted(pairs, key=lambda pair: -pair[2]):
        if other >= num_first:
            for index in equal[facts[firsts[one]].digest]:
                if index < num_own:
                    leak = Leak(facts[index].path, facts[firsts[other]].path, False, min(round(likeness, 4), 1.0))
                    leaks.setdefault(index, leak)
    for indices in equal.values():
        outside = [index for index in indices if index >= num_own]
        if outside and not facts[indices[0]].is_blank:
            for index in indices:
                if index < num_own:
                    leaks[index] = Leak(facts[index].path, facts[outside[0]].path, True, 1.0)
    audit.leaks = [leaks[index] for index in sorted(leaks)]
    joined = _joined(num_first, inner, groups, max(LEAST_LARGEST, round(LARGEST_GROUP * num_own)))
    audit.num_cut = joined.pop(-1, 0)
    number = {facts[firsts[item]].digest: group for item, group in joined.items()}
    for found in audit.facts:
        if found.is_readable:
            audit.groups[found.path] = number.setdefault(found.digest, len(facts) + len(number))
    # Numbers without holes, in the order of the files.
    order = {group: index for index, group in enumerate(dict.fromkeys(audit.groups.values()))}
    audit.groups = {path: order[group] for path, group in audit.groups.items()}


def _joined(
    num_items: int, pairs: Sequence[tuple[int, int]], groups: Sequence[Sequence[int]], largest: int
) -> dict[int, int]:
    """Group of each item: all that are joined by pairs; too large ones are cut to stars. -1 has the number of those."""
    roots = components(num_items, pairs)
    sizes = Counter(roots.tolist())
    joined = {item: int(root) for item, root in enumerate(roots)}
    cut = {root for root, size in sizes.items() if size > largest}
    if cut:
        joined |= {item: item for item in joined if joined[item] in cut}
        joined |= {item: group[0] for group in groups if int(roots[group[0]]) in cut for item in group}
    joined[-1] = len(cut)
    return joined


def write_audit(audit: Audit, output_dir: Path) -> None:
    """Write the findings, the list of images to leave out, and the groups.

    Args:
        audit: What was found.
        output_dir: Existing folder.
    """
    excluded = audit.excluded()
    content: dict[str, Any] = {
        "folder": audit.folder,
        "against_folders": audit.against,
        "num_images": len(audit.facts),
        "num_unchecked_pairs": audit.num_unchecked,
        "summary": audit.summary(),
        "settings": audit.advice.settings,
        "command": audit.command(output_dir / EXCLUDE_FILE),
        "unreadable": [{"path": found.path, "reason": found.error} for found in audit.unreadable],
        "blank": [found.path for found in audit.blank],
        "exact_duplicates": audit.exact,
        "near_duplicates": audit.near,
        "likeness": audit.likeness,
        "against": [asdict(leak) for leak in audit.leaks],
        "excluded": excluded,
        "images": [asdict(found) for found in audit.facts],
    }
    for name, value in ((AUDIT_FILE, content), (EXCLUDE_FILE, list(excluded)), (GROUPS_FILE, audit.groups)):
        part = output_dir / f"{name}.part"
        part.write_text(json.dumps(value, indent=1), encoding="utf-8")
        part.replace(output_dir / name)
