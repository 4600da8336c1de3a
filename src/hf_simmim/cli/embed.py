"""Write the features of images to a parquet file, and plot nearest neighbors and a 2-D map.

    hf-simmim embed --checkpoint runs/photos --image_dir photos --output_dir runs/features
    hf-simmim embed --checkpoint NAME --dataset_name DATA --layer 8 --pooling mean_std
    hf-simmim embed --checkpoint runs/demo                                  the demo's images, in a checkout

features.parquet has a row for each image: its name, its label if there is one (from --label_column, or the subfolder of
the file), and its features. neighbours.png shows some images and their nearest neighbors, by cosine similarity of
centered features; map.png shows images at their t-SNE coordinates, in the colors of their labels, and map.html is the
same map to explore in a browser.

With --image_window all windows of a regular grid over large images (whole slides, scenes, mosaics) are embedded;
features.parquet has their places as well, and heatmaps/ shows each image with the first principal components of its
windows on it:

    hf-simmim embed --checkpoint runs/slides --image_dir slides --image_window 512 --min_tissue 0.5
"""

import copy
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from ..checkpoints.loading import load_encoder, pixel_settings
from ..curation.parts import parse_part, part_name
from ..data.labeled.images import WholeImageDataset
from ..data.sampling import evenly_spaced
from ..data.sources import is_missing_label
from ..data.value_range import check_dataset_range
from ..data.windows import grid_rows, level_size, overview_picture, place_columns, short_name
from ..evaluation.feature_parts import ROW, finish_part, finished_parts, join_parts, rows_of_part
from ..evaluation.features import nearest_rows, principal_components, project, read_features, write_features
from ..evaluation.probing import POOLINGS, check_layers
from ..formats.address import parse_address
from ..model.modeling_base import SimMIMModel
from ..visualization.feature_plots import draw_map, draw_neighbors
from ..visualization.heat_maps import draw_heat_map
from ..visualization.map_page import map_page
from ..visualization.pictures import to_pictures
from .command import Command, existing, in_words, make_folder
from .options.images import ImageArguments
from .options.models import ComputeArguments
from .options.parts import PartArguments, run_parts
from .options.windows import GridArguments

FEATURES_FILE = "features.parquet"


@dataclass
class FeatureImageArguments(ImageArguments, GridArguments):
    """Source of the images, and their labels; the embedded ones if none are named."""

    _argument_group_name = "images"

    label_column: str | None = field(default=None, metadata={"help": "Column of labels (none if unset)."})

    def __post_init__(self):
        if not (self.image_dir or self.dataset_name or self.data_files):
            # The embedded images have labels.
            self.label_column = self.label_column or "label"
        super().__post_init__()


@dataclass
class FeatureArguments(PartArguments, ComputeArguments):
    """Options of features and pictures."""

    _argument_group_name = "features"

    checkpoint: str | None = field(
        default=None,
        metadata={"help": "SimMIM checkpoint or vision model of transformers: folder or name on the Hub."},
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Image size in pixels: one side, or height and width (the checkpoint's if unset)."},
    )
    layer: int | None = field(
        default=None,
        metadata={
            "help": "Hidden state to use, 0 for the patch embedding, -1 for the last (the encoder's output if unset)."
            " The paper probes layer 8 of ViT-B."
        },
    )
    pooling: str = field(
        default="mean", metadata={"help": "Pooling of an image's features to one vector.", "choices": list(POOLINGS)}
    )
    output_dir: str = field(default="runs/features", metadata={"help": "Folder of features.parquet and the pictures."})
    half: bool = field(default=False, metadata={"help": "Write features as float16 instead of float32."})
    batch_size: int = field(default=128, metadata={"help": "Images per batch."})
    num_queries: int = field(default=10, metadata={"help": "Number of images in neighbours.png, 0 for no picture."})
    num_neighbors: int = field(default=8, metadata={"help": "Number of nearest neighbors of each image."})
    map: str = field(default="tsne", metadata={"help": "Method of the 2-D map.", "choices": ["tsne", "pca", "none"]})
    heatmap: str = field(
        default="pca",
        metadata={
            "help": "Heat maps of large images with --image_window: pca for the first principal component of the"
            " features, rgb for the first three as colors.",
            "choices": ["pca", "rgb", "none"],
        },
    )
    map_images: int = field(default=1000, metadata={"help": "Largest number of images on the map, spread evenly."})
    seed: int = field(default=0, metadata={"help": "Random seed of t-SNE."})

    def __post_init__(self):
        self.check_part()
        if self.checkpoint is None:
            raise ValueError("No checkpoint is named. Give --checkpoint, the output folder of a pre-training.")
        super().__post_init__()
        least = {"batch_size": 1, "num_queries": 0, "num_neighbors": 1, "map_images": 3}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {bound}.")
        if self.image_size is not None and (len(self.image_size) > 2 or min(self.image_size) < 1):
            raise ValueError(f"image_size={self.image_size} must be a side, or height and width, in pixels.")


def load_rows(arguments: FeatureImageArguments) -> tuple[Dataset, list[str] | None]:
    """Load rows of `name` and undecoded `image`, and the label of each row if there are labels."""
    rows, table = arguments.load()
    labels = None
    if table is None:
        labels = sub_folders(rows["name"], Path(str(arguments.image_dir)))
    elif arguments.label_column is not None:
        labels = column_labels(table, arguments.label_column)
    chosen = arguments.chosen(rows)
    return rows.select(chosen), None if labels is None else [labels[index] for index in chosen]


def sub_folders(names: list[str], folder: Path) -> list[str] | None:
    """The subfolder of each file; None if all files are in the same one."""
    parts = [Path(name).relative_to(folder).parts for name in names]
    labels = [part[0] if len(part) > 1 else "." for part in parts]
    return labels if len(set(labels)) > 1 else None


def column_labels(table: Dataset, column: str) -> list[str]:
    """Read the labels of a column as text.

    Args:
        table: The data set.
        column: Name of the column.

    Returns:
        The label of each row.

    Raises:
        ValueError: If there is no such column.
    """
    if column not in table.column_names:
        raise ValueError(f"label_column={column!r} does not exist. The columns are: {', '.join(table.column_names)}.")
    feature, values = table.features[column], table[column]
    if isinstance(feature, ClassLabel):
        return ["none" if is_missing_label(value) else feature.names[value] for value in values]
    return ["none" if is_missing_label(value) else str(value) for value in values]


def pictures(dataset: WholeImageDataset, indices: list[int]) -> list[np.ndarray]:
    """Images as uint8 arrays (H, W, 3)."""
    mean, std = dataset.image_mean, dataset.image_std
    return [to_pictures(dataset[index]["pixel_values"][None], mean, std)[0] for index in indices]


def draw_heat_maps(
    path: Path, names: list[str], method: str, nodata: float | None = None, num_shown: int = 100
) -> list[Path]:
    """Draw the principal components of the features of windows over their large images.

    Args:
        path: File of the features.
        names: Addresses of the windows, row by row.
        method: "pca" for the first component, "rgb" for the first three as colors.
        nodata: Value of missing pixels.
        num_shown: Largest number of large images that are drawn.

    Returns:
        The pictures, `heatmaps/NAME.png`.
    """
    places = place_columns(names)
    values = principal_components(path, 1 if method == "pca" else 3)
    folder = make_folder(path.parent / "heatmaps")
    files = list(dict.fromkeys(places["path"]))[:num_shown]
    pictures: list[Path] = []
    for file in files:
        rows = [row for row, one in enumerate(places["path"]) if one == file]
        height, width = level_size(file, places["level"][rows[0]])
        # Shares of the image, of any level.
        sides = {"top": height, "left": width, "height": height, "width": width}
        boxes = np.array([[places[key][row] / side for key, side in sides.items()] for row in rows])
        stem = Path(parse_address(file).path).stem
        number = sum(one.stem == stem or one.stem.startswith(f"{stem}_") for one in pictures)
        pictures.append(folder / (f"{stem}_{number}.png" if number else f"{stem}.png"))
        draw_heat_map(overview_picture(file, nodata=nodata), boxes, values[rows], pictures[-1], Path(file).name)
    return pictures


def draw(
    path: Path, dataset: WholeImageDataset, rows: list[int], labels: list[str] | None, arguments: FeatureArguments
):
    """Draw the pictures that the options ask for.

    Args:
        path: File of the features.
        dataset: The images.
        rows: Index of the image of each row of the file.
        labels: Labels of the images, if there are any.
        arguments: The options.
    """
    output_dir = path.parent
    if arguments.num_queries and len(rows) > 1:
        queries = evenly_spaced(len(rows), arguments.num_queries)
        found, similarities = nearest_rows(path, queries, arguments.num_neighbors)
        lines = [[rows[row] for row in (query, *line)] for query, line in zip(queries, found.tolist(), strict=True)]
        classes = None if labels is None else [[labels[index] for index in line] for line in lines]
        names = [list(map(short_name, dataset.images.select_columns("name")[line]["name"])) for line in lines]
        grid = draw_neighbors([pictures(dataset, line) for line in lines], similarities, names, classes)
        grid.save(output_dir / "neighbours.png")
        print(f"{output_dir / 'neighbours.png'}  images and their nearest neighbors")
    if arguments.map != "none" and len(rows) > 2:
        chosen = evenly_spaced(len(rows), arguments.map_images)
        points = project(read_features(path, chosen), arguments.map, arguments.seed)
        indices = [rows[row] for row in chosen]
        shown = None if labels is None else [labels[index] for index in indices]
        method = {"tsne": "t-SNE", "pca": "PCA"}[arguments.map]
        drawn, title = pictures(dataset, indices), f"2-D map of {len(chosen):,} images by {method}"
        draw_map(points, drawn, shown).save(output_dir / "map.png")
        names = dataset.images.select_columns("name")[indices]["name"]
        (output_dir / "map.html").write_text(map_page(points, drawn, names, shown, title), encoding="utf-8")
        print(f"{output_dir / 'map.png'}  {title}")
        print(f"{output_dir / 'map.html'}  the same map, to open in a browser")


@dataclass(frozen=True)
class EmbeddingResult:
    """Result of computing features.

    Args:
        path: Parquet file with a row for each image: `name`, `label` if there are labels, and `features`.
        names: Names of the images, row by row.
        unreadable: Names of the images that were left out, with reasons.
        output_dir: Folder of features and pictures.
        pictures: Paths of `neighbours` and `map`, those that were drawn.
        map_page: Path of the map as an HTML page, if it was drawn.
        heat_maps: Paths of the heat maps of large images, if they were drawn.
    """

    path: Path
    names: list[str]
    unreadable: dict[str, str]
    output_dir: Path
    pictures: dict[str, Path]
    map_page: Path | None = None
    heat_maps: list[Path] = field(default_factory=list)

    def features(self) -> torch.Tensor:
        """Read all features, as a float32 tensor of shape (N, D)."""
        return read_features(self.path)


def describe_features(model: SimMIMModel, arguments: FeatureArguments) -> dict[str, Any]:
    """What the file of the features says about them."""
    return {
        **{name: getattr(arguments, name) for name in ("checkpoint", "layer", "pooling", "precision")},
        "image_size": list(model.config.image_size),
        "version": importlib.metadata.version("hf-simmim"),
    }


def feature_writer(model: SimMIMModel, arguments: FeatureArguments) -> Callable[..., Any]:
    """`write_features` with what the options say; images, file, labels and further columns are left."""
    return partial(
        write_features,
        model,
        layer=arguments.layer,
        pooling=arguments.pooling,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        device=arguments.compute_device,
        dtype=arguments.compute_dtype,
        half=arguments.half,
        description=describe_features(model, arguments),
    )


def embed_part(
    model: SimMIMModel,
    dataset: WholeImageDataset,
    path: Path,
    labels: list[str] | None,
    columns: dict[str, list[Any]] | None,
    arguments: FeatureArguments,
) -> EmbeddingResult:
    """Compute the features of a part of the images.

    Args:
        model: The model.
        dataset: All images.
        path: File of the features of all images.
        labels: Label of each image.
        columns: Further columns.
        arguments: The options.

    Returns:
        The result: a file of its own.
    """
    part = str(arguments.part)
    rows = rows_of_part(len(dataset), arguments.batch_size, *parse_part(part))
    own = path.with_name(part_name(path.stem, path.suffix, part))
    values = {**(columns or {}), ROW: list(range(len(dataset)))}
    chosen = copy.copy(dataset)
    chosen.images = dataset.images.select(rows)
    description, unreadable, written = describe_features(model, arguments), list[tuple[str, str]](), list[int]()
    if rows:
        given = {name: [column[row] for row in rows] for name, column in values.items()}
        of_rows = None if labels is None else [labels[row] for row in rows]
        written, unreadable = feature_writer(model, arguments)(chosen, own, of_rows, columns=given)
    finish_part(own, {**description, "batch_size": arguments.batch_size}, rows, unreadable)
    print(f"{own}  features of {len(written):,} images. After all parts, run the command without --part.")
    return EmbeddingResult(own, chosen.images[written]["name"], dict(unreadable), path.parent, {})


def embed_all(images: FeatureImageArguments, arguments: FeatureArguments) -> EmbeddingResult:
    """Compute and write features, and draw pictures.

    Args:
        images: Source of the images.
        arguments: The other options.

    Returns:
        The result.

    Raises:
        ValueError, OSError: If the checkpoint or the images cannot be used; the message says why and what to do.
    """
    checkpoint, output_dir = str(arguments.checkpoint), make_folder(arguments.output_dir)
    size = arguments.image_size
    geometry = {} if size is None else {"image_size": (size[0], size[-1])}
    model = load_encoder(checkpoint, **geometry)
    check_layers(model.config, [arguments.layer], arguments.pooling)
    config = model.config
    settings = pixel_settings(checkpoint, config.num_channels)
    windows = images.window_settings(settings.get("nodata"))
    rows, labels = load_rows(images)
    columns = None
    if windows is not None:
        rows, owners, without = grid_rows(rows, windows)
        labels = None if labels is None else [labels[owner] for owner in owners]
        columns = place_columns(rows["name"][:])
        for name, reason in without[:5]:
            print(f"no windows: {name} ({reason})")
    dataset = WholeImageDataset(rows, config.image_size, config.num_channels, crop_ratio=1, **settings)
    check_dataset_range(dataset)
    path = output_dir / FEATURES_FILE
    if arguments.part is not None:
        return embed_part(model, dataset, path, labels, columns, arguments)
    description = describe_features(model, arguments)
    parts = finished_parts(output_dir, path.stem, description, len(dataset), arguments.batch_size)
    if parts:
        written, unreadable = join_parts(parts, path, arguments.batch_size, description)
    else:
        written, unreadable = feature_writer(model, arguments)(dataset, path, labels, columns=columns)
    for name, reason in unreadable[:5]:
        print(f"left out: {name} ({reason})")
    if unreadable:
        print(f"{len(unreadable)} of {len(dataset)} images cannot be read and are left out.")
    kind, others = ("images", "") if columns is None else ("windows", f"{', '.join(columns)}, ")
    print(f"{path}  features of {len(written):,} {kind}: columns name, {'label, ' if labels else ''}{others}features")
    draw(path, dataset, written, labels, arguments)
    names = [rows[row]["name"] for row in written]
    heat_maps: list[Path] = []
    if columns is not None and arguments.heatmap != "none" and len(names) > 2:
        heat_maps = draw_heat_maps(path, names, arguments.heatmap, settings.get("nodata"))
        print(f"{output_dir / 'heatmaps'}  principal components of the windows over each image")
    drawn, page = existing(output_dir, "neighbours.png", "map.png"), existing(output_dir, "map.html").get("map")
    return EmbeddingResult(path, names, dict(unreadable), output_dir, drawn, page, heat_maps)


def run(images: FeatureImageArguments, arguments: FeatureArguments) -> EmbeddingResult:
    """Compute the features of all images."""
    with in_words(arguments.checkpoint):
        run_parts(arguments, partial(run, images), num_gpus=1)
        return embed_all(images, arguments)


COMMAND = Command(
    name="embed",
    usage="--checkpoint NAME [--image_dir FOLDER] [--output_dir FOLDER] [options]",
    description=__doc__,
    kinds=(FeatureImageArguments, FeatureArguments),
    run=run,
    common=(
        *("checkpoint", "image_dir", "dataset_name", "split", "label_column", "max_images", "output_dir"),
        *("image_size", "layer", "pooling", "precision", "batch_size", "map", "image_window", "min_tissue"),
    ),
)
