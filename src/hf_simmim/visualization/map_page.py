"""A 2-D map of features as one HTML file, which opens without a network."""

import base64
import io
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .feature_plots import NO_LABEL_COLOR, OTHER_COLOR, label_colors

MAX_THUMBNAILS = 2000
THUMBNAIL = 72  # pixels
MAX_BYTES = 8_000_000  # of all thumbnails as text

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Map of features</title>
<style>
body { margin: 0 auto; max-width: 1100px; padding: 12px; font: 16px/1.4 system-ui, sans-serif;
  color: #222; background: white; }
h1 { font-size: 1.2rem; margin: 0; }
p { margin: 0 0 8px; color: #555; }
#view { display: grid; grid-template-columns: minmax(0, 1fr) 220px; gap: 12px; align-items: start; }
canvas { width: 100%; max-width: 88vh; aspect-ratio: 1; border: 1px solid #ccc; border-radius: 4px; touch-action: none;
  cursor: crosshair; }
#legend { display: flex; flex-wrap: wrap; gap: 4px; margin: 0 0 8px; }
button { font: inherit; font-size: .875rem; padding: 2px 8px; border: 1px solid #ccc; border-radius: 4px;
  background: white; color: inherit; cursor: pointer; }
button[aria-pressed=true] { background: #e4e4e4; border-color: #555; }
button i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
#card { min-height: 130px; overflow-wrap: anywhere; font-size: .875rem; }
#card img { display: block; width: 100%; max-height: 220px; object-fit: contain; image-rendering: pixelated;
  margin-bottom: 6px; }
#card b { display: block; }
@media (max-width: 700px) {
  #view { grid-template-columns: minmax(0, 1fr); }
  #card { display: grid; grid-template-columns: 110px minmax(0, 1fr); gap: 10px; }
  #card img { margin: 0; }
}
</style>
<h1 id="title"></h1>
<p>Point at a dot, or tap it, to see its picture. The wheel, two fingers and + and &minus; zoom, dragging moves the map,
the arrow keys go from picture to picture, and a class stands out when it is clicked.</p>
<div id="legend"></div>
<div id="view">
<canvas id="map" tabindex="0" role="img" aria-label="Map of the pictures" aria-describedby="card"></canvas>
<div id="card" aria-live="polite"></div>
</div>
<script type="application/json" id="data">DATA</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("map"), context = canvas.getContext("2d");
const card = document.getElementById("card");
const count = data.names.length;
document.getElementById("title").textContent = data.title;
let zoom = 1, left = 0, top_ = 0, chosen = -1, only = null;
const place = i => [(data.x[i] - left) * zoom * canvas.width, (data.y[i] - top_) * zoom * canvas.height];
function draw() {
  const sharpness = devicePixelRatio || 1, side = Math.round(canvas.clientWidth * sharpness);
  if (canvas.width != side) canvas.width = canvas.height = side;
  context.clearRect(0, 0, side, side);
  const radius = Math.min(9, Math.min(3.5, canvas.clientWidth / 180) * Math.sqrt(zoom)) * sharpness;
  for (const front of only === null ? [true] : [false, true])
    for (let i = 0; i < count; i++) {
      if (only !== null && (data.colors[i] == only) != front) continue;
      const [x, y] = place(i);
      if (x < -20 || y < -20 || x > side + 20 || y > side + 20) continue;
      context.globalAlpha = front ? .85 : .12;
      context.fillStyle = data.palette[data.colors[i]][1];
      context.beginPath(); context.arc(x, y, radius, 0, 7); context.fill();
    }
  context.globalAlpha = 1;
  if (chosen >= 0) {
    const [x, y] = place(chosen);
    context.lineWidth = 3 * sharpness; context.strokeStyle = "black";
    context.beginPath(); context.arc(x, y, radius + 3 * sharpness, 0, 7); context.stroke();
  }
}
function show(i) {
  chosen = i;
  const text = document.createElement("div"), parts = [];
  if (data.labels) {
    const label = document.createElement("b"); label.textContent = data.labels[i]; text.append(label);
  }
  text.append(data.names[i]);
  if (data.thumbnails[i]) {
    const picture = new Image(); picture.src = data.thumbnails[i]; picture.alt = ""; parts.push(picture);
  } else text.append(" (its picture is not in this file)");
  card.replaceChildren(...parts, text);
  draw();
}
function nearest(event) {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
  let best = -1, least = (event.pointerType == "touch" ? 30 : 16) * scale;
  for (let i = 0; i < count; i++) {
    if (only !== null && data.colors[i] != only) continue;
    const [a, b] = place(i), distance = Math.hypot(a - x, b - y);
    if (distance < least) { least = distance; best = i; }
  }
  return best;
}
function zoomBy(factor, x = .5, y = .5) {
  const next = Math.min(60, Math.max(1, zoom * factor));
  left += x / zoom - x / next; top_ += y / zoom - y / next; zoom = next;
  keepInside(); draw();
}
function keepInside() {
  left = Math.min(1 - 1 / zoom, Math.max(0, left)); top_ = Math.min(1 - 1 / zoom, Math.max(0, top_));
}
const fingers = new Map();
canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId); fingers.set(event.pointerId, event);
  const found = nearest(event); if (found >= 0) show(found);
});
canvas.addEventListener("pointermove", event => {
  const before = fingers.get(event.pointerId);
  if (!before) { const found = nearest(event); if (found >= 0 && found != chosen) show(found); return; }
  const box = canvas.getBoundingClientRect();
  const others = [...fingers.values()].filter(e => e.pointerId != event.pointerId);
  if (others.length) {
    const span = e => Math.hypot(e.clientX - others[0].clientX, e.clientY - others[0].clientY);
    zoomBy(span(event) / Math.max(1, span(before)), ((event.clientX + others[0].clientX) / 2 - box.left) / box.width,
      ((event.clientY + others[0].clientY) / 2 - box.top) / box.height);
  } else {
    left -= (event.clientX - before.clientX) / box.width / zoom;
    top_ -= (event.clientY - before.clientY) / box.height / zoom;
    keepInside(); draw();
  }
  fingers.set(event.pointerId, event);
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, e => fingers.delete(e.pointerId));
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  const box = canvas.getBoundingClientRect();
  zoomBy(Math.exp(-event.deltaY / 400), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}, {passive: false});
canvas.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  if (step) { event.preventDefault(); show((Math.max(chosen, step < 0 ? 0 : -1) + step + count) % count); }
  if (event.key == "+" || event.key == "-") zoomBy(event.key == "+" ? 1.5 : 1 / 1.5);
});
const legend = document.getElementById("legend");
function button(text, color, action) {
  const made = document.createElement("button");
  if (color) { const dot = document.createElement("i"); dot.style.background = color; made.append(dot); }
  made.append(text); made.addEventListener("click", () => action(made)); legend.append(made);
}
button("+", "", () => zoomBy(1.5)); button("\\u2212", "", () => zoomBy(1 / 1.5));
if (data.labels) data.palette.forEach(([name, color], index) => button(name, color, made => {
  only = only === index ? null : index;
  for (const other of legend.children) other.setAttribute("aria-pressed", other == made && only !== null);
  draw();
}));
addEventListener("resize", draw);
draw();
</script>
</html>
"""


def map_page(
    points: np.ndarray,
    pictures: Sequence[np.ndarray],
    names: Sequence[str],
    labels: Sequence[str] | None = None,
    title: str = "Map of features",
) -> str:
    """Write a map as an HTML page: a dot for each image, whose picture, name and label are shown on demand.

    Args:
        points: Positions (N, 2) in [0, 1].
        pictures: uint8 arrays (H, W, 3). At most MAX_THUMBNAILS are in the page, spread evenly, and fewer if they would
            need more than MAX_BYTES.
        names: Name of each image.
        labels: Label of each image; the most frequent ones have a color.
        title: Heading of the page.

    Returns:
        The page. It loads nothing from elsewhere.
    """
    colors = label_colors(labels or ())
    palette = [*colors.items()]
    if labels is None:
        palette.append(("", NO_LABEL_COLOR))
    elif len(set(labels)) > len(colors):
        palette.append(("other", OTHER_COLOR))
    numbers = {name: index for index, (name, _) in enumerate(palette)}
    thumbnails = [""] * len(points)
    room = MAX_BYTES
    for index in np.linspace(0, len(points) - 1, min(MAX_THUMBNAILS, len(points))).round().astype(int).tolist():
        text = _data_uri(pictures[index])
        room -= len(text)
        if room < 0:
            break
        thumbnails[index] = text
    margin, span = 0.02, 0.96
    data = {
        "title": title,
        "x": (margin + span * points[:, 0]).round(5).tolist(),
        "y": (margin + span * (1 - points[:, 1])).round(5).tolist(),
        "names": list(names),
        "labels": None if labels is None else list(labels),
        "colors": [numbers.get(label, len(palette) - 1) for label in labels or [""] * len(points)],
        "palette": [(name, f"rgb({red} {green} {blue})") for name, (red, green, blue) in palette],
        "thumbnails": thumbnails,
    }
    # In a script element only "<" could end the data.
    return PAGE.replace("DATA", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def _data_uri(array: np.ndarray) -> str:
    """A picture of at most THUMBNAIL pixels as text, in the smaller of two formats."""
    picture = Image.fromarray(array)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 82})):
        file = io.BytesIO()
        picture.save(file, kind, **options)
        encoded[kind] = file.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"
