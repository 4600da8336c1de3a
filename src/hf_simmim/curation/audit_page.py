"""What was found in a folder of images as one HTML page, which opens without a network."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.transforms import upright_size
from ..model.image_readers import Wanted, upright
from ..model.images import convert_channels, is_deep, read_stored
from .audit import Audit
from .facts import Facts

THUMBNAIL = 128  # pixels
# Groups of each kind of finding, images of a group, and images of a finding without groups.
MAX_GROUPS, MAX_MEMBERS, MAX_IMAGES = 24, 6, 24
BARS = 24

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Audit of TITLE</title>
<style>
body { margin: 0 auto; max-width: 1200px; padding: 12px 16px 40px; font: 16px/1.45 system-ui, sans-serif; color: #222;
  background: white; overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; margin: 0 0 8px; }
h2 { font-size: 1.05rem; margin: 28px 0 6px; border-top: 1px solid #ddd; padding-top: 14px; }
p { margin: 0 0 8px; max-width: 46em; }
ul { margin: 0 0 8px; padding-left: 1.2em; max-width: 46em; }
pre { background: #f3f3f3; border-radius: 4px; padding: 10px; white-space: pre-wrap; font-size: .875rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 200px), 1fr)); gap: 16px; }
figure { margin: 0; }
figcaption { font-size: .875rem; color: #555; }
svg { width: 100%; height: auto; display: block; }
.groups { display: flex; flex-wrap: wrap; gap: 10px; }
.group { display: flex; flex-wrap: wrap; gap: 8px; padding: 8px; border: 1px solid #e4e4e4; border-radius: 4px; }
.group figure { width: 128px; }
.group img { display: block; width: 128px; height: 128px; object-fit: contain; background: #f3f3f3; }
.group figcaption { font-size: .75rem; line-height: 1.3; }
.group figure:first-child.kept img { outline: 3px solid #2a7d4f; outline-offset: -3px; }
table { border-collapse: collapse; font-size: .875rem; }
td { padding: 3px 12px 3px 0; vertical-align: top; border-bottom: 1px solid #eee; }
@media (max-width: 500px) { .group figure, .group img { width: 104px; } .group img { height: 104px; }
  .group { flex: 1 1 100%; } }
</style>
<h1>Audit of TITLE</h1>
BODY
</html>
"""


def audit_page(audit: Audit, command: str) -> str:
    """Write the findings as an HTML page.

    Args:
        audit: What was found.
        command: The command of a pre-training that follows.

    Returns:
        The page: the summary, what to set, histograms, and thumbnails of each kind of finding. It loads nothing from
        elsewhere.
    """
    facts = {found.path: found for found in audit.facts}
    left_out = len(audit.excluded())
    parts = ["<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in audit.summary()) + "</ul>"]
    parts.append("<h2>What to set</h2>")
    if left_out:
        parts.append(f"<p>exclude.json lists {left_out:,} images to leave out; {len(facts) - left_out:,} are left.</p>")
    parts.append(f"<pre>{html.escape(command)}</pre>")
    readable = [found for found in audit.facts if found.is_readable]
    if readable:
        parts.append("<h2>Sizes and values</h2>" + _charts(readable))
    folder = os.path.abspath(audit.folder)
    if audit.leaks:
        parts.append(_heading("Also in the other folders", len(audit.leaks), "The second of each pair is there."))
        pairs = []
        for leak in sorted(audit.leaks, key=lambda leak: leak.likeness)[:MAX_GROUPS]:
            words = "equal" if leak.is_exact else f"likeness {leak.likeness:.3f}"
            pairs.append(_group([leak.path, leak.found], facts, folder, notes=("", words)))
        parts.append(_groups(pairs, len(audit.leaks)))
    if audit.near:
        text = "The framed one of each group is kept, and the others are like it. The least alike come first."
        parts.append(_heading("Near duplicates", len(audit.likeness), text))
        ordered = sorted(audit.near, key=lambda group: min(audit.likeness[path] for path in group[1:]))
        drawn = [_near(group, audit, facts, folder) for group in ordered[:MAX_GROUPS]]
        parts.append(_groups(drawn, len(ordered)))
        large = [group for group in sorted(audit.near, key=len, reverse=True) if len(group) > 2][:MAX_IMAGES]
        if large:
            parts.append("<p>The largest groups:</p>")
            parts.append(_groups([_near(group, audit, facts, folder) for group in large], len(large)))
    if audit.exact:
        count = sum(len(group) - 1 for group in audit.exact)
        parts.append(_heading("Exact copies", count, "The framed one of each group is kept."))
        # Large groups cost the most.
        ordered = sorted(audit.exact, key=len, reverse=True)
        drawn = [_group(group, facts, folder, is_kept=True) for group in ordered[:MAX_GROUPS]]
        parts.append(_groups(drawn, len(ordered)))
    if audit.blank:
        parts.append(_heading("Blank images", len(audit.blank), "All pixels are (nearly) equal."))
        parts.append(_group([found.path for found in audit.blank], facts, folder, limit=MAX_IMAGES))
    if audit.unreadable:
        parts.append(_heading("Files that cannot be read", len(audit.unreadable), ""))
        rows = (
            f"<tr><td>{html.escape(_name(found.path, folder))}</td><td>{html.escape(found.error)}</td></tr>"
            for found in audit.unreadable[: 2 * MAX_IMAGES]
        )
        parts.append(f"<table>{''.join(rows)}</table>")
    odd = _extremes([found for found in readable if not found.is_blank])
    if odd:
        parts.append(_heading("Extremes", len(odd), "The smallest, longest, darkest, brightest and flattest images."))
        parts.append(_group([path for path, _ in odd], facts, folder, limit=len(odd), notes=[note for _, note in odd]))
    title = html.escape(audit.folder)
    return PAGE.replace("TITLE", title).replace("BODY", "\n".join(parts))


def _heading(title: str, count: int, text: str) -> str:
    return f"<h2>{title}: {count:,}</h2>" + (f"<p>{text}</p>" if text else "")


def _name(path: str, folder: str) -> str:
    return os.path.relpath(path, folder) if Path(path).is_relative_to(folder) else path


def _groups(drawn: Sequence[str], count: int) -> str:
    more = f"<p>And {count - len(drawn):,} more, in audit.json.</p>" if count > len(drawn) else ""
    return f'<div class="groups">{"".join(drawn)}</div>{more}'


def _near(group: Sequence[str], audit: Audit, facts: dict[str, Facts], folder: str) -> str:
    """A group of near duplicates, the least alike first behind the one that is kept."""
    others = sorted(group[1:], key=lambda path: audit.likeness[path])
    notes = ["kept", *(f"likeness {audit.likeness[path]:.3f}" for path in others)]
    return _group([group[0], *others], facts, folder, is_kept=True, notes=notes)


def _group(
    paths: Sequence[str],
    facts: dict[str, Facts],
    folder: str,
    is_kept: bool = False,
    limit: int = MAX_MEMBERS,
    notes: Sequence[str] = (),
) -> str:
    figures = []
    for index, path in enumerate(paths[:limit]):
        found = facts.get(path)
        lines = [_name(path, folder)]
        if found is not None:
            lines.append(f"{found.width} x {found.height} px, {found.format}")
        if index < len(notes) and notes[index]:
            lines.append(notes[index])
        caption = "<br>".join(map(html.escape, lines))
        picture = _data_uri(path)
        kind = ' class="kept"' if is_kept and index == 0 else ""
        image = f'<img src="{picture}" alt="" loading="lazy">' if picture else ""
        figures.append(f"<figure{kind}>{image}<figcaption>{caption}</figcaption></figure>")
    more = f"<p>and {len(paths) - limit:,} more</p>" if len(paths) > limit else ""
    return f'<div class="group">{"".join(figures)}{more}</div>'


def _extremes(facts: Sequence[Facts]) -> list[tuple[str, str]]:
    """Some of the most unusual images, with what they are."""
    if len(facts) < 10:
        return []
    found: dict[str, str] = {}
    for note, key in (
        ("smallest", lambda one: one.num_pixels),
        ("longest", lambda one: -max(one.height, one.width) / max(1, min(one.height, one.width))),
        ("darkest", lambda one: one.mean),
        ("brightest", lambda one: -one.mean),
        ("flattest", lambda one: one.std),
    ):
        for one in sorted(facts, key=key)[:3]:
            found.setdefault(one.path, note)
    return list(found.items())


def _charts(facts: Sequence[Facts]) -> str:
    """Histograms as drawings in SVG."""
    values: dict[str, list[float]] = {
        "Shorter side in px": [min(found.height, found.width) for found in facts],
        "Width divided by height": [found.width / max(1, found.height) for found in facts],
        "Mean value of an image": [found.mean for found in facts],
        "Standard deviation of an image": [found.std for found in facts],
        "File size in kB": [found.size / 1000 for found in facts],
    }
    return '<div class="charts">' + "".join(_histogram(title, numbers) for title, numbers in values.items()) + "</div>"


def _histogram(title: str, numbers: Sequence[float]) -> str:
    array = np.asarray(numbers, np.float64)
    array = array[np.isfinite(array)]
    if not array.size:
        return ""
    low, high = array.min(), array.max()
    ends = (low, high) if high > low else (low - 0.5, high + 0.5)
    counts, _ = np.histogram(array, BARS, ends)
    width, height = 12, 100
    bars = "".join(
        f'<rect x="{index * width + 1}" y="{height - tall:.1f}" width="{width - 2}" height="{tall:.1f}" fill="#4a78a8">'
        f"<title>{count:,}</title></rect>"
        for index, count in enumerate(counts)
        for tall in [max(height * count / counts.max(), 1 if count else 0)]
    )
    text = 'font-size="11" fill="#555"'
    return (
        f'<figure><svg viewBox="0 0 {BARS * width} {height + 18}" role="img" aria-label="{title}">{bars}'
        f'<line x1="0" y1="{height}" x2="{BARS * width}" y2="{height}" stroke="#999"/>'
        f'<text x="0" y="{height + 14}" {text}>{low:.4g}</text>'
        f'<text x="{BARS * width}" y="{height + 14}" text-anchor="end" {text}>{high:.4g}</text></svg>'
        f"<figcaption>{title}; median {np.median(array):.4g}</figcaption></figure>"
    )


def _data_uri(path: str) -> str:
    """A small picture of a file as text; nothing if it cannot be read any more."""
    try:
        image = read_stored(path, Wanted(num_channels=3, keeps_depth=True)).image
        picture = _picture(image)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    except Exception:  # readers raise anything on a broken file
        return ""
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _picture(image: Image.Image | np.ndarray) -> Image.Image:
    """An image of any kind as a picture of 8 bits, its values stretched if they are deeper."""
    if isinstance(image, Image.Image) and not is_deep(image):
        if max(upright_size(image)) > 2 * THUMBNAIL:
            image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        return convert_channels(upright(image), 3)
    array = np.asarray(upright(image) if isinstance(image, Image.Image) else image, np.float64)
    if array.ndim == 3 and array.shape[0] < array.shape[-1]:
        array = np.moveaxis(array, 0, -1)
    array = np.atleast_3d(array)
    array = array[..., :3] if array.shape[-1] >= 3 else array[..., :1].repeat(3, axis=-1)
    real = array[np.isfinite(array)]
    low, high = np.quantile(real, [0.02, 0.98]) if real.size else (0.0, 1.0)
    stretched = (np.nan_to_num(array, nan=low, posinf=high, neginf=low) - low) * (255 / ((high - low) or 1))
    return Image.fromarray(stretched.clip(0, 255).astype(np.uint8))
