"""The map as a page: what is in the file, and what it shows in a browser."""

import base64
import importlib.util
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from hf_simmim.visualization import map_page as map_page_module
from hf_simmim.visualization.map_page import map_page

COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def data_of(page: str) -> dict:
    """What the page knows."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def example(number: int = 3) -> tuple[np.ndarray, list[np.ndarray], list[str], list[str]]:
    """Points on a diagonal, pictures of one color, names and labels."""
    points = np.linspace(0, 1, number)[:, None].repeat(2, axis=1)
    pictures = [np.full((90, 120, 3), COLORS[index % 3], np.uint8) for index in range(number)]
    return (
        points,
        pictures,
        [f"photos/{index}.png" for index in range(number)],
        [f"class {i % 3}" for i in range(number)],
    )


def test_the_page_holds_everything_and_loads_nothing():
    points, pictures, names, labels = example()
    names[1] = "</script><script>alert(1)</script>"
    page = map_page(points, pictures, names, labels, "A map")
    assert not re.search(r"https?:|<link|src=|@import|url\(", page)
    assert page.count("</script>") == 2
    data = data_of(page)
    assert (data["names"], data["labels"], data["title"]) == (names, labels, "A map")
    assert data["x"][0] < data["x"][1] < data["x"][2]
    assert data["y"][0] > data["y"][1] > data["y"][2]
    assert [data["palette"][color][0] for color in data["colors"]] == labels
    for text, color in zip(data["thumbnails"], COLORS, strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(text.split(",")[1]))).convert("RGB")
        assert picture.size == (72, 54)
        assert np.abs(np.array(picture.getpixel((30, 30))) - color).max() <= 3
    assert data_of(map_page(points, pictures, names))["labels"] is None


def test_the_page_is_bounded(monkeypatch):
    """At most so many pictures, of at most so many bytes; noise is the worst case."""
    monkeypatch.setattr(map_page_module, "MAX_THUMBNAILS", 20)
    arguments = example(50)
    thumbnails = data_of(map_page(*arguments))["thumbnails"]
    assert sum(map(bool, thumbnails)) == 20
    assert thumbnails[0]
    assert thumbnails[-1]
    monkeypatch.setattr(map_page_module, "MAX_BYTES", 1000)
    assert 0 < sum(map(len, data_of(map_page(*arguments))["thumbnails"])) <= 1000
    labels = [str(index) for index in range(50)]
    palette = data_of(map_page(*arguments[:3], labels))["palette"]
    assert (len(palette), palette[-1][0]) == (11, "other")


def test_a_dot_shows_its_picture_path_and_class(tmp_path):
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("the page is tested in Chromium, by playwright, and one of them is lacking")
    from playwright.sync_api import sync_playwright

    (tmp_path / "map.html").write_text(map_page(*example()), encoding="utf-8")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for is_phone in (False, True):
            context = chromium.new_context(
                viewport={"width": 390 if is_phone else 1200, "height": 900}, has_touch=is_phone
            )
            window = context.new_page()
            complaints: list[str] = []
            window.on("pageerror", lambda error, complaints=complaints: complaints.append(str(error)))
            window.goto((tmp_path / "map.html").as_uri())
            box = window.locator("canvas").bounding_box()
            middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            (window.touchscreen.tap if is_phone else window.mouse.move)(*middle)
            card = window.locator("#card")
            card.get_by_text("photos/1.png").wait_for()
            assert card.locator("b").inner_text() == "class 1"
            assert card.locator("img").evaluate("image => image.complete && image.naturalWidth") == 72
            window.locator("canvas").press("ArrowRight")
            card.get_by_text("photos/2.png").wait_for()
            assert window.evaluate("document.documentElement.scrollWidth") <= (390 if is_phone else 1200)
            assert complaints == []
        chromium.close()
