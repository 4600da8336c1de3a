"""Web app: mask patches of a picture, and see what a model predicts there.

    hf-simmim app --checkpoint runs/demo
    hf-simmim app --checkpoint runs/demo runs/longer --compare runs/other --examples my_photos

Choose a masking strategy with its settings, or paint a mask. The page shows the original, the masked image, the
prediction, the composite and the error, with metrics, for one checkpoint or for two below each other; of gradients
(--target hog), the predicted and the true ones. It needs no network, and no picture leaves the machine unless --share
is set. It requires gradio: pip install "hf-simmim[app]".
"""

import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.sources import embedded_data
from ..evaluation.reconstruction import Reconstructor
from ..model.masking import MASK_STRATEGIES
from .app_page import (
    CANVAS,
    PAINTED,
    UNREADABLE,
    ExamplePictures,
    LoadedModels,
    MaskSettings,
    as_gray,
    describe,
    enlarged,
    limited_pictures,
    mask_patch_sizes,
    notes_on,
    panel,
    picture_of,
    ratio_limits,
    reconstruct,
)
from .command import Command, in_words
from .recipes import CommandError

try:
    import gradio as gr
except ImportError as error:
    raise CommandError('the app requires gradio. Install it with: pip install "hf-simmim[app]"') from error

NO_MODEL = "none"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_WAITING = 64  # requests of all visitors
MAX_UPLOAD = "50mb"
TITLE = "# Mask patches, see what the model predicts\nPick a picture, or upload your own. The page updates at once."
MEANING = (
    '<p class="meaning"><b>Masked l1</b> is the mean absolute error of masked pixels on a scale of 0 to 255: lower is'
    " better. <b>Gradient error</b>, of models that predict gradients, is the mean length of the difference between"
    " predicted and true histograms: 0 is exact, 1 what predicting nothing gets. <b>AvgDist</b> is the mean distance of"
    " masked pixels from the nearest visible pixel: the larger, the harder.</p>"
)
STRATEGIES = (
    "square: at a place that the seed chooses. central_square: in the center, whatever the seed. Both mask exactly the"
    " ratio, so a last ring around them may be incomplete."
)
CLEARED = "The picture or the model has changed, so the painted mask was cleared. Paint over the picture again."
NOT_COMPUTED = "This was not computed: a value cannot be read, or too many people wait. Check it and try again."
# Small pictures are enlarged by a whole number, as far as their column allows; 100cqw is its width.
CSS = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; }
#title h1 { font-size: 1.5rem; margin: 0; }
#title p { margin: 0; }
#title p, .meaning, .model header p, .model dt, .model dd small { color: var(--body-text-color-subdued); }
#examples { padding: 32px 8px 8px; }
#examples .gallery-container, #examples .grid-wrap { min-height: 0; max-height: none; height: auto; padding: 0; }
#examples .grid-container { grid: auto-flow auto / repeat(6, minmax(0, 1fr)); gap: 4px; padding: 0; }
#examples .thumbnail-item { border: 0; border-radius: 2px; background: none; height: auto; aspect-ratio: 1; }
#first input, #second input { text-overflow: ellipsis; padding-right: 28px; }
#picture img, #examples img { image-rendering: pixelated; border-radius: 2px; }
#picture img { object-fit: contain; }
#new_mask { align-self: flex-end; }
#results .html-container { padding: 0; }
.model { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 14px 16px; }
.model header { display: flex; flex-wrap: wrap; gap: 6px 28px; align-items: flex-end; justify-content: space-between; }
.model h2 { font-size: 1.1rem; font-weight: 700; margin: 0; overflow-wrap: anywhere; }
.model header p, .model dt, .model dd small, .model figcaption { font-size: .875rem; margin: 0; }
.model dl { display: flex; flex-wrap: wrap; gap: 4px 24px; margin: 0; }
.model dd { font-size: 1.3rem; font-weight: 700; margin: 0; font-variant-numeric: tabular-nums; white-space: nowrap; }
.model dd small { font-weight: 400; }
.model .columns { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 12px; margin-top: 12px; }
.model figure { margin: 0; container-type: inline-size; }
.model figure img { display: block; margin: 4px 0 0; border-radius: 2px; height: auto; width: 100%;
  outline: 1px solid var(--border-color-primary); }
.model figure img.crisp { image-rendering: pixelated; width: max(var(--width), round(down, 100cqw, var(--width))); }
.model figure button, .large button { display: block; border: 0; padding: 0; background: none; color: inherit;
  cursor: zoom-in; text-align: left; width: 100%; }
.model .note { border-left: 4px solid var(--border-color-accent); font-size: .875rem; margin: 10px 0 0;
  padding-left: 8px; }
.model .scale { display: flex; flex-wrap: wrap; justify-content: space-between; font-size: .75rem; margin-top: 6px;
  color: var(--body-text-color-subdued); }
.model .scale div { height: 8px; flex: 0 0 100%; border-radius: 2px; }
.large { position: fixed; inset: 0; width: 100vw; height: 100dvh; max-width: none; max-height: none; margin: 0;
  border: 0; padding: 12px; background: black; }
.large span, .large b { color: white !important; }
.large button { cursor: zoom-out; height: 100%; }
.large img { display: block; width: 100%; height: calc(100% - 40px); object-fit: contain; image-rendering: pixelated; }
.large span { display: block; line-height: 40px; text-align: center; }
.problem { border-left: 4px solid #ea580c; background: color-mix(in srgb, #ea580c 10%, transparent);
  border-radius: 4px; padding: 8px 12px; overflow-wrap: anywhere; }
#results:not(:has(#panel_1)) .columns { grid-template-columns: repeat(3, minmax(0, 1fr)); }
@media (max-width: 700px) {
  #results { order: -1; }
  .model { padding: 12px; }
  .model .columns { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 8px; }
}
"""


@dataclass
class AppArguments:
    """Options of the web app."""

    _argument_group_name = "page"

    checkpoint: list[str] = field(
        default_factory=list, metadata={"help": "Checkpoints to choose from: folders or names on the Hub."}
    )
    compare: list[str] = field(
        default_factory=list, metadata={"help": "More checkpoints, the first shown below the first --checkpoint."}
    )
    examples: str | None = field(
        default=None, metadata={"help": "Folder of example pictures (the embedded ones if unset)."}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on, 0.0.0.0 for the whole network."})
    port: int | None = field(default=None, metadata={"help": "Port (the first free one from 7860 if unset)."})
    share: bool = field(default=False, metadata={"help": "Create a public link through Gradio's server."})
    loading: bool | None = field(
        default=None,
        metadata={"help": "Allow visitors to load other checkpoints (if unset, only if they use this machine)."},
    )
    device: str | None = field(default=None, metadata={"help": "Device, such as cpu (a GPU if available, if unset)."})

    def __post_init__(self):
        if not self.checkpoint:
            raise ValueError("No checkpoint is named. Give --checkpoint, the output folder of a pre-training.")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port={self.port} is out of range. Use a number from 1 to 65535.")


class AppPage:
    """Callbacks of the page; the state of a visitor is passed as arguments.

    Args:
        models: The checkpoints.
        pictures: The example pictures.
    """

    def __init__(self, models: LoadedModels, pictures: ExamplePictures):
        self.models, self.pictures = models, pictures

    def update(
        self,
        source: int | str | None,
        first: str,
        second: str,
        strategy: str,
        ratio: float,
        patch_size: float,
        seed: float,
        painting: dict[str, Any] | None,
        on_canvas: Any = None,
    ) -> list[Any]:
        """Update error message and panel of both models; of a model with an error nothing else is shown.

        Args:
            source: Number of an example, or path of an uploaded file; None if there is no picture.
            first: Name of a checkpoint.
            second: Name of another one, or NO_MODEL.
            strategy: Masking strategy, or PAINTED.
            ratio: Mask ratio, 0 to 1.
            patch_size: Side of a mask patch, in pixels of the first model's image.
            seed: Random seed of the mask.
            painting: Value of `gr.ImageMask`.
            on_canvas: What `canvas` returned last.

        Returns:
            Updates of four components.
        """
        updates: list[Any] = []
        painted = _painted(painting)
        is_cleared = False
        if strategy == PAINTED and on_canvas is not None:
            *shown, old = on_canvas
            # With the new picture gradio may once more send the old painting.
            is_cleared = bool(old) if painted is None else shown != [source, first] or _digest(painted) == old
        for row, name in enumerate((first, second)):
            if name == NO_MODEL:
                updates += [gr.update(visible=False)] * 2
                continue
            try:
                image = self.pictures[source]
                if is_cleared:
                    raise ValueError(CLEARED)
                settings = MaskSettings(strategy, ratio, _whole(patch_size), _whole(seed), painted)
                model = self.models[name]
                if name != first:
                    settings = settings.scaled(self.models[first], model)
                image, is_converted = as_gray(model, image)
                result = reconstruct(model, image, settings)
                size = None if strategy == PAINTED else settings.patch_size
                seen = panel(name, model, result, size, notes_on(settings, result, is_converted), row)
                updates += [gr.update(visible=False), gr.update(value=seen, visible=True)]
            except Exception as error:
                updates += [_problem(f"{name}: {describe(error)}"), gr.update(value="", visible=False)]
        return updates

    def failed(self) -> list[Any]:
        """What `update` shows if it cannot be called, because a value cannot be read or the queue is full."""
        return [_problem(NOT_COMPUTED), *[gr.update(value="", visible=False)] * 3]

    def fit(
        self, first: str, patch_size: float | None, ratio: float | None = None, second: str = NO_MODEL
    ) -> list[Any]:
        """Adapt the sliders of mask patch and mask ratio to the models and to each other.

        Args:
            first: Name of a checkpoint.
            patch_size: Side of a mask patch in pixels. Between two sizes that fit, it becomes the nearest; beyond them,
                the model's default.
            ratio: Mask ratio.
            second: Name of another checkpoint, or NO_MODEL.

        Returns:
            Updates of both sliders, with a value only if it must change: it may have been moved on in the meantime.
        """
        models = [self.models[name] for name in (first, second) if name != NO_MODEL]
        sizes = _patch_size_slider(models[0], patch_size)
        limits = _ratio_slider(models, sizes["value"], ratio)
        for slider, given in ((sizes, patch_size), (limits, ratio)):
            if slider["value"] == given:
                del slider["value"]
        return [gr.update(**sizes), gr.update(**limits)]

    def wipe(
        self, source: int | str | None, first: str, strategy: str, on_canvas: Any, painting: dict[str, Any] | None
    ) -> Any:
        """Note the painting that is lost when picture or model change.

        Args:
            source: Number of an example, or path of an uploaded file; None if there is no picture.
            first: Name of a checkpoint.
            strategy: Masking strategy, or PAINTED.
            on_canvas: What is on the canvas: source, name, and a digest of the painting that was cleared before,
                empty if there was none; None if it was never shown.
            painting: Value of `gr.ImageMask`.

        Returns:
            What is on the canvas.
        """
        if strategy != PAINTED or on_canvas is None or on_canvas[:2] == (source, first):
            return on_canvas
        return None, None, _digest(_painted(painting)) or on_canvas[2]

    def canvas(self, source: int | str | None, first: str, strategy: str, on_canvas: Any) -> list[Any]:
        """Show the settings of the strategies, or the picture to paint on, kept until picture or model change.

        Args:
            source: Number of an example, or path of an uploaded file; None if there is no picture.
            first: Name of a checkpoint.
            strategy: Masking strategy, or PAINTED.
            on_canvas: What is on the canvas, as in `wipe`.

        Returns:
            Updates of the settings and of the canvas, and what is on it.
        """
        if strategy != PAINTED:
            return [gr.update(visible=True), gr.update(visible=False), on_canvas]
        if on_canvas is not None and on_canvas[:2] == (source, first):
            return [gr.update(visible=False), gr.update(visible=True), on_canvas]
        now = (source, first, "" if on_canvas is None else on_canvas[2])
        try:
            picture = enlarged(picture_of(self.models[first], self.pictures[source]), CANVAS)
        except Exception:  # `update` shows the error
            return [gr.update(visible=False), gr.update(value=None, visible=False), now]
        value = {"background": picture, "layers": [], "composite": None}
        return [gr.update(visible=False), gr.update(value=value, visible=True), now]

    def load(self, name: str, names: list[str]) -> list[Any]:
        """Load a checkpoint that a visitor named, and compare the first one with it."""
        name = name.strip()
        try:
            if not name:
                raise ValueError("No checkpoint is named. Give a folder or a name on the Hub.")
            self.models[name]
        except Exception as error:
            return [_problem(describe(error)), *[gr.skip()] * 4]
        names = list(dict.fromkeys([*names, name]))
        choices = gr.update(choices=names), gr.update(choices=[NO_MODEL, *names], value=name)
        return [gr.update(visible=False), names, *choices, ""]


def _whole(value: float | None) -> int:
    if value is None or value != int(value):
        raise ValueError(f"{value} is not a whole number. Mask patch and seed must be whole numbers.")
    return int(value)


def _painted(painting: dict[str, Any] | None) -> np.ndarray | None:
    """The layers of a `gr.ImageMask` as one, (H, W, 4); None if nothing is painted."""
    layers = (painting or {}).get("layers")
    painted = np.maximum.reduce(layers) if layers else None
    return painted if painted is not None and painted[..., -1].any() else None


def _digest(painted: np.ndarray | None) -> str:
    """What a painting is recognized by; empty for none."""
    return "" if painted is None else hashlib.sha256(painted[..., -1].tobytes()).hexdigest()


def _patch_size_slider(model: Reconstructor, value: float | None) -> dict[str, Any]:
    """Settings of the slider of the mask patch, in pixels, with the value that fits."""
    sizes = mask_patch_sizes(model)
    if value is None or not sizes[0] <= value < sizes.stop:
        value = model.processor.mask_patch_size
    nearest = min(sizes, key=lambda size: abs(size - value))
    ends = {"minimum": sizes[0], "maximum": sizes[-1], "step": sizes.step}
    return {"value": nearest, "interactive": len(sizes) > 1, **ends}


def _ratio_slider(models: Sequence[Reconstructor], patch_size: int, value: float | None) -> dict[str, Any]:
    """Settings of the slider of the mask ratio, with the value that all models can do."""
    settings = MaskSettings("random", 0.5, patch_size, 0)
    limits = [ratio_limits(model, settings.scaled(models[0], model).patch_size) for model in models]
    low, high = max(low for low, _ in limits), min(high for _, high in limits)
    low = min(low, high - 0.01)
    if value is None:
        value = float(np.mean(models[0].processor.mask_ratio))  # the middle of a range
    return {"value": min(max(value, low), high), "minimum": low, "maximum": high}


def _problem(text: str) -> Any:
    return gr.update(value=f'<div class="problem" role="alert">{html.escape(text)}</div>', visible=True)


def build_page(models: LoadedModels, pictures: ExamplePictures, compared: str | None = None) -> gr.Blocks:
    """Lay out the page.

    Args:
        models: The checkpoints.
        pictures: The example pictures.
        compared: Checkpoint to show below the first one; none if None.

    Returns:
        The page, ready to launch.
    """
    page, names = AppPage(models, pictures), models.given
    model = models[names[0]]
    processor = model.processor
    shown = [model] if compared is None else [model, models[compared]]
    sizes = _patch_size_slider(model, processor.mask_patch_size)
    limits = _ratio_slider(shown, sizes["value"], None)
    # Uploads older than a day are deleted, once an hour.
    blocks = gr.Blocks(title="SimMIM", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400))
    with blocks:
        source, on_canvas, known, is_empty = gr.State(0), gr.State(None), gr.State(names), gr.State(False)
        gr.Markdown(TITLE, elem_id="title")
        with gr.Row():
            first = gr.Dropdown(names, value=names[0], label="Model", min_width=150, elem_id="first")
            second = gr.Dropdown(
                [NO_MODEL, *names], value=compared or NO_MODEL, label="Compare with", min_width=150, elem_id="second"
            )
            other = gr.Textbox(
                label="Load another checkpoint",
                placeholder="folder, or name on the Hub",
                submit_btn="Load",
                visible=models.loading,
                min_width=300,
                elem_id="other",
            )
        not_loaded = gr.HTML(visible=False, elem_id="not_loaded")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                picture = gr.Image(
                    pictures.shown(0),
                    type="filepath",
                    image_mode=None,
                    format="png",
                    sources=["upload", "clipboard"],
                    label="Picture",
                    height=220,
                    buttons=[],
                    elem_id="picture",
                )
                gallery = gr.Gallery(
                    pictures.thumbnails,
                    format="png",
                    label="Examples",
                    allow_preview=False,
                    object_fit="scale-down",
                    buttons=[],
                    interactive=False,
                    elem_id="examples",
                )
                strategy = gr.Radio(
                    [*MASK_STRATEGIES, PAINTED],
                    value=processor.mask_strategy,
                    label="Mask",
                    info=STRATEGIES,
                    elem_id="strategy",
                )
                with gr.Column() as drawn:
                    ratio = gr.Slider(step=0.01, label="Mask ratio", elem_id="ratio", **limits)
                    patch_size = gr.Slider(label="Mask patch, px", elem_id="patch_size", **sizes)
                    with gr.Row():
                        seed = gr.Number(0, label="Seed", precision=0, min_width=120, elem_id="seed")
                        new_mask = gr.Button("New mask", min_width=120, elem_id="new_mask")
                editor = gr.ImageMask(
                    label="Paint what to mask",
                    sources=[],
                    transforms=[],
                    layers=False,
                    brush=gr.Brush(default_size=20, colors=[("#f97316", 0.7)], color_mode="fixed"),
                    visible=False,
                    elem_id="painting",
                )
            with gr.Column(scale=3, min_width=320, elem_id="results"):
                outputs = [
                    gr.HTML(visible=False, elem_id=f"{part}_{n}") for n in (0, 1) for part in ("problem", "panel")
                ]
                gr.HTML(MEANING)

        def pick(event: gr.SelectData) -> tuple[int, Any]:
            return event.index, pictures.shown(event.index)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # What opens pictures: few at a time, whoever asks, since each takes up to a gigabyte.
        work: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "pictures"}
        # Not `input`, which still gives the old picture after it was removed.
        uploaded = picture.upload(lambda path: path, picture, source, **quiet)
        uploaded.failure(lambda: (UNREADABLE, None), None, [source, picture], **quiet)
        picture.clear(lambda: None, None, source, **quiet)
        # An upload over the size limit leaves the box empty, and is no other event.
        looked = picture.change(lambda value: value is None, picture, is_empty, preprocess=False, **quiet)
        looked.then(_emptied, [is_empty, source], source, **quiet)
        gallery.select(pick, None, [source, picture], **quiet)
        new_mask.click(lambda number: int(number or 0) + 1, seed, seed, **quiet)
        if models.loading:
            named = [not_loaded, known, first, second, other]
            other.submit(page.load, [other, known], named, api_visibility="private")
        strategy.change(_seeds, strategy, [seed, new_mask], **quiet)
        wiped = gr.on(
            [source.change, first.change, strategy.change],
            page.wipe,
            [source, first, strategy, on_canvas, editor],
            on_canvas,
            **quiet,
        )
        wiped.then(page.canvas, [source, first, strategy, on_canvas], [drawn, editor, on_canvas], **quiet | work)
        # Before `update`, where a number beyond the ends, which may be typed, would be an error.
        fitted = gr.on(
            [first.change, second.change, patch_size.change, ratio.change],
            page.fit,
            [first, patch_size, ratio, second],
            [patch_size, ratio],
            trigger_mode="always_last",
            preprocess=False,
            **quiet,
        )
        refresh: dict[str, Any] = {
            "fn": page.update,
            "inputs": [source, first, second, strategy, ratio, patch_size, seed, editor, on_canvas],
            "outputs": outputs,
            "trigger_mode": "always_last",
        }
        changed = [choice.change for choice in (source, strategy, seed, editor)]
        for refreshed in (
            gr.on([blocks.load, editor.input, editor.clear, *changed], **refresh, **quiet, **work),
            fitted.then(**refresh, **quiet, **work),
        ):
            refreshed.failure(page.failed, None, outputs, queue=False, **quiet)
    return blocks.queue(max_size=MAX_WAITING)


def _emptied(is_empty: bool, source: int | str | None) -> Any:
    """No picture, if there is none in the box; that the last one was unreadable is remembered."""
    return None if is_empty and source != UNREADABLE else gr.skip()


def _seeds(strategy: str) -> list[Any]:
    """Seeds can be chosen where the strategy uses them."""
    return [gr.update(interactive=strategy != "central_square")] * 2


def theme() -> gr.themes.Base:
    """Gradio's default theme with its bundled fonts; the semi-bold font of the default lacks most letters."""
    font = (gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif")
    return gr.themes.Default(font=font, font_mono="ui-monospace").set(
        body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400"
    )


def serve(arguments: AppArguments) -> None:
    """Load checkpoints and pictures, and serve the page until interrupted."""
    loading = arguments.loading
    if loading is None:
        loading = arguments.host in LOOPBACK and not arguments.share
    models = LoadedModels([*arguments.checkpoint, *arguments.compare], arguments.device, loading)
    examples = arguments.examples or Path(embedded_data("--examples"), "test.parquet")
    pictures = ExamplePictures(examples, models[models.given[0]])
    with limited_pictures():
        build_page(models, pictures, arguments.compare[0] if arguments.compare else None).launch(
            server_name=arguments.host,
            server_port=arguments.port,
            share=arguments.share,
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            css=CSS,
            theme=theme(),
        )


def run(arguments: AppArguments) -> None:
    """Run the web app until interrupted."""
    with in_words(" ".join(arguments.checkpoint)):
        serve(arguments)


COMMAND = Command(
    name="app",
    usage="--checkpoint NAME [NAME ...] [--compare NAME] [--examples FOLDER] [options]",
    description=__doc__,
    kinds=(AppArguments,),
    run=run,
    common=("checkpoint", "compare", "examples", "host", "port", "share", "loading", "device"),
)
