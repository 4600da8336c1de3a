"""Write the features of images to a parquet file, and draw nearest neighbors and a 2-D map.

    hf-simmim embed --checkpoint runs/photos --image_dir photos --output_dir runs/features
    hf-simmim embed --checkpoint NAME --dataset_name DATA --layer 8 --pooling mean_std
    hf-simmim embed --checkpoint runs/demo                                  the demo's images, in a checkout

features.parquet has a row for each image: its name, its label if it has one (that of --label_column, or the sub-folder
that it lies in), and its features. neighbours.png shows some images and those most like them; map.png shows images
where t-SNE puts them, framed in the colors of their labels.
"""

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from ..checkpoints.loading import load_encoder, pixel_settings
from ..data.labeled_images import WholeImageDataset
from ..data.sampling import evenly_spaced
from ..data.sources import check_one_source, embedded_data, find_image_column, image_rows, load_images, load_table
from ..evaluation.features import nearest_rows, project, read_features, write_features
from ..evaluation.probing import POOLINGS, check_layers
from ..visualization.grids import draw_map, draw_neighbors
from ..visualization.pictures import to_pictures
from .command import Command, existing, in_words, make_folder

TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class ImageArguments:
    """Where the images come from; the embedded ones if none are named."""

    _argument_group_name = "images"

    image_dir: str | None = field(default=None, metadata={"help": "Folder of images, nested or not."})
    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub, or a local one."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    data_files: list[str] | None = field(
        default=None, metadata={"help": "Parquet or webdataset (.tar) shards: paths, patterns or URLs."}
    )
    split: str | None = field(
        default=None, metadata={"help": "Split of the data set; train if unset, or test of the embedded one."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found by its type."})
    label_column: str | None = field(default=None, metadata={"help": "Column of a data set that the map shows."})
    max_images: int | None = field(default=None, metadata={"help": "Use only this many, spread evenly over them."})

    def __post_init__(self):
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"max_images={self.max_images} leaves no images. Use 1 or more.")
        for name in ("split", "dataset_config", "image_column", "label_column"):
            value = getattr(self, name)
            if value is not None and self.image_dir is not None:
                raise ValueError(f"{name}={value!r} does nothing in a folder. Leave it out.")
        if self.image_dir is None and self.dataset_name is None and self.data_files is None:
            self.dataset_name, self.split = embedded_data("--image_dir"), self.split or "test"
            self.label_column = self.label_column or "label"
        check_one_source(self.image_dir, self.dataset_name, self.data_files)


@dataclass
class FeatureArguments:
    """What is computed and drawn."""

    _argument_group_name = "features"

    checkpoint: str | None = field(
        default=None,
        metadata={"help": "A SimMIM checkpoint, or that of a vision model of transformers: folder or name on the Hub."},
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Side of the images in pixels, or height and width. That of the checkpoint if unset."},
    )
    layer: int | None = field(
        default=None,
        metadata={
            "help": "Hidden state to take, 0 for the patch embedding, -1 for the last; the encoder's output if unset."
            " The paper probes layer 8 of ViT-B."
        },
    )
    pooling: str = field(
        default="mean", metadata={"help": "How an image's features become one vector.", "choices": list(POOLINGS)}
    )
    output_dir: str = field(default="runs/features", metadata={"help": "Folder of features.parquet and the pictures."})
    precision: str = field(default="fp32", metadata={"help": "What is computed in.", "choices": list(TYPES)})
    half: bool = field(default=False, metadata={"help": "Write numbers of 16 bits instead of 32."})
    batch_size: int = field(default=128, metadata={"help": "Images that are encoded at once."})
    num_workers: int = field(default=2, metadata={"help": "Processes that load images."})
    device: str | None = field(default=None, metadata={"help": "Where to compute, such as cpu; a GPU if there is one."})
    num_queries: int = field(default=10, metadata={"help": "Images in neighbours.png; 0 for no picture."})
    num_neighbors: int = field(default=8, metadata={"help": "How many neighbors of each."})
    map: str = field(default="tsne", metadata={"help": "How the map is computed.", "choices": ["tsne", "pca", "none"]})
    map_images: int = field(default=1000, metadata={"help": "Images on the map at most, spread evenly over them."})
    seed: int = field(default=0, metadata={"help": "Of the course of t-SNE."})

    def __post_init__(self):
        if self.checkpoint is None:
            raise ValueError("No checkpoint is named. Give --checkpoint, the output folder of a pre-training.")
        least = {"batch_size": 1, "num_workers": 0, "num_queries": 0, "num_neighbors": 1, "map_images": 3}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {bound}.")
        if self.image_size is not None and (len(self.image_size) > 2 or min(self.image_size) < 1):
            raise ValueError(f"image_size={self.image_size} must be a side, or height and width, in pixels.")


def load_rows(arguments: ImageArguments) -> tuple[Dataset, list[str] | None]:
    """Rows of `name` and undecoded `image`, and the label of each, if there are any."""
    if arguments.image_dir is not None:
        rows = load_images(arguments.image_dir)
        labels = sub_folders(rows["name"], Path(arguments.image_dir))
    else:
        split = arguments.split or "train"
        table = load_table(arguments.dataset_name, arguments.dataset_config, arguments.data_files, split)
        column = find_image_column(table, arguments.image_column)
        name = f"{arguments.dataset_name or ', '.join(arguments.data_files or ())}, {split}"
        rows = image_rows(table, column, name)
        labels = None if arguments.label_column is None else column_labels(table, arguments.label_column)
    if arguments.max_images is not None:
        chosen = evenly_spaced(len(rows), arguments.max_images)
        rows = rows.select(chosen)
        labels = None if labels is None else [labels[index] for index in chosen]
    return rows, labels


def sub_folders(names: list[str], folder: Path) -> list[str] | None:
    """The sub-folder that each file lies in; None if all lie in the same."""
    parts = [Path(name).relative_to(folder).parts for name in names]
    labels = [part[0] if len(part) > 1 else "." for part in parts]
    return labels if len(set(labels)) > 1 else None


def column_labels(table: Dataset, column: str) -> list[str]:
    """The labels of a column as text.

    Raises:
        ValueError: If there is no such column.
    """
    if column not in table.column_names:
        raise ValueError(f"There is no label_column={column!r}. The columns are: {', '.join(table.column_names)}.")
    feature, values = table.features[column], table[column]
    if isinstance(feature, ClassLabel):
        return ["none" if value is None or value < 0 else feature.names[value] for value in values]
    return [str(value) for value in values]


def pictures(dataset: WholeImageDataset, indices: list[int]) -> list[np.ndarray]:
    """Images as uint8 arrays (H, W, 3)."""
    mean, std = dataset.image_mean, dataset.image_std
    return [to_pictures(dataset[index]["pixel_values"][None], mean, std)[0] for index in indices]


def draw(
    path: Path, dataset: WholeImageDataset, rows: list[int], labels: list[str] | None, arguments: FeatureArguments
):
    """Draw the pictures that are asked for.

    Args:
        path: The features.
        dataset: The images.
        rows: The image of each row of the file.
        labels: Of the images.
        arguments: The options.
    """
    output_dir = path.parent
    if arguments.num_queries and len(rows) > 1:
        queries = evenly_spaced(len(rows), arguments.num_queries)
        found, similarities = nearest_rows(path, queries, arguments.num_neighbors)
        neighbors = [pictures(dataset, [rows[row] for row in line]) for line in found.tolist()]
        grid = draw_neighbors(pictures(dataset, [rows[row] for row in queries]), neighbors, similarities)
        grid.save(output_dir / "neighbours.png")
        print(f"{output_dir / 'neighbours.png'}  images, and those most like them")
    if arguments.map != "none" and len(rows) > 2:
        chosen = evenly_spaced(len(rows), arguments.map_images)
        points = project(read_features(path, chosen), arguments.map, arguments.seed)
        indices = [rows[row] for row in chosen]
        shown = None if labels is None else [labels[index] for index in indices]
        draw_map(points, pictures(dataset, indices), shown).save(output_dir / "map.png")
        print(f"{output_dir / 'map.png'}  {len(chosen):,} images where {arguments.map} puts them")


@dataclass(frozen=True)
class EmbeddingResult:
    """Features of images.

    Args:
        path: Parquet file of a row for each image: `name`, `label` if there are labels, and `features`.
        names: Names of the images, row by row.
        unreadable: Names of the images that were left out, with reasons.
        output_dir: Folder of everything.
        pictures: Paths of `neighbors` and `map`, those that were drawn.
    """

    path: Path
    names: list[str]
    unreadable: dict[str, str]
    output_dir: Path
    pictures: dict[str, Path]

    def features(self) -> torch.Tensor:
        """Read all features, as a float32 tensor of shape (N, D)."""
        return read_features(self.path)


def embed_all(images: ImageArguments, arguments: FeatureArguments) -> EmbeddingResult:
    """Compute, write and draw.

    Raises:
        ValueError, OSError: If the checkpoint or the images cannot be used; the message says why and what to do.
    """
    checkpoint, output_dir = str(arguments.checkpoint), make_folder(arguments.output_dir)
    size = arguments.image_size
    geometry = {} if size is None else {"image_size": (size[0], size[-1])}
    model = load_encoder(checkpoint, **geometry)
    check_layers(model.config, [arguments.layer], arguments.pooling)
    rows, labels = load_rows(images)
    config = model.config
    settings = pixel_settings(checkpoint, config.num_channels)
    dataset = WholeImageDataset(rows, config.image_size, config.num_channels, crop_ratio=1, **settings)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = output_dir / "features.parquet"
    description: dict[str, Any] = {
        **{name: getattr(arguments, name) for name in ("checkpoint", "layer", "pooling", "precision")},
        "image_size": list(config.image_size),
        "version": importlib.metadata.version("hf-simmim"),
    }
    written, unreadable = write_features(
        *(model, dataset, path, labels, arguments.layer, arguments.pooling),
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        device=device,
        dtype=TYPES[arguments.precision],
        half=arguments.half,
        description=description,
    )
    for name, reason in unreadable[:5]:
        print(f"left out: {name} ({reason})")
    if unreadable:
        print(f"{len(unreadable)} of {len(dataset)} images cannot be read and are left out.")
    print(f"{path}  features of {len(written):,} images: columns name, {'label, ' if labels else ''}features")
    draw(path, dataset, written, labels, arguments)
    names = [rows[row]["name"] for row in written]
    return EmbeddingResult(path, names, dict(unreadable), output_dir, existing(output_dir, "neighbours.png", "map.png"))


def run(images: ImageArguments, arguments: FeatureArguments) -> EmbeddingResult:
    """Compute the features of all images."""
    with in_words(arguments.checkpoint):
        return embed_all(images, arguments)


COMMAND = Command(
    name="embed",
    usage="--checkpoint NAME [--image_dir FOLDER] [--output_dir FOLDER] [options]",
    description=__doc__,
    kinds=(ImageArguments, FeatureArguments),
    run=run,
    common=(
        *("checkpoint", "image_dir", "dataset_name", "split", "label_column", "max_images", "output_dir"),
        *("image_size", "layer", "pooling", "precision", "batch_size", "map"),
    ),
)
