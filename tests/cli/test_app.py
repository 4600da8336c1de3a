"""The page: the functions behind it, and what a person does with it in a real browser.

`PYTHONPATH=tests/support python tests/cli/test_app.py --screenshot docs/app.png --checkpoint runs/demo` takes the
picture of the documentation; options after the file are those of the page.
"""

import base64
import contextlib
import html
import importlib.util
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import command_line
from paths import EMBEDDED_DATA, ROOT
from PIL import Image
from tiny import swin_config, vit_config

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.__main__ import main
from hf_simmim.cli import app as app_module
from hf_simmim.cli import app_page
from hf_simmim.cli.app_page import CAPTIONS, PAINTED, ExamplePictures, LoadedModels, MaskSettings, panel
from hf_simmim.evaluation.reconstruction import Reconstructor
from hf_simmim.model.masking import MASK_STRATEGIES
from hf_simmim.visualization.pictures import ERROR_LIMIT, MASK_GRAY

SETTINGS = {"strategy": "random", "ratio": 0.5, "patch_size": 8, "seed": 0, "painting": None}


def save_checkpoint(folder: Path, encoder_config, mask_patch_size: int, **settings) -> str:
    """A model with its processor."""
    config = SimMIMConfig(encoder_config=encoder_config, **settings)
    SimMIMForMaskedImageModeling(config).save_pretrained(folder)
    height, width = config.image_size
    processor = SimMIMImageProcessor(
        size={"height": height, "width": width},
        model_patch_size=config.patch_size,
        mask_patch_size=mask_patch_size,
        mask_ratio=0.5,
        image_mean=[0.5] * config.num_channels,
        image_std=[0.25] * config.num_channels,
    )
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two models of other image and patch sizes: grids of 4 x 4 and of 16 x 16."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    return [
        save_checkpoint(folder / "small", vit_config(), 8),
        save_checkpoint(folder / "large", swin_config(image_size=64, patch_size=4), 16),
    ]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of pictures of one color each, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for index, color in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (60, 50), color).save(folder / f"{index}.png")
    (folder / "3.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def app():
    """The script; skipped without gradio."""
    pytest.importorskip("gradio")
    return app_module


@pytest.fixture(scope="module")
def page(app, checkpoints, photos):
    """The functions behind the page."""
    models = LoadedModels(checkpoints, "cpu")
    return app.AppPage(models, ExamplePictures(photos, models[checkpoints[0]]))


def shown(text: str) -> dict:
    """Numbers and pictures of a panel."""
    pictures = re.findall(r'<img [^>]*alt="([^"]+)" src="data:image/png;base64,([^"]+)"', text)
    numbers = dict(re.findall(r"<dt>([^<]+)</dt><dd>(\S+)", text))
    return numbers | {
        name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for name, data in pictures
    }


def updated(page, first, second="none", source=0, **kwargs):
    """What becomes of both models' problem and panel: their text, or None if they are hidden or stay as they are."""
    updates = page.update(source, first, second, **(SETTINGS | kwargs))
    return [update.get("value") if update.get("visible") else None for update in updates]


def test_two_models_get_masks_of_their_own_from_the_same_settings(page, checkpoints):
    """A quarter of the side is 8 of 32 px and 16 of 64 px."""
    small, large = checkpoints
    problem, first, other_problem, second = updated(page, small, large, seed=3)
    assert problem is other_problem is None
    for name, text, patch_size, hidden in ((small, first, 8, "8"), (large, second, 16, "128")):
        result = page.models[name](
            page.pictures[0], mask_strategy="random", mask_ratio=0.5, mask_patch_size=patch_size, seed=3
        )
        seen = shown(text)
        assert seen["Masked patches"] == hidden
        assert seen["Masked l1"] == f"{result.masked_l1.item():.1f}"
        assert seen["AvgDist"] == f"{result.average_distance.item():.1f}"
        assert set(CAPTIONS.values()) < set(seen)
        factor = len(seen["Masked"]) // page.models[name].image_size[0]
        assert np.array_equal(seen["Masked"][::factor, ::factor], result.pictures("masked")[0])


def test_every_choice_changes_the_mask(page, checkpoints):
    """And seeds repeat it."""
    choices = [{}, {"seed": 1}, {"ratio": 0.8}, {"patch_size": 16}]
    choices += [{"strategy": name, "seed": 7} for name in MASK_STRATEGIES]
    masks = {shown(updated(page, checkpoints[0], **choice)[1])["Masked"].tobytes() for choice in choices}
    assert len(masks) == len(choices)
    assert updated(page, checkpoints[0], seed=1) == updated(page, checkpoints[0], seed=1)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"patch_size": 12}, "mask_patch_size=12 px is not a multiple"),
        ({"patch_size": 32}, "masks all units"),
        ({"ratio": 0.99}, "masks all units"),
        ({"patch_size": 8.5}, "8.5 is not a whole number"),
        ({"seed": None}, "None is not a whole number"),
        ({"strategy": PAINTED}, "Nothing is painted"),
        ({"strategy": PAINTED, "painting": {"layers": [np.zeros((8, 8, 4), np.uint8)]}}, "Nothing is painted"),
        ({"source": None}, "There is no picture"),
        ({"source": app_page.UNREADABLE}, "not a readable picture"),
        ({"source": __file__}, "cannot identify image file"),
    ],
)
def test_what_a_model_cannot_do_is_told_instead_of_a_result(page, checkpoints, choice, reason):
    problem, panel, *other = page.update(
        **({"source": 0, "first": checkpoints[0], "second": "none"} | SETTINGS | choice)
    )
    assert problem["visible"]
    assert reason in html.unescape(problem["value"])
    assert (panel["value"], panel["visible"]) == ("", False)
    assert [update["visible"] for update in other] == [False, False]
    problem, *hidden = page.failed()
    assert problem["visible"]
    assert [(update["value"], update["visible"]) for update in hidden] == [("", False)] * 3


def test_a_problem_of_one_model_leaves_the_other_alone(page, checkpoints, monkeypatch):
    """12 px of 32 are 24 of 64, which patches of 4 px can do; and what is no refusal is shown, too."""
    small, large = checkpoints
    problem, first, other_problem, second = updated(page, small, large, patch_size=12)
    assert "not a multiple" in problem
    assert (first, other_problem) == (None, None)
    assert "mask patches of 24 px" in second

    def fail(*args, **kwargs):
        raise RuntimeError("out <of> memory")

    monkeypatch.setattr(page.models[large].model, "forward", fail)
    problem, first, other_problem, second = updated(page, small, large)
    assert "RuntimeError: out &lt;of&gt; memory" in other_problem
    assert (problem, second) == (None, None)
    assert first


def test_models_of_gray_get_color_pictures_in_gray_and_say_so(page, checkpoints, photos, tmp_path):
    """Uploads, pictures in memory and arrays; what is gray already stays as it is, and is not remarked on."""
    gray = save_checkpoint(tmp_path / "gray", vit_config(num_channels=1), 8)
    colors = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "colors.png")
    Image.fromarray(colors[..., 0]).save(tmp_path / "gray.png")
    _, first, _, second = updated(page, checkpoints[0], gray, source=str(tmp_path / "colors.png"))
    assert app_page.CONVERTED not in first
    assert app_page.CONVERTED in second
    expected = np.asarray(Image.fromarray(colors).convert("L"))
    assert np.array_equal(shown(second)["Original"], np.stack([expected] * 3, axis=2))
    seen = updated(page, gray, source=str(tmp_path / "gray.png"))[1]
    assert app_page.CONVERTED not in seen
    assert np.array_equal(shown(seen)["Original"][..., 0], colors[..., 0])
    model = page.models[gray]
    for image in (Image.fromarray(colors), colors, np.moveaxis(colors, -1, 0)):
        converted, is_converted = app_page.as_gray(model, image)
        assert is_converted
        assert np.abs(np.asarray(converted).astype(int) - expected).max() <= 1
    with pytest.raises(ValueError, match="3 channels and 1 is expected"):
        model.processor(Image.fromarray(colors))
    assert len(ExamplePictures(photos, model).rows) == 3


def test_a_square_and_a_central_one_are_told_apart(page, checkpoints):
    """Of sixteen units ten are masked. With the first seed the square happens to be the central one."""
    noted = {}
    for seed in range(8):
        panels = [
            updated(page, checkpoints[0], strategy=name, seed=seed, ratio=0.6)[1]
            for name in ("square", "central_square")
        ]
        drawn, central = (shown(text)["Masked"] for text in panels)
        noted[seed] = app_page.CENTRAL_BY_CHANCE in html.unescape(panels[0])
        assert noted[seed] == np.array_equal(drawn, central)
        assert app_page.CENTRAL_BY_CHANCE not in html.unescape(panels[1])
    assert noted[0]
    assert not all(noted.values())


def test_the_error_map_has_a_scale_and_pictures_open_large(page, checkpoints):
    _, first, _, second = updated(page, *checkpoints)
    for row, text in enumerate((first, second)):
        assert text.count('class="scale"') == 1
        # Black to pale yellow, the ends of the error map's colors.
        assert re.search(r"to right, rgb\(0 0 3\), .*, rgb\(251 252 191\)\)", text)
        assert f"<span>0</span><span>≥ {ERROR_LIMIT} of 255</span>" in text
        assert text.count(f'popovertarget="large_{row}" title="Enlarge"') == 5
        assert text.count(f'id="large_{row}"') == 1


def test_gradients_are_shown_beside_pixels(page, checkpoints, tmp_path):
    gradients = save_checkpoint(tmp_path / "hog", vit_config(), 8, target="hog")
    problem, first, other_problem, second = updated(page, gradients, checkpoints[0])
    assert problem is other_problem is None
    result = page.models[gradients](page.pictures[0], mask_strategy="random", mask_ratio=0.5, mask_patch_size=8, seed=0)
    seen = shown(first)
    assert seen["Gradient error"] == f"{result.gradient_error.item():.2f}"
    assert "Masked l1" in shown(second)
    titles = ["Original", "Masked", "Predicted gradients", "True gradients", "Error map"]
    assert [title for title in seen if isinstance(seen[title], np.ndarray)] == titles
    assert len({seen[title].shape for title in titles}) == 1
    factor = len(seen["True gradients"]) // 64
    assert np.array_equal(seen["True gradients"][::factor, ::factor], result.pictures("target")[0])
    assert "<span>0</span><span>≥ 1 of 1</span>" in first


def test_a_painting_hides_the_patches_it_touches_in_both_models(page, checkpoints):
    painting = np.zeros((100, 100, 4), np.uint8)
    painting[10:40, 5:15] = 200  # rows 0 and 1 of 4, column 0; rows 1 to 6 of 16, columns 0 to 2
    updates = updated(page, *checkpoints, strategy=PAINTED, painting={"layers": [painting], "background": None})
    small, large = (shown(text) for text in (updates[1], updates[3]))
    assert (small["Masked patches"], large["Masked patches"]) == ("2", "18")
    gray = (small["Masked"] == MASK_GRAY).all(axis=2)
    assert gray[:16, :8].all()
    assert gray.sum() == 16 * 8
    everything = np.full((10, 10, 4), 255, np.uint8)
    seen = shown(updated(page, checkpoints[0], strategy=PAINTED, painting={"layers": [everything]})[1])
    assert (seen["Masked patches"], seen["AvgDist"]) == ("16", "n/a")


def test_a_model_that_is_helped_is_said_to_be(page, checkpoints, tmp_path):
    helped = save_checkpoint(tmp_path / "helped", vit_config(), 8, target="normalized_rgb")
    assert "local mean and contrast of the original" in updated(page, helped)[1]
    assert "of the original" not in updated(page, checkpoints[0])[1]


def test_the_mask_patch_follows_the_model(page, checkpoints):
    """A size that the model can do stays, another one becomes the nearest or, if too large, the model's own."""
    small, large = checkpoints
    update, _ = page.fit(large, 8)
    assert [update[key] for key in ("minimum", "maximum", "step")] == [4, 60, 4]
    assert "value" not in update
    assert page.fit(small, 23)[0]["value"] == 24
    for other in (32, 4, None):
        assert page.fit(small, other)[0]["value"] == 8


def test_mask_patches_cover_whole_cells_where_the_encoder_leaves_them_out(page, tmp_path):
    model = save_checkpoint(tmp_path / "visible", swin_config(), 16, encode="visible")
    update, _ = page.fit(model, 4)
    assert [update[key] for key in ("minimum", "step", "value")] == [8, 8, 16]
    assert updated(page, model, patch_size=8)[0] is None


def test_sliders_end_where_masks_do(page, checkpoints):
    """At every mask patch the first and the last ratio are possible; beyond them nothing else or nothing is."""
    for name in checkpoints:
        model = page.models[name]
        for patch_size in app_page.mask_patch_sizes(model):
            _, ratio = page.fit(name, patch_size, 0.5)
            for end in ("minimum", "maximum"):
                problem, seen, *_ = updated(page, name, patch_size=patch_size, ratio=ratio[end])
                assert problem is None
                assert shown(seen)["Masked patches"] != "0"
            assert "masks all units" in updated(page, name, patch_size=patch_size, ratio=ratio["maximum"] + 0.01)[
                0
            ] or (ratio["maximum"] == 0.99)
    assert [page.fit(checkpoints[0], 16, 0.9)[1][key] for key in ("minimum", "maximum", "value")] == [0.25, 0.75, 0.75]
    # Of two models both can do it: 24 of 32 px leave four units, 40 of 64 px too.
    assert page.fit(checkpoints[1], 4, 0.99)[1]["maximum"] == 0.99
    assert page.fit(checkpoints[1], 4, 0.99, checkpoints[0])[1]["maximum"] == 0.93


def test_the_canvas_keeps_a_painting_until_the_picture_is_another_one(page, checkpoints):
    small, large = checkpoints
    drawn, editor, on_canvas = page.canvas(0, small, PAINTED, None)
    assert (drawn["visible"], editor["visible"]) == (False, True)
    background = editor["value"]["background"]
    assert background.size == (256, 256)
    assert background.getpixel((0, 0)) == (255, 0, 0)
    assert "value" not in page.canvas(0, small, PAINTED, on_canvas)[1]
    assert page.canvas(1, small, PAINTED, on_canvas)[1]["value"]["background"].getpixel((0, 0)) == (0, 255, 0)
    assert page.canvas(0, large, PAINTED, on_canvas)[2] != on_canvas
    drawn, editor, kept = page.canvas(0, small, "random", on_canvas)
    assert (drawn["visible"], editor["visible"], kept) == (True, False, on_canvas)


def test_a_painting_is_cleared_with_its_picture_and_that_is_said(page, checkpoints):
    small, _ = checkpoints
    painting = {"layers": [np.full((10, 10, 4), 255, np.uint8)]}
    empty = {"layers": [np.zeros((10, 10, 4), np.uint8)]}
    *_, on_canvas = page.canvas(0, small, PAINTED, None)
    settings = {"strategy": PAINTED, "painting": painting}
    assert updated(page, small, on_canvas=on_canvas, **settings)[1]
    # The old painting comes with the new picture until the canvas is empty.
    assert "was cleared" in updated(page, small, source=1, on_canvas=on_canvas, **settings)[0]
    assert page.wipe(0, small, PAINTED, on_canvas, painting) == on_canvas
    for source in (1, None, app_page.UNREADABLE):
        wiped = page.wipe(source, small, PAINTED, on_canvas, painting)
        _, editor, now = page.canvas(source, small, PAINTED, wiped)
        assert editor["visible"] is (source == 1)
        for canvas in (wiped, now):
            problem = updated(page, small, source=1, strategy=PAINTED, painting=empty, on_canvas=canvas)[0]
            assert "was cleared" in problem
    *_, now = page.canvas(1, small, PAINTED, page.wipe(1, small, PAINTED, on_canvas, painting))
    # Gradio may send the old painting once more, then there is another one.
    assert "was cleared" in updated(page, small, source=1, on_canvas=now, **settings)[0]
    another = {"layers": [np.full((10, 10, 4), 254, np.uint8)]}
    assert updated(page, small, source=1, strategy=PAINTED, painting=another, on_canvas=now)[1]
    # Nothing was lost where nothing was painted.
    *_, now = page.canvas(1, small, PAINTED, page.wipe(1, small, PAINTED, on_canvas, empty))
    assert "Nothing is painted" in updated(page, small, source=1, strategy=PAINTED, painting=empty, on_canvas=now)[0]


def test_visitors_load_checkpoints(page, checkpoints, tmp_path):
    problem, *kept = page.load(str(tmp_path / "nothing"), checkpoints)
    assert "nothing" in problem["value"]
    assert problem["visible"]
    assert all("value" not in update and "choices" not in update for update in kept)
    third = save_checkpoint(tmp_path / "third", vit_config(), 8)
    problem, names, first, second, text = page.load(f" {third} ", checkpoints)
    assert not problem["visible"]
    assert names == [*checkpoints, third]
    assert first["choices"] == [[name, name] for name in names] or first["choices"] == names
    assert second["value"] == third
    assert text == ""
    assert updated(page, checkpoints[0], third)[3]


def test_a_page_without_loading_loads_nothing_and_tells_nothing(app, checkpoints, photos, tmp_path):
    """Requests can name any checkpoint to any event, whatever the page shows."""
    models = LoadedModels(checkpoints[:1], "cpu", loading=False)
    pictures = ExamplePictures(photos, models[checkpoints[0]])
    page = app.AppPage(models, pictures)
    answers = set()
    for name in (checkpoints[1], str(tmp_path), str(tmp_path / "nothing"), "/etc/passwd", "org/model"):
        problems = updated(page, name)[0], updated(page, checkpoints[0], name)[2], page.load(name, [])[0]["value"]
        answers |= {problem.replace(f"{name}: ", "") for problem in problems}
        with pytest.raises(ValueError, match="its own checkpoints only"):
            page.fit(name, 8)
    assert len(answers) == 1
    assert updated(page, checkpoints[0])[1]
    for loading in (True, False):
        models.loading = loading
        functions = [event.fn for event in app.build_page(models, pictures).fns.values()]
        assert any(getattr(function, "__name__", "") == "load" for function in functions) is loading


def test_the_page_is_bounded(app, page, checkpoints, tmp_path, monkeypatch):
    Image.new("1", (11_000, 10_000)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 20_000
    monkeypatch.delenv("HF_SIMMIM_MAX_MEGAPIXELS", raising=False)
    before = Image.MAX_IMAGE_PIXELS
    with app_page.limited_pictures():
        problem = updated(page, checkpoints[0], source=str(tmp_path / "large.png"))[0]
    assert "HF_SIMMIM_MAX_MEGAPIXELS" in problem
    assert before == Image.MAX_IMAGE_PIXELS
    blocks = app.build_page(page.models, page.pictures)
    assert blocks._queue.max_size == app.MAX_WAITING
    opening = {page.update.__name__, page.canvas.__name__}
    events = [event for event in blocks.fns.values() if getattr(event.fn, "__name__", "") in opening]
    assert {(event.concurrency_id, event.concurrency_limit) for event in events} == {("pictures", 2)}
    assert len(events) >= 2


def test_models_are_loaded_once_and_many_visitors_get_their_own_results(checkpoints, photos, app, monkeypatch):
    loaded = []

    class Counted(Reconstructor):
        def __init__(self, checkpoint, device=None):
            loaded.append(checkpoint)
            time.sleep(0.05)
            super().__init__(checkpoint, device)

    monkeypatch.setattr(app_page, "Reconstructor", Counted)
    monkeypatch.setattr(app_page, "MAX_LOADED", 1)
    models = LoadedModels(checkpoints[:1], "cpu")
    page = app.AppPage(models, ExamplePictures(photos, models[checkpoints[0]]))
    choices = [{"seed": seed, "source": seed % 3} for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda choice: updated(page, *checkpoints, **choice), choices))
    assert loaded == checkpoints
    assert not [update[2] for update in together if update[2]]
    for choice, (*_, both) in zip(choices, together, strict=True):
        alone = shown(updated(page, *checkpoints, **choice)[3])
        # Sums differ in their last bit with the place of a tensor in memory.
        assert all(np.abs(shown(both)[name].astype(int) - alone[name]).max() <= 1 for name in CAPTIONS.values())
    assert len({update[3] for update in together}) == 8
    # Of those that visitors bring one stays; what was given stays anyway.
    other = f"{checkpoints[1]}/."
    for name in (other, checkpoints[0], other, checkpoints[1]):
        models[name]
    assert loaded == [*checkpoints, other, checkpoints[1]]


def test_pictures_to_pick(checkpoints, photos, app, tmp_path):
    model = Reconstructor(checkpoints[0], "cpu")
    pictures = ExamplePictures(photos, model)
    assert [picture.getpixel((0, 0)) for picture in pictures.thumbnails] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert pictures.shown(0).size == (256, 256)
    embedded = ExamplePictures(EMBEDDED_DATA / "test.parquet", model)
    assert len(embedded.rows) == 12
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="None of the pictures that were tried in .* can be read"):
        ExamplePictures(tmp_path, model)


def test_small_pictures_are_sent_as_they_are_and_names_are_no_html(page, checkpoints):
    """What enlarges them is the page's style, by whole numbers; larger ones are enlarged without blur."""
    small, large = (page.models[name] for name in checkpoints)
    settings = MaskSettings("random", 0.5, 8, 0)
    result = app_page.reconstruct(small, page.pictures[0], settings)
    text = panel("<i>name</i>", small, result)
    assert "&lt;i&gt;name" in text
    assert text.count('class="crisp" style="--width: 32px"') == 5
    assert np.array_equal(shown(text)["Prediction"], result.pictures("prediction")[0])
    result = app_page.reconstruct(large, page.pictures[0], settings)
    text = panel("name", large, result)
    assert "crisp" not in text
    enlarged = result.pictures("prediction")[0].repeat(6, 0).repeat(6, 1)
    assert np.array_equal(shown(text)["Prediction"], enlarged)


def test_command_line(app, checkpoints, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="error: No checkpoint is named"):
        app.COMMAND.main([])
    with pytest.raises(SystemExit, match="error: .*nothing"):
        app.COMMAND.main(["--checkpoint", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="error: .*does not exist"):
        app.COMMAND.main(["--checkpoint", checkpoints[0], "--examples", str(tmp_path / "nowhere")])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=f"error: .*{port}"):
            app.COMMAND.main(["--checkpoint", checkpoints[0], "--port", port])
    launched = []
    monkeypatch.setattr(app.gr.Blocks, "launch", lambda blocks, **kwargs: launched.append((blocks, kwargs)))
    cases: list[tuple[list[str], bool]] = [([], True), (["--share"], False), (["--share", "--loading", "true"], True)]
    cases += [(["--host", "0.0.0.0"], False), (["--host", "localhost"], True)]
    for options, visible in cases:
        app.COMMAND.main(["--checkpoint", *checkpoints, "--compare", checkpoints[1], *options])
        blocks, settings = launched.pop()
        parts = {part.elem_id: part for part in blocks.blocks.values()}
        assert parts["other"].visible is visible
        assert settings["share"] is ("--share" in options)
        assert settings["server_name"] == (options[1] if "--host" in options else "127.0.0.1")
        assert settings["max_file_size"] == app.MAX_UPLOAD
        assert (parts["first"].value, parts["second"].value) == tuple(checkpoints)
        assert not blocks.analytics_enabled


def test_without_gradio_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_simmim.cli.app", raising=False)
    with pytest.raises(SystemExit, match=re.escape('pip install "hf-simmim[app]"')):
        main(["app", "--checkpoint", "x"])


# In the browser.


@contextlib.contextmanager
def served(options: list[str]):
    """The page as it is run; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "app.py"), "--port", str(port), *options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.stdout))
    reader.start()
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=5).close()
                break
            assert process.poll() is None, "".join(output)
            time.sleep(0.25)
        yield address
    finally:
        process.terminate()
        process.wait(20)
        reader.join(5)
    # Gradio itself tells of an upload that is no picture.
    failures = set(re.findall(r"^(\S*(?:Error|Exception)): ", "".join(output), re.MULTILINE))
    expected = {"PIL.UnidentifiedImageError", "gradio.exceptions.ComponentProcessingError"}
    assert failures <= expected, "".join(output)


@contextlib.contextmanager
def browser():
    """Debian's Chromium, or Chrome, without a window; None if there is none."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None or importlib.util.find_spec("playwright") is None:
        yield None
        return
    from playwright.sync_api import sync_playwright

    switches = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += " disable-component-update disable-sync"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=executable, args=[f"--{switch}" for switch in switches.split()]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def visit(checkpoints, photos):
    """A window on the page, what it asked for, and what it complained about."""
    pytest.importorskip("gradio")
    with browser() as chromium:
        if chromium is None:
            pytest.skip("the page is tested in Chromium, by playwright, and one of them is lacking")
        options = command_line({"checkpoint": checkpoints[0], "examples": photos, "device": "cpu"})
        with served(options) as address:
            window = chromium.new_page(viewport={"width": 1400, "height": 1000})
            requests: list[str] = []
            complaints: list[str] = []
            window.on("request", lambda request: requests.append(request.url))
            window.on("pageerror", lambda error: complaints.append(str(error)))
            window.on(
                "console",
                lambda message: (
                    complaints.append(f"{message.text} {message.location}") if message.type == "error" else None
                ),
            )
            window.set_default_timeout(60_000)
            window.goto(address)
            yield window, requests, complaints


def panel_of(window, row: int = 0) -> str:
    """The HTML of a model's panel, empty if there is none."""
    return window.evaluate("row => document.querySelector(`#panel_${row} .model`)?.outerHTML ?? ''", row)


def after(window, action, row: int = 0, tries: int = 1) -> dict:
    """What a panel shows once an action has changed it; one that can come too early is tried again every 5 seconds."""
    from playwright.sync_api import TimeoutError as NothingChanged

    before = panel_of(window, row)
    for left in reversed(range(tries)):
        action()
        with contextlib.suppress(NothingChanged) if left else contextlib.nullcontext():
            window.wait_for_function(
                "([row, before]) => (document.querySelector(`#panel_${row} .model`)?.outerHTML ?? '') != before",
                arg=[row, before],
                timeout=5000 if left else None,
            )
            break
    window.wait_for_timeout(300)  # several events of one action
    return shown(panel_of(window, row))


def test_a_visit(visit, checkpoints, photos, tmp_path):
    window, requests, complaints = visit
    window.wait_for_selector("#panel_0 .model")
    start = shown(panel_of(window))
    assert start["Masked patches"] == "8"
    assert (start["Original"] == (255, 0, 0)).all()
    assert not window.locator("#panel_1").is_visible()

    # Another picture: an example, then an upload, half black and half white.
    seen = after(window, window.locator("#examples button").nth(1).click)
    assert (seen["Original"] == (0, 255, 0)).all()
    halves = np.zeros((40, 40, 3), np.uint8)
    halves[:, 20:] = 255
    Image.fromarray(halves).save(tmp_path / "halves.png")

    window.get_by_label("Remove Image").click()
    window.get_by_text("There is no picture").wait_for()
    upload = window.locator("#picture input[type=file]")
    # Without a picture there is no result, whether it was removed or cannot be read.
    window.locator("#panel_0 .model").wait_for(state="hidden")
    upload.set_input_files(photos / "3.jpg")
    window.get_by_text("The file is not a readable picture").wait_for()
    assert not window.locator("#panel_0 .model").is_visible()
    seen = after(window, lambda: upload.set_input_files(tmp_path / "halves.png"))
    assert (seen["Original"][:, :14].max(), seen["Original"][:, 18:].min()) == (0, 255)
    # Gradio refuses files over its limit, complains, and empties the box.
    assert complaints == []
    (tmp_path / "large.png").write_bytes(bytes(60_000_000))
    upload.set_input_files(tmp_path / "large.png")
    window.get_by_text("exceed the maximum allowed size").first.wait_for()
    window.locator("#panel_0 .model").wait_for(state="hidden")
    seen = after(window, lambda: upload.set_input_files(tmp_path / "halves.png"))
    complaints.clear()
    assert (seen["Original"][:, :14].max(), seen["Original"][:, 18:].min()) == (0, 255)
    assert not window.locator("#problem_0").is_visible()

    # Ratio, strategy, seed, mask patch.
    ratio = window.locator("#ratio input[type=number]")
    seen = after(window, lambda: (ratio.fill("0.25"), ratio.press("Enter")))
    assert seen["Masked patches"] == "4"
    assert (seen["Masked"] == MASK_GRAY).all(axis=2).sum() == 4 * 64
    distance = seen["AvgDist"]
    seen = after(window, window.get_by_label("central_square").check)
    assert (seen["Masked"][8:24, 8:24] == MASK_GRAY).all()
    assert seen["AvgDist"] != distance
    assert window.locator("#new_mask").is_disabled()
    scattered = [
        after(window, action) for action in (window.get_by_label("random").check, window.locator("#new_mask").click)
    ]
    assert not np.array_equal(scattered[0]["Masked"], scattered[1]["Masked"])
    # Sliders end where masks do, and the ratio follows the mask patch.
    patch_size = window.locator("#patch_size input[type=number]")
    ends = window.locator("#ratio input[type=range]"), window.locator("#patch_size input[type=range]")
    assert [(end.get_attribute("min"), end.get_attribute("max")) for end in ends] == [("0.06", "0.93"), ("8", "24")]
    seen = after(window, lambda: (ratio.fill("0.9"), ratio.press("Enter")))
    assert seen["Masked patches"] == "15"
    seen = after(window, lambda: (patch_size.fill("16"), patch_size.press("Enter")))
    assert (seen["Masked patches"], ratio.input_value()) == ("12", "0.75")
    assert ends[0].get_attribute("max") == "0.75"
    # Typed numbers become the nearest possible ones.
    seen = after(window, lambda: (patch_size.fill("7"), patch_size.press("Enter")))
    assert (seen["Masked patches"], patch_size.input_value()) == ("12", "8")
    seen = after(window, lambda: (ratio.fill("0.99"), ratio.press("Enter")))
    assert (seen["Masked patches"], ratio.input_value()) == ("15", "0.93")
    seen = after(window, lambda: (ratio.fill("0.25"), ratio.press("Enter")))
    assert seen["Masked patches"] == "4"
    assert not window.locator("#problem_0").is_visible()

    # A picture opens large, from the keyboard too.
    button = window.locator("#panel_0 figure button").nth(2)
    for opens, closes in ((button.click, "Enter"), (lambda: button.press("Enter"), "Escape")):
        opens()
        large = window.locator("#large_0 img")
        large.wait_for()
        assert large.get_attribute("src") == button.locator("img").get_attribute("src")
        assert large.bounding_box()["height"] > 800
        window.get_by_text("Prediction · close").wait_for()
        window.screenshot(path=tmp_path / "large.png")
        window.keyboard.press(closes)
        large.wait_for(state="hidden")

    # A second checkpoint, of another size.
    other = window.locator("#other textarea, #other input").first
    other.fill("no/such-model")
    other.press("Enter")
    window.locator("#not_loaded", has_text="no/such-model").wait_for()
    other.fill(checkpoints[1])
    window.locator("#other button").click()
    window.wait_for_selector("#panel_1 .model")
    assert shown(panel_of(window, 1))["Masked patches"] == "64"
    assert not window.locator("#not_loaded").is_visible()
    seen = after(window, lambda: (ratio.fill("0.5"), ratio.press("Enter")), row=1)
    assert seen["Masked patches"] == "128"
    assert shown(panel_of(window))["Masked patches"] == "8"

    # On a phone nothing sticks out, and small pictures are enlarged by whole numbers.
    for width in (390, 1400):
        window.set_viewport_size({"width": width, "height": 844})
        window.wait_for_timeout(300)
        assert window.evaluate("document.documentElement.scrollWidth") <= width
        side = window.locator("#panel_0 img").first.bounding_box()["width"]
        assert side >= 64
        assert side % 32 == 0
        window.screenshot(path=tmp_path / f"{width}.png", full_page=True)

    # Paint a stroke in the middle, and another one.
    window.get_by_label("painted").check()
    window.get_by_text("Nothing is painted").first.wait_for()
    canvas = window.locator("#painting canvas").first

    def stroke(x: float, y: float) -> dict:
        """From the middle; what is painted before the canvas has its picture is lost, and painted again."""

        def paint():
            canvas.scroll_into_view_if_needed()
            box = canvas.bounding_box()
            middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            window.mouse.move(*middle)
            window.mouse.down()
            window.mouse.move(middle[0] + x, middle[1] + y, steps=2)
            window.mouse.up()

        window.wait_for_timeout(1000)
        return after(window, paint, tries=12)

    seen = stroke(20, 0)
    window.screenshot(path=tmp_path / "stroke.png", full_page=True)
    first_stroke = int(seen["Masked patches"])
    gray = (seen["Masked"] == MASK_GRAY).all(axis=2)
    assert 1 <= first_stroke <= 6
    assert gray[16:24, 16:24].all()
    assert not gray[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    seen = stroke(0, 80)
    assert int(seen["Masked patches"]) > first_stroke
    assert (seen["Masked"] == MASK_GRAY).all(axis=2)[-8:, 16:].any()
    assert "mask patches" not in panel_of(window, 1)
    assert int(shown(panel_of(window, 1))["Masked patches"]) > first_stroke
    window.screenshot(path=tmp_path / "painted.png", full_page=True)

    # Another picture clears the painting, and the page says so until there is a new one.
    window.locator("#examples button").nth(2).click()
    for row in (0, 1):
        window.locator(f"#problem_{row}", has_text="the painted mask was cleared").wait_for()
        window.locator(f"#panel_{row} .model").wait_for(state="hidden")
    window.wait_for_timeout(1000)
    assert panel_of(window, 0) == panel_of(window, 1) == ""
    seen = stroke(20, 0)
    assert (seen["Original"] == (0, 0, 255)).all()
    assert 1 <= int(seen["Masked patches"]) <= 6
    assert not window.locator("#problem_1").is_visible()

    away = [url for url in requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:"))]
    assert away == []
    # Gradio looks for the progress of the upload that it refused.
    assert [text for text in complaints if not re.match(r"Response |.*/upload_progress\?", text)] == []


def take_screenshot(path: str, options: list[str]) -> None:
    """The page as it opens, to a file."""
    with browser() as chromium, served(options) as address:
        window = chromium.new_page(viewport={"width": 1400, "height": 900})
        window.goto(address)
        window.wait_for_selector("#panel_0 .model")
        window.wait_for_timeout(1000)
        window.screenshot(path=path, full_page=True)
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    take_screenshot(sys.argv[2], sys.argv[3:])
